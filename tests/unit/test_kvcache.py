"""Block counts against what vLLM 0.32's own functions gave for synthetic specs, and what servers logged."""

import pytest

from modelstacks import kvcache
from modelstacks.catalog import Architecture, Catalog

CATALOG = Catalog()
VLLM = CATALOG.versions.engines["vllm"]["server"]
GIB = 2**30


def model(model_id: str) -> Architecture:
    """An architecture of the catalogue."""
    return CATALOG.model(model_id).architecture


@pytest.mark.parametrize(
    ("model_id", "tensor_parallel", "context", "bytes_per_block", "per_request", "tokens"),
    [
        ("qwen3-next-80b", 2, 262144, 6684672, 488, 1725423),
        ("qwen3.8-27b", 1, 262144, 51380224, 341, 320569),
        ("gemma-3-27b", 1, 131072, 1310720, 14726, 145829),
        ("gemma-4-31b", 1, 32768, 2621440, 6469, 41495),
        ("gemma-4-31b", 2, 262144, 1310720, 13637, 314949),
        ("gpt-oss-120b", 1, 131072, 589824, 9225, 517297),
        ("deepseek-v3.2", 8, 163840, 5012736, 2560, 274176),
    ],
)
def test_blocks_of_hybrid_and_sparse_models(
    model_id: str, tensor_parallel: int, context: int, bytes_per_block: int, per_request: int, tokens: int
) -> None:
    """20 GiB of cache, 16-bit elements, two batches of 8192 tokens in flight."""
    architecture = model(model_id)
    cache = kvcache.layout(architecture, VLLM, tensor_parallel, architecture.layers, 2.0, in_flight=16384)
    assert cache.bytes_per_block == bytes_per_block
    assert cache.blocks_per_request(context) == per_request
    assert cache.tokens(int(20 * GIB // bytes_per_block), context, as_share=False) == tokens


def test_a_hybrid_models_cache_is_what_a_server_logged() -> None:
    """An L40S with 8.82 GiB of cache for a 27B hybrid: 184 state blocks, 141,036 tokens, 1.08 requests."""
    architecture = model("qwen3.8-27b")
    form = VLLM.at("0.25.0")
    assert form is not None
    cache = kvcache.layout(architecture, form, 1, architecture.layers, 2.0, in_flight=2048)
    blocks = int(8.82 * GIB // cache.bytes_per_block)
    assert blocks == 184
    assert cache.tokens(blocks, 131072, as_share=False) == 141036


def test_older_versions_print_a_share_of_the_pool() -> None:
    """Gemma 3 on vLLM 0.11: 89,994 blocks in seven groups were printed as 205,696 tokens, 50.05 requests of 4096."""
    architecture = model("gemma-3-27b")
    form = VLLM.at("0.11.0")
    assert form is not None
    cache = kvcache.layout(architecture, form, 1, architecture.layers, 2.0, in_flight=8192)
    assert cache.tokens(89994, 4096, as_share=form.tokens_are_a_share) == 205696
    assert round(89994 / cache.blocks_per_request(4096), 2) == 50.05


def test_windows_save_nothing_before_their_version() -> None:
    """vLLM 0.9.0 kept every layer whole; chunked layers still in 0.13."""
    gemma, scout = model("gemma-3-27b"), model("llama-4-scout")
    old, newer = VLLM.at("0.9.0"), VLLM.at("0.13.0")
    assert old is not None
    assert newer is not None
    whole = kvcache.layout(gemma, old, 1, gemma.layers, 2.0, in_flight=8192)
    assert whole.blocks_per_request(131072) == 131072 / 16
    chunked = kvcache.layout(scout, newer, 8, scout.layers, 2.0, in_flight=8192)
    assert chunked.blocks_per_request(1048576) * chunked.bytes_per_block / GIB == pytest.approx(24)


@pytest.mark.parametrize("width", [1.0, 2.0])
def test_narrower_elements_halve_what_a_token_takes(width: float) -> None:
    """FP8 is one byte; the index row of sparse attention stays what it is, and Hopper packs the latent one."""
    assert kvcache.token_bytes(model("llama-3.1-8b"), 1, width) == 2048 * width
    sparse = model("deepseek-v3.2")
    assert kvcache.token_bytes(sparse, 8, width) == 576 * width + 132
    assert kvcache.token_bytes(sparse, 8, width, packed=True) == (656 if width == 1 else 1152) + 132
