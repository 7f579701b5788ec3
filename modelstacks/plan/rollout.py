"""How a plan of several nodes is changed once it runs: decided by the GPUs that it may hold beside those that serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelstacks.plan.values import Plan


@dataclass(frozen=True, slots=True)
class Rollout:
    """`new-cluster`: the next is ready before the last one goes; `in-place`: one replica after the other goes first.

    `spare_nodes` may be had beside the replicas' own and the warm ones, `needed_nodes` is what `new-cluster` takes.
    """

    way: Literal["new-cluster", "in-place"]
    spare_nodes: int
    needed_nodes: int
    reason: str


def rollout(plan: Plan) -> Rollout:
    """The way that never asks for GPUs which the stack may not hold.

    Where one apply may change every replica at once, there must be room for a second of each, or for none.
    """
    cloud = plan.spec.cloud
    limit = cloud.limit_gpus if cloud is not None and cloud.limit_gpus is not None else 0
    spare = max(0, limit - plan.gpus_committed) // plan.gpus_per_node
    at_once = plan.spec.replicas_at_most if plan.tier_form.changed_together else 1
    needed = plan.nodes_per_replica * max(1, at_once)
    what = "a second of every replica" if at_once > 1 else "a second replica"
    have = f"the stack may hold {spare} nodes beside those that serve, {what} takes {needed}"
    if plan.spec.replicas and spare >= needed:
        return Rollout("new-cluster", spare, needed, have)
    more = plan.gpus_committed + needed * plan.gpus_per_node
    return Rollout("in-place", spare, needed, f"{have}: modelstacks:cloud.limitGpus: {more} would let it")
