"""One GPU type: what the engine sees of it, what it can compute, and the machines that carry it."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from modelstacks.catalog.row import Fact, Id, PositiveFloat, PositiveInt, Row

Support = Literal["native", "weight-only"]

# The ways to buy a machine, as stack files and machine rows name them.
CapacityWay = Literal["reservation", "capacity-block", "on-demand", "flex-start", "spot"]

# Money is never read out of text or of a yes: "55,04" or `true` in the place of a price is a slip.
Usd = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]

# The cloud of machines that are bought: nobody publishes a price, prices.yaml may give one.
OWN = "own"

# The region of a price that holds wherever the machine is rented.
ANYWHERE = "any"


class Price(Row):
    """What one machine costs: USD per hour in one region, seen on one date (None: the source is undated)."""

    region: str = Field(min_length=1)
    usd_per_hour: Usd
    source: str = Field(min_length=1)
    date: datetime.date | None = None

    @field_validator("date")
    @classmethod
    def _was_seen(cls, date: datetime.date | None) -> datetime.date | None:
        # One day of grace: where the price was written down it may be tomorrow already.
        if date is not None and date > datetime.date.today() + datetime.timedelta(days=1):
            raise ValueError(f"{date} is in the future, a price is dated by the day it was seen")
        return date


class Machine(Row):
    """A machine type of one cloud. `kubernetes` is False for plain rentals that no node pool can order.

    `network_gbps` is all of the machine's network together, as the cloud sells it; `efa_interfaces` is how many Elastic
    Fabric Adapters of AWS it takes (None: it takes none, or is not of AWS).
    """

    name: str = Field(min_length=1)
    cloud: Id
    gpu: str
    gpus: PositiveInt
    vcpu: PositiveInt | None = None
    memory_gib: PositiveFloat | None = None
    local_disk_gb: PositiveFloat | None = None
    network_gbps: PositiveFloat | None = None
    efa_interfaces: PositiveInt | None = None
    # The network that GPUs of several such machines reach one another through (templates/fabrics.yaml).
    fabric: Id | None = None
    # The only ways to buy it; None: every way that the cloud has.
    sold_as: tuple[CapacityWay, ...] | None = None
    # Local SSDs of Google's machine types: those that are always there, or the most that may be asked for.
    local_ssds: PositiveInt | None = None
    local_ssds_optional: bool = False
    # The cloud's own name of the GPU where it differs from machine type to machine type.
    cloud_gpu: str | None = None
    kubernetes: bool = True
    prices: tuple[Price, ...] = ()

    @property
    def usd_per_hour(self) -> float | None:
        """The lowest known on-demand price, USD per hour of the whole machine."""
        return min((price.usd_per_hour for price in self.prices), default=None)


WeightFormat = Literal["bf16", "fp8", "int8", "int4", "awq", "gptq", "mxfp4", "nvfp4"]


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
    """A GPU type. `memory_gib` is what a CUDA program sees, not what the box says.

    `free_share` is for a GPU that shares its memory with the CPU: the part of `memory_gib` that is free when an engine
    starts. An engine that asks for more refuses to start.
    """

    id: Id
    name: str
    compute_capability: float = Field(ge=7, lt=20)
    memory_gib: Fact
    free_share: Fact | None = None
    bandwidth_gb_per_s: Fact
    # What the host's own programs take of a memory that it shares with the GPU.
    host_share_gib: Fact | None = None
    tflops: Compute
    weight_formats: dict[str, Support]
    kv_cache_dtypes: tuple[str, ...]
    interconnect: Interconnect
    max_gpus_per_node: PositiveInt = 8
    product_label: str
    ray_accelerator_type: str | None = None
    # What clouds call it in labels and requests, by cloud.
    cloud_names: dict[Id, str] = Field(default_factory=dict)
    machines: tuple[Machine, ...]

    def name_in(self, machine: Machine) -> str | None:
        """What the machine's cloud calls the GPU; None where it has no name for it."""
        return machine.cloud_gpu or self.cloud_names.get(machine.cloud)

    @property
    def is_to_be_had(self) -> bool:
        """Some price is known, or some cloud has it for Kubernetes; other cards are planned with when named."""
        return any(machine.prices or (machine.cloud != OWN and machine.kubernetes) for machine in self.machines)

    def utilization(self, usual: float) -> float:
        """The share of the memory that an engine can ask for, where it would ask for `usual` on a card of its own."""
        return usual if self.free_share is None else min(usual, self.free_share.value)

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
        for name in self.weight_formats:
            if name not in get_args(WeightFormat):
                raise ValueError(f"weight_formats.{name} is no format; there are {', '.join(get_args(WeightFormat))}")
        said = re.search(r"(\d+)\s?GB\b", self.name)
        # Drivers and error correction keep some of what the box says.
        if said is not None and not 0.85 * int(said[1]) <= self.memory_gib.value <= int(said[1]):
            raise ValueError(f"memory_gib.value {self.memory_gib.value:g} does not go with the name, {self.name}")
        names = [(machine.cloud, machine.name) for machine in self.machines]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"machines listed twice: {sorted(repeated)}")
        for machine in self.machines:
            if machine.gpus > self.max_gpus_per_node:
                raise ValueError(f"{machine.name} has {machine.gpus} GPUs, above max_gpus_per_node")
        if self.free_share is not None and self.free_share.value > 1:
            raise ValueError("free_share is a share of memory_gib, at most 1")
        if self.weight_formats.get("fp8") == "native" and self.tflops.fp8 is None:
            raise ValueError("weight_formats says fp8 is native, tflops gives no fp8")
        return self
