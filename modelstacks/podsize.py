"""What one server pod asks of its node beside GPUs: CPUs, memory, shared memory and disk, in whole units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelstacks.catalog import CloudKind
from modelstacks.pool import Pool

if TYPE_CHECKING:
    from modelstacks.plan import Plan

OBJECT_STORE_GIB = 8
# Room on a disk for images and the system beside the weights.
SYSTEM_DISK_GIB = 100
_GB_IN_GIB = 1e9 / 2**30
# Google's local SSDs: 375 GiB each.
_LOCAL_SSD_GIB = 375


@dataclass(frozen=True, slots=True)
class PodSize:
    """CPUs, and gibibytes of memory, of /dev/shm, of scratch for weights and caches, and of the node's own disk."""

    cpu: int
    memory_gib: int
    shm_gib: int
    scratch_gib: int
    ephemeral_gib: int


def pod_size(plan: Plan) -> PodSize:
    """The size of a pod that holds one node's share of a replica."""
    gpus, several = plan.gpus_per_node, plan.nodes_per_replica > 1
    # NCCL and message queues take about 1 GiB a rank; Ray's store comes on top.
    shm_gib = 8 + OBJECT_STORE_GIB + gpus if several else 1 + gpus
    # Whole gibibytes on disk: weights, a fifth for partial downloads, and compile caches.
    wide_gib = max((c.size_gib for c in plan.choice.model.checkpoints.values() if c == plan.checkpoint), default=0.0)
    weights_gib = max(math.ceil(plan.weights_gib * 1.2), math.ceil(wide_gib * 1.2)) if plan.weights.reads_hub else 0
    scratch_gib = weights_gib + 10
    return PodSize(
        cpu=2 + gpus if gpus == 1 else 4 + 2 * gpus,
        memory_gib=10 + 12 * (gpus - 1) + (OBJECT_STORE_GIB + shm_gib if several else 0),
        shm_gib=shm_gib,
        scratch_gib=scratch_gib,
        # A volume per pod takes no space of the node; an image does, unpacked.
        ephemeral_gib=18 if plan.weights.place == "volume-per-pod" else scratch_gib + 8,
    )


@dataclass(frozen=True, slots=True)
class NodeDisk:
    """The disks of a pool's node, GiB. `boot_gib` is ordered; `have_gib` is what pods can use of it or of local disks.

    `local_ssds` is how many local SSDs a Google machine is asked for.
    """

    boot_gib: int
    have_gib: float
    need_gib: int
    local_ssds: int | None

    @property
    def holds(self) -> bool:
        return self.have_gib >= self.need_gib


def node_disk(plan: Plan, pool: Pool, kind: CloudKind, asked_gib: int | None) -> NodeDisk:
    """Where a node keeps weights: on local disks where the cloud puts the kubelet there, else on a root disk for it.

    `asked_gib` is the stack's own size of the root disk.
    """
    machine = pool.machine
    need = max(1, machine.gpus // plan.gpus_per_node) * pod_size(plan).ephemeral_gib
    if plan.weights.in_pod:
        # Once a node, however many pods read them.
        need += math.ceil(plan.weights_gib * 1.2)
    boot = asked_gib or SYSTEM_DISK_GIB
    if kind.local_disks and machine.local_disk_gb is not None:
        return NodeDisk(boot, machine.local_disk_gb * _GB_IN_GIB, need, machine.local_ssds)
    if kind.local_disks and machine.local_ssds is not None and machine.local_ssds * _LOCAL_SSD_GIB >= need:
        return NodeDisk(boot, machine.local_ssds * _LOCAL_SSD_GIB, need, machine.local_ssds)
    if asked_gib is None:
        boot = min(math.ceil((SYSTEM_DISK_GIB + need) / 10) * 10, kind.max_boot_disk_gib)
    return NodeDisk(boot, max(boot - SYSTEM_DISK_GIB, 0), need, None)
