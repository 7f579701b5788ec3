"""The memory arithmetic against figures that vLLM's own functions and servers printed, and the laws it obeys."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelstacks import fit, kvcache
from modelstacks.catalog import Architecture, Catalog
from modelstacks.fit import GIB, Load, Topology, Weights

CATALOG = Catalog()
VLLM = CATALOG.versions.engines["vllm"]["server"]
LOAD = Load(
    context=8192, concurrency=1, kv_cache_dtype="auto", gpu_memory_utilization=0.92, max_num_seqs=256,
    max_num_batched_tokens=8192,
)  # fmt: skip


def architecture(**changes: object) -> Architecture:
    """A small dense model, changed."""
    base = {
        "layers": 80, "hidden": 8192, "heads": 64, "kv_heads": 8, "head_dim": 128, "intermediate": 28672,
        "vocab": 128256, "max_context": 131072, "parameters": 70553706496, "active_parameters": 70553706496,
        "source": "test",
    }  # fmt: skip
    return Architecture.model_validate(base | changes)


@pytest.mark.parametrize(
    ("name", "model", "tensor_parallel", "kv_gib", "context", "bytes_per_block", "tokens", "concurrency"),
    [
        ("llama-3.1-70b", architecture(), 8, 10, 131072, 655360, 262144, 2.00),
        ("mixtral-8x22b", CATALOG.model("mixtral-8x22b").architecture, 8, 20, 65536, 458752, 748976, 11.43),
        ("deepseek", CATALOG.model("deepseek-r1").architecture, 8, 40, 163840, 4497408, 611136, 3.73),
        ("gemma-2-27b", CATALOG.model("gemma-2-27b").architecture, 1, 20, 8192, 3014656, 56928, 6.95),
        ("llama-4-scout", CATALOG.model("llama-4-scout").architecture, 8, 20, 1048576, 98304, 3265633, 3.11),
    ],
)
def test_blocks_are_counted_as_vllm_counts_them(
    name: str, model: Architecture, tensor_parallel: int, kv_gib: float, context: int, bytes_per_block: int,
    tokens: int, concurrency: float,
) -> None:  # fmt: skip
    """Figures printed by vLLM 0.32's KV cache functions for synthetic specs (16-bit, 8192 batched tokens)."""
    cache = kvcache.layout(model, VLLM, tensor_parallel, model.layers, 2.0, in_flight=2 * 8192)
    blocks = int(kv_gib * GIB // cache.bytes_per_block)
    assert cache.bytes_per_block == bytes_per_block, name
    assert round(blocks / cache.blocks_per_request(context), 2) == concurrency
    assert cache.tokens(blocks, context, as_share=False) == tokens


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [(61, 2, (31, 30)), (80, 4, (20, 20, 20, 20)), (61, 4, (15, 15, 16, 15)), (7, 3, (2, 3, 2)), (3, 3, (1, 1, 1))],
)
def test_pipeline_stages_get_vllms_share_of_layers(layers: int, stages: int, expected: tuple[int, ...]) -> None:
    """vLLM gives the remainder to the stages before the last, which also holds the output layer."""
    assert fit.stage_layers(layers, stages) == expected


def test_kv_bytes_follow_heads_and_latent_rows() -> None:
    """GQA is cut by tensor parallel until one head is left; the latent row of MLA is never cut."""
    dense, mla = architecture(), CATALOG.model("deepseek-r1").architecture
    assert kvcache.token_bytes(dense, 1, 2) * 80 == 327680
    assert kvcache.token_bytes(dense, 8, 2) == kvcache.token_bytes(dense, 16, 2) == 512
    assert kvcache.token_bytes(mla, 1, 2) == kvcache.token_bytes(mla, 8, 2) == 1152
    sparse = CATALOG.model("deepseek-v3.2").architecture
    # A server logged 42.19 GiB for 578,368 tokens: 78,324 bytes in 61 layers.
    assert kvcache.token_bytes(sparse, 8, 2) * 61 == 78324


