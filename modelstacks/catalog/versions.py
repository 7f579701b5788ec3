"""Which engine, image and operator versions belong together, and which forms of them a tier or cloud uses."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from modelstacks.catalog.row import Id, PositiveFloat, PositiveInt, Row

# The first compute capability that multiplies FP8: Ada.
NATIVE_FP8 = 8.9


class Overhead(Row):
    """Device memory an engine needs besides weights and KV cache; see docs/memory.md for how each was found.

    The last two say how far real servers were from the sum: a plan fits when it fits with both added.
    """

    base_gib: PositiveFloat
    # On the card before the engine looks, outside its budget: the CUDA context, and with more ranks their links.
    context_gib: PositiveFloat
    context_link_gib: dict[Literal["nvlink", "pcie"], PositiveFloat] = Field(default_factory=dict)
    activation_factor: PositiveFloat
    sampler_copies: PositiveFloat
    encoder_copies: PositiveFloat
    encoder_gib: PositiveFloat
    encoder_bytes_per_parameter: PositiveFloat
    link_gib: dict[Literal["nvlink", "pcie"], PositiveFloat]
    pipeline_gib: PositiveFloat
    mla_gib: PositiveFloat
    graphs_base_gib: PositiveFloat
    graphs_gib_per_layer: PositiveFloat
    graphs_in_budget: bool
    # The largest batch that a graph is captured for, where their number follows the sequences.
    graphs_up_to: PositiveInt | None = None
    uncertainty_gib: PositiveFloat
    uncertainty_share: PositiveFloat
    source: str


class QuantizeAtLoad(Row):
    """How an engine turns 16-bit weights into a quantization while loading: the flag, and what it holds meanwhile."""

    flag: str
    holds: Literal["one-layer", "whole-model"]
    source: str


class BySize(Row):
    """A default that an engine chooses by device memory: below 70 GiB (and on any A100), from there, from 160 GiB."""

    small: PositiveInt
    large: PositiveInt
    huge: PositiveInt


class Era(Row):
    """What was different in the versions before `before`; whatever is None was as it is now."""

    before: str = Field(pattern=r"^\d+\.\d+(\.\d+)?$")
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    windows_save_memory: bool | None = None
    chunks_save_memory: bool | None = None
    group_stretch: float | None = Field(default=None, ge=1, le=2)
    mla_row_elements: PositiveInt | None = None
    batches_in_flight: PositiveInt | None = None
    state_blocks: PositiveInt | None = None
    tokens_are_a_share: bool | None = None
    reads_cache_scales: bool | None = None
    fp8_cache_from: PositiveFloat | None = None
    refuses_few_states: bool | None = None
    prefills_whole_prompt_below: PositiveInt | None = None
    max_num_seqs: BySize | None = None
    batched_tokens: BySize | None = None
    # KV cache types and flags that did not exist yet, and weights that were held whole while they were quantized.
    without_kv_cache_dtypes: tuple[str, ...] = ()
    leaves_out_towers: bool | None = None
    quantizes_whole: bool = False
    overhead: dict[str, Any] = Field(default_factory=dict)
    source: str


class Metrics(Row):
    """What an engine calls its measurements; None where it has none of the kind.

    The first three are gauges (requests, requests, share of the cache), tokens are counters, the rest histograms in
    seconds but for `preemptions`, a counter.
    """

    running: str
    waiting: str
    kv_cache: str | None = None
    prompt_tokens: str
    output_tokens: str
    first_token: str | None = None
    next_token: str | None = None
    request: str | None = None
    preemptions: str | None = None
    # An idle engine leaves its gauges out, so that a scrape without them means 0.
    silent_when_idle: bool = False

    @property
    def in_flight(self) -> tuple[str, str]:
        """Gauges whose sum is the requests in flight of one server."""
        return self.running, self.waiting


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
    port: int = Field(ge=1, le=65535)
    health_path: str
    metrics: Metrics
    # The variable that the key of its API is read from.
    api_key_env: str
    # What the engine does with the key that an operator should know.
    api_key_note: str | None = None
    # The container's own file system stays as the image has it; the reason where that is not possible.
    read_only_root: bool = True
    writes_root_reason: str | None = None
    init_s: PositiveInt
    gpu_memory_utilization: float = Field(gt=0, le=1)
    reserved_fraction: float = Field(default=0.0, ge=0, lt=1)
    quantize_at_load: dict[str, QuantizeAtLoad] = Field(default_factory=dict)
    prefills_whole_prompt: bool = False
    stretches_rope: bool = False
    pipelines: bool = True
    loras: bool = False
    leaves_out_towers: bool = False
    # Weights are read straight from an object store.
    streams_weights: bool = False
    kv_cache_dtypes: dict[str, PositiveFloat]
    windows_save_memory: bool
    chunks_save_memory: bool = True
    # Kinds of layers are padded to the largest count while that is below this many times the smallest.
    group_stretch: float = Field(default=1.5, ge=1, le=2)
    # Elements that a row of latent attention is padded to.
    mla_row_elements: PositiveInt | None = None
    block_tokens: PositiveInt
    mla_block_tokens: PositiveInt
    # Hybrid models: blocks of a recurrent group that one request takes, and what a raised block is a multiple of.
    state_blocks: PositiveInt = 1
    state_alignment: PositiveInt = 16
    mla_state_alignment: PositiveInt = 128
    tokens_are_a_share: bool = False
    # The engine declines to start when it has fewer recurrent states than sequences.
    refuses_few_states: bool = False
    batches_in_flight: PositiveInt = 1
    reads_cache_scales: bool = True
    # Prompts up to this length were read in one step, and the batch was as long as the context.
    prefills_whole_prompt_below: int = 0
    max_num_seqs: BySize
    batched_tokens: BySize
    min_compute_capability: PositiveFloat
    max_compute_capability: PositiveFloat | None = None
    # Attention that chooses its tokens by an index (DeepSeek V3.2, GLM 5) has kernels from here on.
    sparse_attention_from: PositiveFloat = 9.0
    sparse_fp8_only_from: PositiveFloat = 12.0
    # Compute capability from which plain attention keeps a cache of 8 bits; other kinds of attention need 8.9.
    fp8_cache_from: PositiveFloat = NATIVE_FP8
    overhead: Overhead
    # Figures of older versions, oldest first, and the first version that there is evidence of.
    history: tuple[Era, ...] = ()
    oldest: str | None = None
    warning: str | None = None
    companions: dict[str, str] = Field(default_factory=dict)
    state_image: str | None = None
    source: str
    date: datetime.date

    @model_validator(mode="after")
    def _is_consistent(self) -> EngineForm:
        if self.image.endswith(":latest"):
            raise ValueError("image must be pinned, latest moves")
        if self.user_id == 0 and self.root_reason is None:
            raise ValueError("user_id 0 needs a root_reason")
        if not self.read_only_root and self.writes_root_reason is None:
            raise ValueError("read_only_root: false needs a writes_root_reason")
        befores = [version_key(era.before) or () for era in self.history]
        if befores != sorted(befores):
            raise ValueError("history must go from the oldest version to the newest")
        if "auto" not in self.kv_cache_dtypes:
            raise ValueError("kv_cache_dtypes needs auto")
        return self

    @property
    def batch_follows_context(self) -> bool:
        """Prompts are read whole, at least short ones, so another context is another batch."""
        return self.prefills_whole_prompt or self.prefills_whole_prompt_below > 0

    def at(self, version: str) -> EngineForm | None:
        """The same engine in another version, newer ones with the figures of this one; None before any evidence."""
        asked = version_key(version)
        version = version.removeprefix("v")
        if version == self.version:
            return self
        if asked is None or self.oldest is None or asked < (version_key(self.oldest) or ()):
            return None
        era = next((era for era in self.history if asked < (version_key(era.before) or ())), None)
        changed: dict[str, Any] = {"version": version}
        if era is not None:
            named = {"before", "overhead", "source", "without_kv_cache_dtypes", "quantizes_whole"}
            names = set(Era.model_fields) - named
            changed |= {name: getattr(era, name) for name in names if getattr(era, name) is not None}
            gone = era.without_kv_cache_dtypes
            changed["kv_cache_dtypes"] = {name: w for name, w in self.kv_cache_dtypes.items() if name not in gone}
            if era.quantizes_whole:
                whole = {
                    name: how.model_copy(update={"holds": "whole-model"}) for name, how in self.quantize_at_load.items()
                }
                changed["quantize_at_load"] = whole
            changed["overhead"] = Overhead.model_validate(self.overhead.model_dump() | era.overhead)
        return self.model_copy(update=changed)


def version_key(version: str) -> tuple[int, ...] | None:
    """The numbers of a version, for comparison; None for a word that is none. Builds and candidates count as final."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    return tuple(int(part or 0) for part in found.groups()) if found else None


