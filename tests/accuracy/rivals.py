"""Two other ways to estimate the same servers, computed from the same inputs in the same run.

KAITO: website/docs/memory-estimator.md and pkg/workspace/estimator/nodesestimator of kaito-project/kaito @056b828
(2026-08-21). The rule of thumb: parameters × bytes × 1.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelstacks.catalog import Architecture

GIB = 2**30
KAITO_WEIGHTS = 1.02
KAITO_BASE_GIB = 2.3
KAITO_SHARE = 0.05


@dataclass(frozen=True)
class Estimate:
    """Weights and KV cache, GiB per GPU; KV bytes per token and GPU."""

    weights_gib: float
    kv_gib: float
    kv_bytes_per_token: float


def kaito(
    architecture: Architecture, size_gib: float, budget_gib: float, tensor_parallel: int, pipeline_parallel: int
) -> Estimate:
    """The checkpoint times 1.02, a base and a share of the weights as overhead, head_dim as hidden ÷ heads."""
    gpus = tensor_parallel * pipeline_parallel
    weights = size_gib * KAITO_WEIGHTS / gpus
    kv = budget_gib - weights - KAITO_BASE_GIB - KAITO_SHARE * weights
    if architecture.mla is not None:
        row = architecture.mla.kv_lora_rank + architecture.mla.qk_rope_head_dim
        per_token = row * 2 * architecture.layers / pipeline_parallel
    else:
        head_dim = architecture.hidden / architecture.heads
        per_token = 2 * architecture.layers * architecture.kv_heads * head_dim * 2 / gpus
    return Estimate(weights, kv, per_token)


def rule_of_thumb(
    architecture: Architecture, bytes_per_weight: float, budget_gib: float, tensor_parallel: int, pipeline_parallel: int
) -> Estimate:
    """Parameters times their width, a fifth more for everything else, the rest is KV cache."""
    gpus = tensor_parallel * pipeline_parallel
    weights = architecture.parameters * bytes_per_weight / GIB / gpus
    per_token = 2 * architecture.layers * architecture.kv_heads * architecture.head_dim * 2 / gpus
    return Estimate(weights, budget_gib - 1.2 * weights, per_token)
