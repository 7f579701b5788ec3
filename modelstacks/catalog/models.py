"""One model: its architecture, licence, checkpoints and the profiles it is served with."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field, model_validator

from modelstacks.catalog.row import Id, PositiveFloat, PositiveInt, Row

AttentionKind = Literal["full", "sliding", "chunked"]


class Mla(Row):
    """Multi-head latent attention: one compressed row per token and layer, the same on every TP rank."""

    kv_lora_rank: PositiveInt
    qk_rope_head_dim: PositiveInt
    q_lora_rank: PositiveInt | None = None


class Window(Row):
    """Layers that look back over a bounded number of tokens."""

    kind: Literal["sliding", "chunked"]
    tokens: PositiveInt
    layers: PositiveInt


class Moe(Row):
    """Mixture of experts; `expert_parameters` counts the routed experts only."""

    experts: PositiveInt
    experts_per_token: PositiveInt
    intermediate: PositiveInt
    expert_parameters: PositiveInt


class RopeScaling(Row):
    """How far the context may be stretched beyond the config, and the engine override that does it."""

    kind: Literal["yarn"]
    max_factor: PositiveFloat
    original: PositiveInt
    rope_theta: PositiveFloat
    source: str


class Architecture(Row):
    """The numbers of a Hugging Face config.json that the memory arithmetic needs."""

    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    intermediate: PositiveInt
    vocab: PositiveInt
    max_context: PositiveInt
    parameters: PositiveInt
    active_parameters: PositiveInt
    tied_embeddings: bool = False
    mla: Mla | None = None
    windows: tuple[Window, ...] = ()
    moe: Moe | None = None
    rope_scaling: RopeScaling | None = None
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Architecture:
        if sum(window.layers for window in self.windows) > self.layers:
            raise ValueError("windows cover more layers than the model has")
        if self.mla is None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        if self.active_parameters > self.parameters:
            raise ValueError("active_parameters exceeds parameters")
        if self.moe is not None and self.moe.expert_parameters >= self.parameters:
            raise ValueError("moe.expert_parameters exceeds parameters")
        return self

    @property
    def context_limit(self) -> int:
        """The longest context that may be asked for, tokens: the config's, stretched by documented rope scaling."""
        if self.rope_scaling is None:
            return self.max_context
        return max(self.max_context, int(self.rope_scaling.original * self.rope_scaling.max_factor))


class Licence(Row):
    """What the weights' licence asks for. Facts with their source; no legal advice."""

    id: str
    name: str
    gated: bool | None
    must_accept: bool
    terms: tuple[str, ...] = ()
    source: str

    @model_validator(mode="after")
    def _is_consistent(self) -> Licence:
        if self.gated and not self.must_accept:
            raise ValueError("a gated licence must be accepted")
        return self


class Checkpoint(Row):
    """Published weights of one quantization: the repository and the bytes it really holds."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    size_gib: PositiveFloat
    size_kind: Literal["published", "measured", "computed"]
    max_tensor_parallel: PositiveInt | None = None
    max_tensor_parallel_reason: str | None = None
    source: str = Field(min_length=1)
    date: datetime.date | None = None


class Profile(Row):
    """A way the model is known to be served; the first one is the default."""

    gpu: Id
    gpus: PositiveInt
    quantization: str
    context: PositiveInt
    concurrency: PositiveInt = 1
    engine: Id = "vllm"
    note: str | None = None


class Model(Row):
    """A model template."""

    id: Id
    name: str
    licence: Licence
    architecture: Architecture
    checkpoints: dict[str, Checkpoint] = Field(min_length=1)
    quantize_at_load: dict[str, str] = Field(default_factory=dict)
    engine_flags: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    engine_refusals: dict[str, str] = Field(default_factory=dict)
    profiles: tuple[Profile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Model:
        # Bits per weight that a format can plausibly take, wide enough for parts kept in 16 bits.
        plausible = {"bf16": (14, 18), "fp8": (7, 13), "int8": (7, 13), "int4": (3.5, 8), "awq": (3.5, 8)}
        plausible |= {"gptq": (3.5, 9), "mxfp4": (3.5, 8), "nvfp4": (3.5, 8)}
        for name, checkpoint in self.checkpoints.items():
            if name not in plausible:
                raise ValueError(f"checkpoints.{name}: unknown quantization, allowed: {', '.join(plausible)}")
            bits = checkpoint.size_gib * 2**30 * 8 / self.architecture.parameters
            low, high = plausible[name]
            if not low <= bits <= high:
                raise ValueError(
                    f"checkpoints.{name}.size_gib {checkpoint.size_gib} is {bits:.1f} bits per weight for "
                    f"{self.architecture.parameters / 1e9:.1f}B parameters, {low}-{high} is plausible"
                )
        for target, origin in self.quantize_at_load.items():
            if origin not in self.checkpoints or target in self.checkpoints:
                raise ValueError(f"quantize_at_load.{target}: needs checkpoint {origin} and no checkpoint {target}")
        for profile in self.profiles:
            if profile.quantization not in self.quantizations:
                raise ValueError(f"a profile names quantization {profile.quantization}, which has no checkpoint")
            if profile.context > self.architecture.context_limit:
                raise ValueError(f"a profile's context {profile.context} exceeds {self.architecture.context_limit}")
        return self

    @property
    def quantizations(self) -> tuple[str, ...]:
        """Every quantization that can be served: published, or made while loading."""
        return (*self.checkpoints, *self.quantize_at_load)
