"""One GPU type: what the engine sees of it, what it can compute, and the machines that carry it."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field, model_validator

from modelstacks.catalog.row import Fact, Id, PositiveFloat, PositiveInt, Row

Support = Literal["native", "weight-only"]


class Price(Row):
    """What one machine costs: USD per hour in one region, seen on one date (None: the source is undated)."""

    region: str
    usd_per_hour: PositiveFloat
    source: str = Field(min_length=1)
    date: datetime.date | None = None


class Machine(Row):
    """A machine type of one cloud. `kubernetes` is False for plain rentals that no node pool can order."""

    name: str = Field(min_length=1)
    cloud: Id
    gpu: str
    gpus: PositiveInt
    vcpu: PositiveInt | None = None
    memory_gib: PositiveFloat | None = None
    local_disk_gb: PositiveFloat | None = None
    kubernetes: bool = True
    prices: tuple[Price, ...] = ()

    @property
    def usd_per_hour(self) -> float | None:
        """The lowest known on-demand price, USD per hour of the whole machine."""
        return min((price.usd_per_hour for price in self.prices), default=None)


class Compute(Row):
    """Dense tensor throughput, TFLOP/s, by the width of the operands."""

    bf16: PositiveFloat
    fp8: PositiveFloat | None = None
    fp4: PositiveFloat | None = None
    source: str


class Interconnect(Row):
    """How the GPUs of one machine talk: NVLink, or PCIe when the machine has no bridge."""

    kind: Literal["nvlink", "pcie"]
    gb_per_s: PositiveFloat
    note: str | None = None
    source: str


class Gpu(Row):
    """A GPU type. `memory_gib` is what a CUDA program sees, not what the box says."""

    id: Id
    name: str
    compute_capability: PositiveFloat
    memory_gib: Fact
    bandwidth_gb_per_s: Fact
    tflops: Compute
    weight_formats: dict[str, Support]
    kv_cache_dtypes: tuple[str, ...]
    interconnect: Interconnect
    max_gpus_per_node: PositiveInt = 8
    product_label: str
    ray_accelerator_type: str | None = None
    machines: tuple[Machine, ...]

    @model_validator(mode="before")
    @classmethod
    def _machines_carry_this_gpu(cls, data: dict[str, object]) -> dict[str, object]:
        machines = data.get("machines")
        if isinstance(machines, list):
            gpu = data.get("id")
            data = {**data, "machines": [{"gpu": gpu, **m} if isinstance(m, dict) else m for m in machines]}
        return data

    @model_validator(mode="after")
    def _is_consistent(self) -> Gpu:
        names = [(machine.cloud, machine.name) for machine in self.machines]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"machines listed twice: {sorted(repeated)}")
        for machine in self.machines:
            if machine.gpus > self.max_gpus_per_node:
                raise ValueError(f"{machine.name} has {machine.gpus} GPUs, above max_gpus_per_node")
        if self.weight_formats.get("fp8") == "native" and self.tflops.fp8 is None:
            raise ValueError("weight_formats says fp8 is native, tflops gives no fp8")
        return self
