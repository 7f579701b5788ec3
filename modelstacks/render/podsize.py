"""What one server pod asks of its node beside GPUs: CPUs, memory, shared memory and disk, in whole units."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelstacks.plan import Plan

OBJECT_STORE_GIB = 8


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
    gpus, spec, several = plan.gpus_per_node, plan.spec, plan.nodes_per_replica > 1
    # NCCL and message queues take about 1 GiB a rank; Ray's store comes on top.
    shm_gib = 8 + OBJECT_STORE_GIB + gpus if several else 1 + gpus
    # Whole gibibytes on disk: weights, a fifth for partial downloads, and compile caches.
    wide_gib = max((c.size_gib for c in plan.choice.model.checkpoints.values() if c == plan.checkpoint), default=0.0)
    scratch_gib = max(math.ceil(plan.weights_gib * 1.2) + 10, math.ceil(wide_gib * 1.2) + 10)
    return PodSize(
        cpu=2 + gpus if gpus == 1 else 4 + 2 * gpus,
        memory_gib=10 + 12 * (gpus - 1) + (OBJECT_STORE_GIB + shm_gib if several else 0),
        shm_gib=shm_gib,
        scratch_gib=scratch_gib,
        # A claim or a volume per pod takes no space of the node.
        ephemeral_gib=10 if spec.weights.claim or spec.weights.storage_class else scratch_gib + 8,
    )
