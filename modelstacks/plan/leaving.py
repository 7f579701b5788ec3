"""How a server is told to go: time for routers to forget it, and then for answers that have begun."""

from __future__ import annotations

import math

from modelstacks.catalog import CloudKind
from modelstacks.fit import Load
from modelstacks.plan.values import Leaving
from modelstacks.spec import StackSpec
from modelstacks.throughput import Throughput

# Time for load balancers and routers to stop sending before the engine is told to stop.
PRE_STOP_S = 15
# Between the engine's own end and the kubelet's patience.
MARGIN_S = 15
# The Cluster Autoscaler waits for a leaving pod this long by default (--max-graceful-termination-sec), GKE's at most.
GRACE_AT_MOST_S = 600
# Over several nodes every pod sleeps the whole time, busy or not: a group ends as one.
_SEVERAL_NODES_DRAIN_S = 60
_LEAST_DRAIN_S = 30
# Real steps are slower than the mean when the batch is full or prompts come in between.
_SLOWER = 1.5
# Where no speed is known: a reader's pace.
_UNKNOWN_TOKEN_S = 0.1


def leaving(
    spec: StackSpec, load: Load, speed: Throughput | None, kind: CloudKind | None, *, several_nodes: bool, spot: bool
) -> Leaving:
    """The longest answer that the context allows, at the pace of a full batch, within what node drains wait for."""
    token_s = speed.concurrency / speed.output_tokens_per_s * _SLOWER if speed is not None else _UNKNOWN_TOKEN_S
    # A prompt has at least one token.
    longest = load.context - 1
    most = _SEVERAL_NODES_DRAIN_S if several_nodes else GRACE_AT_MOST_S - PRE_STOP_S - MARGIN_S
    drain_s = min(max(math.ceil(longest * token_s), _LEAST_DRAIN_S), most)
    if spec.drain_seconds is not None:
        drain_s = spec.drain_seconds

    def tokens(seconds: float) -> int:
        return max(0, min(longest, int(seconds / token_s)))

    notice_s = kind.spot_notice_s if kind is not None and spot else None
    return Leaving(
        pre_stop_s=PRE_STOP_S,
        drain_s=drain_s,
        grace_s=PRE_STOP_S + drain_s + MARGIN_S,
        token_s=round(token_s, 4),
        tokens=tokens(drain_s),
        whole=tokens(drain_s) == longest,
        notice_s=notice_s,
        notice_tokens=None if notice_s is None else tokens(min(drain_s, notice_s - PRE_STOP_S)),
    )
