"""Output tokens per second of one replica: measured where a source states the same setting, else a roofline.

The formula, the measurements it was fitted to and how far it is off are in docs/costs.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelstacks import kvcache
from modelstacks.catalog import Architecture, Catalog, Gpu
from modelstacks.catalog.measured import Efficiency, Evidence, Measurement, evidence
from modelstacks.fit import GIB, WIDE_BYTES, Memory, Topology

INPUT_TOKENS = 1024
OUTPUT_TOKENS = 256
MAX_CONCURRENCY = 64

# What a roofline takes for granted.
ASSUMPTIONS = (
    "as many requests at once as stated, all the time: one leaves, the next one starts",
    "every request of the stated lengths, no prefix shared between them",
    "no speculative decoding; prompts are read by the replica that answers",
)

# A measurement answers a question whose requests at once are at most twice as many or as few, and whose lengths are
# within a factor of four; the answer states the measurement's own.
_CONCURRENCY_FACTOR = 2
_LENGTH_FACTOR = 4


@dataclass(frozen=True, slots=True)
class Work:
    """Requests of these lengths, so many of them at once, in one replica."""

    concurrency: int
    input_tokens: int = INPUT_TOKENS
    output_tokens: int = OUTPUT_TOKENS


@dataclass(frozen=True, slots=True)
class Throughput:
    """Output tokens per second of one replica at a stated concurrency and stated lengths.

    `method` is "measured" or "roofline"; `basis` the source, or the efficiencies; `ceiling` what a benchmark without
    a bound on the batch reached with the same model and GPUs, None where none is known.
    """

    output_tokens_per_s: float
    concurrency: int
    input_tokens: int = INPUT_TOKENS
    output_tokens: int = OUTPUT_TOKENS
    method: str = "roofline"
    basis: str = ""
    assumptions: tuple[str, ...] = ()
    ceiling: Measurement | None = None


def estimate(
    architecture: Architecture,
    gpu: Gpu,
    quantization: str,
    weights_gib: float,
    topology: Topology,
    memory: Memory,
    *,
    model: str | None = None,
    engine: str = "vllm",
    known: Evidence | None = None,
    input_tokens: int = INPUT_TOKENS,
    output_tokens: int = OUTPUT_TOKENS,
    max_concurrency: int = MAX_CONCURRENCY,
) -> Throughput | None:
    """Speed of one replica; None when its KV cache holds no request of the stated length.

    `weights_gib` is the whole checkpoint. With a `model` id, a measurement of the same setting is taken first.
    """
    batch = min(max_concurrency, memory.kv_cache_tokens // (input_tokens + output_tokens))
    if batch < 1:
        return None
    known = known or evidence()
    efficiency = known.efficiency
    work = Work(batch, input_tokens, output_tokens)

    def computed(work: Work) -> float:
        kv_bytes = memory.kv_bytes_per_token
        return roofline(architecture, gpu, quantization, weights_gib, topology, kv_bytes, work, efficiency)

    rows = _rows(known, model, gpu, quantization, topology)
    offline = (row for row in rows if row.scenario == "offline")
    ceiling = max(offline, key=lambda row: row.output_tokens_per_s, default=None)
    held = [row for row in rows if row.engine.lower() == engine and _tokens(row) <= memory.kv_cache_tokens]
    row = _nearest(held, work, model)
    if row is None:
        basis = efficiency.words
        return Throughput(computed(work), batch, input_tokens, output_tokens, "roofline", basis, ASSUMPTIONS, ceiling)
    same = _work(row)
    said = [f"the roofline says {computed(same):,.0f} tokens/s for the same requests"]
    said += ["approximate in the source"] if row.approximate else []
    said += [row.note] if row.note else []
    return Throughput(
        row.output_tokens_per_s, same.concurrency, same.input_tokens, same.output_tokens, "measured", row.where,
        tuple(said), ceiling,
    )  # fmt: skip


def roofline(
    architecture: Architecture,
    gpu: Gpu,
    quantization: str,
    weights_gib: float,
    topology: Topology,
    kv_bytes_per_token: float,
    work: Work,
    efficiency: Efficiency,
) -> float:
    """Output tokens per second from bandwidth, compute, active parameters and KV traffic.

    `weights_gib` is the whole checkpoint, `kv_bytes_per_token` that of one GPU.
    """
    stages = topology.pipeline_parallel
    # A pipeline works on several batches at once, one a stage, so each stage reads its weights for a part of the batch.
    part = work.concurrency / min(stages, work.concurrency)
    bandwidth = gpu.bandwidth_gb_per_s.value * 1e9
    compute = tflops(gpu, quantization) * 1e12 * efficiency.compute * topology.gpus

    dense, experts = _weights_read(architecture, weights_gib * GIB, part)
    weights_s = (dense / efficiency.bandwidth + experts / efficiency.expert_bandwidth) / topology.gpus / bandwidth
    multiply_s = part * 2 * architecture.active_parameters / compute
    kept = _kept_tokens(architecture, work.input_tokens + work.output_tokens / 2)
    cache_s = part * kept * kv_bytes_per_token / (efficiency.bandwidth * bandwidth)
    stage_s = max(weights_s, multiply_s) + cache_s + _layers_s(architecture, gpu, topology, part, efficiency)
    if stages > 1:
        stage_s += efficiency.stage_ms / 1e3
    step_s = stages * stage_s

    prompt = work.input_tokens
    # Scores and values, two operations each; half of the pairs are masked.
    seen = _cached_layers(architecture) * _kept_tokens(architecture, prompt)
    attention = 2 * prompt * seen * architecture.heads * architecture.head_dim
    prefill_s = (2 * architecture.active_parameters * prompt + attention) / compute
    prefill_s += _exchange_s(architecture, gpu, topology, prompt, efficiency)
    seconds = work.output_tokens * step_s + work.concurrency * prefill_s
    return work.concurrency * work.output_tokens / seconds


def tflops(gpu: Gpu, quantization: str) -> float:
    """Dense TFLOP/s that multiply in the weights' own width where the GPU can, in 16 bits where it only stores them."""
    if gpu.weight_formats.get(quantization) != "native":
        return gpu.tflops.bf16
    widths = {"fp8": gpu.tflops.fp8, "nvfp4": gpu.tflops.fp4}
    return widths.get(quantization) or gpu.tflops.bf16


