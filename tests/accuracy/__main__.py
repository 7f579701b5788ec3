"""`make accuracy`: predicted and measured memory of real servers, record by record, then in sum beside two rivals."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from records import GIB, Record, ask, load
from refit import Constants, refit, with_constants
from rivals import Estimate, kaito, rule_of_thumb

from modelstacks.catalog import Catalog
from modelstacks.plan import Plan

_WIDTH = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0}


@dataclass(frozen=True)
class Result:
    """One record beside its prediction; errors are shares, None where nothing was measured."""

    record: Record
    plan: Plan
    weights_known: bool
    kaito: Estimate
    thumb: Estimate

    @property
    def kv_error(self) -> float | None:
        return _error(self.plan.memory.kv_cache_gib, self.record.kv_gib)

    @property
    def weights_error(self) -> float | None:
        return _error(self.plan.memory.weights_gib, self.record.weights_gib) if self.weights_known else None

    @property
    def token_error(self) -> float | None:
        """Of the bytes that one cached token takes, as the engine counts tokens."""
        gib, tokens = self.record.kv_gib, self.record.kv_tokens
        own = self.plan.memory.kv_cache_tokens
        if not gib or not tokens or not own:
            return None
        return _error(self.plan.memory.kv_cache_gib / own, gib / tokens)

    @property
    def verdict(self) -> str:
        """Right, or which way it is wrong."""
        ran = self.record.outcome == "ok"
        if self.plan.fits == ran:
            return "right"
        return "called fitting, did not run" if self.plan.fits else "refused, ran"


def _error(predicted: float, measured: float | None) -> float | None:
    return None if not measured else (predicted - measured) / measured


def evaluate(catalog: Catalog, records: Sequence[Record]) -> list[Result]:
    """Every record that can be asked, beside its prediction and the rivals'."""
    results = []
    for record in records:
        answered = ask(record, catalog)
        if answered is None:
            continue
        plan, known = answered
        architecture, budget = plan.choice.model.architecture, plan.memory.budget_gib
        size = next(iter(plan.choice.model.checkpoints.values())).size_gib
        cut = (record.tensor_parallel, record.pipeline_parallel)
        width = _WIDTH.get(record.quantization, 0.5)
        results.append(
            Result(
                record, plan, known, kaito(architecture, size, budget, *cut),
                rule_of_thumb(architecture, width, budget, *cut),
            )
        )  # fmt: skip
    return results


def leaving_each_source_out(catalog: Catalog, results: Sequence[Result]) -> list[Result]:
    """Predictions of every complete record with constants fitted without its source."""
    overhead = catalog.versions.engines["vllm"]["server"].overhead
    old = catalog.versions.engines["vllm"]["server"].history[0].overhead
    now = Constants(
        old["sampler_copies"], overhead.sampler_copies, old["link_gib"]["nvlink"], overhead.link_gib["nvlink"]
    )
    complete = [result for result in results if result.record.complete]
    left: list[Result] = []
    for source in sorted({_family(result.record) for result in complete}):
        others = [(r.record, r.plan) for r in complete if _family(r.record) != source]
        mine = [r.record for r in complete if _family(r.record) == source]
        left += evaluate(with_constants(catalog, refit(others, now)), mine)
    return left


def _family(record: Record) -> str:
    """The collection a record is from: the repository or site, not the single file."""
    words = record.source.split()
    return "/".join(words[0].split("/")[:5]) if words else record.id