@pytest.mark.parametrize(
    ("gpu", "weights_gib", "topology", "batched", "measured_kv_gib"),
    [
        # Llama 3.1 8B on a 79.25 GiB card, 0.92: 56.21 GiB of KV cache were logged.
        ("h100-sxm", 14.99, Topology(1, 1), 8192, 56.21),
        # Llama 3.3 70B FP8 over 4 × H200 at 0.9: 106.17 GiB.
        ("h200", 67.7, Topology(4, 1), 8192, 106.17),
    ],
)
def test_the_kv_cache_is_never_promised_larger_than_a_real_server_had(
    gpu: str, weights_gib: float, topology: Topology, batched: int, measured_kv_gib: float
) -> None:
    """Predicted below the measured figure, and within a tenth of it."""
    small = weights_gib < 20
    model = architecture(
        layers=32, hidden=4096, heads=32, intermediate=14336, parameters=8030261248, active_parameters=8030261248
    ) if small else architecture()  # fmt: skip
    load = replace(LOAD, gpu_memory_utilization=0.92 if small else 0.9, max_num_batched_tokens=batched)
    memory = fit.memory(model, CATALOG.gpus[gpu], VLLM, Weights(weights_gib), topology, load)
    assert 0.9 * measured_kv_gib < memory.kv_cache_gib < measured_kv_gib


def test_an_exact_fit_is_refused() -> None:
    """vLLM holds one block back, so a cache of exactly the needed size does not start."""
    model, gpu = architecture(), CATALOG.gpus["h100-sxm"]
    memory = fit.memory(model, gpu, VLLM, Weights(70.0), Topology(2, 1), LOAD)
    block = memory.kv_bytes_per_token * VLLM.block_tokens / GIB
    assert memory.kv_needed_gib == pytest.approx(8192 * memory.kv_bytes_per_token / GIB + block)


_GPUS = st.sampled_from(list(CATALOG.gpus.values()))
_MODELS = st.sampled_from([CATALOG.model(model_id) for model_id in CATALOG.model_ids])


@given(_MODELS, _GPUS, st.sampled_from([1, 2, 4]), st.integers(1, 131072), st.floats(10, 700))
def test_more_gpus_never_hold_less(
    model: object, gpu: object, tensor_parallel: int, context: int, weights: float
) -> None:
    """Doubling tensor parallel from two on never takes room from the KV cache."""
    load = replace(LOAD, context=context)
    few, many = (
        fit.memory(model.architecture, gpu, VLLM, Weights(weights), Topology(count, 1), load)  # type: ignore[attr-defined,arg-type]
        for count in (2 * tensor_parallel, 4 * tensor_parallel)
    )
    assert many.kv_cache_gib >= few.kv_cache_gib
    assert many.kv_cache_tokens >= few.kv_cache_tokens


@given(_MODELS, _GPUS, st.integers(1, 200_000), st.integers(1, 64))
def test_a_longer_context_never_needs_less(model: object, gpu: object, context: int, concurrency: int) -> None:
    """The needed cache grows with context and concurrency."""
    one, two = (
        fit.memory(
            model.architecture, gpu, VLLM, Weights(20.0), Topology(1, 1),  # type: ignore[attr-defined,arg-type]
            replace(LOAD, context=length, concurrency=count),
        )
        for length, count in ((context, concurrency), (context + 1000, concurrency + 1))
    )  # fmt: skip
    assert two.kv_needed_gib > one.kv_needed_gib


@pytest.mark.parametrize(("sequences", "gib"), [(1024, 0.94), (256, 0.94), (64, 0.42), (10, 0.19)])
def test_fewer_sequences_capture_fewer_graphs(sequences: int, gib: float) -> None:
    """Up to twice the sequences and at most 512, a graph each: 51, 51, 19 and 5.5 of them for 80 layers."""
    load = replace(LOAD, max_num_seqs=sequences)
    ledger = fit.memory(architecture(), CATALOG.gpus["h100-sxm"], VLLM, Weights(70), Topology(1, 1), load)
    assert dict(ledger.overhead_parts)["CUDA graphs"] == pytest.approx(gib, abs=0.01)
