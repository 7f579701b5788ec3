"""How a stack stands on its cluster now: replicas, pods, nodes and their cost, beside what the plan wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelstacks.cluster import pods
from modelstacks.cluster.connection import Manifest
from modelstacks.cluster.findings import Finding, quantity
from modelstacks.cluster.nodes import GPU
from modelstacks.cluster.pool import pool_names
from modelstacks.cluster.snapshot import Snapshot, condition, labels_of
from modelstacks.plan import Plan


@dataclass(frozen=True, slots=True)
class PodLine:
    """One pod of the stack. `state` is what kubectl would show, `ready` whether its probes answer."""

    name: str
    node: str | None
    state: str
    ready: bool
    restarts: int
    gpus: int


@dataclass(frozen=True, slots=True)
class NodeLine:
    """One node that the stack's pods run on, or that its pool made."""

    name: str
    machine: str | None
    ready: bool
    gpus: int
    capacity: str | None


@dataclass(frozen=True, slots=True)
class Status:
    """`usd_per_hour` is what the nodes that are there cost, at the plan's price; None without one."""

    deployed: bool
    replicas: int
    ready_replicas: int
    pods: tuple[PodLine, ...]
    nodes: tuple[NodeLine, ...]
    gpu_limit: int | None
    usd_per_hour: float | None
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Every replica is ready and no check found a problem."""
        return self.ready_replicas >= self.replicas and all(f.level != "problem" for f in self.findings)


def status(snapshot: Snapshot, plan: Plan, manifests: list[Manifest], findings: list[Finding]) -> Status:
    """Put one reading beside the plan."""
    own = sorted(pods.own_pods(snapshot, plan), key=lambda pod: str(pod["metadata"]["name"]))
    lines = tuple(_pod_line(pod) for pod in own)
    workloads = [m for m in manifests if m["kind"] == plan.tier_form.kind and not _is_spare(m, plan)]
    live = [snapshot.own.get((m["kind"], m["metadata"]["name"])) for m in workloads]
    hosts = _hosts(snapshot, plan, own)
    price = plan.cost.price.usd_per_hour if plan.cost.price is not None and plan.pool is not None else None
    return Status(
        deployed=any(found is not None for found in live),
        replicas=plan.spec.replicas,
        ready_replicas=sum(_ready_replicas(found) for found in live if found is not None),
        pods=lines,
        nodes=tuple(_node_line(node) for node in hosts),
        gpu_limit=plan.pool.gpus_at_most * len(plan.pool.steps) if plan.pool is not None else None,
        usd_per_hour=None if price is None else price * len(hosts),
        findings=tuple(f for f in findings if f.level != "note" or f.check in ("pods", "pool")),
    )


def answer(stack: str, found: Status) -> dict[str, Any]:
    """As JSON."""
    return {
        "stack": stack,
        "deployed": found.deployed,
        "healthy": found.healthy,
        "replicas": found.replicas,
        "ready_replicas": found.ready_replicas,
        "pods": [
            {
                "name": p.name, "node": p.node, "state": p.state, "ready": p.ready, "restarts": p.restarts,
                "gpus": p.gpus,
            }
            for p in found.pods
        ],
        "nodes": [
            {"name": n.name, "machine": n.machine, "ready": n.ready, "gpus": n.gpus, "capacity": n.capacity}
            for n in found.nodes
        ],
        "gpu_limit": found.gpu_limit,
        "usd_per_hour": None if found.usd_per_hour is None else round(found.usd_per_hour, 4),
        "findings": [finding.answer() for finding in found.findings],
    }  # fmt: skip


def _is_spare(manifest: Manifest, plan: Plan) -> bool:
    return bool(manifest["metadata"]["name"] == f"{plan.name}-spare")


def _ready_replicas(workload: Manifest) -> int:
    """Ready replicas of a Deployment or groups; a RayService is one replica, ready or not."""
    if workload["kind"] != "RayService":
        return int((workload.get("status") or {}).get("readyReplicas", 0))
    return int(condition(workload, "Ready").get("status") == "True")


def _hosts(snapshot: Snapshot, plan: Plan, own: list[Manifest]) -> list[Manifest]:
    """Nodes of the stack's pool; where it has none, those that its GPU pods run on."""
    names = {(pod.get("spec") or {}).get("nodeName") for pod in own if _gpus(pod)}
    pool = plan.pool.name if plan.pool is not None and plan.cloud is not None else None
    label = plan.cloud.pool_label if plan.cloud is not None else ""
    made = pool_names(plan)
    return [
        node
        for node in snapshot.of("nodes")
        if node["metadata"]["name"] in names
        or (pool is not None and labels_of(node).get(label) == pool)
        or labels_of(node).get("karpenter.sh/nodepool") in made
    ]


def _gpus(pod: Manifest) -> int:
    containers = (pod.get("spec") or {}).get("containers") or []
    return sum(int(quantity(((c.get("resources") or {}).get("limits") or {}).get(GPU, 0))) for c in containers)


def _pod_line(pod: Manifest) -> PodLine:
    found = pod.get("status") or {}
    containers = found.get("containerStatuses") or []
    waiting = next(
        (w["reason"] for c in containers if (w := (c.get("state") or {}).get("waiting")) and w.get("reason")), None
    )
    state = waiting or found.get("phase", "Unknown")
    if condition(pod, "PodScheduled").get("status") == "False":
        state = "Unschedulable"
    restarts = sum(int(c.get("restartCount", 0)) for c in containers)
    return PodLine(
        pod["metadata"]["name"],
        (pod.get("spec") or {}).get("nodeName"),
        state,
        pods.is_ready(pod),
        restarts,
        _gpus(pod),
    )


def _node_line(node: Manifest) -> NodeLine:
    labels = labels_of(node)
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return NodeLine(
        node["metadata"]["name"],
        labels.get("node.kubernetes.io/instance-type"),
        condition(node, "Ready").get("status") == "True",
        int(quantity(allocatable.get(GPU, 0))),
        labels.get("karpenter.sh/capacity-type"),
    )
