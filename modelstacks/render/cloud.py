"""What templates may name of a plan's nodes: pools, placement, quota, spares, fabric and claims."""

from __future__ import annotations

import json
from typing import Any

from modelstacks.catalog import CloudKind, Fabric
from modelstacks.cloudspec import DEFAULT_CLUSTER, Capacity, CloudSpec, zone_names
from modelstacks.fields import digest
from modelstacks.images import mirrored
from modelstacks.plan import Plan
from modelstacks.plan.rollout import rollout
from modelstacks.podsize import PodSize, node_disk
from modelstacks.pool import Pool

GPU_RESOURCE = "nvidia.com/gpu"
# The label by which the program knows objects that provision nodes.
POOL_COMPONENT = "node-pool"
# What a container that needs nothing of its host gives up.
UNPRIVILEGED: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
READ_ONLY = UNPRIVILEGED | {"readOnlyRootFilesystem": True}
LEVELS = ("restricted", "baseline", "privileged")
_KARPENTER_TYPES = {"reservation": "reserved", "capacity-block": "reserved"}


def strictest(plan: Plan, level: str) -> str:
    """The strictest Pod Security level that both the engine and the fabric can live under."""
    needed = plan.fabric.pod_security if plan.fabric is not None else "restricted"
    return max(level, needed, key=LEVELS.index)


def values(plan: Plan, labels: dict[str, str], size: PodSize, placeholder: str) -> dict[str, Any]:
    """The part of the template context that speaks of nodes; `placeholder` is the image that holds a spare's place."""
    cloud = plan.spec.cloud or CloudSpec()
    kind, pool = plan.cloud, plan.pool
    spot = pool is not None and any(way.way == "spot" for step in pool.steps for way in step)
    tolerations = [toleration.model_dump(by_alias=True, exclude_none=True) for toleration in cloud.tolerations]
    if kind is not None:
        tolerations += [*kind.tolerations, *(kind.spot_tolerations if spot else ())]
    claims = cloud.gpu_allocation == "dra"
    claimed = _claims(plan, cloud) if claims else []
    huge_pages = kind is None or kind.huge_pages
    extra = plan.fabric.asks(_machine(plan), huge_pages=huge_pages) if plan.fabric is not None else {}
    cluster = cloud.cluster or DEFAULT_CLUSTER
    image = cloud.image or (kind.image if kind is not None else None)
    return {
        "node_selector": _node_selector(plan, cloud),
        "tolerations": tolerations,
        "pod_annotations": _annotations(plan, kind),
        "pool": None if pool is None or kind is None else _pool(plan, pool, kind, cloud),
        "pool_label": kind.pool_label if kind is not None else None,
        "pool_labels": {
            "app.kubernetes.io/managed-by": "modelstacks",
            "app.kubernetes.io/part-of": "modelstacks",
            "app.kubernetes.io/component": POOL_COMPONENT,
        },
        "zones": list(zone_names(cloud, kind)) if kind is not None else [],
        "startup_taints": [taint.model_dump(exclude_none=True) for taint in cloud.startup_taints],
        "cluster": cluster,
        "node_class_ref": _node_class(plan, cloud),
        "consolidate_after": kind.consolidate_after if kind is not None else None,
        "node_role": cloud.node_role or f"KarpenterNodeRole-{cluster}",
        "image_of_nodes": image,
        "root_device": "/dev/xvdb" if (image or "").startswith("bottlerocket") else "/dev/xvda",
        "placement_group": cloud.placement_group,
        "management_namespace": cloud.management_namespace or "default",
        "kubernetes_version": cloud.kubernetes_version,
        "bootstrap": _reference(cloud, "bootstrap"),
        "infrastructure": _reference(cloud, "infrastructure"),
        "resources": _resources(plan, size, extra, claims=claims),
        "resource_claims": _claimed(claimed[:1]),
        "claims": claimed,
        "gpu_quota": _quota(plan, cloud, claims=claims),
        "spare": _spare(plan, cloud, labels, placeholder, claimed[1:]),
        "fabric": _fabric(plan),
    }


def _annotations(plan: Plan, kind: CloudKind | None) -> dict[str, str]:
    """What keeps autoscalers from moving a pod: for as long as it may take to be ready, not for ever."""
    if kind is None:
        return {}
    own = {} if kind.protects_for is None else {kind.protects_for: f"{plan.timeouts.ready_s}s"}
    return dict(kind.pod_annotations) | own


def _machine(plan: Plan) -> Any:
    return plan.cost.machine if plan.cloud is not None and plan.cloud.prices_of is not None else None


