"""Prices from outside the catalogue: a user's own contract (prices.yaml), and offers of the day for hardware/*.yaml."""

from __future__ import annotations

import contextlib
import datetime
import difflib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from modelstacks import documents
from modelstacks.catalog.hardware import ANYWHERE, Gpu, Machine, Price
from modelstacks.catalog.row import load_row
from modelstacks.errors import BadInput, ModelstacksError, Problem

# A third-party figure that names no region is replaced by the first offer that does.
_UNSTATED = "unstated"


class ContractPrice(Price):
    """What the user pays for one machine type: in one region, or (without a region) wherever it runs."""

    cloud: str = Field(min_length=1)
    machine: str = Field(min_length=1)
    region: str = Field(default=ANYWHERE, min_length=1)
    date: datetime.date


@dataclass(frozen=True, slots=True)
class Offer:
    """What a provider asks today, on demand, for one machine. `name` is the provider's own word for it."""

    cloud: str
    name: str
    region: str
    gpus: int
    usd_per_hour: float
    date: datetime.date
    source: str


# Given the clouds that are asked for, their offers; raises ModelstacksError when any of them cannot be had.
OfferSource = Callable[[Collection[str]], Sequence[Offer]]


@dataclass(frozen=True, slots=True)
class Change:
    """One price as it stands in hardware/<gpu>.yaml and as the offer has it; `before` is None where there was none."""

    gpu: str
    machine: Machine
    before: Price | None
    after: Price


def apply_contract_prices(gpus: dict[str, Gpu], path: Path) -> dict[str, Gpu]:
    """GPU rows with the contract prices of `path` in place of the catalogue's; without that file, the rows as they are.

    A contract price of a region replaces the prices of that region, one without a region all of them. Raises BadInput
    that names the file and the line of every problem.
    """
    if not path.is_file():
        return gpus
    contract: dict[tuple[str, str], list[ContractPrice]] = {}
    for price in _contract(path, gpus):
        contract.setdefault((price.cloud, price.machine), []).append(price)
    if not contract:
        return gpus
    return {gpu_id: _with_contract(gpu, contract) for gpu_id, gpu in gpus.items()}


def _with_contract(gpu: Gpu, contract: dict[tuple[str, str], list[ContractPrice]]) -> Gpu:
    machines = []
    for machine in gpu.machines:
        own = contract.get((machine.cloud, machine.name), [])
        regions = {price.region for price in own}
        kept = () if ANYWHERE in regions else tuple(p for p in machine.prices if p.region not in regions)
        prices = tuple(
            Price(region=p.region, usd_per_hour=p.usd_per_hour, source=p.source, date=p.date) for p in own
        )  # fmt: skip
        machines.append(machine.model_copy(update={"prices": (*prices, *kept)}) if own else machine)
    return gpu.model_copy(update={"machines": tuple(machines)})


def _contract(path: Path, gpus: dict[str, Gpu]) -> list[ContractPrice]:
    data = documents.read_file(path)
    if data is None:
        return []
    if not isinstance(data, list):
        what = "must hold a list of {cloud, machine, region, usd_per_hour, source, date}"
        raise BadInput([Problem("file", what)], source=str(path), next_step="see docs/prices.md")
    text = documents.read_text(path)
    try:
        prices = TypeAdapter(list[ContractPrice]).validate_python(data)
    except ValidationError as error:
        problems = [
            Problem(documents.place_of(text, list(detail["loc"])), detail["msg"], detail.get("input"))
            for detail in error.errors(include_url=False, include_context=False)
        ]
        raise BadInput(problems, source=str(path), next_step="see docs/prices.md") from None
    problems = _unknown_machines(prices, gpus, text) + _repeated(prices, text)
    if problems:
        raise BadInput(problems, source=str(path), next_step="modelstacks gpus --json lists every machine type")
    return prices


