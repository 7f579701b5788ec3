"""Nodes against the plan: which of them the stack's pods could run on, and what keeps them off the others."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelstacks.cluster.connection import Manifest
from modelstacks.cluster.findings import Finding, note, problem, quantity, shown, tolerates, warning
from modelstacks.cluster.snapshot import Snapshot, condition, labels_of
from modelstacks.plan import Plan

GPU = "nvidia.com/gpu"
PRODUCT = "nvidia.com/gpu.product"
# Labels by which nodes say that they carry a GPU before, or without, a device plugin.
_GPU_HINTS = (
    "nvidia.com/gpu.present", PRODUCT, "cloud.google.com/gke-accelerator", "karpenter.k8s.aws/instance-gpu-name",
    "karpenter.azure.com/sku-gpu-name", "kubernetes.azure.com/accelerator", "gpu.nvidia.com/class",
    "k8s.amazonaws.com/accelerator", "feature.node.kubernetes.io/pci-10de.present",
)  # fmt: skip
_PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure")
# Tied to a node's own state, so that the check of that state speaks of them.
_OWN_TAINTS = re.compile(r"^node\.kubernetes\.io/(not-ready|unreachable|unschedulable|(memory|disk|pid)-pressure)$")
# Taints that something takes off by itself, so that tolerating them would be wrong.
_PASSING_TAINTS = {
    "node.cloudprovider.kubernetes.io/uninitialized": "the cloud controller manager has not seen the node yet",
    "node.kubernetes.io/network-unavailable": "the node's network is not set up",
    "node.kubernetes.io/out-of-service": "somebody took the node out of service",
    "karpenter.sh/unregistered": "Karpenter has not registered the node yet",
    "karpenter.sh/disrupted": "Karpenter is about to remove the node",
    "node.cilium.io/agent-not-ready": "Cilium does not run there yet",
}


@dataclass(frozen=True, slots=True)
class Need:
    """The pods of one template: how many, where they may go, and what each asks for."""

    name: str
    count: int
    spec: Mapping[str, Any]
    requests: Mapping[str, float]
    selector: Mapping[str, str]
    labels: Mapping[str, str]

    @property
    def gpus(self) -> float:
        return self.requests.get(GPU, 0.0)


def needs(manifests: Iterable[Manifest]) -> list[Need]:
    """The pods that a stack's workloads ask for."""
    found = []
    for manifest in manifests:
        for name, count, template in pod_templates(manifest):
            found.append(_need(name, count, template))
    return found


def pod_templates(manifest: Manifest) -> list[tuple[str, int, Manifest]]:
    """The pod templates inside a workload, each with a name and how many pods it makes."""
    name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
    if manifest["kind"] == "Deployment":
        return [(name, int(spec.get("replicas", 1)), spec["template"])]
    if manifest["kind"] == "LeaderWorkerSet":
        group, replicas = spec["leaderWorkerTemplate"], int(spec["replicas"])
        return [
            (f"{name} leader", replicas, group["leaderTemplate"]),
            (f"{name} worker", replicas * (int(group["size"]) - 1), group["workerTemplate"]),
        ]
    if manifest["kind"] != "RayService":
        return []
    cluster = spec["rayClusterConfig"]
    groups = [(f"{name} {g['groupName']}", int(g["replicas"]), g["template"]) for g in cluster["workerGroupSpecs"]]
    return [(f"{name} head", 1, cluster["headGroupSpec"]["template"]), *groups]


def _need(name: str, count: int, template: Manifest) -> Need:
    spec = template["spec"]
    requests: dict[str, float] = defaultdict(float)
    for container in spec.get("containers", []):
        resources = container.get("resources") or {}
        for resource, amount in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            requests[resource] += quantity(amount)
    labels = (template.get("metadata") or {}).get("labels") or {}
    return Need(name, count, spec, dict(requests), spec.get("nodeSelector") or {}, labels)


def used(snapshot: Snapshot, leaving_out: str | None = None) -> dict[str, dict[str, float]]:
    """Node → what pods that run there ask for; those of the instance `leaving_out` do not count."""
    taken: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for pod in snapshot.of("pods"):
        node = (pod.get("spec") or {}).get("nodeName")
        if not node or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            continue
        mine = labels_of(pod).get("app.kubernetes.io/instance") == leaving_out
        if leaving_out is not None and mine and pod["metadata"].get("namespace") == snapshot.namespace:
            continue
        for resource, amount in _need("", 1, pod).requests.items():
            taken[node][resource] += amount
        taken[node]["pods"] += 1
    return taken