def _node_selector(plan: Plan, cloud: CloudSpec) -> dict[str, str]:
    """Labels that the plan's nodes carry: those of the pool, or of nodes that exist already."""
    if plan.pool is not None and plan.cloud is not None:
        return {plan.cloud.pool_label: plan.pool.name}
    if cloud.node_selector:
        return dict(cloud.node_selector)
    # With claims the driver itself knows the product, and the label's maker may be absent.
    return {} if cloud.gpu_allocation == "dra" else {"nvidia.com/gpu.product": plan.choice.gpu.product_label}


def _pool(plan: Plan, pool: Pool, kind: CloudKind, cloud: CloudSpec) -> dict[str, Any]:
    machine = pool.machine
    ways = [way for step in pool.steps for way in step]
    disk = node_disk(plan, pool, kind, cloud.boot_disk_gib)
    return {
        "name": pool.name,
        "machine": machine.name,
        "gpus": machine.gpus,
        "cloud_gpu": plan.choice.gpu.name_in(machine),
        "machines": pool.machines + pool.spares,
        "machines_at_most": pool.machines_at_most,
        "gpu_limit": str(pool.gpus_at_most),
        "compute_class": "spot" if any(way.way == "spot" for way in ways) else "default",
        "ways": [_way(way) for way in ways],
        "steps": [
            {
                "name": pool.name if index == 0 else f"{pool.name}-{index + 1}",
                "weight": 100 - 10 * index if len(pool.steps) > 1 else None,
                "capacity_types": list(dict.fromkeys(_KARPENTER_TYPES.get(way.way, way.way) for way in step)),
            }
            for index, step in enumerate(pool.steps)
        ],
        "reservations": [way.id for way in ways if way.way in _KARPENTER_TYPES and way.id is not None],
        "local_disk": machine.local_disk_gb is not None,
        "local_ssds": disk.local_ssds,
        "boot_disk_gib": disk.boot_gib,
        "boot_disk": f"{disk.boot_gib}Gi",
    }


def _way(way: Capacity) -> dict[str, Any]:
    """One step of a GKE compute class: a reservation is any, or one by project and name."""
    return {
        "spot": way.way == "spot",
        "flex_start": way.way == "flex-start",
        "reservations": _reservation(way.id) if way.way == "reservation" and way.id is not None else None,
    }


def _reservation(number: str) -> dict[str, Any]:
    if number == "any":
        return {"affinity": "AnyBestEffort"}
    parts = number.split("/")
    named: dict[str, Any] = {"name": parts[-1]} if len(parts) == 1 else {"name": parts[3], "project": parts[1]}
    if len(parts) > 4:
        named["reservationBlock"] = {"name": parts[5]}
    return {"affinity": "Specific", "specific": [named]}


def _reference(cloud: CloudSpec, which: str) -> dict[str, str] | None:
    ref = cloud.infrastructure if which == "infrastructure" else cloud.bootstrap
    return None if ref is None else {"apiGroup": ref.api_group, "kind": ref.kind, "name": ref.name}


def _node_class(plan: Plan, cloud: CloudSpec) -> dict[str, str] | None:
    """The class of machines that a Karpenter pool names: the stack's own choice, the kind's one, or the pool's own."""
    kind, pool = plan.cloud, plan.pool
    if kind is None or kind.node_class is None or pool is None:
        return None
    row = kind.node_class
    return {"group": row.group, "kind": row.kind, "name": cloud.node_class or row.name or pool.name}


def _resources(plan: Plan, size: PodSize, extra: dict[str, str], *, claims: bool) -> dict[str, Any]:
    """Requests and limits of a server's container; extended resources and huge pages must be equal in both."""
    exact = _gpu_resources(plan.gpus_per_node, claims=claims) | extra
    requests = {"cpu": str(size.cpu), "memory": f"{size.memory_gib}Gi", "ephemeral-storage": f"{size.ephemeral_gib}Gi"}
    # Ray sizes its store by the limit, so there is one.
    limits = {"memory": f"{size.memory_gib}Gi"} if plan.nodes_per_replica > 1 else {}
    found: dict[str, Any] = {"requests": requests | exact, "limits": limits | exact}
    return found | ({"claims": [{"name": "gpus"}]} if claims else {})


def _gpu_resources(gpus: int, *, claims: bool) -> dict[str, str]:
    return {} if claims else {GPU_RESOURCE: str(gpus)}


def _claims(plan: Plan, cloud: CloudSpec) -> list[dict[str, Any]]:
    """What pods claim: a server its GPUs, a warm spare those of a whole machine."""
    found = [_claim(plan, plan.name, plan.gpus_per_node)]
    if cloud.warm_spares:
        found.append(_claim(plan, f"{plan.name}-spare", plan.gpus_of_spare))
    return found


