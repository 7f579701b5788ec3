"""Plans and refusals: what is chosen, what is declined in which words, and that every alternative really fits."""

import datetime
from typing import Any

import pytest

from modelstacks import spec
from modelstacks.answer import answer
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput
from modelstacks.plan import Plan, plan

CATALOG = Catalog()


def decide(stack: str | None = None, **values: Any) -> Plan:
    """The plan of a question given as stack keys."""
    return plan(spec.parse(values, CATALOG, source="test"), CATALOG, stack=stack)


@pytest.mark.parametrize(
    ("values", "tier", "gpus"),
    [
        ({"model": "mistral-nemo-12b", "gpu": "l4", "quantization": "fp8"}, "single-gpu", 1),
        ({"model": "llama-4-scout", "gpu": "h100-sxm", "quantization": "int4"}, "single-gpu", 1),
        ({"model": "qwen-2.5-72b", "gpu": "h100-sxm", "quantization": "fp8"}, "tensor-parallel", 2),
        ({"model": "mixtral-8x22b", "gpu": "h100-sxm", "quantization": "fp8", "context": 8192}, "tensor-parallel", 2),
        ({"model": "mixtral-8x22b", "gpu": "h100-sxm", "quantization": "fp8", "context": 65536}, "tensor-parallel", 4),
        ({"model": "deepseek-r1", "gpu": "h100-sxm"}, "ray", 16),
        ({"model": "gemma-2-27b", "gpu": "a100-80"}, "single-gpu", 1),
    ],
)
def test_the_smallest_count_that_fits_is_taken(values: dict[str, Any], tier: str, gpus: int) -> None:
    """Counts are left out, so the plan computes them; the tier follows."""
    decided = decide(**values)
    assert decided.fits, decided.refusals
    assert (decided.choice.tier, decided.choice.topology.gpus) == (tier, gpus)


def test_deepseek_over_two_nodes_is_cut_inside_and_between_them() -> None:
    """Tensor parallel stays in the node, pipeline stages cross it."""
    topology = decide(model="deepseek-r1", gpu="h100-sxm").choice.topology
    assert (topology.tensor_parallel, topology.pipeline_parallel) == (8, 2)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"model": "deepseek-r1", "gpu": "h100-sxm", "gpus": 8}, "weights-too-large"),
        ({"model": "deepseek-r1", "gpu": "b200", "gpus": 4}, "weights-too-large"),
        ({"model": "qwen-2.5-72b", "gpu": "h100-sxm", "gpus": 1, "quantization": "fp8", "context": 131072}, None),
        ({"model": "mixtral-8x22b", "gpu": "h100-sxm", "gpus": 2, "context": 65536}, "kv-cache-too-small"),
        ({"model": "mistral-nemo-12b", "gpu": "l4", "gpus": 1, "quantization": "bf16"}, "weights-too-large"),
        ({"model": "mistral-nemo-12b", "gpu": "h100-sxm", "gpus": 3, "quantization": "fp8"}, "heads-not-divisible"),
        ({"model": "llama-4-scout", "gpu": "h100-sxm", "context": 20_000_000}, "context-beyond-model"),
        ({"model": "qwen-2.5-72b", "gpu": "h100-sxm", "context": 131073}, "context-beyond-model"),
        ({"model": "gemma-2-27b", "gpu": "a100-80", "context": 16384}, "context-beyond-model"),
        ({"model": "deepseek-r1", "gpu": "h200", "engine": "tgi"}, "engine-unsupported"),
        ({"model": "gemma-2-27b", "gpu": "a100-80", "gpus": 16}, "engine-unsupported"),
        ({"model": "gemma-2-27b", "gpu": "a100-80", "quantization": "fp8"}, "quantization-unavailable"),
        ({"model": "mistral-nemo-12b", "gpu": "l4", "quantization": "awq"}, "quantization-unavailable"),
        ({"model": "mistral-nemo-12b", "gpu": "l4", "kvCacheDtype": "nvfp4"}, "precision-unsupported"),
        ({"model": "gemma-2-27b", "gpu": "a100-80", "gpus": 2, "pipelineParallel": 2}, "engine-unsupported"),
        ({"model": "gemma-2-27b", "gpu": "b200", "engine": "tgi"}, "engine-unsupported"),
        ({"model": "gemma-2-27b", "gpu": "a100-80", "maxNumBatchedTokens": 2048}, "batch-too-small"),
        ({"model": "mistral-nemo-12b", "gpu": "l4", "gpuMemoryUtilization": 1.0}, "utilization-too-high"),
        ({"model": "gpt-oss-20b", "gpu": "a100-80", "kvCacheDtype": "fp8"}, "precision-unsupported"),
        ({"model": "deepseek-r1", "gpu": "a100-80", "kvCacheDtype": "fp8", "gpus": 16}, "precision-unsupported"),
        (
            {"model": "llama-3.1-8b", "gpu": "a100-80", "kvCacheDtype": "fp8", "engineVersion": "0.10.0"},
            "precision-unsupported",
        ),
        ({"model": "qwen-2.5-72b", "gpu": "h100-sxm", "gpus": 2, "quantization": "awq"}, "checkpoint-not-divisible"),
        ({"model": "qwen-2.5-72b", "gpu": "h100-sxm", "tensorParallel": 16}, "tensor-parallel-beyond-node"),
        ({"model": "mistral-nemo-12b", "gpu": "l4", "tensorParallel": 1, "pipelineParallel": 64}, "layers-too-few"),
    ],
)
def test_what_cannot_run_is_refused_with_its_code(values: dict[str, Any], code: str | None) -> None:
    """Each refusal of hardware or engine, once."""
    decided = decide(**values)
    assert not decided.fits
    if code is not None:
        assert code in [refusal.code for refusal in decided.refusals]
    for refusal in decided.refusals:
        assert refusal.need > refusal.have or refusal.code in ("engine-unsupported", "heads-not-divisible")
        assert refusal.unit


