"""Which nodes may hold a replica: judged from what the cluster has, so that no tensor-parallel group can cross nodes.

vLLM takes bundles of one GPU, and Ray's PACK puts 16 of them on free 4 + 4 + 8 GPUs without a word. Here nodes that
are not wholly free for this application are kept out of the placement group, and what was placed is checked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from modelstacks_ray.errors import PlanError
from modelstacks_ray.serving_plan import ServingPlan

NODE_ID_LABEL = "ray.io/node-id"
_TYPE_LABEL = "ray.io/accelerator-type"
_TYPE_RESOURCE = "accelerator_type:"
# Serve names the placement groups of its replicas so.
_OWN_GROUPS = "SERVE_REPLICA::"


@dataclass(frozen=True)
class Node:
    """One live node with GPUs. `free` counts those that are idle or held by this application."""

    id: str
    name: str
    types: tuple[str, ...]
    gpus: int
    free: int


@dataclass(frozen=True)
class Verdict:
    """Nodes that may not be used, and why there are too few others; `missing` when more nodes may still come."""

    unfit: tuple[str, ...]
    lacking: str | None
    missing: bool


def live_nodes() -> list[Node]:
    """The nodes with GPUs of the Ray cluster that this process is connected to."""
    import ray
    from ray._private.state import available_resources_per_node
    from ray.util import placement_group_table

    available = available_resources_per_node()  # type: ignore[no-untyped-call]
    own: dict[str, float] = {}
    for group in placement_group_table().values():
        if group["state"] == "CREATED" and group["name"].startswith(_OWN_GROUPS):
            for index, node in group["bundles_to_node_id"].items():
                own[node] = own.get(node, 0) + group["bundles"][index].get("GPU", 0)
    nodes = []
    for entry in ray.nodes():  # type: ignore[no-untyped-call]
        gpus = int(entry["Resources"].get("GPU", 0))
        if not entry["Alive"] or not gpus:
            continue
        node_id = entry["NodeID"]
        free = int(available.get(node_id, {}).get("GPU", 0) + own.get(node_id, 0))
        name = f"{entry.get('NodeName') or entry['NodeManagerAddress']} ({node_id[:8]})"
        nodes.append(Node(node_id, name, types_of(entry["Resources"], entry.get("Labels", {})), gpus, free))
    return sorted(nodes, key=lambda node: node.id)


def types_of(resources: Mapping[str, float], labels: Mapping[str, str]) -> tuple[str, ...]:
    """What Ray calls the GPU of a node; an A100 has two names, one with its memory."""
    named = [name.removeprefix(_TYPE_RESOURCE) for name in resources if name.startswith(_TYPE_RESOURCE)]
    return tuple(sorted({*named, *([labels[_TYPE_LABEL]] if _TYPE_LABEL in labels else [])}))


def judge(plan: ServingPlan, nodes: Iterable[Node]) -> Verdict:
    """Say which nodes are not what the plan assumes, and whether the others are enough."""
    nodes = list(nodes)
    faults = {node.id: fault for node in nodes if (fault := _fault(plan, node)) is not None}
    fit = len(nodes) - len(faults)
    if fit >= plan.nodes:
        return Verdict(tuple(sorted(faults)), None, missing=False)
    what = f"{plan.name} needs {plan.nodes} nodes with {plan.wanted} free each, the cluster has {fit}"
    reasons = [f"{node.name} {faults[node.id]}" for node in nodes if node.id in faults]
    lacking = f"{what}: {'; '.join(reasons)}" if reasons else what
    return Verdict(tuple(sorted(faults)), lacking, missing=len(nodes) < plan.nodes)


def _fault(plan: ServingPlan, node: Node) -> str | None:
    if plan.accelerator_type is not None and plan.accelerator_type not in node.types:
        return f"has {' or '.join(node.types) or 'unknown'} GPUs, not {plan.accelerator_type}"
    if node.gpus != plan.gpus_per_node:
        return f"has {node.gpus} GPUs, not {plan.gpus_per_node}"
    if node.free < node.gpus:
        return f"has {node.free} of {node.gpus} GPUs free, others are taken"
    return None


def await_nodes(
    plan: ServingPlan,
    look: Callable[[], list[Node]] = live_nodes,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, ...]:
    """Wait for the plan's nodes, and return the ids of those that may not be used.

    Nodes that are missing are waited for as long as the plan says. Nodes that are there and are wrong will not change,
    so they are given `settle_s` (registration takes a moment) and then raise PlanError.
    """
    started = clock()
    wrong_since: float | None = None
    said = ""
    while True:
        verdict = judge(plan, look())
        if verdict.lacking is None:
            return verdict.unfit
        now = clock()
        if verdict.lacking != said:
            say(f"waiting: {verdict.lacking}")
            said = verdict.lacking
        wrong_since = None if verdict.missing else (wrong_since or now)
        if wrong_since is not None and now - wrong_since >= plan.settle_s:
            raise PlanError(f"{verdict.lacking}. Give the stack such nodes, or plan it for the ones there are")
        if plan.nodes_within_s is not None and now - started >= plan.nodes_within_s:
            raise PlanError(f"{verdict.lacking}. Look for worker pods that are Pending, and why")
        sleep(1)


def selector(unfit: Iterable[str]) -> list[dict[str, str]] | None:
    """The bundle label selector that keeps `unfit` nodes out; new nodes stay welcome."""
    ids = sorted(unfit)
    return [{NODE_ID_LABEL: f"!in({','.join(ids)})"}] if ids else None


def groups(plan: ServingPlan, node_of_bundle: Mapping[int, str]) -> list[set[str]]:
    """The nodes of each tensor-parallel group: bundles in order, `tensor_parallel` to a group."""
    size = plan.tensor_parallel
    return [{node_of_bundle[rank] for rank in range(start, start + size)} for start in range(0, plan.gpus, size)]


def check_groups(plan: ServingPlan, node_of_bundle: Mapping[int, str]) -> None:
    """Raise PlanError if a tensor-parallel group was placed on more than one node."""
    if sorted(node_of_bundle) != list(range(plan.gpus)):
        raise PlanError(f"{plan.name}: {len(node_of_bundle)} bundles were placed, the plan has {plan.gpus}")
    for index, nodes in enumerate(groups(plan, node_of_bundle)):
        if len(nodes) > 1:
            first = index * plan.tensor_parallel
            held = [node_of_bundle[rank] for rank in range(first, first + plan.tensor_parallel)]
            split = " + ".join(f"{held.count(node)} on {node[:8]}" for node in sorted(nodes))
            text = f"{plan.name}: tensor-parallel group {index} would cross nodes ({split})"
            raise PlanError(f"{text}. Every node must have {plan.wanted} GPUs free for this application alone")
