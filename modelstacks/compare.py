"""Every way to serve one model, side by side: GPU × count × quantization, what each holds, does and costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelstacks import economics, price
from modelstacks.catalog import Catalog, Model
from modelstacks.plan import Choice
from modelstacks.plan.check import Checked, estimate, longest_context
from modelstacks.plan.choose import configurations
from modelstacks.spec import StackSpec
from modelstacks.throughput import Throughput


@dataclass(frozen=True, slots=True)
class Way:
    """One configuration: whether it fits, the longest context that would, its speed, and what it costs.

    `on_frontier`: nothing that fits is both cheaper and faster.
    """

    checked: Checked
    longest_context: int | None
    throughput: Throughput | None
    on_frontier: bool = False

    @property
    def choice(self) -> Choice:
        """What is compared."""
        return self.checked.choice

    @property
    def usd_per_hour(self) -> float | None:
        """Whole machines of one replica."""
        return self.checked.cost.usd_per_hour

    @property
    def usd_per_million(self) -> float | None:
        """USD for a million output tokens at the stated concurrency; None without price or speed."""
        if self.throughput is None or self.usd_per_hour is None:
            return None
        return economics.usd_per_million_tokens(self.usd_per_hour, self.throughput.output_tokens_per_s)


def compare(spec: StackSpec, catalog: Catalog, model: Model, market: price.Market) -> list[Way]:
    """Every configuration that the question leaves open, the cheapest first, unpriced ones last."""
    ways = []
    for checked in configurations(spec, catalog, model, market):
        fits = checked.fits
        longest = _longest(checked)
        ways.append(Way(checked, longest, estimate(checked) if fits else None))
    ways.sort(
        key=lambda way: (way.checked.cost.rank, way.choice.topology.gpus, way.choice.gpu.id, way.choice.quantization)
    )
    return _with_frontier(ways)


def _longest(checked: Checked) -> int | None:
    """The longest context at the asked concurrency; None where something else than memory stands against it."""
    codes = {refusal.code for refusal in checked.refusals}
    if codes - {"kv-cache-too-small"}:
        return None
    choice = checked.choice
    return longest_context(choice, choice.figures, checked.weights, most=choice.model.architecture.context_limit)


def _with_frontier(ways: list[Way]) -> list[Way]:
    """The same ways; those that nothing equally cheap or cheaper outruns are marked."""
    fastest = 0.0
    leading = set()
    for way in sorted(ways, key=lambda way: (way.checked.cost.rank, -_rate(way))):
        if way.usd_per_hour is not None and _rate(way) > fastest:
            fastest = _rate(way)
            leading.add(id(way))
    return [Way(way.checked, way.longest_context, way.throughput, id(way) in leading) for way in ways]


def _rate(way: Way) -> float:
    return way.throughput.output_tokens_per_s if way.throughput is not None else 0.0


def answer(ways: list[Way]) -> list[dict[str, Any]]:
    """The comparison as plain data: money in USD, tokens per replica."""
    return [_row(way) for way in ways]


def _row(way: Way) -> dict[str, Any]:
    choice, checked, rate = way.choice, way.checked, way.throughput
    machine, seen = checked.cost.machine, checked.cost.price
    return {
        "gpu": choice.gpu.id,
        "gpus": choice.topology.gpus,
        "tensor_parallel": choice.topology.tensor_parallel,
        "pipeline_parallel": choice.topology.pipeline_parallel,
        "tier": choice.tier,
        "engine": choice.engine,
        "quantization": choice.quantization,
        "fits": checked.fits,
        "frontier": way.on_frontier,
        "context": choice.load.context,
        "concurrency": choice.load.concurrency,
        "longest_context": way.longest_context,
        "max_concurrency": round(checked.memory.max_concurrency, 2) if checked.fits else None,
        "max_concurrency_at_least": round(checked.memory.max_concurrency_low, 2) if checked.fits else None,
        "usd_per_hour": None if way.usd_per_hour is None else round(way.usd_per_hour, 4),
        "usd_per_million_output_tokens": None if way.usd_per_million is None else round(way.usd_per_million, 3),
        "output_tokens_per_s": None if rate is None else round(rate.output_tokens_per_s, 1),
        "throughput_concurrency": None if rate is None else rate.concurrency,
        "throughput_method": None if rate is None else rate.method,
        "machine": None if machine is None else machine.name,
        "cloud": None if machine is None else machine.cloud,
        "price_date": seen.date.isoformat() if seen is not None and seen.date is not None else None,
        "refusals": [{"code": refusal.code, "message": refusal.message} for refusal in checked.refusals],
    }