@pytest.mark.parametrize(
    ("values", "fits"),
    [
        ({"gpus": 1, "gpuMemoryUtilization": 0.99}, True),
        ({"gpus": 2, "gpuMemoryUtilization": 0.97}, True),
        ({"gpus": 2, "gpuMemoryUtilization": 0.98}, False),
        ({"gpus": 2, "gpuMemoryUtilization": 0.97, "engineVersion": "0.19.0"}, False),
        ({"gpus": 2, "gpuMemoryUtilization": 0.95, "engineVersion": "0.19.0"}, True),
    ],
)
def test_a_utilization_leaves_room_for_contexts_links_and_old_graphs(values: dict[str, Any], fits: bool) -> None:
    """2 GiB were gone before loading with two ranks on H100; until vLLM 0.20 graphs came on top of the budget."""
    decided = decide(model="llama-3.1-8b", gpu="h100-sxm", context=8192, **values)
    assert [refusal.code for refusal in decided.refusals] == ([] if fits else ["utilization-too-high"])


def test_a_memory_refusal_names_need_have_and_the_largest_part() -> None:
    """The reader sees at once which number is too large."""
    (refusal,) = decide(model="deepseek-r1", gpu="h100-sxm", gpus=8).refusals
    assert refusal.need > refusal.have
    assert refusal.unit == "GiB per GPU"
    assert "largest part: weights" in refusal.message


def test_a_context_refusal_names_the_context_that_fits_and_it_does() -> None:
    """The named context is the edge: it fits, and 1024 tokens more do not."""
    question = {"model": "mixtral-8x22b", "gpu": "h100-sxm", "gpus": 2, "quantization": "fp8"}
    (refusal,) = decide(**question, context=65536).refusals
    longest = int(refusal.message.rsplit(" ", 1)[1])
    assert decide(**question, context=longest).fits
    assert not decide(**question, context=longest + 1024).fits


