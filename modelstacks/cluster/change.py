"""What applying a stack would do to the pods that run: found by a dry run of the API server, not by comparing text."""

from __future__ import annotations

import copy
from typing import Any

from modelstacks.cluster.connection import ApiError, Cluster, Kind, KindNotFoundError, Manifest
from modelstacks.plan import Plan
from modelstacks.plan.rollout import Rollout, rollout

# The name under which dry runs apply: nothing is ever kept under it.
_MANAGER = "modelstacks-preview"
# Where the pods of a kind come from.
_PODS = {
    "Deployment": ("spec", "template"),
    "RayService": ("spec", "rayClusterConfig"),
    "LeaderWorkerSet": ("spec", "leaderWorkerTemplate"),
}


def words(cluster: Cluster, plan: Plan, manifests: list[Manifest]) -> str | None:
    """One line on what an apply does to replicas: added, removed, restarted; None for a stack that is not there."""
    workloads = [m for m in manifests if m["kind"] == plan.tier_form.kind and m["kind"] in _PODS]
    workloads = [m for m in workloads if m["metadata"]["name"] != f"{plan.name}-spare"]
    live = {m["metadata"]["name"]: _live(cluster, m) for m in workloads}
    there = {name: found for name, found in live.items() if found is not None}
    if not there:
        return None
    change = rollout(plan)
    gpus = plan.choice.topology.gpus
    restarted = [m for m in workloads if m["metadata"]["name"] in there and _restarts(cluster, m, there)]
    said = []
    if restarted:
        said.append(_restarted(plan, change, restarted, there))
    before = sum(_replicas(found) for found in there.values())
    after = sum(_replicas(m) for m in workloads) if plan.spec.autoscale is None else before
    if after > before:
        more = after - before
        text = f"adds {more} replica{'s' * (more != 1)}, {more * gpus} GPU{'s' * (more * gpus != 1)} more"
        said.append(f"{text}, ready in up to {round(plan.timeouts.ready_s / 60)} minutes")
    elif after < before:
        less = before - after
        said.append(f"takes {less} replica{'s' * (less != 1)} away, {less * gpus} GPU{'s' * (less * gpus != 1)} less")
    return "; ".join(said) or "restarts no pod"


def _restarted(plan: Plan, change: Rollout, restarted: list[Manifest], there: dict[str, Manifest]) -> str:
    """The plan's words, for as many replicas as really run."""
    running = sum(_replicas(there[m["metadata"]["name"]]) for m in restarted)
    if running == plan.spec.replicas or change.steps == 0:
        return change.words
    step_s = change.duration_s // max(1, change.steps)
    steps = min(1, running) if change.way == "recreate" else running
    alone = change.way == "recreate" or (change.way == "in-place" and running == 1)
    scaled = Rollout(
        change.way, change.spare_gpus, change.needed_gpus, running * plan.nodes_per_replica, steps, steps * step_s,
        steps * step_s if alone else 0, change.reason,
    )  # fmt: skip
    return scaled.words


def _live(cluster: Cluster, manifest: Manifest) -> Manifest | None:
    metadata = manifest["metadata"]
    try:
        return cluster.get(Kind.of(manifest), metadata.get("namespace"), metadata["name"])
    except (ApiError, KindNotFoundError):
        return None


def _restarts(cluster: Cluster, manifest: Manifest, there: dict[str, Manifest]) -> bool:
    """The pod template would be another one, defaults of the API server included."""
    live = there[manifest["metadata"]["name"]]
    try:
        # Forced: fields that the real apply owns are meant to change.
        after = cluster.apply(manifest, _MANAGER, dry_run=True, force=True)
    except ApiError:
        # What the server refuses is said by the real apply; a fixed field means that everything is made anew.
        return True
    return bool(_pods(after) != _pods(live))


def _pods(workload: Manifest) -> Any:
    found: Any = workload
    for key in _PODS[workload["kind"]]:
        found = (found or {}).get(key)
    found = copy.deepcopy(found)
    if isinstance(found, dict) and isinstance(found.get("metadata"), dict):
        # The API server writes null here.
        found["metadata"].pop("creationTimestamp", None)
    return found


def _replicas(workload: Manifest) -> int:
    if workload["kind"] == "RayService":
        return 1
    return int((workload.get("spec") or {}).get("replicas", 1))
