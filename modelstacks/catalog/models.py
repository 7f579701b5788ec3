"""One model: its architecture, licence, checkpoints and the profiles it is served with."""

from __future__ import annotations

import datetime
from typing import Literal

from pydantic import Field, model_validator

from modelstacks.catalog.row import Id, NaturalInt, PositiveFloat, PositiveInt, Row

AttentionKind = Literal["full", "sliding", "chunked"]


class Mla(Row):
    """Multi-head latent attention: one compressed row per token and layer, the same on every TP rank."""

    kv_lora_rank: PositiveInt
    qk_rope_head_dim: PositiveInt
    q_lora_rank: PositiveInt | None = None
    # Sparse attention keeps a second, 8-bit row per token and layer to choose from.
    indexer_bytes: NaturalInt = 0
    # Its weights in one layer, which every rank keeps.
    indexer_parameters: NaturalInt = 0


class Window(Row):
    """Layers that look back over a bounded number of tokens; heads only where they differ from the full layers'."""

    kind: Literal["sliding", "chunked"]
    tokens: PositiveInt
    layers: PositiveInt
    kv_heads: PositiveInt | None = None
    head_dim: PositiveInt | None = None


class Recurrent(Row):
    """Layers that keep one state of fixed size per request instead of a row per token; elements of the whole model."""

    kind: Literal["mamba1", "mamba2", "gated-delta-net", "kda", "linear-attention", "short-conv"]
    layers: PositiveInt
    conv_elements: NaturalInt
    state_elements: NaturalInt
    state_bytes: Literal[2, 4] = 2

    def page_bytes(self, tensor_parallel: int) -> float:
        """Bytes of one request's state in one layer on one rank; the convolution's part is kept in 16 bits."""
        return (self.conv_elements * 2 + self.state_elements * self.state_bytes) / tensor_parallel


class Encoder(Row):
    """A vision (or audio) tower beside the language model."""

    parameters: PositiveInt
    hidden: PositiveInt
    intermediate: PositiveInt
    tokens_per_item: PositiveInt
    split_over_ranks: bool = True
    # Attention is cut by heads; where tensor parallel does not divide them every rank keeps these parameters whole.
    heads: PositiveInt | None = None
    attention_parameters: NaturalInt = 0
    source: str | None = None


class Moe(Row):
    """Mixture of experts; `expert_parameters` counts the routed experts only."""

    experts: PositiveInt
    experts_per_token: PositiveInt
    intermediate: PositiveInt
    expert_parameters: PositiveInt
    # Sparse layers, where not all are; the width experts work in, where it is not the model's.
    layers: PositiveInt | None = None
    hidden: PositiveInt | None = None


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
    # Width of a value head where it is not that of the keys.
    v_head_dim: PositiveInt | None = None
    intermediate: PositiveInt
    vocab: PositiveInt
    max_context: PositiveInt
    # What the engine loads, encoder included; `unloaded_parameters` (layers that predict ahead) stay in the files.
    parameters: PositiveInt
    active_parameters: PositiveInt
    unloaded_parameters: NaturalInt = 0
    tied_embeddings: bool = False
    # Some model classes of vLLM keep embeddings and output layer on every pipeline stage.
    ends_on_every_stage: bool = False
    # A learned weight per head that takes attention away from every token (gpt-oss); fewer kernels have it.
    attention_sinks: bool = False
    mla: Mla | None = None
    windows: tuple[Window, ...] = ()
    recurrent: Recurrent | None = None
    # Layers without any cache of their own: plain feed-forward ones, or those that share another layer's keys.
    cacheless_layers: NaturalInt = 0
    moe: Moe | None = None
    encoder: Encoder | None = None
    rope_scaling: RopeScaling | None = None
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Architecture:
        if self.full_layers < 0:
            raise ValueError("windows, recurrent and cacheless_layers cover more layers than the model has")
        if self.mla is None and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        if self.active_parameters > self.parameters:
            raise ValueError("active_parameters exceeds parameters")
        if self.moe is not None and self.moe.expert_parameters >= self.parameters:
            raise ValueError("moe.expert_parameters exceeds parameters")
        return self

    def check_parameters(self) -> None:
        """Raise ValueError when a dense model's shapes make quite another number of parameters than it says."""
        if self.moe is not None or self.mla is not None or self.recurrent is not None:
            return
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        layer = attention + 3 * self.hidden * self.intermediate
        tower = self.encoder.parameters if self.encoder is not None else 0
        counted = self.layers * layer + self.end_parameters + tower
        # Families differ by a third feed-forward matrix, gates and shared parts.
        if not 0.6 <= self.parameters / counted <= 1.8:
            raise ValueError(
                f"architecture.parameters {self.parameters / 1e9:.2f}B do not go with the shapes, "
                f"which make {counted / 1e9:.2f}B"
            )

    @property
    def end_parameters(self) -> int:
        """Of embeddings and output layer, which may be one matrix; quantized checkpoints keep them in 16 bits."""
        return (1 if self.tied_embeddings else 2) * self.vocab * self.hidden

    @property
    def value_dim(self) -> int:
        """Width of a value head."""
        return self.v_head_dim or self.head_dim

    @property
    def full_layers(self) -> int:
        """Layers that keep every token of a request."""
        recurrent = self.recurrent.layers if self.recurrent is not None else 0
        return self.layers - sum(window.layers for window in self.windows) - recurrent - self.cacheless_layers

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
    # None where no source says it.
    gated: bool | None = None
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

    # None only for an own model that was given as a config.json and a size.
    repo: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    size_gib: PositiveFloat
    size_kind: Literal["published", "measured", "computed", "given"]
    # What the engine was seen to keep, where that is not what the files hold (padding, layouts of its own).
    loaded_gib: PositiveFloat | None = None
    # What kv-cache-dtype auto means for this checkpoint, where it carries scales for a narrower cache.
    kv_cache_dtype: Literal["fp8"] | None = None
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
    max_num_seqs: PositiveInt | None = None
    engine: Id = "vllm"
    note: str | None = None