def test_qwen_at_128k_on_one_h100_learns_what_fits_or_that_nothing_does() -> None:
    """The article promises it; the arithmetic declines."""
    decided = decide(model="qwen-2.5-72b", gpu="h100-sxm", gpus=1, quantization="fp8", context=131072)
    assert "no context fits" in decided.refusals[0].message or "longest context" in decided.refusals[0].message
    assert any(alternative.choice.topology.gpus == 2 for alternative in decided.alternatives)


@pytest.mark.parametrize(
    "values",
    [
        {"model": "deepseek-r1", "gpu": "h100-sxm", "gpus": 8},
        {"model": "mixtral-8x22b", "gpu": "h100-sxm", "gpus": 2, "context": 65536},
        {"model": "mistral-nemo-12b", "gpu": "l4", "gpus": 1, "context": 131072},
        {"model": "qwen-2.5-72b", "gpu": "h100-sxm", "gpus": 1, "context": 131072},
        {"model": "llama-4-scout", "gpu": "l4", "gpus": 1},
        {"model": "deepseek-r1", "gpu": "l4", "gpus": 1},
        {"model": "deepseek-r1", "context": 163840, "concurrency": 64, "gpus": 16},
        {"model": "qwen-2.5-72b", "gpu": "h100-sxm", "gpus": 2, "gpuMemoryUtilization": 0.5, "concurrency": 4},
        {"model": "deepseek-r1", "gpu": "h100-sxm", "gpus": 8, "cloud": {"kind": "kwok"}},
        {"model": "qwen3.6-35b-a3b", "gpu": "a100-80", "gpus": 2, "concurrency": 1000, "textOnly": True},
        {"model": "llama-3.3-70b", "gpu": "h100-pcie", "gpus": 1, "replicas": 0},
    ],
)
def test_every_alternative_passes_the_same_check(values: dict[str, Any]) -> None:
    """An alternative's options, asked as a question, give a plan that fits at the stated price."""
    decided = decide(**values)
    offered = answer(decided)["alternatives"]
    assert offered
    for alternative in offered:
        again = answer(decide(**alternative["options"]))
        assert again["fits"], (alternative["change"], again["refusals"])
        assert again["cost"]["usd_per_hour"] == alternative["cost"]["usd_per_hour"]
        assert again["memory"]["max_concurrency"] == alternative["max_concurrency"]


@pytest.mark.parametrize(
    "values",
    [
        {"model": "deepseek-r1", "gpu": "h100-sxm", "gpus": 8},
        {"model": "deepseek-r1", "tensorParallel": 3},
        {"model": "mixtral-8x22b", "gpu": "h100-sxm", "gpus": 2, "context": 65536},
        {"model": "mixtral-8x22b", "gpu": "h100-sxm", "gpus": 2, "quantization": "fp8", "context": 65536},
        {"model": "qwen3.6-27b", "gpu": "h100-sxm", "gpus": 1, "concurrency": 16},
        {"model": "qwen-2.5-72b", "gpu": "l4", "gpus": 2},
        {"model": "llama-3.1-8b", "gpu": "l4", "gpus": 1, "quantization": "bf16", "engineVersion": "0.7.3"},
        {"model": "mistral-nemo-12b", "gpu": "l4", "gpus": 1, "context": 131072},
        {"model": "qwen-2.5-72b", "gpu": "h100-sxm", "gpus": 2, "gpuMemoryUtilization": 0.5, "concurrency": 4},
        {"model": "llama-3.3-70b", "gpu": "l40s", "gpus": 2, "prefer": {"quantizations": ["bf16", "fp8"]}},
    ],
)
def test_the_change_line_leads_to_what_it_promises(values: dict[str, Any]) -> None:
    """The printed keys, set in the question, give the alternative's own plan; preferences are kept."""
    decided = decide(**values)
    assert not decided.fits
    assert decided.alternatives
    for alternative in decided.alternatives:
        keys = dict(part.removeprefix("modelstacks:").split(": ") for part in alternative.change.split(", "))
        numbers = {
            k: float(v) if k == "gpuMemoryUtilization" else int(v) if v.isdigit() else v for k, v in keys.items()
        }
        again = decide(**{**values, **numbers})
        assert again.fits, (alternative.change, again.refusals)
        assert again.choice.gpu.id == alternative.choice.gpu.id, alternative.change
        assert again.choice.topology == alternative.choice.topology, alternative.change
        assert again.choice.load == alternative.choice.load, alternative.change
        allowed = values.get("prefer", {}).get("quantizations")
        assert allowed is None or alternative.choice.quantization in allowed


