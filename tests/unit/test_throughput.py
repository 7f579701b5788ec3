"""Tokens per second: the roofline against sums done by hand and laws it obeys, and measurements before it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelstacks import spec, throughput
from modelstacks.catalog import Architecture, Catalog, measured
from modelstacks.catalog.measured import Efficiency, Evidence, Measurement
from modelstacks.economics import usd_per_million_tokens
from modelstacks.fit import GIB, Memory, Topology
from modelstacks.plan import plan
from modelstacks.throughput import Work, roofline

CATALOG = Catalog()
DOCS = Path(__file__).parents[2] / "docs" / "costs.md"
# Full bandwidth and half of compute, and almost nothing besides, so that sums can be done by hand.
PLAIN = Efficiency(
    bandwidth=1, expert_bandwidth=0.5, compute=0.5, link=1, layer_us=1e-9, tensor_parallel_layer_us=1e-9,
    expert_layer_us=1e-9, stage_ms=1e-9, source="test",
)  # fmt: skip


def architecture(**changes: object) -> Architecture:
    """Ten billion weights with next to no attention and no embedding."""
    base = {
        "layers": 10, "hidden": 10, "heads": 1, "kv_heads": 1, "head_dim": 1, "intermediate": 10, "vocab": 1,
        "max_context": 10**6, "parameters": 10**10, "active_parameters": 10**10, "tied_embeddings": True,
        "source": "test",
    }  # fmt: skip
    return Architecture.model_validate(base | changes)


def rate(model: Architecture, work: Work, *, gpus: int = 1, stages: int = 1, kv: float = 0.0, **also: object) -> float:
    """On H100 SXM cards: 3350 GB/s and 989 TFLOP/s in 16 bits, half of it reached."""
    efficiency = PLAIN.model_copy(update=also)
    gib = 2e10 / GIB
    return roofline(model, CATALOG.gpus["h100-sxm"], "bf16", gib, Topology(gpus, stages), kv, work, efficiency)


def memory(tokens: int, bytes_per_token: int = 100_000) -> Memory:
    """A ledger that holds so many tokens."""
    asked = spec.parse({"model": "mistral-nemo-12b", "gpu": "l4", "quantization": "fp8"}, CATALOG, source="test")
    return replace(plan(asked, CATALOG).memory, kv_cache_tokens=tokens, kv_bytes_per_token=bytes_per_token)


def row(**changes: object) -> Measurement:
    """One measurement of Mistral NeMo on an L4, changed."""
    base = {
        "model": "mistral-nemo-12b", "gpu": "l4", "gpus": 1, "quantization": "fp8", "engine": "vLLM",
        "engine_version": "1.0", "scenario": "closed-loop", "concurrency": 64, "input_tokens": 1024,
        "output_tokens": 256, "output_tokens_per_s": 123.0, "source": "a table", "date": "2026-01-02",
    }  # fmt: skip
    return Measurement.model_validate(base | changes)


def estimate(*rows: Measurement, tokens: int = 10**6, **keys: object) -> throughput.Throughput:
    """Mistral NeMo in FP8 on one L4 with these measurements known."""
    known = Evidence(efficiency=PLAIN, measured=rows)
    model = CATALOG.model("mistral-nemo-12b")
    named = {"model": model.id, "known": known} | keys
    answer = throughput.estimate(
        model.architecture, CATALOG.gpus["l4"], "fp8", 12.66, Topology(1, 1), memory(tokens), **named,  # type: ignore[arg-type]
    )  # fmt: skip
    assert answer is not None
    return answer


def test_one_request_reads_all_weights_for_every_token() -> None:
    """20 GB ÷ 3350 GB/s is 5.970 ms; one prompt token costs 20 GFLOP ÷ 494.5 TFLOP/s = 0.04 ms once."""
    assert rate(architecture(), Work(1, 1, 1000)) == pytest.approx(1 / 0.0059702, rel=1e-3)


def test_prompts_are_read_before_they_are_answered() -> None:
    """1000 prompt tokens cost 2e13 ÷ 494.5e12 = 40.44 ms, 100 steps of 5.970 ms follow: 100 tokens in 637 ms."""
    assert rate(architecture(), Work(1, 1000, 100)) == pytest.approx(100 / 0.63746, rel=1e-3)


def test_the_cache_of_every_request_is_read() -> None:
    """10 requests, 1050 tokens each on average, 1 MB a token: 10.5 GB ÷ 3350 GB/s = 3.134 ms more a step."""
    # 100 steps of 9.104 ms and ten prompts of 40.44 ms: 1000 tokens in 1.3148 s.
    assert rate(architecture(), Work(10, 1000, 100), kv=1e6) == pytest.approx(1000 / 1.31484, rel=1e-3)


def test_a_large_batch_is_bound_by_multiplications() -> None:
    """1000 requests: 1000 × 20 GFLOP ÷ 494.5 TFLOP/s = 40.44 ms a step, above the 5.97 ms of the weights."""
    assert rate(architecture(), Work(1000, 1, 10_000)) == pytest.approx(1000 / 0.040445, rel=2e-3)


def test_a_batch_touches_more_experts() -> None:
    """8 experts of which 2: one token reads a quarter of 16 GB at half bandwidth and 4 GB, 128 tokens all of it."""
    moe = {"experts": 8, "experts_per_token": 2, "intermediate": 10, "expert_parameters": 8 * 10**9}
    model = architecture(moe=moe, active_parameters=4 * 10**9)
    assert rate(model, Work(1, 1, 10_000)) == pytest.approx(3350 / (4 + 4 / 0.5), rel=1e-3)
    assert rate(model, Work(128, 1, 10_000)) == pytest.approx(128 * 3350 / (4 + 16 / 0.5), rel=2e-3)


def test_stages_share_the_weights_and_take_turns() -> None:
    """Two stages hold half the weights each, so one request is as fast as on one; two requests are twice as fast."""
    one = rate(architecture(), Work(1, 1, 1000))
    assert rate(architecture(), Work(1, 1, 1000), stages=2) == pytest.approx(one, rel=1e-3)
    assert rate(architecture(), Work(2, 1, 1000), stages=2) == pytest.approx(2 * one, rel=1e-3)
    # 10 ms a stage and step over the network: 25.97 ms instead of 5.97.
    assert rate(architecture(), Work(1, 1, 1000), stages=2, stage_ms=10) == pytest.approx(1 / 0.02597, rel=1e-3)


def test_layers_cost_time_of_their_own() -> None:
    """10 layers × (100 + 200) µs are 3 ms beside 2.985 ms for half the weights."""
    slow = rate(architecture(), Work(1, 1, 1000), gpus=2, layer_us=100, tensor_parallel_layer_us=200)
    assert slow == pytest.approx(1 / 0.005985, rel=1e-3)


def test_pcie_pays_more_for_tensor_parallel_than_nvlink() -> None:
    """The same card but for its link; 1 GPU does not care."""
    sxm = CATALOG.gpus["h100-sxm"]
    pcie = sxm.model_copy(update={"interconnect": CATALOG.gpus["h100-pcie"].interconnect})
    model, known = CATALOG.model("qwen-2.5-72b").architecture, measured.evidence().efficiency

    def of(gpu: object, gpus: int) -> float:
        return roofline(model, gpu, "fp8", 70, Topology(gpus, 1), 160_000, Work(64), known)  # type: ignore[arg-type]

    assert of(pcie, 2) < 0.9 * of(sxm, 2)
    assert of(pcie, 1) == of(sxm, 1)


@pytest.mark.parametrize(
    ("gpu", "quantization", "expected"),
    [
        ("h100-sxm", "bf16", 989), ("h100-sxm", "fp8", 1979), ("a100-80", "fp8", 312), ("h100-sxm", "awq", 989),
        ("b200", "nvfp4", 9000), ("h100-sxm", "nvfp4", 989),
    ],
)  # fmt: skip
def test_weights_that_are_only_stored_narrow_multiply_wide(gpu: str, quantization: str, expected: float) -> None:
    """An A100 unpacks FP8 to 16 bits; 4-bit weights do so everywhere but where 4 bits are native."""
    assert throughput.tflops(CATALOG.gpus[gpu], quantization) == expected


def test_windows_read_no_further_than_they_look() -> None:
    """Nine of ten layers look back 100 tokens: of 1000 tokens an average layer reads 190."""
    model = architecture(windows=[{"kind": "sliding", "tokens": 100, "layers": 9}])
    wide, narrow = (rate(m, Work(1, 1000, 1), kv=1e9) for m in (architecture(), model))
    # 1 GB a token: 1000.5 and (1000.5 + 9 × 100) / 10 tokens, besides weights and prompt.
    assert 1 / wide - 1 / narrow == pytest.approx((1000.5 - 190.05) / 3350, rel=1e-3)


@given(
    st.integers(1, 200), st.integers(1, 200), st.integers(1, 4000), st.integers(1, 2000), st.sampled_from([1, 2, 4, 8])
)
def test_laws(few: int, more: int, given_in: int, given_out: int, gpus: int) -> None:
    """More at once is never less in total, nobody is faster in company, longer prompts cost, and GPUs help."""
    model, known = CATALOG.model("qwen-2.5-72b").architecture, measured.evidence().efficiency
    gpu = CATALOG.gpus["h100-sxm"]

    def of(work: Work, gpus: int) -> float:
        return roofline(model, gpu, "fp8", 70.0, Topology(gpus, 1), 327_680 / gpus, work, known)

    one, both = of(Work(few, given_in, given_out), gpus), of(Work(few + more, given_in, given_out), gpus)
    assert both >= one * 0.999
    assert both / (few + more) <= one / few * 1.001
    assert of(Work(few, given_in * 2, given_out), gpus) < one
    assert of(Work(few, given_in, given_out), 2) > of(Work(few, given_in, given_out), 1)


def test_the_cache_bounds_the_requests() -> None:
    """1280 tokens a request: 1279 hold none, 12,800 ten, and never more than 64 are assumed."""
    model = CATALOG.model("mistral-nemo-12b").architecture
    asked = model, CATALOG.gpus["l4"], "fp8", 12.66, Topology(1, 1)
    assert throughput.estimate(*asked, memory(1279)) is None
    counts = [answer.concurrency for n in (1280, 12_800, 10**6) if (answer := throughput.estimate(*asked, memory(n)))]
    assert counts == [1, 10, 64]


def test_a_roofline_says_what_it_rests_on() -> None:
    """Method, efficiencies, concurrency, lengths and assumptions are in the answer."""
    answer = estimate()
    assert (answer.method, answer.concurrency, answer.input_tokens, answer.output_tokens) == ("roofline", 64, 1024, 256)
    assert answer.basis == "100% of memory bandwidth (50% for routed experts), 50% of dense compute"
    assert answer.assumptions == throughput.ASSUMPTIONS


def test_a_measurement_of_the_same_setting_comes_first() -> None:
    """With its source, its own concurrency and lengths, and what the roofline would have said."""
    answer = estimate(row(concurrency=100, output_tokens=512, note="warm"))
    assert (answer.method, answer.output_tokens_per_s) == ("measured", 123.0)
    assert (answer.concurrency, answer.input_tokens, answer.output_tokens) == (100, 1024, 512)
    assert answer.basis == "vLLM 1.0, a table, 2026-01-02"
    assert any("roofline says" in text for text in answer.assumptions)
    assert "warm" in answer.assumptions


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "l40s"}, {"gpus": 2}, {"quantization": "bf16"}, {"model": "gemma-2-27b"}, {"engine": "SGLang"},
        {"concurrency": 1}, {"concurrency": 129}, {"input_tokens": 100}, {"output_tokens": 2048},
        {"scenario": "burst"}, {"scenario": "server"},
    ],
)  # fmt: skip
def test_a_measurement_of_another_setting_answers_nothing(other: dict[str, object]) -> None:
    """Another GPU, count, precision, model, engine, number at once, length or scenario: the roofline answers."""
    assert estimate(row(**other)).method == "roofline"


def test_a_measurement_that_the_cache_cannot_hold_answers_nothing() -> None:
    """100 requests of 1280 tokens were measured on a card that held them; 64 fit here."""
    assert estimate(row(concurrency=100), tokens=64 * 1280).method == "roofline"
    assert estimate(row(concurrency=100), tokens=100 * 1280).method == "measured"


def test_without_a_model_id_nothing_is_looked_up() -> None:
    """The signature of before still answers with the roofline."""
    assert estimate(row(), model=None).method == "roofline"


def test_the_nearest_measurement_wins_and_of_two_the_newer() -> None:
    """48 is nearer to 64 than 100; the later date breaks a tie."""
    far, near, newer = row(concurrency=100), row(concurrency=48), row(concurrency=48, date="2026-02-02")
    assert estimate(far, near).concurrency == 48
    assert "2026-02-02" in estimate(far, near, newer).basis


def test_a_stand_in_says_so_and_comes_last() -> None:
    """Llama 2 70B may answer for another 70B; its name is in the basis, and the model's own row is preferred."""
    stand_in = row(model="nemo-base", stands_for=["mistral-nemo-12b"], stand_in="its base model")
    assert estimate(stand_in).basis.endswith("its base model")
    assert estimate(stand_in, row(concurrency=100)).concurrency == 100


