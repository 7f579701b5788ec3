"""Plans, models, GPUs and costs as a person reads them in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelstacks.answer import usd_per_million
from modelstacks.catalog import Gpu, Model
from modelstacks.ledger import ledger_bar
from modelstacks.plan import Plan

_BAR_COLOURS = {"W": "blue", "o": "yellow", "K": "green", "·": "bright_black"}


def models(rows: list[Model]) -> None:
    """One line a model."""
    table = _table("model", "name", "parameters", "context", "quantizations", "licence", "default profile")
    for model in rows:
        architecture, profile = model.architecture, model.profiles[0]
        licence = model.licence.id + (" (accept)" if model.licence.must_accept else "")
        at_load = [f"{name} at load" for name in model.quantize_at_load]
        table.add_row(
            model.id, model.name, f"{architecture.parameters / 1e9:.0f}B", f"{architecture.max_context:,}",
            ", ".join([*model.checkpoints, *at_load]), licence,
            f"{profile.gpus} × {profile.gpu} {profile.quantization} {profile.engine}",
        )  # fmt: skip
    Console().print(table)


def gpus(rows: list[Gpu]) -> None:
    """One line a GPU type."""
    table = _table("gpu", "name", "GiB seen", "GB/s", "bf16 TFLOP/s", "link", "clouds", "from USD/h a GPU")
    for gpu in rows:
        prices = [m.usd_per_hour / m.gpus for m in gpu.machines if m.usd_per_hour is not None]
        table.add_row(
            gpu.id, gpu.name, f"{gpu.memory_gib.value:g}", f"{gpu.bandwidth_gb_per_s.value:g}", f"{gpu.tflops.bf16:g}",
            gpu.interconnect.kind, ", ".join(sorted({m.cloud for m in gpu.machines})),
            f"{min(prices):.2f}" if prices else "unknown",
        )  # fmt: skip
    Console().print(table)


def plan(decided: Plan, console: Console | None = None) -> None:
    """A plan or a refusal: the verdict first, then the ledger, then what follows."""
    console = console or Console(highlight=False)
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
    console.print(
        f"tier {choice.tier} · {choice.engine} {version} · {replicas} · "
        f"{load.concurrency} × {load.context:,} tokens must fit"
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
        table = _table("what would fit", "GPUs", "requests at once", "USD/h")
        for alternative in decided.alternatives:
            other = alternative.choice
            table.add_row(
                alternative.change, f"{other.topology.gpus} × {other.gpu.id}", f"{alternative.max_concurrency:.1f} × "
                f"{other.load.context:,}", _money(alternative.cost.usd_per_hour),
            )  # fmt: skip
        console.print(table)


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
    cost, rate = decided.cost, decided.throughput
    if cost.usd_per_hour is not None and cost.usd_per_month is not None and cost.machine is not None and cost.price:
        seen = cost.price.date or "undated"
        console.print(
            f"${cost.usd_per_hour:,.2f} an hour, ${cost.usd_per_month:,.0f} a month: {cost.machines} × "
            f"{cost.machine.cloud} {cost.machine.name} ({cost.price.region}, {seen})"
        )
    million = usd_per_million(decided)
    if rate is not None and million is not None:
        console.print(
            f"about {rate.output_tokens_per_s:,.0f} output tokens/s a replica at {rate.concurrency} requests of "
            f"{rate.input_tokens}+{rate.output_tokens} tokens ({rate.method}): ${million:,.2f} per million"
        )


def _money(dollars: float | None) -> str:
    return "unknown" if dollars is None else f"{dollars:,.2f}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
