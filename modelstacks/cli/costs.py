"""Plans → what they cost a token, a query and a month, and where an API or a bought card would cost the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelstacks import answer, economics
from modelstacks.catalog import measured
from modelstacks.catalog.measured import ApiPrice, Market, Measurement
from modelstacks.cli.tables import terminal
from modelstacks.economics import BreakEven
from modelstacks.plan import Plan


@dataclass(frozen=True, slots=True)
class CostLine:
    """One stack or model: its plan, and the figures that follow where the plan fits and a price is known.

    Tokens and queries per second are of all replicas.
    """

    name: str
    plan: Plan
    output_tokens_per_s: float | None = None
    queries_per_s: float | None = None
    usd_per_million_output_tokens: float | None = None
    api: ApiPrice | None = None
    break_even: BreakEven | None = None
    months_to_buy: float | None = None

    @property
    def refused(self) -> bool:
        """Anything at all stands against running it."""
        return not self.plan.runs


def line(name: str, plan: Plan, market: Market | None = None) -> CostLine:
    """The figures of one plan; those of a plan that does not fit, or of no replicas, stay None."""
    market = market or measured.market()
    rate, cost, replicas = plan.throughput, plan.cost, plan.spec.replicas * plan.spec.copies
    if rate is None or not plan.fits or not replicas:
        return CostLine(name, plan)
    tokens_per_s = rate.output_tokens_per_s * replicas
    queries = economics.queries_per_second(tokens_per_s, rate.output_tokens)
    month = cost.usd_per_month
    if cost.usd_per_hour is None or month is None:
        return CostLine(name, plan, tokens_per_s, queries)
    million = economics.usd_per_million_tokens(cost.usd_per_hour, tokens_per_s)
    lengths = rate.input_tokens, rate.output_tokens
    api = min(
        market.of_model(plan.choice.model.id),
        key=lambda price: economics.usd_per_request(
            price.input_usd_per_million, price.output_usd_per_million, *lengths
        ),
        default=None,
    )
    meets = (
        economics.break_even_with_api(
            month, tokens_per_s, api.input_usd_per_million, api.output_usd_per_million, *lengths
        )
        if api is not None
        else None
    )
    return CostLine(name, plan, tokens_per_s, queries, million, api, meets, _months_to_buy(plan, market))


def refused(lines: list[CostLine]) -> bool:
    """One of them is refused, so the command ends with exit code 3 after it has answered all."""
    return any(line.refused for line in lines)


def as_json(lines: list[CostLine]) -> list[dict[str, Any]]:
    """The list of `modelstacks cost --json`; money in USD, tokens and queries of all replicas."""
    return [_json(line) for line in lines]


def show(lines: list[CostLine], console: Console | None = None) -> None:
    """One row a stack, the sum, then what the figures assume."""
    console = console or terminal()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    for column in ("$/h", "$/month", "tok/s", "method", "q/s", "$/M tok", "API met"):
        table.add_column(column, no_wrap=True)
    total = 0.0
    for line in lines:
        cost, rate = line.plan.cost, line.plan.throughput
        total += (cost.usd_per_month or 0.0) if line.plan.runs else 0.0
        table.add_row(
            line.name, _money(cost.usd_per_hour), _money(cost.usd_per_month, 0), _number(line.output_tokens_per_s, 0),
            rate.method if rate is not None and line.output_tokens_per_s is not None else "–",
            _number(line.queries_per_s, 2), _money(line.usd_per_million_output_tokens),
            "refused" if line.refused else _break_even(line),
        )  # fmt: skip
    table.add_section()
    table.add_row("all that run", "", _money(total, 0), "", "", "", "", "")
    console.print(table)
    for line in lines:
        console.print(Text(line.name, "bold"))
        for text in _notes(line):
            console.print(Text(f"  {text}"))
    console.print(Text("assumed", "bold"))
    for text in _assumptions(lines):
        console.print(Text(f"  {text}"))


def _json(line: CostLine) -> dict[str, Any]:
    plan, rate, api, meets = line.plan, line.plan.throughput, line.api, line.break_even
    known = line.output_tokens_per_s is not None
    return {
        "stack": plan.stack,
        "name": line.name,
        "model": plan.choice.model.id,
        "fits": plan.fits,
        "refusals": [{"code": refusal.code, "message": refusal.message} for refusal in plan.refusals],
        **answer.cost(plan.cost),
        "usd_per_million_output_tokens": _rounded(line.usd_per_million_output_tokens, 3),
        "output_tokens_per_s": _rounded(line.output_tokens_per_s, 1),
        "queries_per_s": _rounded(line.queries_per_s, 3),
        "throughput": None
        if rate is None or not known
        else {
            "method": rate.method,
            "basis": rate.basis,
            "concurrency": rate.concurrency,
            "input_tokens": rate.input_tokens,
            "output_tokens": rate.output_tokens,
            "assumptions": list(rate.assumptions),
            "measured_without_batch_limit": _ceiling(rate.ceiling),
        },
        "api": None if api is None else api.model_dump(mode="json", exclude={"model"}),
        "break_even": None
        if meets is None
        else {
            "requests_per_month": _rounded(meets.requests_per_month, 0),
            "input_tokens_per_month": _rounded(meets.input_tokens_per_month, 0),
            "output_tokens_per_month": _rounded(meets.output_tokens_per_month, 0),
            "utilization": _rounded(meets.utilization, 4),
            "reachable": meets.is_reachable,
        },
        "months_to_buy_the_cards": _rounded(line.months_to_buy, 1),
    }


def _ceiling(row: Measurement | None) -> dict[str, Any] | None:
    if row is None:
        return None
    return {"output_tokens_per_s": row.output_tokens_per_s, "scenario": row.scenario, "source": row.where}


def _assumptions(lines: list[CostLine]) -> list[str]:
    """What the figures take for granted, each thing once."""
    rates = [line.plan.throughput for line in lines if line.output_tokens_per_s is not None]
    computed = [rate for rate in rates if rate is not None and rate.method == "roofline"]
    said = [f"roofline: {text}" for rate in computed for text in (rate.basis, *rate.assumptions)]
    said += [
        "$/M tok: a million output tokens; API met: how busy it must be to cost no more than the cheapest known API"
    ]
    said += ["a month is 730 hours; tokens and queries a second are of all replicas while busy (docs/costs.md)"]
    return list(dict.fromkeys(said))


def _notes(line: CostLine) -> list[str]:
    """Where the figures of one line come from."""
    plan, rate, cost = line.plan, line.plan.throughput, line.plan.cost
    texts = [f"refused, {refusal.code}: {refusal.message}" for refusal in plan.refusals]
    if cost.price is not None and cost.machine is not None:
        seen = cost.price.date or "undated"
        machines = f"{cost.machines} × {cost.machine.cloud} {cost.machine.name} ({cost.price.region}, {seen})"
        texts.append(f"{machines}; price from {cost.price.source}")
    elif plan.fits:
        texts.append("no price is known for this machine, region or cloud")
    if rate is not None and line.output_tokens_per_s is not None:
        texts.append(
            f"{rate.output_tokens_per_s:,.0f} output tokens/s a replica, {rate.method}: {rate.concurrency} requests of "
            f"{rate.input_tokens}+{rate.output_tokens} tokens at once"
        )
        if rate.method != "roofline":
            texts += [rate.basis, *rate.assumptions]
        if rate.ceiling is not None:
            row = rate.ceiling
            texts.append(f"{row.output_tokens_per_s:,.0f} tokens/s were measured with an unbounded batch: {row.where}")
    api, meets = line.api, line.break_even
    if api is not None and meets is not None:
        texts.append(
            f"{api.provider} asks ${api.input_usd_per_million:g} in, ${api.output_usd_per_million:g} out per million "
            f"({api.source}, {api.date or 'undated'}): the same money at {meets.requests_per_month:,.0f} requests or "
            f"{meets.output_tokens_per_month / 1e6:,.0f}M output tokens a month, {meets.utilization:.0%} busy"
            + ("" if meets.is_reachable else ", more than it can serve: the API is cheaper")
        )
    elif line.usd_per_million_output_tokens is not None:
        texts.append("no API price of this model is known")
    if line.months_to_buy is not None:
        texts.append(f"the cards alone, bought, would have paid for themselves after {line.months_to_buy:.1f} months")
    return texts


def _months_to_buy(plan: Plan, market: Market) -> float | None:
    """Months until the GPUs' purchase price is below rent less power; None where no purchase price is known."""
    card, month = market.cards.get(plan.choice.gpu.id), plan.cost.usd_per_month
    if card is None or month is None:
        return None
    power = economics.power_usd_per_month(card.watts * plan.gpus, market.power.usd_per_kwh)
    return economics.months_to_buy(card.usd * plan.gpus, month, power)


def _break_even(line: CostLine) -> str:
    meets = line.break_even
    if meets is None:
        return "–"
    return f"{meets.utilization:.0%}" if meets.is_reachable else "never"


def _money(dollars: float | None, places: int = 2) -> str:
    return "unknown" if dollars is None else f"{dollars:,.{places}f}"


def _number(number: float | None, places: int) -> str:
    return "–" if number is None else f"{number:,.{places}f}"


def _rounded(number: float | None, places: int) -> float | None:
    return None if number is None else round(number, places)
