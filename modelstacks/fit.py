"""The memory arithmetic: what one GPU of a topology must hold, and how many tokens its KV cache keeps.

All sizes are GiB of the fullest GPU unless a name says otherwise. The formula, its sources, its evidence and its error
are in docs/memory.md; nothing here is read from a cluster, an engine or the network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelstacks.catalog import Architecture, EngineForm, Gpu
from modelstacks.kvcache import KvCache, kv_heads_per_rank, layout

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
    """What is asked of one replica: requests of `context` tokens, `concurrency` of them at once.

    `lora_adapters` of rank `lora_rank` are kept on the GPU; `text_only` leaves a vision tower unloaded.
    """

    context: int
    concurrency: int
    kv_cache_dtype: str
    gpu_memory_utilization: float
    max_num_seqs: int
    max_num_batched_tokens: int
    lora_adapters: int = 0
    lora_rank: int = 16
    text_only: bool = False


@dataclass(frozen=True, slots=True)
class Weights:
    """Served weights of the whole model, GiB; and the 16-bit ones they are made from, when the engine does that.

    `one_layer_at_a_time`: the engine quantizes each layer as it arrives, so it never holds the 16-bit model.
    `kv_cache_dtype`: what the type "auto" means for a checkpoint that carries scales for a narrower cache.
    """

    total_gib: float
    wide_gib: float | None = None
    one_layer_at_a_time: bool = True
    kv_cache_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """The ledger of the fullest GPU, GiB; tokens and concurrency are per replica.

    `outside_gib` is on the card too, but not in the engine's budget: CUDA contexts, and graphs before vLLM 0.20.
    `kv_cache_gib` is the best estimate; what is promised is `kv_cache_low_gib`, less by `uncertainty_gib`.
    """

    gpu_gib: float
    budget_gib: float
    outside_gib: float
    weights_gib: float
    overhead_gib: float
    uncertainty_gib: float
    kv_cache_gib: float
    kv_needed_gib: float
    kv_bytes_per_token: int
    kv_cache_tokens: int
    max_concurrency: float
    max_concurrency_low: float
    state_blocks: int | None
    state_blocks_low: int | None
    loading_peak_gib: float
    overhead_parts: tuple[tuple[str, float], ...]

    @property
    def kv_cache_low_gib(self) -> float:
        """The KV cache at the pessimistic end of what overhead was seen to be."""
        return self.kv_cache_gib - self.uncertainty_gib

    @property
    def holds_weights(self) -> bool:
        """Weights and overhead surely leave room for a KV cache, and loading them never exceeds the card."""
        return self.kv_cache_low_gib > 0 and self.loading_peak_gib <= self.gpu_gib

    @property
    def holds_load(self) -> bool:
        """The KV cache surely keeps every request that was asked for, with the block the engine holds back."""
        return self.holds_weights and self.kv_needed_gib <= self.kv_cache_low_gib

    @property
    def largest_part(self) -> tuple[str, float]:
        """The part of the ledger that takes most: its name and GiB."""
        parts = (("weights", self.weights_gib), ("KV cache", self.kv_needed_gib), *self.overhead_parts)
        return max(parts, key=lambda part: part[1])


def stage_layers(layers: int, stages: int) -> tuple[int, ...]:
    """Layers of each pipeline stage as vLLM cuts them: the remainder goes to the stages before the last."""
    base, extra = divmod(layers, stages)
    return tuple(base + (1 if stages - 1 - extra <= index < stages - 1 else 0) for index in range(stages))


def _stage_weights_gib(
    architecture: Architecture, total_gib: float, topology: Topology, load: Load, stage: int, layers: int
) -> float:
    """Checkpoint bytes on one rank of a stage: its layers, the ends of the model, and what ranks copy."""
    tensor_parallel, last = topology.tensor_parallel, topology.pipeline_parallel - 1
    ends_gib = architecture.vocab * architecture.hidden * WIDE_BYTES / GIB
    heads = 1 if architecture.tied_embeddings else 2
    encoder = architecture.encoder
    encoder_gib = encoder.parameters * WIDE_BYTES / GIB if encoder is not None else 0.0
    body_gib = max(total_gib - heads * ends_gib - encoder_gib, 0.0)
    in_body = architecture.parameters - architecture.end_parameters
    in_body -= encoder.parameters if encoder is not None else 0
    width = body_gib * GIB / max(in_body, 1)
    own_gib = body_gib * layers / architecture.layers
    if architecture.ends_on_every_stage:
        own_gib += heads * ends_gib
    else:
        own_gib += ends_gib * ((stage == 0) + (stage == last and (heads == 2 or last > 0)))
    whole_gib = 0.0
    if encoder is not None and stage == 0 and not load.text_only:
        if not encoder.split_over_ranks:
            whole_gib = encoder_gib
        elif encoder.heads is not None and encoder.heads % tensor_parallel:
            whole_gib = encoder.attention_parameters * WIDE_BYTES / GIB
        own_gib += encoder_gib - whole_gib
    copied = _copied_bytes(architecture, tensor_parallel, width) * layers / architecture.layers / GIB
    return own_gib / tensor_parallel + whole_gib + copied


def _copied_bytes(architecture: Architecture, tensor_parallel: int, width: float) -> float:
    """Bytes of the whole model per rank beyond an even cut, because every rank keeps its own copy."""
    spare = 1 - 1 / tensor_parallel
    copied = 0.0
    attention = architecture.layers - architecture.cacheless_layers
    if architecture.recurrent is not None:
        attention -= architecture.recurrent.layers
    if architecture.mla is not None:
        mla = architecture.mla
        down = mla.kv_lora_rank + mla.qk_rope_head_dim + (mla.q_lora_rank or 0)
        copied += (architecture.hidden * down + mla.indexer_parameters) * spare * width * attention
    else:
        surplus = max(0.0, 1 / architecture.kv_heads - 1 / tensor_parallel)
        keys_and_values = architecture.kv_heads * (architecture.head_dim + architecture.value_dim)
        copied += architecture.hidden * keys_and_values * surplus * width * attention
    if architecture.moe is not None:
        router = architecture.moe.experts * architecture.hidden * WIDE_BYTES
        copied += router * spare * (architecture.moe.layers or architecture.layers)
    return copied


def _forward_gib(architecture: Architecture, tensor_parallel: int, load: Load) -> float:
    """Activations of one layer over the profiled batch, at the widest point."""
    hidden, moe = architecture.hidden, architecture.moe
    heads = -(-architecture.heads // tensor_parallel)
    kv_heads = kv_heads_per_rank(architecture.kv_heads, tensor_parallel)
    widest = max(
        2 * heads * architecture.head_dim + 2 * kv_heads * architecture.head_dim,
        3 * architecture.intermediate / tensor_parallel if moe is None or moe.layers is not None else 0,
        moe.experts_per_token * (3 * moe.intermediate / tensor_parallel + (moe.hidden or hidden)) if moe else 0,
    )
    return load.max_num_batched_tokens * WIDE_BYTES * (4 * hidden + widest) / GIB


def _sampling_gib(architecture: Architecture, form: EngineForm, tensor_parallel: int, load: Load) -> float:
    """What is alive while the profile run samples: copies of the logits, and what the forward pass left behind.

    Logits are gathered whole on every rank, in 32 bits; nearly two rows of hidden states per token stay, and the
    experts' workspaces, which are kept from layer to layer.
    """
    logits = form.overhead.sampler_copies * load.max_num_seqs * architecture.vocab * 4
    kept = 1.75 * architecture.hidden
    moe = architecture.moe
    if moe is not None:
        kept += moe.experts_per_token * ((moe.hidden or architecture.hidden) + 2 * moe.intermediate / tensor_parallel)
    return (logits + load.max_num_batched_tokens * WIDE_BYTES * kept) / GIB


def _encoder_gib(architecture: Architecture, form: EngineForm, load: Load) -> float:
    """Working memory of a vision tower, which vLLM profiles with as many items as one batch may hold."""
    encoder = architecture.encoder
    if encoder is None or load.text_only:
        return 0.0
    tokens = max(load.max_num_batched_tokens, encoder.tokens_per_item)
    per_token = form.overhead.encoder_copies * WIDE_BYTES * (4 * encoder.hidden + 2 * encoder.intermediate)
    # Large towers take items as many tiles at once: 15.7 GiB were logged for one of 5.5B parameters.
    tiles = form.overhead.encoder_bytes_per_parameter * encoder.parameters
    return max(tokens * (per_token + 2 * WIDE_BYTES * architecture.hidden), tiles) / GIB


def _lora_gib(architecture: Architecture, tensor_parallel: int, layers: int, load: Load) -> float:
    """Slots for adapters: two low-rank matrices beside each linear layer, one of each pair cut over ranks."""
    if not load.lora_adapters:
        return 0.0
    hidden, width = architecture.hidden, architecture.intermediate
    heads, kv_heads = architecture.heads * architecture.head_dim, architecture.kv_heads * architecture.head_dim
    # Query, key, value, gate and up read `hidden` whole and write a share; output and down read a share.
    # Every expert has its own.
    moe = architecture.moe
    experts, inner = (moe.experts, moe.intermediate) if moe is not None else (1, width)
    shared = 3 * hidden + hidden + experts * (2 * hidden + hidden)
    cut = heads + 2 * kv_heads + heads + experts * (2 * inner + inner)
    return load.lora_adapters * load.lora_rank * layers * (shared + cut / tensor_parallel) * WIDE_BYTES / GIB


def memory(
    architecture: Architecture, gpu: Gpu, form: EngineForm, weights: Weights, topology: Topology, load: Load
) -> Memory:
    """The ledger of the GPU that can keep the fewest tokens. Source of every term: docs/memory.md."""
    # More stages than layers are refused elsewhere; the ledger still needs at least one layer a stage.
    if topology.pipeline_parallel > architecture.layers:
        topology = Topology(topology.tensor_parallel, architecture.layers)
    ledgers = [
        _stage_memory(architecture, gpu, form, weights, topology, load, stage, layers)
        for stage, layers in _telling_stages(architecture, topology)
    ]
    if len(ledgers) == 1:
        return ledgers[0]
    return min(ledgers, key=lambda ledger: (ledger.kv_cache_tokens, ledger.kv_cache_gib))


def _telling_stages(architecture: Architecture, topology: Topology) -> list[tuple[int, int]]:
    """Stage and layers of the stages that can be the fullest: the ends, and those with most layers."""
    stages = stage_layers(architecture.layers, topology.pipeline_parallel)
    most = max(stages)
    return [(n, layers) for n, layers in enumerate(stages) if n in (0, len(stages) - 1) or layers == most]


def holds_context(
    architecture: Architecture, gpu: Gpu, form: EngineForm, weights: Weights, topology: Topology, load: Load
) -> Callable[[int], bool]:
    """Whether another context than the load's would fit, everything else as it is; cheap to ask many times."""
    stages = []
    for stage, layers in _telling_stages(architecture, topology):
        ledger = _stage_memory(architecture, gpu, form, weights, topology, load, stage, layers)
        if not ledger.holds_weights:
            return lambda context: False
        cache = cache_of(architecture, gpu, form, weights, topology, load, layers)
        # One block is held back.
        stages.append((cache, int(ledger.kv_cache_low_gib * GIB // cache.bytes_per_block) - 1))
    return lambda context: all(
        cache.blocks_per_request(context) * load.concurrency <= blocks for cache, blocks in stages
    )


def cache_dtype(load: Load, stored: str | None, form: EngineForm) -> str:
    """The KV cache type that the engine will use: "auto" is the `stored` one of the checkpoint, where that is read."""
    asked = load.kv_cache_dtype
    return stored if asked == "auto" and stored is not None and form.reads_cache_scales else asked


def cache_of(
    architecture: Architecture,
    gpu: Gpu,
    form: EngineForm,
    weights: Weights,
    topology: Topology,
    load: Load,
    layers: int,
) -> KvCache:
    """How the engine lays out the KV cache of a stage of `layers` layers."""
    named = cache_dtype(load, weights.kv_cache_dtype, form)
    # A type the engine does not have is refused elsewhere; the ledger is then that of the default.
    width = form.kv_cache_dtypes.get(named, form.kv_cache_dtypes["auto"])
    # Batches in flight at once: one a stage, and one more where scheduling is asynchronous.
    stages = topology.pipeline_parallel + form.batches_in_flight - 1
    in_flight = stages * load.max_num_batched_tokens
    # Blackwell's data center cards (10.x) keep the plain row, all others that run it a packed one.
    packed = int(gpu.compute_capability) != 10
    return layout(architecture, form, topology.tensor_parallel, layers, width, in_flight, packed=packed)


def _overhead(
    architecture: Architecture, gpu: Gpu, form: EngineForm, topology: Topology, load: Load, layers: int
) -> dict[str, float]:
    """Everything beside weights and KV cache that the engine subtracts from its budget."""
    over, tensor_parallel = form.overhead, topology.tensor_parallel
    # One after the other, so the largest of them is the peak that profiling sees.
    peak = max(
        over.activation_factor * _forward_gib(architecture, tensor_parallel, load),
        _sampling_gib(architecture, form, tensor_parallel, load),
        _encoder_gib(architecture, form, load),
    )
    parts = {"CUDA context and workspaces": over.base_gib, "activations": peak}
    if over.graphs_in_budget:
        parts["CUDA graphs"] = _graphs_gib(form, layers, load)
    if tensor_parallel > 1:
        parts["communication buffers"] = over.link_gib[gpu.interconnect.kind]
    if topology.pipeline_parallel > 1:
        parts["pipeline buffers"] = over.pipeline_gib
    if architecture.encoder is not None and not load.text_only:
        parts["vision tower workspaces"] = over.encoder_gib
    if architecture.mla is not None:
        parts["latent attention workspaces"] = over.mla_gib
    lora = _lora_gib(architecture, tensor_parallel, layers, load)
    if lora:
        parts["LoRA slots"] = lora
    if gpu.host_share_gib is not None:
        parts["host programs in unified memory"] = gpu.host_share_gib.value
    if form.reserved_fraction:
        parts["held back by the engine"] = form.reserved_fraction * gpu.memory_gib.value
    return parts


def _graphs_gib(form: EngineForm, layers: int, load: Load) -> float:
    """One graph a batch size: 1, 2, 4, then every 8th to 256 and every 16th to twice the sequences or the limit.

    A third of the base is there with any graph. Logs had 1.1 GiB with 256 sequences, 0.2 with 10.
    """
    over = form.overhead

    def graphs(largest: int) -> float:
        return 3 + min(largest, 256) / 8 + max(0, largest - 256) / 16

    most = over.graphs_up_to
    share = 1.0 if most is None else graphs(min(2 * load.max_num_seqs, most)) / graphs(most)
    always_gib = over.graphs_base_gib / 3
    return always_gib + (over.graphs_base_gib - always_gib + over.graphs_gib_per_layer * layers) * share


def _outside_gib(gpu: Gpu, form: EngineForm, topology: Topology, layers: int, load: Load) -> float:
    """What the card must hold beside the engine's budget."""
    over = form.overhead
    graphs_gib = 0.0 if over.graphs_in_budget else _graphs_gib(form, layers, load)
    link_gib = over.context_link_gib.get(gpu.interconnect.kind, 0.0) if topology.gpus > 1 else 0.0
    return over.context_gib + link_gib + graphs_gib


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
    parts = _overhead(architecture, gpu, form, topology, load, layers)
    overhead_gib = sum(parts.values())
    weights_gib = _stage_weights_gib(architecture, weights.total_gib, topology, load, stage, layers)
    loading_gib = weights_gib
    if weights.wide_gib is not None:
        wide_gib = _stage_weights_gib(architecture, weights.wide_gib, topology, load, stage, layers)
        loading_gib = weights_gib + 2 * wide_gib / layers if weights.one_layer_at_a_time else wide_gib
    budget_gib = gpu.memory_gib.value * load.gpu_memory_utilization
    kv_gib = budget_gib - weights_gib - overhead_gib
    uncertainty_gib = form.overhead.uncertainty_gib + form.overhead.uncertainty_share * overhead_gib
    if gpu.host_share_gib is not None:
        uncertainty_gib += gpu.host_share_gib.value

    cache = cache_of(architecture, gpu, form, weights, topology, load, layers)
    blocks, low = (max(0, int(gib * GIB // cache.bytes_per_block)) for gib in (kv_gib, kv_gib - uncertainty_gib))
    per_request = cache.blocks_per_request(load.context)
    # One block is held back as the null block, so an exact fit does not start.
    needed_gib = (per_request * load.concurrency + 1) * cache.bytes_per_block / GIB
    return Memory(
        gpu_gib=gpu.memory_gib.value,
        budget_gib=budget_gib,
        outside_gib=_outside_gib(gpu, form, topology, layers, load),
        weights_gib=weights_gib,
        overhead_gib=overhead_gib,
        uncertainty_gib=uncertainty_gib,
        kv_cache_gib=kv_gib,
        kv_needed_gib=needed_gib,
        kv_bytes_per_token=round(cache.bytes_per_token),
        kv_cache_tokens=cache.tokens(blocks, load.context, as_share=form.tokens_are_a_share),
        max_concurrency=blocks / per_request,
        max_concurrency_low=low / per_request,
        state_blocks=blocks if architecture.recurrent is not None else None,
        state_blocks_low=low if architecture.recurrent is not None else None,
        loading_peak_gib=loading_gib + form.overhead.base_gib,
        overhead_parts=tuple(parts.items()),
    )
