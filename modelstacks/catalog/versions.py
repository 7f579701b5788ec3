"""Which engine, image and operator versions belong together, and which forms of them a tier or cloud uses."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from modelstacks.catalog.row import Id, PositiveFloat, PositiveInt, Row


class Overhead(Row):
    """Device memory an engine needs besides weights and KV cache; see docs/memory.md for how each was found."""

    base_gib: PositiveFloat
    nccl_gib: PositiveFloat
    pipeline_gib: PositiveFloat
    graphs_base_gib: PositiveFloat
    graphs_gib_per_layer: PositiveFloat
    moe_gib: PositiveFloat
    activation_factor: PositiveFloat
    source: str


class QuantizeAtLoad(Row):
    """How an engine turns 16-bit weights into a quantization while loading: the flag, and what it holds meanwhile."""

    flag: str
    holds: Literal["one-layer", "whole-model"]
    source: str


class EngineForm(Row):
    """One engine in one way of running it: alone in a container, or inside a Ray cluster."""

    engine: Id
    template: str
    version: str
    image: str = Field(pattern=r"^[^\s@]+:[^\s:@]+(@sha256:[0-9a-f]{64})?$")
    digest_note: str | None = None
    user_id: int = Field(ge=0)
    root_reason: str | None = None
    group_id: int = Field(ge=0)
    home: str
    port: PositiveInt
    health_path: str
    drain_s: int = Field(ge=0)
    init_s: PositiveInt
    gpu_memory_utilization: float = Field(gt=0, le=1)
    reserved_fraction: float = Field(default=0.0, ge=0, lt=1)
    quantize_at_load: dict[str, QuantizeAtLoad] = Field(default_factory=dict)
    prefills_whole_prompt: bool = False
    stretches_rope: bool = False
    pipelines: bool = True
    kv_cache_dtypes: dict[str, float]
    windows_save_memory: bool
    block_tokens: PositiveInt
    mla_block_tokens: PositiveInt
    max_num_seqs: PositiveInt
    batched_tokens: dict[str, PositiveInt]
    min_compute_capability: PositiveFloat
    max_compute_capability: PositiveFloat | None = None
    overhead: Overhead
    warning: str | None = None
    companions: dict[str, str] = Field(default_factory=dict)
    source: str
    date: datetime.date

    @model_validator(mode="after")
    def _is_consistent(self) -> EngineForm:
        if self.image.endswith(":latest"):
            raise ValueError("image must be pinned, latest moves")
        if self.user_id == 0 and self.root_reason is None:
            raise ValueError("user_id 0 needs a root_reason")
        if "auto" not in self.kv_cache_dtypes:
            raise ValueError("kv_cache_dtypes needs auto")
        return self


class TierForm(Row):
    """A tier: the workload template it renders with, and the form of engine that fits into it."""

    template: str
    form: str
    parts: tuple[str, ...]
    service_labels: dict[str, str] = Field(default_factory=dict)
    worker_labels: dict[str, str] = Field(default_factory=dict)
    helpers_per_replica: int = Field(default=0, ge=0)
    waits_for: str | None = None


class CloudKind(Row):
    """One way to get nodes: its options, where its prices come from, and the pod placement it needs."""

    id: Id
    about: str
    prices_of: str | None = None
    simulated: bool = False
    makes_nodes: bool
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Loading(Row):
    """How fast weights arrive, pessimistic, GiB/s."""

    hub_gib_per_s: PositiveFloat
    disk_gib_per_s: PositiveFloat
    node_ready_s: PositiveInt
    safety_factor: PositiveFloat
    source: str


class Versions(Row):
    """templates/versions.yaml."""

    engines: dict[str, dict[str, EngineForm]]
    tiers: dict[str, TierForm]
    loading: Loading

    @model_validator(mode="before")
    @classmethod
    def _name_the_engines(cls, data: dict[str, Any]) -> dict[str, Any]:
        engines = {
            engine: {form: {"engine": engine, **row} for form, row in forms.items()}
            for engine, forms in data.get("engines", {}).items()
        }
        return {**data, "engines": engines}
