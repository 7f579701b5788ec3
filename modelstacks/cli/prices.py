"""The `modelstacks prices` commands: what every machine costs and how old that is, and bringing it up to date."""

from __future__ import annotations

import datetime
import difflib
import json
import logging
import re
import socket
from collections.abc import Collection, Iterable
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from modelstacks import price as pricing
from modelstacks import project
from modelstacks.catalog import Catalog, Gpu, Machine, Price
from modelstacks.catalog.prices import Change, Offer, OfferSource, refresh
from modelstacks.errors import BadInput, ModelstacksError, Problem

app = typer.Typer(no_args_is_help=True, help="What machines cost: list and refresh.", rich_markup_mode=None)

GpuFilter = Annotated[Optional[list[str]], typer.Option("--gpu", help="Only this GPU type; may be repeated.")]
CloudFilter = Annotated[Optional[list[str]], typer.Option("--cloud", help="Only this cloud; may be repeated.")]

# Our cloud ids → what gpuhunt calls them; it collects the others from nobody, or only with credentials.
_PROVIDERS = {
    "aws": "aws", "azure": "azure", "gcp": "gcp", "lambda": "lambdalabs", "nebius": "nebius", "runpod": "runpod",
}  # fmt: skip
_TIMEOUT_S = 30
_INSTALL = "pip install 'modelstacks[prices]' (in a checkout: uv sync --extra prices)"
_ONLINE = "go online and run it again, or write the prices you know into prices.yaml (docs/prices.md)"