def percentile(values: Sequence[float], share: float) -> float:
    """The value that a share of all stays below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summary(results: Sequence[Result]) -> list[str]:
    """Medians and 90th percentiles of absolute errors."""
    lines = []
    for name, errors in (
        ("weights, size known", [r.weights_error for r in results]),
        ("KV cache GiB", [r.kv_error for r in results]),
        ("bytes per cached token", [r.token_error for r in results]),
    ):
        known = [abs(error) for error in errors if error is not None]
        if known:
            lines.append(
                f"  {name:24} {len(known):4} records   median {statistics.median(known):7.2%}   "
                f"90 % below {percentile(known, 0.9):7.2%}   worst {max(known):7.2%}"
            )
    return lines


def outcomes(results: Sequence[Result]) -> str:
    """How many were called right."""
    ran = [r for r in results if r.record.outcome == "ok"]
    not_ran = [r for r in results if r.record.outcome != "ok"]
    wrong_fit = [r.record.id for r in not_ran if r.plan.fits]
    wrong_refusal = [r.record.id for r in ran if not r.plan.fits]
    return (
        f"  outcome: {len(not_ran) - len(wrong_fit)} of {len(not_ran)} that did not run are refused"
        + (f" (not {', '.join(wrong_fit)})" if wrong_fit else "")
        + f"; {len(wrong_refusal)} of {len(ran)} that ran are refused"
        + (f" ({', '.join(wrong_refusal)})" if wrong_refusal else "")
    )


def _rivals(results: Sequence[Result]) -> list[str]:
    lines = []
    for name in ("kaito", "thumb"):
        kv = [abs(_error(getattr(r, name).kv_gib, r.record.kv_gib) or 0) for r in results if r.record.kv_gib]
        known = [r for r in results if r.weights_known and r.record.weights_gib]
        weights = [abs(_error(getattr(r, name).weights_gib, r.record.weights_gib) or 0) for r in known]
        tokens = [
            abs(_error(getattr(r, name).kv_bytes_per_token, r.record.kv_gib * GIB / r.record.kv_tokens) or 0)
            for r in results
            if r.record.kv_gib and r.record.kv_tokens
        ]
        title = {"kaito": "KAITO's formula", "thumb": "parameters × bytes × 1.2"}[name]
        lines.append(
            f"  {title:24} KV cache median {statistics.median(kv):.2%}, 90 % below {percentile(kv, 0.9):.2%}; weights "
            f"median {statistics.median(weights):.2%}; bytes per token median {statistics.median(tokens):.2%}"
        )
    return lines


def main() -> None:
    """Print everything."""
    catalog, records = Catalog(), load()
    results = evaluate(catalog, records)
    print(
        f"{'record':7}{'model':32}{'server':22}{'version':9}{'weights GiB':>18}{'KV GiB':>20}{'KV tokens':>24}  outcome"
    )
    for result in results:
        print(_line(result))
    complete = [result for result in results if result.record.complete]
    rest = [result for result in results if not result.record.complete]
    print(f"\n{len(records)} records, {len(results)} of known models on known cards; predicted / measured above")
    print(f"\nAll inputs stated ({len(complete)} records)")
    print("\n".join([*summary(complete), outcomes(complete)]))
    print("\nThe same, constants fitted without the record's own source")
    left = leaving_each_source_out(catalog, results)
    print("\n".join([*summary(left), outcomes(left)]))
    print("\nRivals on the same records")
    print("\n".join(_rivals(complete)))
    print(f"\nInputs missing, or more than the plan knows (offload, shared card, …): {len(rest)} records, not counted")
    print("\n".join([*summary(rest), outcomes(rest)]))


def _line(result: Result) -> str:
    record, memory = result.record, result.plan.memory
    server = f"{record.gpu} TP{record.tensor_parallel}" + (
        f" PP{record.pipeline_parallel}" if record.pipeline_parallel > 1 else ""
    )
    odd = f" [{record.odd}]" if record.odd else "" if record.complete else " [inputs missing]"
    return (
        f"{record.id:7}{record.model[:30]:32}{server:22}{(record.version or '–')[:8]:9}"
        f"{memory.weights_gib:8.2f} / {_shown(record.weights_gib, 7)}"
        f"{memory.kv_cache_gib:9.2f} / {_shown(record.kv_gib, 8)}"
        f"{memory.kv_cache_tokens:12,} / {record.kv_tokens or 0:9,}  {record.outcome}: {result.verdict}{odd}"
    )


def _shown(value: float | None, width: int) -> str:
    return f"{'–' if value is None else format(value, '.2f'):>{width}}"


if __name__ == "__main__":
    main()
