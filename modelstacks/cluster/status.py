"""How a stack stands on its cluster now: replicas, pods, nodes and their cost, beside what the plan wants."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from typing import Any

from modelstacks.cluster import live, pods
from modelstacks.cluster.connection import Cluster, Manifest
from modelstacks.cluster.findings import Finding, quantity
from modelstacks.cluster.nodes import GPU
from modelstacks.cluster.pool import pool_names
from modelstacks.cluster.snapshot import Snapshot, condition, labels_of
from modelstacks.plan import Plan
from modelstacks.plan.rollout import minutes
from modelstacks.render.values import form_of


@dataclass(frozen=True, slots=True)
class PodLine:
    """One pod of the stack. `state` is what kubectl would show, `ready` whether its probes answer.

    `loaded_percent` is how far a pod that is not ready has come, by its own log; `ready_after_s` what a ready one took.
    """

    name: str
    node: str | None
    state: str
    ready: bool
    restarts: int
    gpus: int
    loaded_percent: int | None = None
    ready_after_s: float | None = None


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
    """`usd_per_hour` is what the nodes that are there cost, at the plan's price, `usd_so_far` since each came.

    `change` is how a roll-out stands, None when nothing changes; `traffic` what the servers say of themselves, None
    where none answered.
    """

    deployed: bool
    replicas: int
    ready_replicas: int
    pods: tuple[PodLine, ...]
    nodes: tuple[NodeLine, ...]
    gpu_limit: int | None
    usd_per_hour: float | None
    findings: tuple[Finding, ...]
    usd_so_far: float | None = None
    change: str | None = None
    traffic: live.Traffic | None = None

    @property
    def healthy(self) -> bool:
        """Every replica is ready and no check found a problem."""
        return self.ready_replicas >= self.replicas and all(f.level != "problem" for f in self.findings)


def status(snapshot: Snapshot, plan: Plan, manifests: list[Manifest], findings: list[Finding]) -> Status:
    """Put one reading beside the plan."""
    own = sorted(pods.own_pods(snapshot, plan), key=lambda pod: str(pod["metadata"]["name"]))
    lines = tuple(_pod_line(pod) for pod in own)
    workloads = [m for m in manifests if m["kind"] == plan.tier_form.kind and not _is_spare(m, plan)]
    live_ = [snapshot.own.get((m["kind"], m["metadata"]["name"])) for m in workloads]
    hosts = _hosts(snapshot, plan, own)
    price = plan.cost.price.usd_per_hour if plan.cost.price is not None and plan.pool is not None else None
    return Status(
        deployed=any(found is not None for found in live_),
        replicas=0 if _is_idle(plan, live_) else plan.spec.replicas,
        ready_replicas=sum(_ready_replicas(found) for found in live_ if found is not None),
        pods=lines,
        nodes=tuple(_node_line(node) for node in hosts),
        gpu_limit=plan.pool.gpus_at_most * len(plan.pool.steps) if plan.pool is not None else None,
        usd_per_hour=None if price is None else price * len(hosts),
        usd_so_far=None if price is None else sum(price * _hours(node) for node in hosts),
        change=_change(snapshot, plan, [found for found in live_ if found is not None]),
        findings=tuple(f for f in findings if f.level != "note" or f.check in ("pods", "pool")),
    )


def with_servers(found: Status, cluster: Cluster, snapshot: Snapshot, plan: Plan, between_s: float) -> Status:
    """The same standing with what the servers themselves say, which takes `between_s` and a connection to each."""
    own = {str(pod["metadata"]["name"]): pod for pod in pods.own_pods(snapshot, plan)}
    lines = []
    for line in found.pods:
        pod = own.get(line.name)
        if pod is not None and line.ready:
            line = replace(line, ready_after_s=live.seconds_to_ready(pod))
        elif pod is not None and line.node is not None:
            line = replace(line, loaded_percent=live.progress(cluster, plan, pod))
        lines.append(line)
    names = live.servers(plan, list(own.values()))
    return replace(found, pods=tuple(lines), traffic=live.traffic(cluster, plan, names, form_of(plan), between_s))


def _is_idle(plan: Plan, workloads: list[Manifest | None]) -> bool:
    """Scaled to zero, as the stack lets KEDA do it."""
    scale = plan.spec.autoscale
    running = [(found.get("spec") or {}).get("replicas") for found in workloads if found is not None]
    return scale is not None and scale.min == 0 and bool(running) and not any(running)


def _hours(node: Manifest) -> float:
    try:
        born = datetime.datetime.fromisoformat(node["metadata"]["creationTimestamp"])
    except (KeyError, TypeError, ValueError):
        return 0.0
    return max(0.0, (datetime.datetime.now(datetime.UTC) - born).total_seconds() / 3600)


def _change(snapshot: Snapshot, plan: Plan, workloads: list[Manifest]) -> str | None:
    """How a roll-out stands: new replicas that serve, and old pods on their way out."""
    found = []
    for workload in workloads:
        status, wanted = workload.get("status") or {}, (workload.get("spec") or {}).get("replicas", 1)
        if workload["kind"] != "Deployment" or ("updatedReplicas" not in status and not status.get("replicas")):
            continue
        updated, old = status.get("updatedReplicas", 0), status.get("replicas", 0) - status.get("updatedReplicas", 0)
        if old > 0 or updated < wanted:
            found.append(f"{updated} of {wanted} pods are new, {old} old")
    for pod in pods.leaving(snapshot, plan):
        found.append(f"{pod['metadata']['name']} finishes its requests, for at most {minutes(plan.leaving.grace_s)}")
    return "; ".join(found) or None


def answer(stack: str, found: Status, plan: Plan) -> dict[str, Any]:
    """As JSON; `plan` is what the servers' own numbers stand beside."""
    speed = plan.throughput
    return {
        "stack": stack,
        "deployed": found.deployed,
        "healthy": found.healthy,
        "replicas": found.replicas,
        "ready_replicas": found.ready_replicas,
        "pods": [
            {
                "name": p.name, "node": p.node, "state": p.state, "ready": p.ready, "restarts": p.restarts,
                "gpus": p.gpus, "loaded_percent": p.loaded_percent, "ready_after_s": p.ready_after_s,
            }
            for p in found.pods
        ],
        "nodes": [
            {"name": n.name, "machine": n.machine, "ready": n.ready, "gpus": n.gpus, "capacity": n.capacity}
            for n in found.nodes
        ],
        "gpu_limit": found.gpu_limit,
        "usd_per_hour": None if found.usd_per_hour is None else round(found.usd_per_hour, 4),
        "usd_so_far": None if found.usd_so_far is None else round(found.usd_so_far, 2),
        "change": found.change,
        "traffic": _traffic(found.traffic),
        "plan": {
            "output_tokens_per_s": None if speed is None else round(speed.output_tokens_per_s * found.replicas, 1),
            "kv_cache_tokens": plan.memory.kv_cache_tokens,
            "startup_s": plan.timeouts.startup_s,
        },
        "findings": [finding.answer() for finding in found.findings],
    }  # fmt: skip


def _traffic(found: live.Traffic | None) -> dict[str, Any] | None:
    if found is None:
        return None

    def rounded(value: float | None, digits: int) -> float | None:
        return None if value is None else round(value, digits)

    return {
        "servers": found.servers,
        "requests_running": found.running,
        "requests_waiting": found.waiting,
        "kv_cache_used": rounded(found.kv_cache, 4),
        "output_tokens_per_s": rounded(found.output_tokens_per_s, 1),
        "prompt_tokens_per_s": rounded(found.prompt_tokens_per_s, 1),
        "kv_cache_tokens": found.cache_tokens,
        "silent": list(found.silent),
    }


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
