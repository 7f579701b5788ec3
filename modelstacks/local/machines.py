"""Catalogue machines → the machines that the embedded cluster imitates, gaps in the facts filled by a stated guess."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from modelstacks.catalog import Machine

# For rows whose source gives no shape (rentals, some Azure types). Only simulated nodes ever use these.
_ASSUMED_VCPU_PER_GPU = 16
_ASSUMED_MEMORY_GIB_PER_GPU = 128.0
# A data disk for types without local NVMe, large enough for the checkpoints of the catalogue.
_ASSUMED_DISK_GIB = 2000.0
_GB_IN_GIB = 1e9 / 2**30


@dataclass(frozen=True, slots=True)
class SimulatedMachine:
    """A machine type as the node simulation wants it; every number is known."""

    name: str
    cloud: str
    gpu: str
    gpus: int
    vcpu: int
    memory_gib: float
    disk_gib: float
    usd_per_hour: float | None


def simulated(machines: Iterable[Machine]) -> list[SimulatedMachine]:
    """One simulated machine for each catalogue row, in the same order."""
    return [
        SimulatedMachine(
            name=machine.name,
            cloud=machine.cloud,
            gpu=machine.gpu,
            gpus=machine.gpus,
            vcpu=machine.vcpu or _ASSUMED_VCPU_PER_GPU * machine.gpus,
            memory_gib=machine.memory_gib or _ASSUMED_MEMORY_GIB_PER_GPU * machine.gpus,
            disk_gib=machine.local_disk_gb * _GB_IN_GIB if machine.local_disk_gb else _ASSUMED_DISK_GIB,
            usd_per_hour=machine.usd_per_hour,
        )
        for machine in machines
    ]
