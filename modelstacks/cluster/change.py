"""What applying a stack would do to the pods that run: found by a dry run of the API server, not by comparing text."""

from __future__ import annotations

import copy
from typing import Any

from modelstacks.cluster import scaling
from modelstacks.cluster.connection import ApiError, Cluster, Kind, KindNotFoundError, Manifest
from modelstacks.cluster.nodes import needs
from modelstacks.errors import Refused
from modelstacks.plan import Plan
from modelstacks.plan.rollout import rollout
from modelstacks.render.cloud import GPU_RESOURCE

# The name under which dry runs apply where Pulumi has applied nothing: nothing is ever kept under it.
_MANAGER = "modelstacks-preview"
# Pulumi's provider (4.29 and later) creates objects under this name without an apply, and takes their fields over with
# the first change: provider/pkg/await/await.go of pulumi-kubernetes, fixCSAFieldManagers, read on 2026-11-28.
_CREATOR = "pulumi-kubernetes"
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


def words(cluster: Cluster, plan: Plan, manifests: list[Manifest]) -> str | None:
    """One line on what an apply does to replicas: added, removed, restarted; None for a stack that is not there."""
    workloads = [m for m in manifests if m["kind"] == plan.tier_form.kind and m["kind"] in _PODS]
    workloads = [m for m in workloads if m["metadata"]["name"] != f"{plan.name}-spare"]
    live = {m["metadata"]["name"]: _live(cluster, m) for m in workloads}
    there = {name: found for name, found in live.items() if found is not None}
    if not there:
        return None
    gpus = plan.choice.topology.gpus
    after = {m["metadata"]["name"]: _applied(cluster, m, there.get(m["metadata"]["name"])) for m in workloads}
    restarted = [
        m
        for m in workloads
        if (live_ := there.get(m["metadata"]["name"])) is not None
        and ((made := after[m["metadata"]["name"]]) is None or _pods(made) != _pods(live_))
    ]
    said = []
    if restarted:
        said.append(_restarted(plan, restarted, there))
    before = sum(_replicas(found) for found in there.values())
    then = sum(_then(plan, m, there.get(m["metadata"]["name"]), after[m["metadata"]["name"]]) for m in workloads)
    if then > before:
        more = then - before
        text = f"adds {more} replica{'s' * (more != 1)}, {more * gpus} GPU{'s' * (more * gpus != 1)} more"
        said.append(f"{text}, ready in up to {round(plan.timeouts.ready_s / 60)} minutes")
    elif then < before:
        less = before - then
        said.append(f"takes {less} replica{'s' * (less != 1)} away, {less * gpus} GPU{'s' * (less * gpus != 1)} less")
    return "; ".join(said) or "restarts no pod"


def _then(plan: Plan, manifest: Manifest, live: Manifest | None, made: Manifest | None) -> int:
    """Replicas after the change. An autoscaler goes on from those that run, within its bounds."""
    scale = plan.spec.autoscale
    if scale is not None and live is not None and scaling.is_left(manifest):
        return min(max(_replicas(live), scale.min), scale.max)
    return _replicas(made or manifest)


def _restarted(plan: Plan, restarted: list[Manifest], there: dict[str, Manifest]) -> str:
    """The plan's words, for as many replicas as really run."""
    running = sum(_replicas(there[m["metadata"]["name"]]) for m in restarted)
    # Of none that are wanted none comes back.
    return rollout(plan, running if plan.spec.replicas else 0).words


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


def refused_preview(cluster: Cluster, plan: Plan, manifests: list[Manifest]) -> str | None:
    """Why Pulumi's provider will refuse to preview a change that it can make; None where it will not.

    It previews by a dry run that does not take the fields over, so two alternatives, the old one and the new one, meet:
    https://github.com/pulumi/pulumi-kubernetes/issues/2843.
    """
    for manifest in manifests:
        if manifest["kind"] != plan.tier_form.kind or manifest["kind"] not in _PODS:
            continue
        live = _live(cluster, manifest)
        if live is None or not _only_created(live) or _applied(cluster, manifest, live) is None:
            continue
        try:
            cluster.apply(manifest, _MANAGER, dry_run=True, force=True)
        except ApiError as error:
            # A fixed field makes the provider replace the object, which it previews otherwise.
            if error.status == 422 and "immutable" not in str(error):
                fields = ", ".join(cause.get("field", "") for cause in error.causes)
                return (
                    f"Pulumi's provider will refuse to preview the change of {fields} of {manifest['kind']}"
                    f" {manifest['metadata']['name']}, which it has created and not changed since; the change itself"
                    f" works: `pulumi up --skip-preview -s {plan.stack or plan.name}`"
                )
    return None


def _only_created(live: Manifest) -> bool:
    """Pulumi's provider has created the object and never changed it."""
    entries = live["metadata"].get("managedFields") or []
    mine = [entry.get("operation") for entry in entries if str(entry.get("manager")).startswith(_CREATOR)]
    return bool(mine) and "Apply" not in mine


def _manager(live: Manifest) -> str:
    """The field manager by which Pulumi applied the object."""
    entries = live["metadata"].get("managedFields") or []
    names = [str(entry.get("manager")) for entry in entries if entry.get("operation") == "Apply"]
    return next((name for name in names if name.startswith("pulumi")), names[0] if names else _MANAGER)


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
