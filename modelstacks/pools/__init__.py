"""Node pools that a cloud's own Pulumi package makes: one typed module for each, fed with one plain value.

The packages are large, so each is an extra of its own (`modelstacks[gke]`) and is imported when a stack asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelstacks.catalog import Machine
from modelstacks.cloudspec import DEFAULT_CLUSTER, Capacity, CloudSpec, zone_names
from modelstacks.errors import BadInput, ModelstacksError, Problem
from modelstacks.fields import key_path
from modelstacks.plan import Plan
from modelstacks.podsize import node_disk

if TYPE_CHECKING:
    import pulumi

GPU_TAINT_KEY = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """One managed pool: `nodes` are wanted now, `nodes_at_most` bounds what may be bought.

    `disk_gib` is the root disk, `local_ssds` the local SSDs of a Google machine; `zones` are full names.
    """

    name: str
    cluster: str
    machine: Machine
    cloud_gpu: str
    nodes: int
    nodes_at_most: int
    way: Capacity
    region: str | None
    zones: tuple[str, ...]
    disk_gib: int
    local_ssds: int | None
    labels: dict[str, str]
    fabric: str | None
    cloud: CloudSpec

    @property
    def short_name(self) -> str:
        """At most 12 letters and digits, the same for the same stack: clouds that allow no more take this."""
        return "g" + hashlib.sha256(self.name.encode()).hexdigest()[:9]


def node_group(plan: Plan, region: str | None) -> NodeGroup | None:
    """The managed pool of a plan; None where manifests, another stack or nobody makes nodes.

    Raises BadInput for what a managed pool needs and the stack leaves out.
    """
    kind, pool, cloud = plan.cloud, plan.pool, plan.spec.cloud
    if kind is None or kind.package is None or pool is None or pool.owner is not None or cloud is None:
        return None
    if region is None and kind.package == "gke":
        problem = Problem(key_path("cloud.region"), "is needed: a node pool is made in its cluster's location")
        raise BadInput([problem], source=plan.name, next_step="add region, or zones of one")
    disk = node_disk(plan, pool, kind, cloud.boot_disk_gib)
    return NodeGroup(
        name=pool.name,
        cluster=cloud.cluster or DEFAULT_CLUSTER,
        machine=pool.machine,
        cloud_gpu=plan.choice.gpu.name_in(pool.machine) or plan.choice.gpu.id,
        nodes=pool.machines + pool.spares,
        nodes_at_most=pool.machines_at_most,
        way=pool.steps[0][0],
        region=region,
        zones=zone_names(cloud, kind),
        disk_gib=disk.boot_gib,
        local_ssds=disk.local_ssds,
        labels={kind.pool_label: pool.name, "nvidia.com/gpu.present": "true"},
        fabric=plan.fabric.id if plan.fabric is not None else None,
        cloud=cloud,
    )


def create(group: NodeGroup, package: str, opts: pulumi.ResourceOptions) -> list[pulumi.Resource]:
    """The pool's resources, of the typed classes of the cloud's package. Raises ModelstacksError without the extra."""
    try:
        module = importlib.import_module(f"modelstacks.pools.{package}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("pulumi_"):
            raise
        raise ModelstacksError(
            f"kind {package} needs {error.name.replace('_', '-')}, which is not installed",
            next_step=f"uv sync --extra {package}, or pip install 'modelstacks[{package}]'",
        ) from None
    resources: list[pulumi.Resource] = module.resources(group, opts)
    return resources
