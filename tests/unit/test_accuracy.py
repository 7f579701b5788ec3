"""The promises about memory, held against the start-ups of real servers in tests/data."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))

import importlib.util

from modelstacks.catalog import Catalog

_SPEC = importlib.util.spec_from_file_location("accuracy", Path(__file__).parents[1] / "accuracy" / "__main__.py")
assert _SPEC is not None
assert _SPEC.loader is not None
accuracy = importlib.util.module_from_spec(_SPEC)
sys.modules["accuracy"] = accuracy
_SPEC.loader.exec_module(accuracy)

# Out of memory in the sampler's warm-up, after the cache had been laid out as predicted; see docs/memory.md.
WARM_UP = {"e175", "e176"}


@pytest.fixture(scope="module")
def complete() -> Sequence[object]:
    """Predictions of every record that states all inputs."""
    results = accuracy.evaluate(Catalog(), accuracy.load())
    return [result for result in results if result.record.complete]


def _absolute(errors: Sequence[float | None]) -> list[float]:
    return [abs(error) for error in errors if error is not None]


def test_there_is_evidence_enough(complete: Sequence[object]) -> None:
    """A collection of many servers: a pass on three of them would prove nothing."""
    assert len(complete) > 150


def test_kv_cache_is_within_its_promise(complete) -> None:  # type: ignore[no-untyped-def]
    """Median below 8 %, nine of ten below 20 %: the issue's targets; the figures reached are far below."""
    errors = _absolute([result.kv_error for result in complete])
    assert statistics.median(errors) < 0.01
    assert accuracy.percentile(errors, 0.9) < 0.05


def test_weights_and_tokens_are_within_their_promise(complete) -> None:  # type: ignore[no-untyped-def]
    """Weights within 2 % where the size is known, bytes per cached token within 0.5 %."""
    weights = _absolute([result.weights_error for result in complete])
    assert accuracy.percentile(weights, 0.9) < 0.02
    assert accuracy.percentile(_absolute([result.token_error for result in complete]), 0.9) < 0.005


def test_nothing_that_was_refused_is_called_fitting(complete) -> None:  # type: ignore[no-untyped-def]
    """And at most one in twenty that ran is refused."""
    promised = {r.record.id for r in complete if r.record.outcome != "ok" and r.plan.fits}
    assert promised <= WARM_UP
    ran = [result for result in complete if result.record.outcome == "ok"]
    assert sum(not result.plan.fits for result in ran) <= len(ran) / 20


def test_constants_predict_sources_they_were_not_fitted_to(complete) -> None:  # type: ignore[no-untyped-def]
    """Leaving a source out and predicting it is hardly worse."""
    left = accuracy.leaving_each_source_out(Catalog(), complete)
    assert len(left) == len(complete)
    assert statistics.median(_absolute([result.kv_error for result in left])) < 0.01


def test_both_rivals_are_further_off(complete) -> None:  # type: ignore[no-untyped-def]
    """Computed from the same inputs in the same run."""

    def median(name: str) -> float:
        return statistics.median(
            abs(getattr(r, name).kv_gib / r.record.kv_gib - 1) for r in complete if r.record.kv_gib
        )

    own = statistics.median(_absolute([result.kv_error for result in complete]))
    assert own < median("kaito") / 3
    assert own < median("thumb") / 3