@app.command(name="list")
def list_prices(
    gpu: GpuFilter = None,
    cloud: CloudFilter = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Show every price with its region, source, date and age; old ones are marked."""
    catalog = Catalog()
    gpus = [catalog.gpus[gpu_id] for gpu_id in _chosen("--gpu", gpu, catalog.gpu_ids)]
    clouds = _chosen("--cloud", cloud, sorted({machine.cloud for machine in catalog.machines}))
    today = datetime.date.today()
    machines = [(row, machine) for row in gpus for machine in row.machines if machine.cloud in clouds]
    rows = [_row(row, machine, price, today) for row, machine in machines for price in machine.prices]
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    _print_rows(rows)
    unpriced = sum(not machine.prices for _, machine in machines)
    if unpriced:
        typer.echo(f"{unpriced} more machine types have no known price")
    if any(row["age"] != "current" for row in rows):
        typer.echo(
            f"old: seen more than {pricing.OLD_AFTER_DAYS} days ago; undated: the source says no date\n"
            "next: modelstacks prices refresh, or your own prices in prices.yaml (docs/prices.md)"
        )


@app.command(name="refresh")
def refresh_prices(
    gpu: GpuFilter = None,
    cloud: CloudFilter = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; write nothing.")] = False,
) -> None:
    """Fetch today's on-demand prices (needs the extra `prices` and the network) and write them into hardware/."""
    run_refresh(project.data_root(), gpu, cloud, gpuhunt_offers, dry_run=dry_run)


def run_refresh(
    root: Path, gpu: list[str] | None, cloud: list[str] | None, source: OfferSource, *, dry_run: bool = False
) -> list[Change]:
    """Refresh root/hardware from any source of offers, and print every price that changed."""
    hardware = root / "hardware"
    gpu_ids = _chosen("--gpu", gpu, sorted(path.stem for path in hardware.glob("*.yaml")))
    clouds = _chosen("--cloud", cloud, sorted(_PROVIDERS))
    changes = refresh(hardware, gpu_ids, clouds, source, dry_run=dry_run)
    for change in changes:
        before = _shown(change.before) if change.before is not None else "no price"
        where = f"{change.gpu} {change.machine.cloud} {change.machine.name}"
        typer.echo(f"{where}: {before} → {_shown(change.after)}")
    files = ", ".join(f"hardware/{gpu_id}.yaml" for gpu_id in sorted({change.gpu for change in changes}))
    if not changes:
        typer.echo("every price is as it was: no offer is newer")
    elif dry_run:
        typer.echo(f"{len(changes)} prices would change in {files}; nothing was written")
    else:
        typer.echo(f"{len(changes)} prices changed in {files}\nnext: make render, and review the difference")
    return changes


def gpuhunt_offers(clouds: Collection[str]) -> list[Offer]:
    """On-demand offers of `clouds` from the catalogue that dstack collects daily. Needs gpuhunt and the network."""
    try:
        # By name: the extra is rarely there, and it has no types.
        gpuhunt = import_module("gpuhunt")
    except ImportError:
        raise ModelstacksError("gpuhunt is not installed, no price was changed", next_step=_INSTALL) from None
    # gpuhunt opens its connections without a time limit, and logs each failure with a traceback of its own.
    logger, limit = logging.getLogger("gpuhunt"), socket.getdefaulttimeout()
    level, version = logger.level, metadata.version("gpuhunt")
    logger.setLevel(logging.CRITICAL + 1)
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        fetched = gpuhunt.Catalog(balance_resources=False, auto_reload=False)
        fetched.load()
        missing = sorted(cloud for cloud in clouds if _PROVIDERS[cloud] not in fetched.catalog)
        if missing:
            message = f"no offers of {', '.join(missing)} could be fetched, no price was changed"
            raise ModelstacksError(message, next_step="run it again, or leave them out with --cloud")
        items = fetched.query(provider=[_PROVIDERS[cloud] for cloud in clouds], min_gpu_count=1, spot=False)
        collected = {name: catalog.version for name, catalog in fetched.catalog.items()}
    except (gpuhunt.GPUHuntError, OSError, ValueError) as error:
        message = f"the price catalogue cannot be fetched ({error.__cause__ or error}), no price was changed"
        raise ModelstacksError(message, next_step=_ONLINE) from None
    finally:
        logger.setLevel(level)
        socket.setdefaulttimeout(limit)
    return offers_from(items, collected, version, datetime.date.today())


def offers_from(items: Iterable[Any], collected: dict[str, str], version: str, today: datetime.date) -> list[Offer]:
    """gpuhunt's CatalogItems in our words. `collected` is the version of each provider's catalogue."""
    clouds = {provider: cloud for cloud, provider in _PROVIDERS.items()}
    offers = []
    for item in items:
        cloud = clouds.get(item.provider)
        if cloud is None or item.spot or not item.gpu_count or not _is_comparable(cloud, item):
            continue
        collection = collected.get(item.provider, "")
        offers.append(
            Offer(
                cloud=cloud,
                # Nebius: "platform preset", which our rows write as one word that fits into a label.
                name=item.instance_name.replace(" ", "_") if cloud == "nebius" else item.instance_name,
                # Google prices by zone, and every zone of a region alike.
                region=item.location.rsplit("-", 1)[0] if cloud == "gcp" else item.location,
                gpus=item.gpu_count,
                usd_per_hour=item.price,
                date=_collected_on(collection, today),
                source=f"gpuhunt {version}, dstack catalogue {collection}".rstrip(),
            )
        )
    return offers


def _is_comparable(cloud: str, item: Any) -> bool:
    """RunPod's rows are of its secure cloud, whose places are data centres; a bare country is the community cloud."""
    if cloud != "runpod":
        return True
    return "-" in item.location and "runpod-cluster" not in item.flags


def _collected_on(version: str, today: datetime.date) -> datetime.date:
    """The day in a catalogue's version (20261124-7), today when there is none."""
    found = re.match(r"(\d{4})-?(\d{2})-?(\d{2})(?!\d)", version)
    try:
        return min(datetime.date(*map(int, found.groups())), today) if found else today
    except ValueError:
        return today


def _chosen(option: str, given: list[str] | None, known: Iterable[str]) -> list[str]:
    """What an option names, or all of it; unknown names are refused together, each with the nearest known one."""
    names = list(known)
    problems = []
    for name in given or ():
        if name not in names:
            near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
            problems.append(
                Problem(option, f"{name!r} is not known here", name, ", ".join(names), near[0] if near else None)
            )
    if problems:
        raise BadInput(problems, source="prices")
    return [name for name in names if not given or name in given]


def _row(gpu: Gpu, machine: Machine, price: Price, today: datetime.date) -> dict[str, Any]:
    days = pricing.age_days(price, today)
    return {
        "gpu": gpu.id,
        "cloud": machine.cloud,
        "machine": machine.name,
        "gpus": machine.gpus,
        "region": price.region,
        "usd_per_hour": price.usd_per_hour,
        "usd_per_gpu_hour": round(price.usd_per_hour / machine.gpus, 6),
        "date": None if price.date is None else str(price.date),
        "age_days": days,
        "age": "undated" if days is None else "old" if pricing.is_old(price, today) else "current",
        "source": price.source,
    }


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.text import Text

    from modelstacks.cli import tables

    # A source is longer than all the rest of a row, and few of them serve many rows.
    sources: dict[str, int] = {}

    def cells(row: dict[str, Any]) -> tuple[str | Text, ...]:
        number = sources.setdefault(row["source"], len(sources) + 1)
        days, old = row["age_days"], row["age"] == "old"
        seen = Text(row["date"] or "undated") + Text(" old" if old else "", "yellow")
        return (
            row["gpu"], row["cloud"], row["machine"], row["region"], f"{row['usd_per_hour']:,.2f}",
            f"{row['usd_per_gpu_hour']:,.2f}", seen, "–" if days is None else f"{days}", f"({number})",
        )  # fmt: skip

    console = tables.terminal()
    columns = ("gpu", "cloud", "machine", "region", "USD/h", "a GPU", "seen", "days", "source")
    folded, numbers = ("machine", "region"), ("USD/h", "a GPU", "days")
    tables.table(console, columns, map(cells, rows), fold=folded, spare=("a GPU", "days"), right=numbers)
    for source, number in sources.items():
        console.print(Text(f"({number}) {source}"))


def _shown(price: Price) -> str:
    return f"{price.usd_per_hour:g} USD/h ({price.region}, {price.date or 'undated'})"
