"""An estimate of decode speed from bandwidth and compute, with every assumption in the answer."""

from __future__ import annotations

from dataclasses import dataclass

from modelstacks.catalog import Architecture, Gpu
from modelstacks.fit import GIB, Memory, Topology

# Share of the data-sheet figure that serving reaches. Bandwidth: decode kernels reach 60-80 % of peak in vLLM's
# own benchmarks; compute: prefill reaches 40-50 % of dense peak. The lower ends are used.
BANDWIDTH_EFFICIENCY = 0.6
COMPUTE_EFFICIENCY = 0.4
# Each tensor-parallel step ends in all-reduces; PCIe pays more for them than NVLink.
LINK_EFFICIENCY = {"nvlink": 0.85, "pcie": 0.6}

INPUT_TOKENS = 1024
OUTPUT_TOKENS = 256
MAX_CONCURRENCY = 64


@dataclass(frozen=True, slots=True)
class Throughput:
    """Output tokens per second of one replica at a stated concurrency and stated lengths."""

    output_tokens_per_s: float
    concurrency: int
    input_tokens: int = INPUT_TOKENS
    output_tokens: int = OUTPUT_TOKENS
    method: str = "roofline"


def estimate(
    architecture: Architecture, gpu: Gpu, quantization: str, weights_gib: float, topology: Topology, memory: Memory
) -> Throughput | None:
    """Roofline of one replica; None when its KV cache holds no request of the stated length.

    `weights_gib` is the whole checkpoint.
    """
    per_request = INPUT_TOKENS + OUTPUT_TOKENS
    batch = min(MAX_CONCURRENCY, memory.kv_cache_tokens // per_request)
    if batch < 1:
        return None
    link = LINK_EFFICIENCY[gpu.interconnect.kind] if topology.tensor_parallel > 1 else 1.0
    bandwidth = gpu.bandwidth_gb_per_s.value * 1e9 * BANDWIDTH_EFFICIENCY * topology.tensor_parallel * link
    native = quantization == "fp8" and gpu.weight_formats.get("fp8") == "native" and gpu.tflops.fp8
    tflops = gpu.tflops.fp8 if native and gpu.tflops.fp8 else gpu.tflops.bf16
    compute = tflops * 1e12 * COMPUTE_EFFICIENCY * topology.tensor_parallel * link

    read = _weights_read_gib(architecture, weights_gib, batch) * GIB
    cached = batch * (INPUT_TOKENS + OUTPUT_TOKENS / 2) * memory.kv_bytes_per_token * topology.pipeline_parallel
    step_s = max((read + cached * topology.tensor_parallel) / bandwidth, batch * _flops(architecture) / compute)
    prefill_s = batch * INPUT_TOKENS * _flops(architecture) / compute
    rate = batch * OUTPUT_TOKENS / (OUTPUT_TOKENS * step_s + prefill_s)
    return Throughput(output_tokens_per_s=rate, concurrency=batch)


def _flops(architecture: Architecture) -> float:
    """Floating point operations per token: two per active parameter."""
    return 2.0 * architecture.active_parameters


def _weights_read_gib(architecture: Architecture, weights_gib: float, batch: int) -> float:
    """Weights that one decode step reads: all dense ones, and the experts that a batch touches."""
    if architecture.moe is None:
        return weights_gib
    moe = architecture.moe
    share = moe.expert_parameters / architecture.parameters
    touched = 1 - (1 - moe.experts_per_token / moe.experts) ** batch
    return weights_gib * (1 - share + share * touched)