def _claimed(templates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": "gpus", "resourceClaimTemplateName": claim["name"]} for claim in templates]


def _claim(plan: Plan, whose: str, count: int) -> dict[str, Any]:
    product = plan.choice.gpu.product_label
    # The driver gives the product's name with blanks where the node label has hyphens.
    expression = f"device.attributes['gpu.nvidia.com'].productName.replace(' ', '-') == {json.dumps(product)}"
    # A template of claims cannot be changed.
    return {"name": f"{whose}-gpus-{digest(count, expression)}", "count": count, "expression": expression}


def _quota(plan: Plan, cloud: CloudSpec, *, claims: bool) -> dict[str, str]:
    """What pods of the namespace may ask for together: the replicas' GPUs and the spares', or the stack's own limit."""
    name = "gpu.nvidia.com.deviceclass.resource.k8s.io/devices" if claims else f"requests.{GPU_RESOURCE}"
    change = rollout(plan)
    # A replica that comes before the old one goes asks for its GPUs beside it.
    most = plan.gpus_committed + (change.needed_gpus if change.comes_first else 0)
    return {"resource": name, "most": str(max(most, cloud.limit_gpus or 0))}


def _spare(
    plan: Plan, cloud: CloudSpec, labels: dict[str, str], image: str, claimed: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Placeholder pods, each as large as the GPUs of a machine."""
    if not cloud.warm_spares:
        return None
    gpus = plan.gpus_of_spare
    name = f"{plan.name}-spare"
    selector = {"app.kubernetes.io/instance": name}
    return {
        "name": name,
        "count": cloud.warm_spares,
        "image": mirrored(image, plan.spec.registry),
        "labels": labels | selector,
        "selector": selector,
        "resources": {
            "requests": {"cpu": "100m", "memory": "16Mi"} | _gpu_resources(gpus, claims=bool(claimed)),
            "limits": {"memory": "16Mi"} | _gpu_resources(gpus, claims=bool(claimed)),
        }
        | ({"claims": [{"name": "gpus"}]} if claimed else {}),
        "resource_claims": _claimed(claimed),
    }


def _variables(plan: Plan, fabric: Fabric) -> dict[str, str]:
    return fabric.variables(_machine(plan), huge_pages=plan.cloud is None or plan.cloud.huge_pages)


def _fabric(plan: Plan) -> dict[str, Any]:
    """What a worker pod carries for the network between its nodes, as plain Kubernetes data."""
    fabric = plan.fabric
    if fabric is None:
        return {"env": [], "annotations": {}, "volumes": [], "mounts": [], "sidecar": None}
    volumes = [
        {"name": v.name, "hostPath": {"path": v.host}} if v.host is not None else {"name": v.name, "emptyDir": {}}
        for v in fabric.volumes
    ]
    sidecar = fabric.sidecar
    return {
        "env": [{"name": name, "value": value} for name, value in _variables(plan, fabric).items()],
        "annotations": dict(fabric.annotations),
        "volumes": volumes,
        "mounts": [
            {"name": v.name, "mountPath": v.mount} | ({"readOnly": True} if v.read_only else {})
            for v in fabric.volumes
            if v.mount is not None
        ],
        "sidecar": None
        if sidecar is None
        else {
            "name": sidecar.name,
            "image": mirrored(sidecar.image, plan.spec.registry),
            "command": list(sidecar.command),
            # Kubernetes starts it before the engine and stops it after.
            "restartPolicy": "Always",
            "env": [{"name": name, "value": value} for name, value in sidecar.env.items()],
            "securityContext": {
                "runAsUser": 0,
                "runAsNonRoot": False,
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"], "add": list(sidecar.capabilities)},
            },
            "volumeMounts": [
                {"name": v.name, "mountPath": v.sidecar_mount} | ({"readOnly": True} if v.read_only else {})
                for v in fabric.volumes
                if v.sidecar_mount is not None
            ],
        },
    }


def affinity(plan: Plan, workers: dict[str, str], mine: dict[str, str]) -> dict[str, Any]:
    """Never two workers on a node; those of one replica near one another, as far as nodes tell where they are."""
    kind = plan.cloud
    alone = {"labelSelector": {"matchLabels": workers}, "topologyKey": "kubernetes.io/hostname"}
    found: dict[str, Any] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [alone]}}
    with_mine = {"matchLabels": mine}
    near: dict[str, Any] = {}
    zone = "topology.kubernetes.io/zone"
    if kind is not None and kind.zoned:
        near["requiredDuringSchedulingIgnoredDuringExecution"] = [{"labelSelector": with_mine, "topologyKey": zone}]
    # The nearest counts most. Where nodes exist already they may have no zone, which must not keep pods from them.
    wished = [*(kind.near if kind is not None else ()), *([] if kind is not None and kind.zoned else [zone])]
    if wished:
        near["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": 100 // (index + 1), "podAffinityTerm": {"labelSelector": with_mine, "topologyKey": key}}
            for index, key in enumerate(wished)
        ]
    return {"podAffinity": near} | found