def test_an_unbounded_batch_is_a_ceiling_and_never_an_answer() -> None:
    """Offline rows are handed on as what they are."""
    offline = row(scenario="offline", concurrency=None, output_tokens_per_s=9999.0)
    answer = estimate(offline)
    assert answer.method == "roofline"
    assert answer.ceiling == offline


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concurrency": None}, "closed-loop"),
        ({"gpus": None}, "closed-loop"),
        ({"system_gpus": 8}, "not both"),
        ({"stands_for": ["x"]}, "stand_in"),
    ],
)
def test_rows_that_do_not_say_enough_are_refused(changes: dict[str, object], words: str) -> None:
    """A comparable row states replica, requests at once and lengths."""
    with pytest.raises(ValidationError, match=words):
        row(**changes)


def test_measured_answers_of_the_catalogue() -> None:
    """DeepSeek R1 in AWQ on eight H100 was measured for one request: 59.4 tokens/s, vLLM."""
    model = CATALOG.model("deepseek-r1")
    answer = throughput.estimate(
        model.architecture, CATALOG.gpus["h100-sxm"], "awq", 340.0, Topology(8, 1), memory(10**5, 70_272),
        model=model.id, max_concurrency=1,
    )  # fmt: skip
    assert answer is not None
    assert (answer.method, answer.output_tokens_per_s) == ("measured", 59.42)
    assert "issue 356" in answer.basis