def _rows(
    known: Evidence, model: str | None, gpu: Gpu, quantization: str, topology: Topology
) -> tuple[Measurement, ...]:
    if model is None:
        return ()
    return tuple(row for row in known.measured if row.speaks_of(model, gpu.id, quantization, topology.gpus))


def _nearest(rows: list[Measurement], work: Work, model: str | None) -> Measurement | None:
    """The comparable measurement nearest to the work: of the model before a stand-in, of two as near the newer."""

    def apart(row: Measurement) -> float:
        stated = _work(row)
        concurrency = _ratio(stated.concurrency, work.concurrency)
        lengths = max(_ratio(stated.input_tokens, work.input_tokens), _ratio(stated.output_tokens, work.output_tokens))
        if concurrency > _CONCURRENCY_FACTOR or lengths > _LENGTH_FACTOR:
            return math.inf
        return concurrency * lengths

    def rank(row: Measurement) -> tuple[bool, float, int]:
        return row.model != model, apart(row), -(row.date.toordinal() if row.date else 0)

    near = [row for row in rows if row.is_comparable and apart(row) < math.inf]
    return min(near, key=rank, default=None)


def _work(row: Measurement) -> Work:
    """What a comparable row measured; the row's own check makes sure that it says so."""
    return Work(row.concurrency or 1, row.input_tokens or 1, row.output_tokens or 1)


def _tokens(row: Measurement) -> int:
    work = _work(row)
    return work.concurrency * (work.input_tokens + work.output_tokens)