# Bits per weight that a format can plausibly take, wide enough for parts kept in 16 bits and for 32-bit originals.
QUANTIZED_BITS: dict[str, tuple[float, float]] = {
    "bf16": (14, 34), "fp8": (7, 13), "int8": (7, 13), "int4": (3.5, 9), "awq": (3.5, 9), "gptq": (3.5, 9),
    "mxfp4": (3.5, 9), "nvfp4": (3.5, 10),
}  # fmt: skip


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
    # The oldest version of an engine that a public recipe names for the model; a plan for an older one warns.
    engine_since: dict[str, str] = Field(default_factory=dict)
    lora: bool = True
    notes: tuple[str, ...] = ()
    profiles: tuple[Profile, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_consistent(self) -> Model:
        self.architecture.check_parameters()
        plausible = QUANTIZED_BITS
        for name, checkpoint in self.checkpoints.items():
            if name not in plausible:
                raise ValueError(f"checkpoints.{name} is no known quantization, allowed: {', '.join(plausible)}")
            stored = self.architecture.parameters + self.architecture.unloaded_parameters
            bits = checkpoint.size_gib * 2**30 * 8 / stored
            low, high = plausible[name]
            if not low <= bits <= high:
                raise ValueError(
                    f"checkpoints.{name}.size_gib {checkpoint.size_gib:g} is {bits:.3g} bits per weight for "
                    f"{stored / 1e9:.1f}B parameters, {low:g}-{high:g} is plausible"
                )
        for target, origin in self.quantize_at_load.items():
            if origin not in self.checkpoints or target in self.checkpoints:
                raise ValueError(f"quantize_at_load.{target} needs checkpoint {origin} and no checkpoint {target}")
        for index, profile in enumerate(self.profiles):
            if profile.quantization not in self.quantizations:
                text = f"profiles.{index}.quantization {profile.quantization} has no checkpoint"
                raise ValueError(f"{text}, there are {', '.join(self.quantizations)}")
            if profile.context > self.architecture.context_limit:
                limit = self.architecture.context_limit
                raise ValueError(f"profiles.{index}.context {profile.context} exceeds the model's {limit}")
        return self

    @property
    def quantizations(self) -> tuple[str, ...]:
        """Every quantization that can be served: published, or made while loading."""
        return (*self.checkpoints, *self.quantize_at_load)


class MissingModel(Row):
    """A name that people ask for and that never was a model: why, and the ids of those that exist instead."""

    answer: str = Field(min_length=1)
    instead: tuple[Id, ...] = Field(min_length=1)


class MissingModels(Row):
    """templates/missing-models.yaml, held against the ids of the catalogue."""

    models: dict[Id, MissingModel]
    in_catalogue: tuple[str, ...]

    @model_validator(mode="after")
    def _agrees_with_the_catalogue(self) -> MissingModels:
        for name, row in self.models.items():
            if name in self.in_catalogue:
                raise ValueError(f"models.{name} is in the catalogue")
            unknown = [model_id for model_id in row.instead if model_id not in self.in_catalogue]
            if unknown:
                raise ValueError(f"models.{name}.instead names {', '.join(unknown)}, which the catalogue has not")
        return self