class TierForm(Row):
    """A tier by one launcher: the workload template, the kind it gives, and the form of engine that fits into it."""

    launcher: Id
    about: str
    # What a reviewer should know of replicas over several nodes: title → text.
    notes: dict[str, str] = Field(default_factory=dict)
    template: str
    form: str
    kind: str
    # The operator that turns the kind into pods, by its id in templates/operators.yaml.
    operator: Id | None = None
    parts: tuple[str, ...]
    service_labels: dict[str, str] = Field(default_factory=dict)
    worker_labels: dict[str, str] = Field(default_factory=dict)
    # What follows the stack's name in the names of pods that serve, as a regular expression; then the same for those
    # of them that are Ready only while the engine answers, where others are always.
    pods: str
    answering_pods: str | None = None
    # A server waits inside for those of other nodes, whatever they still have to do.
    meets_in_server: bool = False
    helpers_per_replica: int = Field(default=0, ge=0)
    # One apply may change all replicas at once, each in a way of its own; otherwise one follows the other.
    changed_together: bool = False
    waits_for: str | None = None


# Where weights are read from, each with a speed of its own.
WeightsSpeed = Literal["hub", "image", "object-store", "volume", "node-disk"]


class Loading(Row):
    """How fast weights arrive, pessimistic, GiB/s, by where they come from."""

    gib_per_s: dict[WeightsSpeed, PositiveFloat]
    node_ready_s: PositiveInt
    safety_factor: PositiveFloat
    source: str

    @model_validator(mode="after")
    def _is_complete(self) -> Loading:
        missing = sorted(set(get_args(WeightsSpeed)) - self.gib_per_s.keys())
        if missing:
            raise ValueError(f"gib_per_s lacks {', '.join(missing)}")
        return self


class Versions(Row):
    """templates/versions.yaml."""

    # What holds a warm spare's place.
    placeholder_image: str = Field(pattern=r"^[^\s@]+:[^\s:@]+(@sha256:[0-9a-f]{64})?$")
    engines: dict[str, dict[str, EngineForm]]
    tiers: dict[str, dict[str, TierForm]]
    loading: Loading

    @model_validator(mode="before")
    @classmethod
    def _name_the_engines(cls, data: dict[str, Any]) -> dict[str, Any]:
        def told(groups: Any, tell: Callable[[str, str], dict[str, str]]) -> Any:
            """Each row told its own name or that of its group; what is no row is left for validation to refuse."""
            if not isinstance(groups, dict):
                return groups
            return {
                group: {
                    name: {**tell(group, name), **row} if isinstance(row, dict) else row for name, row in rows.items()
                }
                if isinstance(rows, dict)
                else rows
                for group, rows in groups.items()
            }

        engines = told(data.get("engines"), lambda group, _: {"engine": group})
        tiers = told(data.get("tiers"), lambda _, name: {"launcher": name})
        named = {"engines": engines, "tiers": tiers}
        return {**data, **{key: rows for key, rows in named.items() if rows is not None}}
