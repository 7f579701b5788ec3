"""The table and the picture of `modelstacks compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelstacks.cli import tables
from modelstacks.compare import Way
from modelstacks.errors import ModelstacksError

_SHOWN = 30


def show(model: str, ways: list[Way], *, everything: bool) -> None:
    """What fits, the cheapest first, with the frontier marked; a line for what does not."""
    console = tables.terminal()
    fitting = [way for way in ways if way.checked.fits]
    rows = ways if everything else fitting[:_SHOWN]

    def cells(way: Way) -> tuple[str, ...]:
        choice, rate = way.choice, way.throughput
        machine = way.checked.cost.machine
        mark = "★" if way.on_frontier else "" if way.checked.fits else "✗"
        return (
            mark, f"{choice.topology.gpus} × {choice.gpu.id}", choice.quantization, _count(way.longest_context),
            f"{way.checked.memory.max_concurrency_low:.1f}" if way.checked.fits else "–", _money(way.usd_per_hour),
            "–" if rate is None else f"{rate.output_tokens_per_s:,.0f}", _money(way.usd_per_million),
            "–" if machine is None else machine.cloud,
        )  # fmt: skip

    columns = ("", "GPUs", "weights", "context to", "at once", "USD/h", "tok/s", "USD/M", "cloud")
    numbers = ("context to", "at once", "USD/h", "tok/s", "USD/M")
    tables.table(console, columns, map(cells, rows), right=numbers)
    if not fitting:
        console.print(
            f"nothing of these fits: modelstacks plan --model {model} says what would, --all shows every refusal"
        )
        return
    hidden = len(fitting) - len(rows) if not everything else 0
    first = ways[0].choice.load if ways else None
    if first is not None:
        console.print(f"{model}: {first.concurrency} × {first.context:,} tokens must fit; at once = such requests.")
    rest = len(ways) - len(fitting)
    said = f"★ nothing cheaper is faster. {len(fitting)} of {len(ways)} configurations fit, {rest} are refused"
    said += f"; {hidden} dearer ones are not shown" if hidden > 0 else ""
    console.print(said + (": --all shows them." if not everything and (rest or hidden) else "."))


def draw(model: str, ways: list[Way], target: Path) -> None:
    """Speed over price of everything that fits, as SVG or PNG, the frontier joined by a line.

    Raises ModelstacksError where the drawing library is not installed or the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        raise ModelstacksError(
            "the picture needs matplotlib, which is not installed", next_step="uv sync --extra pictures"
        ) from None
    # The same plans give the same bytes.
    matplotlib.rcParams["svg.hashsalt"] = "modelstacks"
    figure = Figure(figsize=(10.5, 5.5), layout="constrained")
    axes = figure.add_subplot()
    points = [way for way in ways if way.throughput is not None and way.usd_per_hour is not None]
    for index, gpu in enumerate(sorted({way.choice.gpu.id for way in points})):
        own = [way for way in points if way.choice.gpu.id == gpu]
        axes.scatter([_x(way) for way in own], [_y(way) for way in own], s=28, label=gpu, color=f"C{index % 10}",
            marker="os^Dv"[index // 10 % 5],
        )  # fmt: skip
    best = [way for way in points if way.on_frontier]
    axes.plot([_x(way) for way in best], [_y(way) for way in best], color="black", linewidth=1, zorder=0)
    for way in best:
        text = f"{way.choice.topology.gpus} × {way.choice.gpu.id} {way.choice.quantization}"
        # Above and to the left of the frontier there is nothing else.
        axes.annotate(text, (_x(way), _y(way)), textcoords="offset points", xytext=(-4, 5), ha="right", fontsize=7)
    if points:
        for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
            scale("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:,g}")
            axis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.18)
    axes.set_xlabel("USD an hour, whole machines of one replica")
    axes.set_ylabel("output tokens a second of one replica (estimate)")
    axes.set_title(f"{model}: what fits, and the frontier")
    axes.grid(visible=True, which="both", alpha=0.25)
    if points:
        figure.legend(loc="outside right upper", fontsize=8)
    kind = target.suffix.lower().removeprefix(".") or "svg"
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
    try:
        figure.savefig(target, format=kind, metadata=metadata)
    except ValueError as error:
        raise ModelstacksError(f"{target} cannot be written: {error}", next_step="name a .svg or .png file") from None
    except OSError as error:
        text = f"{target} cannot be written: {error.strerror or error}"
        raise ModelstacksError(text, next_step="name a file in a folder that exists") from None


def _x(way: Way) -> float:
    return way.usd_per_hour or 0.0


def _y(way: Way) -> float:
    return way.throughput.output_tokens_per_s if way.throughput is not None else 0.0


def _count(tokens: int | None) -> str:
    return "–" if tokens is None else f"{tokens:,}"


def _money(dollars: float | None) -> str:
    return "–" if dollars is None else f"{dollars:,.2f}"