def _ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def _weights_read(architecture: Architecture, weights: float, batch: float) -> tuple[float, float]:
    """Bytes of a step: weights that every token needs, and the experts that a batch touches."""
    if not architecture.tied_embeddings:
        # Of the input embedding a step reads one row a token.
        weights = max(weights - architecture.vocab * architecture.hidden * WIDE_BYTES, 0.0)
    if architecture.moe is None:
        return weights, 0.0
    moe = architecture.moe
    routed = weights * moe.expert_parameters / architecture.parameters
    touched = 1 - (1 - moe.experts_per_token / moe.experts) ** batch
    return weights - routed, routed * touched


def _cached_layers(architecture: Architecture) -> int:
    """Layers that look back at earlier tokens."""
    return architecture.full_layers + sum(window.layers for window in architecture.windows)


def _kept_tokens(architecture: Architecture, tokens: float) -> float:
    """Tokens that an average layer with a cache reads from it: windows look back only so far."""
    layers = _cached_layers(architecture)
    passed = sum(window.layers * max(0.0, tokens - window.tokens) for window in architecture.windows)
    return tokens - passed / layers if layers else 0.0


def _layers_s(architecture: Architecture, gpu: Gpu, topology: Topology, tokens: float, efficiency: Efficiency) -> float:
    """Seconds a stage's step takes beyond bytes and multiplications: launches, and exchanges between ranks."""
    layer_us = efficiency.layer_us
    if topology.tensor_parallel > 1:
        layer_us += efficiency.tensor_parallel_layer_us
    if architecture.moe is not None:
        layer_us += efficiency.expert_layer_us
    layers = architecture.layers / topology.pipeline_parallel
    exchange_s = _exchange_s(architecture, gpu, topology, tokens, efficiency) / topology.pipeline_parallel
    return layers * layer_us / 1e6 + exchange_s


def _exchange_s(
    architecture: Architecture, gpu: Gpu, topology: Topology, tokens: float, efficiency: Efficiency
) -> float:
    """Seconds of the all-reduces of every layer, two a layer, for so many tokens."""
    ranks = topology.tensor_parallel
    if ranks == 1:
        return 0.0
    sent = 2 * (ranks - 1) / ranks * tokens * architecture.hidden * WIDE_BYTES
    return 2 * architecture.layers * sent / (gpu.interconnect.gb_per_s * 1e9 * efficiency.link)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measurement beside what the roofline says for the same setting, output tokens per second."""

    row: Measurement
    predicted: float

    @property
    def error(self) -> float:
        """Predicted ÷ measured − 1."""
        return self.predicted / self.row.output_tokens_per_s - 1


def compare(known: Evidence, catalog: Catalog) -> tuple[Comparison, ...]:
    """Every comparable measurement on a GPU type of the catalogue beside the roofline, as docs/costs.md shows it."""
    return tuple(
        Comparison(row, _predict(row, known, catalog))
        for row in known.measured
        if row.is_comparable and row.gpu in catalog.gpu_ids
    )


def _predict(row: Measurement, known: Evidence, catalog: Catalog) -> float:
    named = next((model for model in (row.model, *row.stands_for) if model in catalog.model_ids), None)
    architecture = known.architectures[row.model] if named is None else catalog.model(named).architecture
    gpu, gpus = catalog.gpus[row.gpu], row.gpus or 1
    node = min(gpus, gpu.max_gpus_per_node)
    checkpoints = {} if named is None else catalog.model(named).checkpoints
    if row.weights_gib is not None:
        weights_gib = row.weights_gib
    elif row.quantization in checkpoints:
        weights_gib = checkpoints[row.quantization].size_gib
    else:
        weights_gib = architecture.parameters * (1 if row.quantization == "fp8" else WIDE_BYTES) / GIB
    kv_bytes = kvcache.token_bytes(architecture, node, WIDE_BYTES) * architecture.layers * node / gpus
    topology = Topology(node, gpus // node)
    return roofline(
        architecture, gpu, row.quantization or "bf16", weights_gib, topology, kv_bytes, _work(row), known.efficiency
    )
