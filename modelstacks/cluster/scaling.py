"""What scales the stack: whether KEDA reads its metrics, and whether the autoscaler acts on them."""

from __future__ import annotations

from modelstacks.cluster.connection import Cluster, Kind, Manifest
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


def hand_over(cluster: Cluster, plan: Plan) -> None:
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