@pytest.mark.parametrize("model", ["qwen-2.5-72b", "llama-3.1-70b", "llama-3.1-8b"])
def test_scaling_to_zero_keeps_the_hardware(model: str) -> None:
    """And costs nothing."""
    one, none = decide(model=model), decide(model=model, replicas=0)
    assert none.choice == one.choice
    assert none.cost.usd_per_hour == 0


@pytest.mark.parametrize(
    "values",
    [
        {"model": "llama-3.1-8b", "gpu": "l4", "maxNumSeqs": 3000},
        {"model": "qwen3.6-27b", "gpu": "h100-sxm", "maxNumBatchedTokens": 128},
        {"model": "kimi-k3", "maxNumSeqs": 2},
        {"model": "llama-3.1-8b", "gpu": "h100-sxm", "concurrency": 2000, "context": 256},
        {"model": "gemma-2-27b", "gpu": "a100-80", "context": 4096, "concurrency": 200},
    ],
)
def test_requests_never_exceed_sequences_nor_these_the_batch(values: dict[str, Any]) -> None:
    """vLLM raises on either; what was asked is kept."""
    load = decide(**values).choice.load
    assert load.concurrency <= load.max_num_seqs <= load.max_num_batched_tokens
    assert load.max_num_seqs == values.get("maxNumSeqs", load.max_num_seqs)
    assert load.max_num_batched_tokens == values.get("maxNumBatchedTokens", load.max_num_batched_tokens)


def test_more_recurrent_states_than_the_cache_keeps_are_refused() -> None:
    """A hybrid 27B in 16 bits on one H100: vLLM 0.28 declined 1024 sequences; 0.19 did not look."""
    question = {"model": "qwen3.8-27b", "gpu": "h100-sxm", "gpus": 1, "quantization": "bf16", "context": 32768}
    decided = decide(**question)
    assert [refusal.code for refusal in decided.refusals] == ["state-cache-too-small"]
    fits = int(decided.refusals[0].have)
    assert decide(**question, maxNumSeqs=fits, concurrency=1).fits
    assert decide(**question, engineVersion="0.19.0", concurrency=1).fits


def test_adapters_and_towers_take_memory_and_are_left_out_when_asked() -> None:
    """LoRA: 80 MiB a slot of rank 16 for an 8B (vLLM lora/layers); a tower's weights and workspaces."""
    plain, lora = decide(model="llama-3.1-8b", gpu="l4"), decide(model="llama-3.1-8b", gpu="l4", maxLoras=4)
    took = plain.memory.kv_cache_gib - lora.memory.kv_cache_gib
    assert took == pytest.approx(4 * 80 / 1024, rel=0.01)
    images = decide(model="gemma-3-27b", gpu="h100-sxm", gpus=1)
    text = decide(model="gemma-3-27b", gpu="h100-sxm", gpus=1, textOnly=True)
    assert text.memory.kv_cache_gib > images.memory.kv_cache_gib + 1
    assert not decide(model="gemma-3-27b", gpu="h100-sxm", gpus=1, textOnly=True, engine="tgi").fits
    assert not decide(model="kimi-k2.6", gpu="h200", gpus=8, maxLoras=1).fits