def test_every_row_names_a_source_and_known_things() -> None:
    """What is compared has an architecture; quantizations and GPU ids are spelled as everywhere."""
    known = measured.evidence()
    for measurement in known.measured:
        names = (measurement.model, *measurement.stands_for)
        if measurement.is_comparable:
            assert any(name in CATALOG.model_ids or name in known.architectures for name in names), names
        assert measurement.quantization in (*spec.QUANTIZATIONS, None)
        assert re.fullmatch(r"[a-z0-9-]+", measurement.gpu)


def test_half_of_the_comparable_rows_are_met_within_ten_percent() -> None:
    """The fit holds: median below 10 % over all rows, and no row of a current vLLM is off by more than a quarter."""
    compared = throughput.compare(measured.evidence(), CATALOG)
    errors = sorted(abs(comparison.error) for comparison in compared)
    assert errors[len(errors) // 2] < 0.10
    aged = {"0.6.0", "0.7.3"}
    current = [c for c in compared if c.row.engine == "vLLM" and c.row.engine_version not in aged]
    assert max(abs(comparison.error) for comparison in current) < 0.25


def test_the_error_table_of_the_docs_is_current() -> None:
    """docs/costs.md lists every comparable row; what can be computed here is within 3 % of what it says."""
    text = DOCS.read_text(encoding="utf-8")
    fresh = {throughput_line(c.row): c.predicted for c in throughput.compare(measured.evidence(), CATALOG)}
    listed = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[6].endswith("%"):
            listed[tuple(cells[:5])] = float(cells[5].replace(",", ""))
    table = "\n".join(f"{' | '.join(key)} | {value:,.1f}" for key, value in fresh.items())
    for measurement in measured.evidence().measured:
        if measurement.is_comparable:
            assert throughput_line(measurement) in listed, f"docs/costs.md lacks a row; computed now:\n{table}"
    for key, predicted in fresh.items():
        assert listed[key] == pytest.approx(predicted, rel=0.03), (
            f"docs/costs.md is not current; computed now:\n{table}"
        )


def throughput_line(measurement: Measurement) -> tuple[str, ...]:
    """The first cells of a measurement's line in docs/costs.md."""
    engine = f"{measurement.engine} {measurement.engine_version or '?'}"
    return (
        f"{measurement.model} {measurement.quantization}", f"{measurement.gpus} × {measurement.gpu}", engine,
        f"{measurement.concurrency} × {measurement.input_tokens}+{measurement.output_tokens}",
        f"{measurement.output_tokens_per_s:,.1f}",
    )  # fmt: skip


ARTICLE = {
    "Mistral NeMo 12B FP8": ("mistral-nemo-12b", "l4", 1, "fp8"),
    "Gemma 2 27B BF16": ("gemma-2-27b", "a100-80-pcie", 1, "bf16"),
    "Llama 4 Scout INT4": ("llama-4-scout", "h100-pcie", 1, "int4"),
    "Qwen 2.5 72B FP8": ("qwen-2.5-72b", "h100-pcie", 1, "fp8"),
    "Mixtral 8x22B FP8": ("mixtral-8x22b", "h100-pcie", 2, "fp8"),
    "DeepSeek R1 FP8": ("deepseek-r1", "h100-sxm", 16, "fp8"),
}


def test_the_articles_figures_beside_ours_are_current() -> None:
    """docs/costs.md: speed alone and of many requests, and what a million tokens cost at the article's own prices."""
    line = re.compile(
        r"\| (?P<model>[^,|]+), .* at \$(?P<dollars>[\d.]+) \|[^|]+\| (?P<alone>[\d,]+) "
        r"\| (?P<many>[\d,]+) at (?P<n>\d+) \| (?P<cheap>[\d.]+) at \d+; (?P<dear>[\d.]+) alone \|"
    )
    found = {match["model"]: match for match in line.finditer(DOCS.read_text(encoding="utf-8"))}
    assert found.keys() == ARTICLE.keys()
    known = measured.evidence()
    for name, (model, gpu, gpus, quantization) in ARTICLE.items():
        asked = {"model": model, "gpu": gpu, "gpus": gpus, "quantization": quantization}
        decided = plan(spec.parse(asked, CATALOG, source="test"), CATALOG)
        choice, said = decided.choice, found[name]
        for requests, tokens, dollars in ((1, "alone", "dear"), (int(said["n"]), "many", "cheap")):
            speed = roofline(
                choice.model.architecture, choice.gpu, quantization, decided.weights_gib, choice.topology,
                decided.memory.kv_bytes_per_token, Work(requests), known.efficiency,
            )  # fmt: skip
            assert float(said[tokens].replace(",", "")) == pytest.approx(speed, rel=0.03), (name, tokens)
            million = usd_per_million_tokens(float(said["dollars"]), speed)
            assert float(said[dollars]) == pytest.approx(million, rel=0.03), (name, dollars)