def _unknown_machines(prices: Iterable[ContractPrice], gpus: dict[str, Gpu], text: str) -> list[Problem]:
    known: dict[str, list[str]] = {}
    for gpu in gpus.values():
        for machine in gpu.machines:
            known.setdefault(machine.cloud, []).append(machine.name)
    problems = []
    for index, price in enumerate(prices):
        if price.cloud not in known:
            near = difflib.get_close_matches(price.cloud.lower(), known, n=1, cutoff=0.5)
            allowed = ", ".join(sorted(known))
            message = f"cloud {price.cloud!r} is not in the catalogue"
            place = documents.place_of(text, [index, "cloud"])
            problems.append(Problem(place, message, price.cloud, allowed, near[0] if near else None))
        elif price.machine not in known[price.cloud]:
            near = difflib.get_close_matches(price.machine, known[price.cloud], n=1, cutoff=0.4)
            message = f"{price.cloud} has no machine {price.machine!r} in the catalogue"
            place = documents.place_of(text, [index, "machine"])
            problems.append(Problem(place, message, price.machine, None, near[0] if near else None))
    return problems


def _repeated(prices: Iterable[ContractPrice], text: str) -> list[Problem]:
    problems = []
    first: dict[tuple[str, str, str], int] = {}
    for index, price in enumerate(prices):
        key = (price.cloud, price.machine, price.region)
        if key in first:
            line = documents.line_of(text, [first[key]])
            message = f"a second price of {price.cloud} {price.machine} in region {price.region}"
            problems.append(
                Problem(documents.place_of(text, [index]), f"{message}, the first is in line {line}", price.machine)
            )
        first.setdefault(key, index)
    return problems


def refresh(
    hardware: Path, gpu_ids: Iterable[str], clouds: Collection[str], source: OfferSource, *, dry_run: bool = False
) -> list[Change]:
    """Bring the prices in hardware/<gpu>.yaml up to the offers of `source`, and say what changed.

    A price is updated where its machine is offered in its region. A machine with no price in any named region gets its
    cheapest one. Prices seen later than the offer stay. Everything but the three values of a price keeps its bytes, and
    either every file is written or none. Raises what `source` raises, and ModelstacksError when a file is not writable.
    """
    offers: dict[str, list[Offer]] = {}
    for offer in source(clouds):
        # A provider that lists a machine without a price does not offer it.
        if offer.cloud in clouds and offer.usd_per_hour > 0:
            offers.setdefault(offer.cloud, []).append(offer)
    changes: list[Change] = []
    texts: dict[Path, str] = {}
    for gpu_id in gpu_ids:
        path = hardware / f"{gpu_id}.yaml"
        gpu = load_row(Gpu, path, id=gpu_id)
        found = [
            (index, change)
            for index, machine in enumerate(gpu.machines)
            for change in _changes(gpu, machine, [o for o in offers.get(machine.cloud, []) if _is_of(o, machine, gpu)])
        ]
        if found:
            texts[path] = _edited(documents.read_text(path), found)
            changes += [change for _, change in found]
    if not dry_run:
        _write_all(texts)
    return changes


def _is_of(offer: Offer, machine: Machine, gpu: Gpu) -> bool:
    """By the machine's name; where a cloud names its rentals by the card alone, by card and count."""
    if offer.name == machine.name:
        return True
    return offer.name.replace(" ", "-") == gpu.product_label and offer.gpus == machine.gpus


def _changes(gpu: Gpu, machine: Machine, offers: list[Offer]) -> list[Change]:
    if not offers:
        return []
    regions = {price.region for price in machine.prices}
    changes = []
    for price in machine.prices:
        here = [offer for offer in offers if price.region in (offer.region, ANYWHERE)]
        if here:
            changes.append(_change(gpu, machine, price, here, price.region))
    if regions <= {_UNSTATED} and not changes:
        cheapest = min(offers, key=lambda offer: (offer.usd_per_hour, offer.region))
        # Plain rentals are placed where there is room, so their price speaks of no region.
        region = cheapest.region if machine.kubernetes else ANYWHERE
        before = machine.prices[0] if machine.prices else None
        changes.append(_change(gpu, machine, before, [cheapest], region))
    return [change for change in changes if _is_news(change)]


def _change(gpu: Gpu, machine: Machine, before: Price | None, offers: list[Offer], region: str) -> Change:
    best = min(offers, key=lambda offer: offer.usd_per_hour)
    # The clouds' own lists have six decimals at most; more is the noise of a multiplication.
    usd = round(best.usd_per_hour, 6)
    return Change(
        gpu.id, machine, before, Price(region=region, usd_per_hour=usd, source=best.source, date=best.date)
    )  # fmt: skip