def test_preferences_bound_what_is_chosen() -> None:
    """Open choices are made from them alone."""
    chosen = decide(model="llama-3.3-70b", prefer={"gpus": ["h200", "b200"], "quantizations": ["bf16"]}).choice
    assert chosen.gpu.id in ("h200", "b200")
    assert chosen.quantization == "bf16"
    assert decide(model="llama-3.3-70b", prefer={"maxGpus": 1}).choice.topology.gpus == 1
    with pytest.raises(BadInput, match="leaves out"):
        decide(model="llama-3.3-70b", gpu="l4", prefer={"gpus": ["h200"]})


def test_what_a_checkpoint_asks_of_the_cache_is_asked_of_the_gpu() -> None:
    """auto is FP8 for some; a card that cannot hold it says so, and 16 bits are planned when asked."""
    question = {"model": "kimi-k2.6", "quantization": "nvfp4", "gpu": "a100-80", "gpus": 16, "context": 16384}
    assert [refusal.code for refusal in decide(**question).refusals] == ["precision-unsupported"]
    assert decide(**question, kvCacheDtype="bfloat16", concurrency=1).fits


def test_an_ampere_card_stores_an_fp8_cache_of_plain_attention() -> None:
    """Twice the tokens in the same bytes, as FlashInfer keeps it there, and the plan says what it does not bring."""
    question = {"model": "llama-3.1-8b", "gpu": "a100-80", "gpus": 1, "quantization": "bf16"}
    wide, narrow = decide(**question), decide(**question, kvCacheDtype="fp8")
    assert narrow.fits
    assert narrow.memory.kv_cache_tokens == pytest.approx(2 * wide.memory.kv_cache_tokens, rel=0.001)
    assert any("computes in 16 bits" in warning for warning in narrow.warnings)


def test_few_states_and_too_small_a_cache_are_both_said() -> None:
    """A log had both of one server: the cache first, as the engine stops there; mending one leads to the other."""
    question = {"model": "qwen3.8-27b", "gpu": "l40s", "gpus": 1, "quantization": "fp8", "context": 131072}
    refusals = decide(**question, concurrency=1, gpuMemoryUtilization=0.86).refusals
    assert [refusal.code for refusal in refusals] == ["kv-cache-too-small", "state-cache-too-small"]


def test_a_budget_that_is_exceeded_names_what_would_do() -> None:
    """Cheaper hardware within it, which plans again."""
    question = {"model": "qwen-2.5-72b", "gpu": "h100-sxm", "quantization": "fp8", "acceptedLicense": "qwen"}
    decided = decide(stack="x", **question, budgetUsdPerMonth=3000)
    assert [refusal.code for refusal in decided.refusals] == ["over-budget"]
    for alternative in answer(decided)["alternatives"]:
        assert alternative["cost"]["usd_per_month"] <= 3000
        assert answer(decide(**alternative["options"]))["fits"]
    assert decided.alternatives


@pytest.mark.parametrize("version", ["0.6.6.post1", "v0.8.5", "0.11.2rc1+x", "0.19", "0.33.0"])
def test_other_engine_versions_are_planned_and_said_to_be_so(version: str) -> None:
    """A question about another version; what has no evidence is bad input."""
    decided = decide(model="llama-3.1-8b", gpu="h100-sxm", engineVersion=version)
    assert answer(decided)["engine_version"] == version.removeprefix("v")
    assert any("whether it serves the model" in warning for warning in decided.warnings)
    for unknown in ("0.5.0", "nightly"):
        with pytest.raises(BadInput, match="no memory figures"):
            decide(model="llama-3.1-8b", engineVersion=unknown)


@pytest.mark.parametrize(
    ("values", "change"),
    [
        ({"model": "deepseek-r1", "gpu": "h100-sxm", "gpus": 8}, "modelstacks:gpus: 16"),
        ({"model": "mixtral-8x22b", "gpu": "h100-sxm", "gpus": 2, "context": 65536}, "modelstacks:context: 19456"),
        ({"model": "deepseek-r1", "gpu": "h100-sxm", "gpus": 8}, "modelstacks:gpu: h200"),
    ],
)
def test_the_change_is_one_line_when_the_question_is_complete(values: dict[str, Any], change: str) -> None:
    """What differs is named and nothing else."""
    assert change in [alternative["change"] for alternative in answer(decide(**values))["alternatives"]]


