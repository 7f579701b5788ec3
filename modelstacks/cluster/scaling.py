"""What scales the stack: whether KEDA reads its metrics, and whether the autoscaler acts on them."""

from __future__ import annotations

from modelstacks.cluster.connection import Cluster, Kind, Manifest, held_by_pulumi
from modelstacks.cluster.findings import Finding, note, problem
from modelstacks.cluster.pods import events_of
from modelstacks.cluster.snapshot import Snapshot, condition
from modelstacks.errors import ClusterError
from modelstacks.plan import Plan

# How KEDA calls the autoscaler that it makes.
_AUTOSCALER = "keda-hpa-"
_SCALED = Kind("keda.sh/v1alpha1", "ScaledObject")
_PAUSED = "autoscaling.keda.sh/paused"
_MANAGER = "modelstacks-scaling"


def hand_over(cluster: Cluster, plan: Plan, manifests: list[Manifest]) -> None:
    """Let no two set the replicas, and no moment be without one who does, before Pulumi changes who it is."""
    _pause(cluster, plan)
    for manifest in manifests:
        if is_left(manifest):
            _keep(cluster, manifest)


def is_left(manifest: Manifest) -> bool:
    """Whether a manifest leaves its replicas to an autoscaler."""
    return manifest["kind"] == "Deployment" and "replicas" not in manifest["spec"]


def _pause(cluster: Cluster, plan: Plan) -> None:
    """Pause an autoscaler that the stack has no more, before its replicas are set: it would set them back.

    Pulumi takes the ScaledObject itself away last. One that is wanted again goes on.
    """
    try:
        there = cluster.get(_SCALED, plan.namespace, plan.name)
    except ClusterError:
        return
    metadata: Manifest = (there or {}).get("metadata") or {}
    if (metadata.get("labels") or {}).get("app.kubernetes.io/managed-by") != "modelstacks":
        return
    wanted = plan.spec.autoscale is None
    if wanted == ((metadata.get("annotations") or {}).get(_PAUSED) == "true"):
        return
    body = {"name": plan.name, "namespace": plan.namespace, "annotations": {_PAUSED: "true"} if wanted else {}}
    cluster.apply({"apiVersion": _SCALED.api_version, "kind": _SCALED.kind, "metadata": body}, _MANAGER)


def _keep(cluster: Cluster, manifest: Manifest) -> None:
    """Keep the replicas that run: a count that Pulumi gives up and nobody else holds is 1, until it is scaled again.

    https://kubernetes.io/docs/reference/using-api/server-side-apply/#transferring-ownership (2026-11-28).
    """
    kind, metadata = Kind.of(manifest), manifest["metadata"]
    live = cluster.get(kind, metadata["namespace"], metadata["name"])
    if live is None or live["spec"].get("replicas", 1) <= 1 or not _set_by_pulumi(live):
        return
    body = {"name": metadata["name"], "namespace": metadata["namespace"]}
    held = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": body}
    cluster.apply({**held, "spec": {"replicas": live["spec"]["replicas"]}}, _MANAGER, force=True)


def _set_by_pulumi(live: Manifest) -> bool:
    """Whether Pulumi holds the replicas of a live object."""
    return any("f:replicas" in entry.get("fieldsV1", {}).get("f:spec", {}) for entry in held_by_pulumi(live))


def examine(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    """A query that has no answer is no reason to scale, and is said to be missing."""
    if plan.spec.autoscale is None or (plan.cloud is not None and plan.cloud.simulated):
        return []
    scaled = snapshot.named("scaledobjects", plan.name)
    if scaled is None:
        return []
    found = []
    source = plan.spec.prometheus
    mend = f"see that {source} answers and has the servers' metrics (modelstacks:monitoring makes a PodMonitor)"
    ready = condition(scaled, "Ready")
    failed = [e for e in events_of(snapshot, "ScaledObject", plan.name) if e.get("reason") == "KEDAScalerFailed"]
    live: Manifest = snapshot.own.get(("Deployment", plan.name), {})
    # A server that still loads has no metrics either, and says so elsewhere.
    idle = not (live.get("status") or {}).get("readyReplicas")
    asleep = plan.spec.autoscale.min == 0 and not (live.get("spec") or {}).get("replicas")
    if ready.get("status") == "False" and not idle:
        why = ready.get("message") or ready.get("reason") or "no reason given"
        found.append(problem("scaling", f"ScaledObject {plan.name} is not ready: {why}", mend, plan.name))
    if failed and not idle:
        text = f"ScaledObject {plan.name} has no answer to its query, so replicas stay as they are: "
        found.append(problem("scaling", text + str(failed[0].get("message")), mend, plan.name))
    elif failed and asleep:
        text = f"ScaledObject {plan.name} has no answer to a query while no server runs: {failed[0].get('message')}"
        mend = "autoscale.activationQuery answers 0 when nothing waits (… or vector(0)); the others need "
        found.append(note("scaling", text, mend + "kube-state-metrics", plan.name))
    autoscaler = snapshot.named("autoscalers", f"{_AUTOSCALER}{plan.name}")
    active = condition(autoscaler, "ScalingActive") if autoscaler is not None else {}
    if active.get("status") == "False" and not idle and not failed:
        why = active.get("message") or active.get("reason")
        found.append(problem("scaling", f"the autoscaler of {plan.name} does not act: {why}", mend, plan.name))
    limited = condition(autoscaler, "ScalingLimited") if autoscaler is not None else {}
    if limited.get("status") == "True" and limited.get("reason") == "TooManyReplicas":
        text = f"more replicas than autoscale.max {plan.spec.autoscale.max} would be used"
        found.append(note("scaling", text, "raise modelstacks:autoscale.max, and the budget with it", plan.name))
    return found
