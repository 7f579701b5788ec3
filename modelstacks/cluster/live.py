"""What the servers of a stack say of themselves now: requests, tokens, cache, and how far a loading one has come."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from modelstacks.catalog.versions import EngineForm
from modelstacks.cluster import forward, pods
from modelstacks.cluster.connection import ApiError, Cluster, Kind, Manifest
from modelstacks.cluster.snapshot import condition, labels_of
from modelstacks.errors import ClusterError
from modelstacks.plan import Plan

_AT_ONCE = 8
_LOG_LINES = 200
# Of vLLM's loader and of this project's own fetching.
_LOADING = re.compile(r"checkpoint shards:\s+(\d+)%|^weights: (\d+) %", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Reading:
    """One server's own numbers. Totals count since its start; `cache_tokens` is what its KV cache really holds."""

    pod: str
    running: float
    waiting: float
    kv_cache: float | None
    prompt_tokens: float
    output_tokens: float
    cache_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """All servers together. Rates are of the seconds between two readings, None where one answered only once."""

    servers: int
    running: float
    waiting: float
    kv_cache: float | None
    output_tokens_per_s: float | None
    prompt_tokens_per_s: float | None
    cache_tokens: int | None
    silent: tuple[str, ...] = ()


def read(text: str, pod: str, form: EngineForm) -> Reading:
    """One server's exposition. Raises ClusterError when it is none."""
    from prometheus_client.parser import text_string_to_metric_families

    totals: dict[str, float] = {}
    highest: dict[str, float] = {}
    cache_tokens = None
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
                highest[sample.name] = max(highest.get(sample.name, 0.0), sample.value)
                if sample.name == "vllm:cache_config_info":
                    cache_tokens = _cache_tokens(sample.labels)
    except ValueError as error:
        raise ClusterError(f"the metrics of pod {pod} cannot be read: {error}") from None
    names = form.metrics
    # Of an idle engine nothing may be there, but nothing of another one either.
    kind = re.match(r"[a-z]+[:_]", names.running)
    silent = names.silent_when_idle and kind is not None and all(name.startswith(kind[0]) for name in totals)
    if names.running not in totals and not silent:
        raise ClusterError(f"the metrics of pod {pod} lack {names.running}: it is no {form.engine} {form.version}")
    return Reading(
        pod,
        running=totals.get(names.running, 0.0),
        waiting=totals.get(names.waiting, 0.0),
        kv_cache=None if names.kv_cache is None else highest.get(names.kv_cache, 0.0 if silent else None),
        prompt_tokens=totals.get(names.prompt_tokens, 0.0),
        output_tokens=totals.get(names.output_tokens, 0.0),
        cache_tokens=cache_tokens,
    )


def _cache_tokens(labels: dict[str, str]) -> int | None:
    try:
        return int(labels["block_size"]) * int(labels["num_gpu_blocks"]) or None
    except (KeyError, ValueError):
        return None


def servers(plan: Plan, own: list[Manifest]) -> list[str]:
    """Ready pods that have the API."""
    wanted = plan.tier_form.service_labels
    return [
        str(pod["metadata"]["name"]) for pod in own if pods.is_ready(pod) and wanted.items() <= labels_of(pod).items()
    ]


def traffic(
    cluster: Cluster,
    plan: Plan,
    names: list[str],
    form: EngineForm,
    between_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Traffic | None:
    """Two readings of every server, `between_s` apart; None where no server is ready."""
    if not names:
        return None
    silent: list[str] = []

    def one(name: str) -> Reading | None:
        try:
            return read(forward.get(cluster, plan.namespace, name, form.port, "/metrics"), name, form)
        except ClusterError as error:
            silent.append(f"{name}: {error.message}")
            return None

    with ThreadPoolExecutor(_AT_ONCE) as at_once:
        before = {reading.pod: reading for reading in at_once.map(one, names) if reading is not None}
        began = time.monotonic()
        sleep(between_s)
        after = [reading for reading in at_once.map(one, list(before)) if reading is not None]
    took = time.monotonic() - began
    caches = [reading.kv_cache for reading in after if reading.kv_cache is not None]
    sizes = [reading.cache_tokens for reading in after if reading.cache_tokens is not None]

    def rate(name: str) -> float | None:
        grown = [getattr(now, name) - getattr(before[now.pod], name) for now in after]
        # A server that began anew counts from zero.
        return sum(max(0.0, one) for one in grown) / took if after and took > 0 else None

    return Traffic(
        # Each node of a Ray cluster answers for its part of one server.
        servers=math.ceil(len(after) / plan.answering_pods),
        running=sum(reading.running for reading in after),
        waiting=sum(reading.waiting for reading in after),
        kv_cache=max(caches, default=None),
        output_tokens_per_s=rate("output_tokens"),
        prompt_tokens_per_s=rate("prompt_tokens"),
        cache_tokens=min(sizes, default=None),
        silent=tuple(dict.fromkeys(silent)),
    )


def progress(cluster: Cluster, plan: Plan, pod: Manifest) -> int | None:
    """Percent of the weights that a pod has loaded or fetched, by its own log; None where that says nothing."""
    name = pod["metadata"]["name"]
    containers = [c["name"] for c in [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]]
    for container in reversed(containers):
        path = f"{cluster.path(Kind('v1', 'Pod'), plan.namespace, name)}/log"
        with contextlib.suppress(ApiError):
            text = cluster.text("GET", path, {"container": container, "tailLines": str(_LOG_LINES)})
            found = _LOADING.findall(text)
            if found:
                return int(found[-1][0] or found[-1][1])
    return None


def seconds_to_ready(pod: Manifest) -> float | None:
    """Seconds that a ready pod took from its container's start; None where that is not told."""
    ready = condition(pod, "Ready")
    states = (pod.get("status") or {}).get("containerStatuses") or []
    began = next(((c.get("state") or {}).get("running") or {}).get("startedAt") for c in states) if states else None
    if ready.get("status") != "True" or began is None:
        return None
    try:
        start = datetime.datetime.fromisoformat(began)
        return max(0.0, (datetime.datetime.fromisoformat(ready["lastTransitionTime"]) - start).total_seconds())
    except (KeyError, ValueError):
        return None