@pytest.mark.parametrize("gpu", [None, "h100-sxm", "l4"])
@pytest.mark.parametrize("gpus", [12, 20])
def test_a_count_that_is_no_whole_number_of_nodes_is_bad_input(gpu: str | None, gpus: int) -> None:
    """Given counts are kept as given, or declined; never rounded."""
    with pytest.raises(BadInput, match="whole number of nodes"):
        decide(model="qwen-2.5-72b", gpus=gpus, **({"gpu": gpu} if gpu else {}))


def test_licence_and_budget_stop_a_stack_and_only_warn_a_bare_model() -> None:
    """`fits` speaks of hardware alone."""
    values = {"model": "qwen-2.5-72b", "gpu": "h100-sxm", "budgetUsdPerMonth": 100}
    stack, bare = decide(stack="s", **values), decide(**values)
    assert {refusal.code for refusal in stack.refusals} == {"license-not-accepted", "over-budget"}
    assert stack.fits
    assert not stack.runs
    assert bare.runs
    assert any("acceptedLicense" in warning for warning in bare.warnings)
    assert decide(stack="s", model="qwen-2.5-72b", gpu="h100-sxm", acceptedLicense="qwen").runs


def test_costs_are_whole_machines_for_all_replicas() -> None:
    """Two GPUs on an 8-GPU machine pay for eight, and four such replicas pay for no more."""
    question = {"model": "qwen-2.5-72b", "gpu": "h100-sxm", "gpus": 2, "cloud": {"kind": "kwok"}}
    one, four, five = (decide(**question, replicas=count).cost for count in (1, 4, 5))
    assert one.machine is not None
    assert one.machine.name == "p5.48xlarge"
    assert one.usd_per_hour == four.usd_per_hour == 55.04
    assert five.usd_per_hour == 110.08
    none = decide(**question, replicas=0).cost
    assert (none.usd_per_hour, none.machine) == (0, one.machine)


def test_the_engine_can_run_every_request_that_is_promised() -> None:
    """Sequences and batch follow the concurrency, and never contradict one another."""
    many = decide(model="mistral-nemo-12b", gpu="h100-sxm", context=512, concurrency=500).choice.load
    assert many.max_num_seqs == 1024, "vLLM's own default on a card of 80 GB"
    assert decide(model="mistral-nemo-12b", gpu="l4", context=64, concurrency=400).choice.load.max_num_seqs == 400
    small = decide(model="mistral-nemo-12b", gpu="h100-sxm", maxNumBatchedTokens=64).choice.load
    assert small.max_num_seqs == 64


def test_context_beyond_the_config_stretches_rope_in_the_flag() -> None:
    """The documented scaling is emitted, never more than it."""
    decided = decide(model="qwen-2.5-72b", gpu="h100-sxm", context=131072)
    assert decided.hf_overrides["max_position_embeddings"] == 131072
    parameters = decided.hf_overrides["rope_parameters"]
    assert isinstance(parameters, dict)
    assert parameters["factor"] == 4.0
    assert decide(model="qwen-2.5-72b", gpu="h100-sxm", context=32768).hf_overrides == {}


def test_a_quantization_made_while_loading_counts_what_is_held_meanwhile() -> None:
    """Gemma in FP8 has no published checkpoint: vLLM makes one, layer by layer."""
    decided = decide(model="gemma-2-27b", gpu="h100-sxm", engine="vllm", quantization="fp8")
    assert decided.fits
    assert decided.memory.weights_gib < 0.6 * 50.71
    assert decided.memory.loading_peak_gib > decided.memory.weights_gib
    assert any("made from bf16 while loading" in warning for warning in decided.warnings)