def _is_news(change: Change) -> bool:
    before, after = change.before, change.after
    if before is None:
        return True
    older = before.date is not None and after.date is not None and after.date < before.date
    return not older and before != after


@dataclass(frozen=True, slots=True)
class _Edit:
    start: int
    end: int
    text: str


def _edited(text: str, changes: Sequence[tuple[int, Change]]) -> str:
    """The file's text with new prices; `changes` come with the index of their machine."""
    # Only the Python parser knows where in the text a value stands; the C parser forgets it.
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "a row was loaded from this file"
    machines = _entries(root)["machines"][1].value
    edits: list[_Edit] = []
    for index, change in changes:
        machine = machines[index]
        if change.before is None:
            edits.append(_new_price(text, machine, change.after))
            continue
        at = change.machine.prices.index(change.before)
        edits += _new_values(text, _entries(machine)["prices"][1].value[at], change)
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


def _entries(node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    return {key.value: (key, value) for key, value in node.value}


def _new_values(text: str, node: yaml.MappingNode, change: Change) -> list[_Edit]:
    """Edits that put the offer's region, price, date and source into a price that is there."""
    entries = _entries(node)
    after = change.after
    values = {"usd_per_hour": _number(after.usd_per_hour), "date": str(after.date), "source": _quoted(after.source)}
    if change.before is not None and change.before.region != after.region:
        values["region"] = _word(after.region)
    edits = []
    for key, written in values.items():
        if key in entries:
            value = entries[key][1]
            edits.append(_Edit(value.start_mark.index, value.end_mark.index, written))
        else:
            # Put after the price, in the style of the mapping around it.
            price_key, price = entries["usd_per_hour"]
            end = price.end_mark.index
            joint = ", " if node.flow_style else "\n" + " " * price_key.start_mark.column
            if not node.flow_style:
                end = _line_end(text, end)
            edits.append(_Edit(end, end, f"{joint}{key}: {written}"))
    return edits


def _new_price(text: str, machine: yaml.MappingNode, price: Price) -> _Edit:
    """The edit that gives a machine its first price."""
    entries = _entries(machine)
    written = (
        f"{{region: {_word(price.region)}, usd_per_hour: {_number(price.usd_per_hour)}, date: {price.date}, "
        f"source: {_quoted(price.source)}}}"
    )
    if "prices" in entries:
        empty = entries["prices"][1]
        return _Edit(empty.start_mark.index, empty.end_mark.index, f"[{written}]")
    if machine.flow_style:
        end = machine.end_mark.index - 1
        return _Edit(end, end, f", prices: [{written}]")
    first_key, last_value = machine.value[0][0], machine.value[-1][1]
    end = _line_end(text, last_value.end_mark.index)
    indent = " " * first_key.start_mark.column
    return _Edit(end, end, f"\n{indent}prices:\n{indent}  - {written}")


def _line_end(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end


def _number(usd: float) -> str:
    # Never an exponent: YAML 1.1 reads 1e-05 as text.
    return f"{usd:.6f}".rstrip("0").rstrip(".")


def _word(text: str) -> str:
    return documents.write(text).strip()


def _quoted(text: str) -> str:
    # JSON's strings are YAML's, in quotes whatever they hold, as in the rest of these files.
    return json.dumps(text, ensure_ascii=False)


def _write_all(texts: dict[Path, str]) -> None:
    """Write every file or none: all are written beside their targets and read back before the first is replaced."""
    fresh: dict[Path, Path] = {}
    replaced: dict[Path, bytes] = {}
    try:
        for path, text in texts.items():
            beside = path.with_name(f".{path.name}.{os.getpid()}")
            fresh[path] = beside
            beside.write_text(text, encoding="utf-8")
            shutil.copymode(path, beside)
            load_row(Gpu, beside, id=path.stem)
        for path, beside in fresh.items():
            before = path.read_bytes()
            beside.replace(path)
            replaced[path] = before
    except OSError as error:
        for path, before in replaced.items():
            with contextlib.suppress(OSError):
                path.write_bytes(before)
        name = error.filename or "hardware"
        message = f"{name} cannot be written: {error.strerror}; no price was changed"
        raise ModelstacksError(message, next_step="run it in a checkout that you may write to") from None
    finally:
        for beside in fresh.values():
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
