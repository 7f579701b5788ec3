"""The simulated hardware: the machines that Karpenter may create, and the nodes that are always there."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Protocol

ZONES = ("local-a", "local-b")
GPU_LABEL = "modelstacks.dev/gpu"
CLOUD_LABEL = "modelstacks.dev/cloud"
SYSTEM_LABEL = "modelstacks.dev/system"

# No market is simulated: spot must only be cheaper than on demand for Karpenter to prefer it.
_SPOT_PRICE_SHARE = 0.4
_WAYS = (("on-demand", 1.0), ("spot", _SPOT_PRICE_SHARE))
# The KWOK provider takes every offering for available, so one that is sold out is offered only to reservations, which
# nobody has here.
_SOLD_OUT = (("reserved", 1.0),)
# Dearer than any real machine, so that Karpenter prefers machines whose price is known.
_UNKNOWN_PRICE_USD_PER_HOUR = 10_000.0
_SYSTEM_RESOURCES = {"cpu": "16", "memory": "64Gi", "pods": "110", "ephemeral-storage": "200Gi"}


class Machine(Protocol):
    """One machine type of a cloud."""

    @property
    def name(self) -> str: ...
    @property
    def cloud(self) -> str: ...
    @property
    def gpu(self) -> str: ...
    @property
    def gpus(self) -> int: ...
    @property
    def vcpu(self) -> int: ...
    @property
    def memory_gib(self) -> float: ...
    @property
    def disk_gib(self) -> float: ...
    @property
    def usd_per_hour(self) -> float | None: ...


def instance_types(machines: Iterable[Machine], without: Collection[str] = ()) -> list[dict[str, Any]]:
    """The table for INSTANCE_TYPES_FILE_PATH of Karpenter's KWOK provider, ordered by name.

    Types in `without` are known and not to be had, as when a cloud has run out of them.

    A machine sold in several regions is one entry with its lowest price. Each is offered in every zone, on
    demand and as spot. The provider labels nodes with the single values of an offering and counts those
    labels as well known, so GPU_LABEL and CLOUD_LABEL select in NodePools and in pods.
    """
    cheapest: dict[str, Machine] = {}
    for machine in machines:
        held = cheapest.get(machine.name)
        if held is None or _price(machine) < _price(held):
            cheapest[machine.name] = machine
    return [_instance_type(cheapest[name], available=name not in without) for name in sorted(cheapest)]


def _price(machine: Machine) -> float:
    return _UNKNOWN_PRICE_USD_PER_HOUR if machine.usd_per_hour is None else machine.usd_per_hour


def _instance_type(machine: Machine, *, available: bool) -> dict[str, Any]:
    labels = {CLOUD_LABEL: machine.cloud, **({GPU_LABEL: machine.gpu} if machine.gpus else {})}
    return {
        "name": machine.name,
        "architecture": "amd64",
        "operatingSystems": ["linux"],
        "resources": {
            "cpu": str(machine.vcpu),
            "memory": f"{round(machine.memory_gib * 1024)}Mi",
            "ephemeral-storage": f"{round(machine.disk_gib)}Gi",
            "pods": "110",
            **({"nvidia.com/gpu": str(machine.gpus)} if machine.gpus else {}),
        },
        # Capitalised keys: the provider reads the offering into a struct without JSON names.
        "offerings": [
            {
                "Price": round(_price(machine) * share, 6),
                "Available": True,
                "Requirements": [
                    {"key": key, "operator": "In", "values": [value]}
                    for key, value in {
                        "karpenter.sh/capacity-type": capacity,
                        "topology.kubernetes.io/zone": zone,
                        **labels,
                    }.items()
                ],
            }
            for capacity, share in (_WAYS if available else _SOLD_OUT)
            for zone in ZONES
        ],
    }


def always_there() -> list[dict[str, Any]]:
    """What every embedded cluster begins with: CPU-only nodes, and the node class that NodePools name."""
    node_class = {
        "apiVersion": "karpenter.kwok.sh/v1alpha1",
        "kind": "KWOKNodeClass",
        "metadata": {"name": "default"},
    }
    return [node_class, *(_system_node(f"system-{number}", zone) for number, zone in enumerate(ZONES, 1))]


def _system_node(name: str, zone: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                SYSTEM_LABEL: "true",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "topology.kubernetes.io/zone": zone,
            },
        },
        "status": {"capacity": _SYSTEM_RESOURCES, "allocatable": _SYSTEM_RESOURCES},
    }
