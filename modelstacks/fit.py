"""The memory arithmetic: what one GPU of a topology must hold, and how many tokens its KV cache keeps.

All sizes are GiB of the fullest GPU unless a name says otherwise. The formula, its sources and its evidence are in
docs/memory.md; nothing here is read from a cluster, an engine or the network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelstacks.catalog import Architecture, EngineForm, Gpu

GIB = 2**30
# 16-bit floats: activations, embeddings, and weights that a quantization leaves alone.
WIDE_BYTES = 2


@dataclass(frozen=True, slots=True)
class Topology:
    """How one replica is cut: `tensor_parallel` ranks inside a node times `pipeline_parallel` stages."""

    tensor_parallel: int
    pipeline_parallel: int

    @property
    def gpus(self) -> int:
        """GPUs per replica."""
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of one replica: requests of `context` tokens, `concurrency` of them at once."""

    context: int
    concurrency: int
    kv_cache_dtype: str
    gpu_memory_utilization: float
    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Served weights of the whole model, GiB; and the 16-bit ones they are made from, when the engine does that.

    `one_layer_at_a_time`: the engine quantizes each layer as it arrives, so it never holds the 16-bit model.
    """

    total_gib: float
    wide_gib: float | None = None
    one_layer_at_a_time: bool = True


@dataclass(frozen=True, slots=True)
class Memory:
    """The ledger of the fullest GPU, GiB; tokens and concurrency are per replica."""

    gpu_gib: float
    budget_gib: float
    weights_gib: float
    overhead_gib: float
    kv_cache_gib: float
    kv_needed_gib: float
    kv_bytes_per_token: int
    kv_cache_tokens: int
    max_concurrency: float
    loading_peak_gib: float
    overhead_parts: tuple[tuple[str, float], ...]

    @property
    def holds_weights(self) -> bool:
        """Weights and overhead leave room for a KV cache, and loading them never exceeds the card."""
        return self.kv_cache_gib > 0 and self.loading_peak_gib <= self.gpu_gib

    @property
    def holds_load(self) -> bool:
        """The KV cache keeps every request that was asked for, with the block the engine holds back."""
        return self.holds_weights and self.kv_needed_gib <= self.kv_cache_gib

    @property
    def largest_part(self) -> tuple[str, float]:
        """The part of the ledger that takes most: its name and GiB."""
        parts = (("weights", self.weights_gib), ("KV cache", self.kv_needed_gib), *self.overhead_parts)
        return max(parts, key=lambda part: part[1])


def stage_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each pipeline stage as vLLM cuts them: the remainder goes to the stages before the last."""
    base, extra = divmod(layers, stages)
    return tuple(base + (1 if stages - 1 - extra <= index < stages - 1 else 0) for index in range(stages))


