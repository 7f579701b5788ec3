"""Plans, models, GPUs and costs as a person reads them in a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelstacks.answer import usd_per_million
from modelstacks.catalog import Gpu, Model
from modelstacks.ledger import ledger_bar
from modelstacks.plan import Plan

# A pipe or a file has no width of its own, and 80 columns would fold every table.
_WIDTH_OF_FILES = 120
# A terminal narrower than this loses the columns that can be spared.
_NARROW = 110
_LEAST = 80
_BAR_COLOURS = {"W": "blue", "o": "yellow", "K": "green", "·": "bright_black"}


def terminal() -> Console:
    """Where people read: as wide as the terminal, or wide enough for a table where there is none."""
    console = Console(highlight=False)
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = _WIDTH_OF_FILES
    # Narrower still, the terminal breaks lines; a table that is cut would lose digits without a word.
    console.width = max(console.width, _LEAST)
    return console


def table(
    console: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    fold: Collection[str] = (),
    spare: Collection[str] = (),
    right: Collection[str] = (),
) -> None:
    """Prints rows; `fold` may take several lines, `spare` goes where the terminal is narrow, `right` is aligned so."""
    narrow = console.width < _NARROW
    kept = [n for n, column in enumerate(columns) if not narrow or column not in spare]
    # The box itself puts a blank between columns.
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0 if narrow else 1, 0, 0))
    for n in kept:
        justify: Literal["left", "right"] = "right" if columns[n] in right else "left"
        grid.add_column(columns[n], overflow="fold", no_wrap=columns[n] not in fold, justify=justify)
    for row in rows:
        grid.add_row(*(row[n] for n in kept))
    console.print(grid)


def models(rows: list[Model]) -> None:
    """One line a model."""

    def cells(model: Model) -> tuple[str, ...]:
        architecture, profile = model.architecture, model.profiles[0]
        licence = model.licence.id + (" (accept)" if model.licence.must_accept else "")
        at_load = [f"{name} at load" for name in model.quantize_at_load]
        return (
            model.id, model.name, f"{architecture.parameters / 1e9:.0f}B", f"{architecture.max_context:,}",
            ", ".join([*model.checkpoints, *at_load]), licence,
            f"{profile.gpus} × {profile.gpu} {profile.quantization}",
        )  # fmt: skip

    columns = ("model", "name", "params", "context", "formats", "licence", "by default")
    table(
        terminal(),
        columns,
        map(cells, rows),
        fold=("name", "formats", "licence"),
        spare=("name",),
        right=("params", "context"),
    )


def gpus(rows: list[Gpu]) -> None:
    """One line a GPU type."""

    def cells(gpu: Gpu) -> tuple[str, ...]:
        prices = [m.usd_per_hour / m.gpus for m in gpu.machines if m.usd_per_hour is not None]
        return (
            gpu.id, gpu.name, f"{gpu.memory_gib.value:g}", f"{gpu.bandwidth_gb_per_s.value:g}", f"{gpu.tflops.bf16:g}",
            gpu.interconnect.kind, f"{min(prices):.2f}" if prices else "unknown",
            ", ".join(sorted({m.cloud for m in gpu.machines})),
        )  # fmt: skip

    numbers = ("GiB seen", "GB/s", "TFLOP/s", "USD/h from")
    columns = ("gpu", "name", "GiB seen", "GB/s", "TFLOP/s", "link", "USD/h from", "clouds")
    table(terminal(), columns, map(cells, rows), fold=("clouds",), spare=("name",), right=numbers)


def plan(decided: Plan, console: Console | None = None) -> None:
    """A plan or a refusal: the verdict first, then the ledger, then what follows."""
    console = console or terminal()
    choice, load = decided.choice, decided.choice.load
    title = decided.stack or choice.model.id
    verdict = Text(" fits ", "black on green") if decided.runs else Text(" refused ", "white on red")
    parallel = f"TP {choice.topology.tensor_parallel} × PP {choice.topology.pipeline_parallel}"
    head = Text(
        f"{title}: {choice.model.name} {choice.quantization}, {choice.topology.gpus} × {choice.gpu.name} ({parallel}) "
    )
    console.print(head + verdict)
    replicas = "1 replica" if decided.spec.replicas == 1 else f"{decided.spec.replicas} replicas"
    version = choice.form.version if choice.form is not None else "unsupported here"
    tier = choice.tier if decided.nodes_per_replica == 1 else f"{choice.tier} ({decided.tier_form.launcher})"
    console.print(
        f"tier {tier} · {choice.engine} {version} · {replicas} · {load.concurrency} × {load.context:,} tokens must fit"
    )
    console.print()
    for refusal in decided.refusals:
        console.print(Text(f"✗ {refusal.code}: ", "red") + Text(refusal.message))
        console.print(f"    need {refusal.need:,} {refusal.unit}, have {refusal.have:,}")
    if decided.refusals:
        console.print()
    _ledger(console, decided)
    _money_lines(console, decided)
    for reason in decided.reasons:
        console.print(Text(f"+ {reason}"))
    for warning in decided.warnings:
        console.print(Text(f"! {warning}", "yellow"))
    if decided.alternatives:
        console.print()
        rows = []
        for alternative in decided.alternatives:
            other = alternative.choice
            # A key a line, as a stack file has them.
            change = alternative.change.replace(", modelstacks:", "\nmodelstacks:")
            at_once = f"{alternative.max_concurrency:.1f} × {other.load.context:,}"
            gpus = f"{other.topology.gpus} × {other.gpu.id}"
            rows.append((change, gpus, at_once, _money(alternative.cost.usd_per_hour)))
        table(
            console,
            ("what would fit", "GPUs", "requests at once", "USD/h"),
            rows,
            fold=("what would fit",),
            right=("USD/h",),
        )


def _ledger(console: Console, decided: Plan) -> None:
    memory = decided.memory
    bar = Text()
    for letter in ledger_bar(decided):
        bar.append("█" if letter != "·" else "░", _BAR_COLOURS[letter])
    console.print(bar + Text(f"  {memory.gpu_gib:.1f} GiB per GPU"))
    console.print(
        Text.assemble(
            ("█ ", "blue"), f"weights {memory.weights_gib:.1f}  ",
            ("█ ", "yellow"), f"overhead {memory.overhead_gib:.1f}  ",
            ("█ ", "green"), f"KV cache {memory.kv_cache_gib:.1f} ± {memory.uncertainty_gib:.1f} ",
            f"(needed {memory.kv_needed_gib:.1f})  ",
            f"of a budget of {memory.budget_gib:.1f} GiB",
        )
    )  # fmt: skip
    console.print(
        f"{memory.kv_cache_tokens:,} tokens of KV cache per replica, {memory.kv_bytes_per_token:,} bytes per token "
        "and GPU: "
        f"{memory.max_concurrency:.2f} requests of {decided.choice.load.context:,} tokens, at least "
        f"{memory.max_concurrency_low:.2f}"
    )


def _money_lines(console: Console, decided: Plan) -> None:
    cost, rate, pool = decided.cost, decided.throughput, decided.pool
    if cost.usd_per_hour is not None and cost.usd_per_month is not None and cost.machine is not None and cost.price:
        seen = cost.price.date or "undated"
        console.print(
            f"${cost.usd_per_hour:,.2f} an hour, ${cost.usd_per_month:,.0f} a month: {cost.machines} × "
            f"{cost.machine.cloud} {cost.machine.name} ({cost.price.region}, {seen})"
        )
    if pool is not None:
        ways = ", then ".join(capacity.way for step in pool.steps for capacity in step)
        most = decided.usd_per_month_at_most
        money = "" if most is None else f", ${most:,.0f} a month"
        count = pool.all_machines_at_most * decided.spec.copies
        machines, gpus = f"{count} × {pool.machine.name}", count * pool.machine.gpus
        console.print(f"may buy at most {machines} ({gpus} GPU{'s' * (gpus != 1)}{money}) as {ways}")
    million = usd_per_million(decided)
    if rate is not None and million is not None:
        console.print(
            f"about {rate.output_tokens_per_s:,.0f} output tokens/s a replica at {rate.concurrency} requests of "
            f"{rate.input_tokens}+{rate.output_tokens} tokens ({rate.method}): ${million:,.2f} per million"
        )


def _money(dollars: float | None) -> str:
    return "unknown" if dollars is None else f"{dollars:,.2f}"
