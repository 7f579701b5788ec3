"""`modelstacks compare`: the frontier, what it reaches, its JSON and its picture."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modelstacks import compare, price, spec
from modelstacks.catalog import Catalog
from modelstacks.cli.commands import app
from modelstacks.errors import BadInput
from modelstacks.plan import plan

CATALOG = Catalog()


def ways(**values: object) -> list[compare.Way]:
    """The comparison of a question."""
    asked = spec.parse(values, CATALOG, source="test")
    return compare.compare(asked, CATALOG, CATALOG.model(asked.model), price.market(None, CATALOG))


@pytest.mark.parametrize("model", ["qwen-2.5-72b", "llama-3.3-70b", "gpt-oss-120b", "qwen3.8-27b"])
def test_nothing_on_the_frontier_is_outrun_at_its_price(model: str) -> None:
    """And everything that is not on it is."""
    fitting = [way for way in ways(model=model) if way.throughput is not None and way.usd_per_hour is not None]
    for way in fitting:
        assert way.throughput is not None
        assert way.usd_per_hour is not None
        better = [
            other
            for other in fitting
            if other is not way
            and (other.usd_per_hour or 0) <= way.usd_per_hour
            and other.throughput is not None
            and other.throughput.output_tokens_per_s >= way.throughput.output_tokens_per_s
        ]
        assert way.on_frontier == (not better) or len(better) == 1


def test_the_longest_context_fits_and_a_longer_one_does_not() -> None:
    """What the table promises is what a plan answers."""
    for way in [way for way in ways(model="qwen-2.5-72b", gpu="h100-sxm") if way.longest_context][:6]:
        choice = way.choice
        question = {
            "model": "qwen-2.5-72b", "gpu": "h100-sxm", "gpus": choice.topology.gpus,
            "quantization": choice.quantization, "concurrency": choice.load.concurrency,
        }  # fmt: skip
        longest = way.longest_context or 0

        def fits(context: int, question: dict[str, object] = question) -> bool:
            asked = spec.parse({**question, "context": context}, CATALOG, source="test")
            return plan(asked, CATALOG, thorough=False).fits

        assert fits(longest)
        assert longest == choice.model.architecture.context_limit or not fits(longest + 1024)


def test_the_open_plan_is_the_cheapest_that_fits() -> None:
    """compare and plan agree."""
    for model in ("mistral-nemo-12b", "qwen3-32b", "glm-4.6"):
        cheapest = min(way.usd_per_hour or 1e9 for way in ways(model=model) if way.checked.fits)
        chosen = plan(spec.parse({"model": model}, CATALOG, source="test"), CATALOG)
        assert chosen.cost.usd_per_hour == cheapest


def test_json_and_pictures(tmp_path: Path) -> None:
    """As a script and a page take them; the same picture twice."""
    run = CliRunner().invoke
    answered = run(app, ["compare", "llama-3.1-70b", "--json", "--all"])
    rows = json.loads(answered.output)
    assert {row["fits"] for row in rows} == {True, False}
    assert all(row["refusals"] for row in rows if not row["fits"])
    for name in ("a.svg", "b.svg", "a.png"):
        assert run(app, ["compare", "gpt-oss-20b", "--picture", str(tmp_path / name)]).exit_code == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    wrong = run(app, ["compare", "gpt-oss-20b", "--picture", str(tmp_path / "a.gif")])
    assert isinstance(wrong.exception, BadInput)


def test_a_narrow_terminal_loses_no_digit_and_nothing_that_fits_is_said() -> None:
    """At 60 columns the table is as wide as at 80."""
    narrow = CliRunner(env={"COLUMNS": "60"}).invoke(app, ["compare", "llama-3.3-70b", "--gpu", "h100-sxm"])
    wide = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["compare", "llama-3.3-70b", "--gpu", "h100-sxm"])
    assert narrow.stdout == wide.stdout
    nothing = CliRunner().invoke(app, ["compare", "deepseek-r1", "--gpu", "l4"])
    assert "nothing of these fits" in nothing.stdout