def kv_heads_per_rank(architecture: Architecture, tensor_parallel: int) -> int:
    """KV heads one rank keeps: above the model's count they are copied, not cut (vLLM config/model.py)."""
    return max(1, architecture.kv_heads // tensor_parallel)


def kv_bytes_per_layer(architecture: Architecture, tensor_parallel: int, width: float) -> float:
    """Bytes that one token takes in one layer on one rank."""
    if architecture.mla is not None:
        return (architecture.mla.kv_lora_rank + architecture.mla.qk_rope_head_dim) * width
    return 2 * kv_heads_per_rank(architecture, tensor_parallel) * architecture.head_dim * width


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The paged KV cache of one stage: bytes of a block, and blocks that a request of some length needs."""

    tokens_per_block: int
    bytes_per_block: float
    full_groups: int
    window_groups: tuple[tuple[str, int, int], ...]
    in_flight_tokens: int

    def per_request(self, context: int) -> int:
        """Blocks of one request: full layers keep it all, windows keep the window and what is in flight."""
        blocks = self.full_groups * math.ceil(context / self.tokens_per_block)
        for kind, tokens, groups in self.window_groups:
            sliding = kind == "sliding"
            kept = min(tokens - sliding + self.in_flight_tokens, context)
            blocks += groups * (math.ceil(kept / self.tokens_per_block) + sliding)
        return blocks


def _blocks(
    architecture: Architecture, form: EngineForm, tensor_parallel: int, layers: int, width: float, in_flight: int
) -> _Blocks:
    """How the engine groups a stage's layers into equal pages; vLLM v1/core/kv_cache_utils.py."""
    block = form.mla_block_tokens if architecture.mla is not None else form.block_tokens
    page = kv_bytes_per_layer(architecture, tensor_parallel, width) * block
    share = layers / architecture.layers
    windows = architecture.windows if form.windows_save_memory else ()
    counts = [(window.kind, window.tokens, math.ceil(window.layers * share)) for window in windows]
    full = layers - sum(count for _, _, count in counts)
    sizes = [count for count in (full, *(count for _, _, count in counts)) if count > 0]
    # Groups of equal layer count share one pool of blocks; near-equal kinds are padded up rather than cut.
    size = max(sizes) if max(sizes) < 1.5 * min(sizes) else min(sizes)
    groups = tuple((kind, tokens, math.ceil(count / size)) for kind, tokens, count in counts if count > 0)
    return _Blocks(block, page * size, math.ceil(full / size) if full > 0 else 0, groups, in_flight)


def _stage_weights_gib(
    architecture: Architecture, total_gib: float, topology: Topology, stage: int, layers: int
) -> float:
    """Checkpoint bytes on one rank of a stage: its layers, the ends of the model, and what ranks copy."""
    ends_gib = architecture.vocab * architecture.hidden * WIDE_BYTES / GIB
    heads = 1 if architecture.tied_embeddings else 2
    body_gib = max(total_gib - heads * ends_gib, 0.0)
    width = body_gib * GIB / max(architecture.parameters - heads * architecture.vocab * architecture.hidden, 1)
    own_gib = body_gib * layers / architecture.layers
    last = topology.pipeline_parallel - 1
    own_gib += ends_gib * ((stage == 0) + (stage == last and (heads == 2 or last > 0)))
    copied = _copied_parameters(architecture, topology.tensor_parallel) * layers * width / GIB
    return own_gib / topology.tensor_parallel + copied


def _copied_parameters(architecture: Architecture, tensor_parallel: int) -> float:
    """Parameters per layer and rank beyond an even cut, because every rank keeps its own copy."""
    spare = 1 - 1 / tensor_parallel
    if architecture.mla is not None:
        mla = architecture.mla
        down = mla.kv_lora_rank + mla.qk_rope_head_dim + (mla.q_lora_rank or 0)
        return architecture.hidden * down * spare
    surplus = max(0.0, 1 / architecture.kv_heads - 1 / tensor_parallel)
    return 2 * architecture.hidden * architecture.kv_heads * architecture.head_dim * surplus


def _activation_gib(architecture: Architecture, tensor_parallel: int, load: Load) -> float:
    """The larger of the forward pass at the profiled batch and the sampler's logits (vLLM profiles both)."""
    hidden, moe = architecture.hidden, architecture.moe
    heads = math.ceil(architecture.heads / tensor_parallel)
    attention = 2 * heads * architecture.head_dim + 2 * kv_heads_per_rank(architecture, tensor_parallel) * (
        architecture.head_dim
    )
    feed_forward = 3 * architecture.intermediate / tensor_parallel
    if moe is not None:
        routed = moe.experts_per_token * (3 * moe.intermediate / tensor_parallel + hidden)
        feed_forward = max(feed_forward, routed)
    forward = load.max_num_batched_tokens * WIDE_BYTES * (4 * hidden + attention + feed_forward)
    # Logits are gathered whole on every rank, in 32 bits, with one working copy.
    sampler = load.max_num_seqs * architecture.vocab * 4 * 2
    return max(forward, sampler) / GIB


def memory(
    architecture: Architecture, gpu: Gpu, form: EngineForm, weights: Weights, topology: Topology, load: Load
) -> Memory:
    """The ledger of the GPU that can keep the fewest tokens. Source of every term: docs/memory.md."""
    # More stages than layers are refused elsewhere; the ledger still needs at least one layer a stage.
    if topology.pipeline_parallel > architecture.layers:
        topology = Topology(topology.tensor_parallel, architecture.layers)
    stages = stage_layers(architecture.layers, topology.pipeline_parallel)
    ledgers = [
        _stage_memory(architecture, gpu, form, weights, topology, load, stage, layers)
        for stage, layers in enumerate(stages)
        if stage in (0, len(stages) - 1) or layers == max(stages)
    ]
    return min(ledgers, key=lambda ledger: (ledger.kv_cache_tokens, ledger.kv_cache_gib))


def _stage_memory(
    architecture: Architecture,
    gpu: Gpu,
    form: EngineForm,
    weights: Weights,
    topology: Topology,
    load: Load,
    stage: int,
    layers: int,
) -> Memory:
    # A type the engine does not have is refused elsewhere; the ledger is then that of the default.
    width = form.kv_cache_dtypes.get(load.kv_cache_dtype, form.kv_cache_dtypes["auto"])
    tensor_parallel = topology.tensor_parallel
    over = form.overhead
    parts = {
        "CUDA context and workspaces": over.base_gib,
        "activations": over.activation_factor * _activation_gib(architecture, tensor_parallel, load),
        "CUDA graphs": over.graphs_base_gib + over.graphs_gib_per_layer * layers,
    }
    if topology.gpus > 1:
        parts["communication buffers"] = over.nccl_gib
    if topology.pipeline_parallel > 1:
        parts["pipeline buffers"] = over.pipeline_gib
    if architecture.moe is not None:
        parts["expert workspaces"] = over.moe_gib
    if form.reserved_fraction:
        parts["held back by the engine"] = form.reserved_fraction * gpu.memory_gib.value
    overhead_gib = sum(parts.values())

    weights_gib = _stage_weights_gib(architecture, weights.total_gib, topology, stage, layers)
    loading_gib = weights_gib
    if weights.wide_gib is not None:
        wide_gib = _stage_weights_gib(architecture, weights.wide_gib, topology, stage, layers)
        loading_gib = weights_gib + 2 * wide_gib / layers if weights.one_layer_at_a_time else wide_gib
    budget_gib = gpu.memory_gib.value * load.gpu_memory_utilization
    kv_gib = budget_gib - weights_gib - overhead_gib

    # Batches that may be in flight at once: two with asynchronous scheduling, one per stage with a pipeline.
    in_flight = max(2, topology.pipeline_parallel) * load.max_num_batched_tokens
    blocks = _blocks(architecture, form, tensor_parallel, layers, width, in_flight)
    total_blocks = max(0, int(kv_gib * GIB // blocks.bytes_per_block))
    per_request = blocks.per_request(load.context)
    concurrency = total_blocks / per_request
    uniform = not blocks.window_groups
    tokens = total_blocks * blocks.tokens_per_block if uniform else int(concurrency * load.context)
    # One block is held back as the null block, so an exact fit does not start.
    needed_gib = (per_request * load.concurrency + 1) * blocks.bytes_per_block / GIB
    return Memory(
        gpu_gib=gpu.memory_gib.value,
        budget_gib=budget_gib,
        weights_gib=weights_gib,
        overhead_gib=overhead_gib,
        kv_cache_gib=kv_gib,
        kv_needed_gib=needed_gib,
        kv_bytes_per_token=round(kv_bytes_per_layer(architecture, tensor_parallel, width) * layers),
        kv_cache_tokens=tokens,
        max_concurrency=concurrency,
        loading_peak_gib=loading_gib + over.base_gib,
        overhead_parts=tuple(parts.items()),
    )
