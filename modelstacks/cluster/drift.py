"""The stack's own objects in the cluster beside its manifests: what somebody took away or changed behind its back."""

from __future__ import annotations

from modelstacks.cluster.connection import Manifest
from modelstacks.cluster.findings import Finding, problem, warning
from modelstacks.cluster.snapshot import Snapshot
from modelstacks.plan import Plan

_WORKLOADS = ("Deployment", "RayService", "LeaderWorkerSet")
_SCALED = ("Deployment", "LeaderWorkerSet")


def refresh(plan: Plan) -> str:
    """The command that puts things back: without a refresh Pulumi believes its own state."""
    return f"pulumi up --refresh -s {plan.stack or plan.name}"


def examine(snapshot: Snapshot, plan: Plan, manifests: list[Manifest]) -> list[Finding]:
    """Objects of a deployed stack that are gone, and workloads that were scaled or paused by hand."""
    keys = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    if not any(key in snapshot.own for key in keys if key[0] in _WORKLOADS):
        return []
    missing_kinds = {kind for _, kind in snapshot.missing_kinds}
    gone = [
        key for key in keys if key not in snapshot.own and key not in snapshot.hidden and key[0] not in missing_kinds
    ]
    found = [
        problem(
            "workload", f"{kind} {name} of the stack is not in the cluster any more", refresh(plan), f"{kind} {name}"
        )
        for kind, name in gone
    ]
    for manifest in manifests:
        live = snapshot.own.get((manifest["kind"], manifest["metadata"]["name"]))
        if manifest["kind"] in _SCALED and live is not None:
            found += _scaled(manifest, live, plan)
    return found


def _scaled(manifest: Manifest, live: Manifest, plan: Plan) -> list[Finding]:
    kind, name, spec = manifest["kind"], manifest["metadata"]["name"], live.get("spec") or {}
    wanted, have = manifest["spec"].get("replicas"), spec.get("replicas")
    found = []
    if wanted is not None and have is not None and have != wanted:
        text = f"{kind} {name} has {have} replicas in the cluster and {wanted} in the plan"
        level = problem if have < wanted else warning
        found.append(level("workload", text, f"{refresh(plan)}, or take the change into the stack file", name))
    if spec.get("paused"):
        text = f"Deployment {name} is paused: no change of it is rolled out"
        found.append(problem("workload", text, f"kubectl -n {plan.namespace} rollout resume deployment {name}", name))
    return found