def has_gpu(node: Manifest) -> bool:
    """The node says in any way that it carries an NVIDIA GPU."""
    if GPU in ((node.get("status") or {}).get("capacity") or {}):
        return True
    labels = labels_of(node)
    return any(labels.get(hint) not in (None, "", "false") for hint in _GPU_HINTS)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What keeps a pod off a node, and the command that mends it ({node} stands for the node)."""

    reason: str
    mend: str
    passing: bool = False


def obstacles(node: Manifest, need: Need, taken: Mapping[str, float]) -> list[Obstacle]:
    """What keeps a pod of `need` off a node whose labels match; empty when it could run there now."""
    spec = node.get("spec") or {}
    found = []
    ready = condition(node, "Ready")
    if ready.get("status") != "True":
        why = ready.get("reason") or "no word from its kubelet"
        found.append(Obstacle(f"is not ready ({why})", "kubectl describe node {node}"))
    if spec.get("unschedulable"):
        found.append(Obstacle("is cordoned", "kubectl uncordon {node}"))
    for name in _PRESSURES:
        if condition(node, name).get("status") == "True":
            found.append(Obstacle(f"is under {name}", "kubectl describe node {node}"))
    for taint in spec.get("taints") or []:
        if _OWN_TAINTS.search(taint.get("key", "")) or tolerates(need.spec.get("tolerations") or [], taint):
            continue
        key = taint["key"]
        if key in _PASSING_TAINTS:
            text = f"has the taint {key}: {_PASSING_TAINTS[key]}"
            found.append(Obstacle(text, "kubectl describe node {node}"))
            continue
        value = f"={taint['value']}" if taint.get("value") else ""
        mend = f"add {{key: {key}, operator: Exists}} to modelstacks:cloud.tolerations, or "
        found.append(
            Obstacle(
                f"has the taint {key}{value}:{taint['effect']}, which the pods do not tolerate",
                mend.replace("{", "{{").replace("}", "}}") + f"kubectl taint node {{node}} {key}-",
            )
        )
    return found + _too_small(node, need, taken)


def _too_small(node: Manifest, need: Need, taken: Mapping[str, float]) -> list[Obstacle]:
    status = node.get("status") or {}
    allocatable, capacity = status.get("allocatable") or {}, status.get("capacity") or {}
    found = []
    for resource, amount in {**need.requests, **({"pods": 1.0} if "pods" in allocatable else {})}.items():
        have = quantity(allocatable.get(resource, 0))
        free = have - taken.get(resource, 0.0)
        if have >= amount and free >= amount:
            continue
        asks = f"a pod asks for {shown(resource, amount)}"
        if have >= amount:
            text = f"has {shown(resource, max(free, 0))} of {shown(resource, have)} {resource} free, {asks}"
            mend = "scale another stack down, or add nodes: kubectl get pods -A --field-selector spec.nodeName={node}"
            found.append(Obstacle(text, mend, passing=True))
        elif resource == GPU and have == 0:
            broken = quantity(capacity.get(GPU, 0))
            text = "offers no nvidia.com/gpu: no device plugin runs there"
            if broken:
                text = f"has {broken:g} GPUs and offers none: they are unhealthy, or its device plugin restarts"
            found.append(Obstacle(text, _PLUGIN))
        elif resource == GPU and quantity(capacity.get(GPU, 0)) >= amount:
            text = f"offers {have:g} of its {quantity(capacity[GPU]):g} GPUs: the others are unhealthy, {asks}"
            found.append(Obstacle(text, "look for Xid errors and replace the node: kubectl describe node {node}"))
        elif resource in _ADDED:
            found.append(
                Obstacle(
                    f"offers no {resource}, {asks}" if not have else _offers(resource, have, asks), _ADDED[resource]
                )
            )
        else:
            found.append(Obstacle(_offers(resource, have, asks), "take larger nodes, or ask for less"))
    return found


def _offers(resource: str, have: float, asks: str) -> str:
    return f"offers {shown(resource, have)} {resource}, {asks}"


_PLUGIN = (
    "install the device plugin (operators: [nvidia-device-plugin] or [gpu-operator]), or see its pods: "
    "kubectl get pods -A -o wide --field-selector spec.nodeName={node}"
)
# Resources that a plugin of their own brings.
_ADDED = {
    "vpc.amazonaws.com/efa": "operators: [efa-device-plugin], and nodes launched with EFA interfaces",
    "rdma/ib": "an RDMA device plugin under that name, or another modelstacks:cloud.fabric",
    "rdma/shared_ib": "operators: [network-operator] with a shared device plugin, or another modelstacks:cloud.fabric",
    "rdma/rdma_shared_device_a": "operators: [network-operator], or another modelstacks:cloud.fabric",
    "hugepages-2Mi": "huge pages on the nodes (vm.nr_hugepages), which the EFA driver's image sets up",
}  # fmt: skip


def examine(snapshot: Snapshot, plan: Plan, wanted: list[Need]) -> list[Finding]:
    """Nodes that exist already against the pods that ask for GPUs."""
    if not snapshot.can_read("nodes"):
        return [warning("nodes", f"nodes cannot be read ({snapshot.unreadable.get('nodes')})", _READ_NODES)]
    if not wanted or sum(need.count for need in wanted) == 0:
        return []
    taken = used(snapshot, plan.name)
    found: list[Finding] = []
    for need, count in _on_gpus(wanted):
        matching = [node for node in snapshot.of("nodes") if need.selector.items() <= labels_of(node).items()]
        if matching:
            found += _too_few(matching, need, count, taken, one_a_node=plan.nodes_per_replica > 1)
        else:
            found += _no_match(snapshot, plan, need)
    for need in wanted:
        helper = need not in [one for one, _ in _on_gpus(wanted)]
        if helper and not any(
            not obstacles(n, need, taken.get(n["metadata"]["name"], {})) for n in snapshot.of("nodes")
        ):
            text = f"no node has room for {need.name} ({shown('memory', need.requests.get('memory', 0))}, "
            text += f"{need.requests.get('cpu', 0):g} CPUs) without a taint in its way"
            found.append(warning("nodes", text, "add a node without GPUs, or let an autoscaler make one"))
    return found


def _on_gpus(wanted: list[Need]) -> list[tuple[Need, int]]:
    """One need for each kind of pod that holds GPUs, with how many pods of it are wanted in all."""
    found: dict[tuple[Any, ...], tuple[Need, int]] = {}
    for need in wanted:
        if not need.gpus and not need.spec.get("resourceClaims"):
            continue
        key = (tuple(sorted(need.selector.items())), tuple(sorted(need.requests.items())))
        first, count = found.get(key, (need, 0))
        found[key] = (first, count + need.count)
    return list(found.values())


_READ_NODES = "ask for the verb list on nodes: kubectl auth can-i list nodes"


def _too_few(
    matching: list[Manifest], need: Need, count: int, taken: Mapping[str, Mapping[str, float]], *, one_a_node: bool
) -> list[Finding]:
    """Whether enough pods fit on the nodes that match; if not, why each node is out."""
    places = 0
    out: dict[Obstacle, list[str]] = defaultdict(list)
    for node in matching:
        name = node["metadata"]["name"]
        against = obstacles(node, need, taken.get(name, {}))
        for obstacle in against:
            out[obstacle].append(name)
        if not against:
            places += 1 if one_a_node else _room(node, need, taken.get(name, {}))
    reasons = "; ".join(f"{_names(names)} {obstacle.reason}" for obstacle, names in out.items())
    if places < count:
        gpus = f"{need.gpus:g} GPU{'s' * (need.gpus != 1)}" if need.gpus else "claimed GPUs"
        head = f"{count} pods of {gpus} each are wanted" if count > 1 else f"a pod of {gpus} is wanted"
        nodes = "the one node that matches" if len(matching) == 1 else f"the {len(matching)} nodes that match"
        head += f", {places} would fit on {nodes} the selector"
        more = count - places
        lack = (
            f"{more} more node{'s' * (more > 1)} are needed" if one_a_node else f"there is no room for {more} of them"
        )
        mend = next((o.mend.format(node=names[0]) for o, names in out.items()), "add nodes, or ask for fewer replicas")
        return [problem("nodes", f"{head}: {reasons or lack}", mend)]
    lasting = {obstacle: names for obstacle, names in out.items() if not obstacle.passing}
    return [
        warning("nodes", f"{_names(names)} {o.reason}; the other nodes suffice", o.mend.format(node=names[0]))
        for o, names in lasting.items()
    ]


def _room(node: Manifest, need: Need, taken: Mapping[str, float]) -> int:
    """Pods of `need` that fit beside what runs on the node."""
    allocatable = node["status"].get("allocatable") or {}
    rooms = [
        (quantity(allocatable.get(resource, 0)) - taken.get(resource, 0.0)) // amount
        for resource, amount in need.requests.items()
        if amount
    ]
    return int(min(rooms, default=0))


def _names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _no_match(snapshot: Snapshot, plan: Plan, need: Need) -> list[Finding]:
    """No node has the labels that pods ask for: what there is instead."""
    with_gpu = [node for node in snapshot.of("nodes") if has_gpu(node)]
    selector = ", ".join(f"{key}={value}" for key, value in need.selector.items())
    if not with_gpu:
        text = f"no node has {selector}, and none of {len(snapshot.of('nodes'))} nodes carries an NVIDIA GPU"
        return [problem("nodes", text, "add GPU nodes, or name a cloud.kind that makes them")]
    seen = Counter(labels_of(node).get(PRODUCT, "(no product label)") for node in with_gpu)
    there = ", ".join(f"{product} on {count} node{'s' * (count > 1)}" for product, count in seen.most_common(6))
    asked = need.selector.get(PRODUCT)
    if asked is None:
        keys = list(need.selector)
        having = [n for n in with_gpu if all(key in labels_of(n) for key in keys)]
        values = sorted({labels_of(n)[key] for n in having for key in keys})
        instead = f"; nodes with that label have {', '.join(values)}" if values else ""
        text = f"no node has {selector}{instead}; GPUs in this cluster: {there}"
        return [
            problem(
                "nodes",
                text,
                "correct modelstacks:cloud.nodeSelector, or label the nodes: "
                f"kubectl label node {with_gpu[0]['metadata']['name']} {selector.split(', ')[0]}",
            )
        ]
    altered = [product for product in seen if product.startswith(f"{asked}-")]
    if altered:
        what = "shared in time slices" if altered[0].endswith("-SHARED") else "cut into MIG instances"
        text = f"GPUs of type {asked} are {what} here ({altered[0]}): the plan counts whole ones"
        return [problem("nodes", text, "give the nodes back their whole GPUs, or select them by cloud.nodeSelector")]
    if "(no product label)" in seen and len(seen) == 1:
        text = f"{len(with_gpu)} GPU nodes have no label {PRODUCT}: GPU Feature Discovery, which sets it, does not run"
        mend = "install it (operators: [gpu-operator]), or name labels of the nodes in modelstacks:cloud.nodeSelector"
        return [problem("nodes", text, mend)]
    text = f"no node has {selector}; GPUs in this cluster: {there}"
    return [problem("nodes", text, f"plan for a GPU that is there: modelstacks plan {plan.stack or plan.name} --gpu …")]


def overview(snapshot: Snapshot) -> list[Finding]:
    """GPUs of the whole cluster, for a doctor who was asked of no stack."""
    if not snapshot.can_read("nodes"):
        return [warning("nodes", f"nodes cannot be read ({snapshot.unreadable.get('nodes')})", _READ_NODES)]
    nodes = [node for node in snapshot.of("nodes") if has_gpu(node)]
    if not nodes:
        return [note("nodes", f"{len(snapshot.of('nodes'))} nodes, none with an NVIDIA GPU")]
    taken = used(snapshot)
    found = []
    for product, group in sorted(_by_product(nodes).items()):
        total = sum(quantity((n.get("status") or {}).get("allocatable", {}).get(GPU, 0)) for n in group)
        busy = sum(taken.get(n["metadata"]["name"], {}).get(GPU, 0.0) for n in group)
        found.append(
            note(
                "nodes",
                f"{len(group)} node{'s' * (len(group) > 1)} with {product}: {total - busy:g} of {total:g} GPUs free",
            )
        )
    silent = [n["metadata"]["name"] for n in nodes if not quantity((n["status"].get("allocatable") or {}).get(GPU, 0))]
    if silent:
        found.append(
            problem(
                "nodes", f"{_names(silent)} carry GPUs and offer no {GPU}: no device plugin runs there",
                "operators: [nvidia-device-plugin] or [gpu-operator] in a stack, or your cloud's own way",
            )
        )  # fmt: skip
    return found


def _by_product(nodes: list[Manifest]) -> dict[str, list[Manifest]]:
    found: dict[str, list[Manifest]] = defaultdict(list)
    for node in nodes:
        found[labels_of(node).get(PRODUCT, "a GPU of unknown product")].append(node)
    return found
