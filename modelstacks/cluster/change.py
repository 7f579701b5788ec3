"""What applying a stack would do to the pods that run: found by a dry run of the API server, not by comparing text."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from modelstacks.cluster import scaling
from modelstacks.cluster.connection import ApiError, Cluster, Kind, KindNotFoundError, Manifest, held_by_pulumi
from modelstacks.cluster.nodes import needs
from modelstacks.errors import Refused
from modelstacks.plan import Plan
from modelstacks.plan.rollout import rollout
from modelstacks.render.cloud import GPU_RESOURCE

# The name under which dry runs apply where Pulumi has applied nothing: nothing is ever kept under it.
_MANAGER = "modelstacks-preview"
# Where the pods of a kind come from.
_PODS = {
    "Deployment": ("spec", "template"),
    "RayService": ("spec", "rayClusterConfig"),
    "LeaderWorkerSet": ("spec", "leaderWorkerTemplate"),
}
_APIS = {"Deployment": "apps/v1", "RayService": "ray.io/v1", "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1"}


def check_room(cluster: Cluster, plan: Plan, manifests: list[Manifest]) -> None:
    """Raise Refused when servers of another launcher hold the GPUs that the new ones would wait for.

    Pulumi takes away last what a stack has no more, so the old servers stay until the new ones are ready.
    """
    old = [found for kind in _PODS if kind != plan.tier_form.kind for found in _of_kind(cluster, plan, kind)]
    held = sum(need.count * round(need.requests.get(GPU_RESOURCE, 0)) for need in needs(old))
    bounds = [float(most) for m in manifests if m["kind"] == "ResourceQuota" for most in m["spec"]["hard"].values()]
    bounds += [plan.pool.gpus_at_most] if plan.pool is not None else []
    wanted = plan.choice.topology.gpus * plan.spec.replicas
    if not held or not wanted or not bounds or held + wanted <= min(bounds):
        return
    names = ", ".join(f"{m['kind']} {m['metadata']['name']}" for m in old)
    text = f"{names} holds {held} GPUs until the new servers are ready, which need {wanted} more; the stack may hold "
    text += f"{min(bounds):.0f}, so they would wait for ever"
    step = "modelstacks:replicas: 0 and pulumi up with the old settings first, or a higher modelstacks:cloud.limitGpus"
    raise Refused(text, next_step=step)


def _of_kind(cluster: Cluster, plan: Plan, kind: str) -> list[Manifest]:
    selector = f"app.kubernetes.io/instance={plan.name},app.kubernetes.io/managed-by=modelstacks"
    try:
        found = cluster.items(Kind(_APIS[kind], kind), plan.namespace, labelSelector=selector)
    except (ApiError, KindNotFoundError):
        return []
    # The API server leaves the kind out of lists.
    return [{**one, "kind": kind} for one in found]


@dataclass(frozen=True, slots=True)
class Change:
    """A workload as the stack wants it, as the cluster has it (None: not yet), and as the API server would make it
    (None: it refuses, or makes everything anew)."""

    wanted: Manifest
    live: Manifest | None
    made: Manifest | None

    @property
    def restarts(self) -> bool:
        """Pods that run are replaced."""
        return self.live is not None and (self.made is None or _pods(self.made) != _pods(self.live))


def changes(cluster: Cluster, plan: Plan, manifests: list[Manifest]) -> list[Change]:
    """What applying the stack does to each of its workloads; nothing is changed by asking."""
    workloads = [m for m in manifests if m["kind"] == plan.tier_form.kind and m["kind"] in _PODS]
    workloads = [m for m in workloads if m["metadata"]["name"] != f"{plan.name}-spare"]
    return [Change(m, live, _applied(cluster, m, live)) for m in workloads for live in [_live(cluster, m)]]


def words(plan: Plan, found: list[Change]) -> str | None:
    """One line on what an apply does to replicas: added, removed, restarted; None for a stack that is not there."""
    if all(one.live is None for one in found):
        return None
    gpus = plan.choice.topology.gpus
    said = []
    restarted = [one for one in found if one.restarts]
    if restarted:
        # The plan's words, for as many replicas as really run; of none that are wanted none comes back.
        running = sum(_replicas(one.live) for one in restarted)
        said.append(rollout(plan, running if plan.spec.replicas else 0).words)
    before = sum(_replicas(one.live) for one in found)
    then = sum(_then(plan, one) for one in found)
    if then > before:
        more = then - before
        text = f"adds {more} replica{'s' * (more != 1)}, {more * gpus} GPU{'s' * (more * gpus != 1)} more"
        said.append(f"{text}, ready in up to {round(plan.timeouts.ready_s / 60)} minutes")
    elif then < before:
        less = before - then
        said.append(f"takes {less} replica{'s' * (less != 1)} away, {less * gpus} GPU{'s' * (less * gpus != 1)} less")
    return "; ".join(said) or "restarts no pod"


def refused_preview(cluster: Cluster, plan: Plan, found: list[Change]) -> str | None:
    """Why Pulumi's provider will refuse to preview a change that it can make; None where it will not.

    It previews by a dry run that does not take the fields over, so two alternatives, the old one and the new one, meet:
    https://github.com/pulumi/pulumi-kubernetes/issues/2843.
    """
    for one in found:
        if one.live is None or one.made is None or not _only_created(one.live):
            continue
        try:
            cluster.apply(one.wanted, _MANAGER, dry_run=True, force=True)
        except ApiError as error:
            # A fixed field makes the provider replace the object, which it previews otherwise.
            if error.status == 422 and "immutable" not in str(error):
                fields = ", ".join(cause.get("field", "") for cause in error.causes)
                return (
                    f"Pulumi's provider will refuse to preview the change of {fields} of {one.wanted['kind']}"
                    f" {one.wanted['metadata']['name']}, which it has created and not changed since; the change itself"
                    f" works: `pulumi up --skip-preview -s {plan.stack or plan.name}`"
                )
    return None


def _then(plan: Plan, one: Change) -> int:
    """Replicas after the change. An autoscaler goes on from those that run, within its bounds."""
    scale = plan.spec.autoscale
    if scale is not None and one.live is not None and scaling.is_left(one.wanted):
        return min(max(_replicas(one.live), scale.min), scale.max)
    return _replicas(one.made or one.wanted)


def _live(cluster: Cluster, manifest: Manifest) -> Manifest | None:
    metadata = manifest["metadata"]
    try:
        return cluster.get(Kind.of(manifest), metadata.get("namespace"), metadata["name"])
    except (ApiError, KindNotFoundError):
        return None


def _applied(cluster: Cluster, manifest: Manifest, live: Manifest | None) -> Manifest | None:
    """What the API server would make of a workload, defaults included; None for a change that it refuses."""
    if live is None:
        return manifest
    try:
        if _only_created(live):
            # The first change takes its fields over, which a dry run cannot: what is left out goes, as from a new one.
            metadata = {**manifest["metadata"], "name": f"{manifest['metadata']['name']}-preview"}
            return cluster.apply({**manifest, "metadata": metadata}, _MANAGER, dry_run=True, force=True)
        # As who applied it before: what the manifest leaves out is then taken away. Forced: changes are meant.
        return cluster.apply(manifest, _manager(live), dry_run=True, force=True)
    except ApiError:
        # What is refused is said by the real apply; a fixed field means that everything is made anew.
        return None


def _only_created(live: Manifest) -> bool:
    """Pulumi's provider has created the object and never changed it.

    The provider (4.29 and later) creates without an apply, and takes the fields over with the first change:
    provider/pkg/await/await.go of pulumi-kubernetes, fixCSAFieldManagers, read on 2026-11-28.
    """
    ways = [entry.get("operation") for entry in held_by_pulumi(live)]
    return bool(ways) and "Apply" not in ways


def _manager(live: Manifest) -> str:
    """The field manager by which Pulumi applied the object, or else who did."""
    entries = [*held_by_pulumi(live), *(live["metadata"].get("managedFields") or [])]
    return next((str(entry.get("manager")) for entry in entries if entry.get("operation") == "Apply"), _MANAGER)


def _pods(workload: Manifest) -> Any:
    found: Any = workload
    for key in _PODS[workload["kind"]]:
        found = (found or {}).get(key)
    found = copy.deepcopy(found)
    if isinstance(found, dict) and isinstance(found.get("metadata"), dict):
        # The API server writes null here.
        found["metadata"].pop("creationTimestamp", None)
    return found


def _replicas(workload: Manifest | None) -> int:
    if workload is None:
        return 0
    if workload["kind"] == "RayService":
        return 1
    return int((workload.get("spec") or {}).get("replicas", 1))