def test_an_engine_version_without_figures_is_bad_input() -> None:
    """A plan speaks of one engine version; another one is not guessed at."""
    with pytest.raises(BadInput, match=r"0\.32\.0"):
        decide(model="mistral-nemo-12b", gpu="l4", engineVersion="0.1.0")


def test_the_ray_tier_plans_for_its_own_engine_version() -> None:
    """The Ray image carries an older vLLM than the plain server."""
    assert answer(decide(model="deepseek-r1", gpu="h100-sxm"))["engine_version"] == "0.29.0"
    assert answer(decide(model="mistral-nemo-12b", gpu="l4"))["engine_version"] == "0.32.0"


def test_an_old_price_is_called_old_only_when_asked_on_a_day() -> None:
    """Rendered pages must not change with the calendar."""
    asked = spec.parse({"model": "mistral-nemo-12b", "gpu": "l4", "cloud": {"kind": "kwok"}}, CATALOG, source="test")
    late = plan(asked, CATALOG, today=datetime.date(2027, 1, 1))
    assert any("more than 90 days old" in warning for warning in late.warnings)
    assert not any("days old" in warning for warning in plan(asked, CATALOG).warnings)


def test_the_json_contract_has_every_field() -> None:
    """Scripts rely on these names."""
    fields = answer(decide(model="mistral-nemo-12b"))
    assert set(fields) >= {
        "stack", "model", "engine", "tier", "fits", "gpu", "gpus_per_replica", "nodes_per_replica", "tensor_parallel",
        "pipeline_parallel", "replicas", "quantization", "checkpoint", "context", "concurrency", "kv_cache_dtype",
        "memory", "cost", "refusals", "alternatives", "warnings", "engine_version",
    }  # fmt: skip
    assert set(fields["memory"]) >= {
        "gpu_gib", "budget_gib", "weights_gib", "overhead_gib", "kv_cache_gib", "kv_bytes_per_token", "kv_cache_tokens",
        "max_concurrency",
    }  # fmt: skip
    assert set(fields["cost"]) >= {
        "usd_per_hour", "usd_per_month", "usd_per_million_output_tokens", "price_source", "price_date",
    }  # fmt: skip
    memory = fields["memory"]
    assert memory["kv_cache_gib"] == pytest.approx(
        memory["budget_gib"] - memory["weights_gib"] - memory["overhead_gib"], abs=0.002
    )


def test_alternatives_stay_within_the_budget_where_some_do() -> None:
    """Six plans fit this, at up to 103,964 USD a month; the budget leaves those that a stack file could be given."""
    question = {"model": "llama-3.1-70b", "gpu": "h100-sxm", "gpus": 1, "quantization": "fp8", "context": 65536}
    free = decide(**question).alternatives
    assert any((alternative.cost.usd_per_month or 0) > 6000 for alternative in free)
    kept = decide(stack="x", **question, budgetUsdPerMonth=6000).alternatives
    assert kept
    assert all((alternative.cost.usd_per_month or 0) <= 6000 for alternative in kept)


def test_a_refusal_scaled_to_zero_offers_what_costs_nothing() -> None:
    """As the plans themselves say when they are asked for."""
    decided = decide(model="llama-3.3-70b", gpu="h100-pcie", gpus=1, replicas=0)
    assert decided.alternatives
    assert {alternative.cost.usd_per_hour for alternative in decided.alternatives} == {0.0}


def test_a_context_beyond_the_model_and_the_card_leads_to_a_plan() -> None:
    """Two changes at once: the longest context of the model, on what holds it."""
    decided = decide(model="qwen-2.5-7b", gpu="rtx-pro-6000", gpus=6, context=200000)
    assert len(decided.refusals) > 1
    for alternative in answer(decided)["alternatives"]:
        assert answer(decide(**alternative["options"]))["fits"]
    assert decided.alternatives
