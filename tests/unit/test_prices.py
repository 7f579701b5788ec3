"""Prices: the rules of a row, what is called old, a user's own contract, and the refresh from offers of the day."""

import datetime
import json
import re
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from modelstacks import price as pricing
from modelstacks import project
from modelstacks.catalog import Catalog, Gpu, Price
from modelstacks.catalog.prices import Offer, OfferSource, apply_contract_prices, refresh
from modelstacks.catalog.row import load_row
from modelstacks.cli import prices as commands
from modelstacks.errors import BadInput, ModelstacksError
from modelstacks.fit import Topology

TODAY = datetime.date.today()
HARDWARE = project.data_root() / "hardware"
CATALOGUE = {path.stem: load_row(Gpu, path, id=path.stem) for path in sorted(HARDWARE.glob("*.yaml"))}

# Rows of the tests' own: the catalogue's prices change with every refresh.
HEAD = """\
name: A card of 141GB
compute_capability: 9.0
memory_gib: {value: 139.8, source: a log, date: 2026-05-01}
bandwidth_gb_per_s: {value: 4800, source: data sheet}
tflops: {bf16: 989, source: data sheet}
# A comment that stays.
weight_formats: {bf16: native}
kv_cache_dtypes: [auto]
interconnect: {kind: nvlink, gb_per_s: 900, source: data sheet}
product_label: LABEL
machines:
"""
ROWS = {
    "h100-sxm": HEAD.replace("LABEL", "NVIDIA-H100-80GB-HBM3")
    + """\
  - name: p5.48xlarge
    cloud: aws
    gpus: 8
    prices:
      - {region: us-east-1, usd_per_hour: 55.04, date: 2026-07-20, source: list}
""",
    "h200": HEAD.replace("LABEL", "NVIDIA-H200")
    + """\
  - {name: p5e.48xlarge, cloud: aws, gpus: 8}
  # Another comment that stays.
  - name: p5en.48xlarge
    cloud: aws
    gpus: 8
    prices:
      - {region: us-east-1, usd_per_hour: 63.296, date: 2026-07-20, source: "list: of July"}  # and a third
  - name: a3-ultragpu-8g
    cloud: gcp
    gpus: 8
    prices:
      - {region: us-west1, usd_per_hour: 86.7, source: list}
      - {region: us-east5, usd_per_hour: 88.3, source: list}
      - {region: europe-west1, usd_per_hour: 95.5, source: list}
  - name: Standard_ND96isr_H200_v5
    cloud: azure
    gpus: 8
    prices: [{region: unstated, usd_per_hour: 84.8, source: a table}]
  - {name: runpod-h200-x1, cloud: runpod, gpus: 1, kubernetes: false}
  - name: runpod-h200-x8
    cloud: runpod
    gpus: 8
    kubernetes: false
    prices:
      - {region: any, usd_per_hour: 50.8, date: 2026-03-01, source: a table}
""",
    "l40s": HEAD.replace("LABEL", "NVIDIA-L40S")
    + "  - {name: gpu-l40s-d_2gpu-64vcpu-384gb, cloud: nebius, gpus: 2, prices: []}\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with those rows."""
    (tmp_path / "hardware").mkdir()
    for gpu, text in ROWS.items():
        (tmp_path / "hardware" / f"{gpu}.yaml").write_text(text)
    return tmp_path


def _loaded(root: Path) -> dict[str, Gpu]:
    return {path.stem: load_row(Gpu, path, id=path.stem) for path in sorted((root / "hardware").glob("*.yaml"))}


@pytest.fixture
def gpus(root: Path) -> dict[str, Gpu]:
    """Those rows, loaded."""
    return _loaded(root)


def _damaged(tmp_path: Path, old: str, new: str) -> Path:
    assert old in ROWS["h200"]
    path = tmp_path / "h200.yaml"
    path.write_text(ROWS["h200"].replace(old, new, 1))
    return path


@pytest.mark.parametrize("written", ["0", "-3", ".inf", ".nan", '"63.296"', "true", "63,296"])
def test_a_price_that_is_no_positive_number_is_refused_with_its_line(tmp_path: Path, written: str) -> None:
    """A slip in a price would make every plan on that machine the cheapest."""
    path = _damaged(tmp_path, "usd_per_hour: 63.296", f"usd_per_hour: {written}")
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if f"usd_per_hour: {written}" in text)
    with pytest.raises(BadInput, match=rf"line {line}, machines\.1\.prices\.0"):
        load_row(Gpu, path, id="h200")


def test_a_price_seen_in_the_future_is_refused_with_its_line(tmp_path: Path) -> None:
    """Tomorrow is let pass, because it may have come already where the price was written down."""
    day = datetime.date.today() + datetime.timedelta(days=2)
    path = _damaged(tmp_path, "63.296, date: 2026-07-20", f"63.296, date: {day}")
    with pytest.raises(BadInput, match=rf"line \d+, machines\.1\.prices\.0\.date.*{day} is in the future"):
        load_row(Gpu, path, id="h200")
    assert Price(region="x", usd_per_hour=1, source="s", date=TODAY + datetime.timedelta(days=1))


@pytest.mark.parametrize(("days", "old"), [(0, False), (90, False), (91, True)])
def test_a_price_is_old_after_ninety_days(days: int, old: bool) -> None:
    """The age is counted from the day it was seen."""
    price = Price(region="x", usd_per_hour=1, source="s", date=TODAY - datetime.timedelta(days=days))
    assert pricing.is_old(price, TODAY) is old
    assert pricing.Cost(None, 1, 1.0, price).is_old(TODAY) is old


def test_an_undated_price_is_not_called_old() -> None:
    """Nobody knows its age; plans warn of it in words of their own."""
    price = Price(region="x", usd_per_hour=1, source="s")
    assert pricing.age_days(price, TODAY) is None
    assert not pricing.is_old(price, TODAY)


@pytest.mark.parametrize("gpu", CATALOGUE.values(), ids=CATALOGUE)
def test_every_gpu_row_is_dated_named_and_of_its_size(gpu: Gpu) -> None:
    """What the rows promise: memory with a dated log, and less of it than the box says."""
    assert gpu.memory_gib.date is not None
    assert gpu.memory_gib.value < int("".join(ch for ch in gpu.name.split()[-1] if ch.isdigit()))
    assert gpu.product_label.startswith("NVIDIA-")
    assert gpu.machines
    for machine in gpu.machines:
        assert machine.efa_interfaces is None or machine.cloud == "aws"
        assert machine.cloud != "own" or not machine.prices, "what an own machine costs is in prices.yaml"


def test_memory_that_the_cpu_shares_is_not_all_there_for_an_engine() -> None:
    """A DGX Spark refuses to start an engine that asks for the usual share."""
    spark, card = CATALOGUE["gb10"], CATALOGUE["h200"]
    assert card.utilization(0.92) == 0.92
    assert spark.utilization(0.92) < 0.9
    assert spark.utilization(0.5) == 0.5


def test_a_machine_that_is_only_bought_is_to_be_had_once_it_has_a_price(tmp_path: Path) -> None:
    """Nobody is sent to buy a dozen of them because they would fit."""
    assert not CATALOGUE["gb10"].is_to_be_had
    assert CATALOGUE["rtx-4090"].is_to_be_had
    entry = "- {cloud: own, machine: own-gb10-x1, usd_per_hour: 0.2, source: s, date: 2026-05-01}\n"
    assert apply_contract_prices(CATALOGUE, _contract(tmp_path, entry))["gb10"].is_to_be_had


def test_a_machine_name_means_one_machine() -> None:
    """Contract prices and offers name machines by cloud and name."""
    names = [(machine.cloud, machine.name) for gpu in CATALOGUE.values() for machine in gpu.machines]
    assert len(names) == len(set(names))


def _contract(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    return path


def _machine(gpus: dict[str, Gpu], name: str) -> Any:
    return next(machine for gpu in gpus.values() for machine in gpu.machines if machine.name == name)


def test_without_a_contract_the_rows_are_the_catalogues(tmp_path: Path, gpus: dict[str, Gpu]) -> None:
    """The file is optional, and an empty one says nothing."""
    assert apply_contract_prices(gpus, tmp_path / "prices.yaml") is gpus
    assert apply_contract_prices(gpus, _contract(tmp_path, "# none yet\n")) == gpus
    assert apply_contract_prices(gpus, _contract(tmp_path, "[]\n")) == gpus


def test_a_contract_price_replaces_every_price_of_its_machine(tmp_path: Path, gpus: dict[str, Gpu]) -> None:
    """Without a region it holds wherever the machine runs; other machines stay as they are."""
    path = _contract(
        tmp_path,
        "- {cloud: gcp, machine: a3-ultragpu-8g, usd_per_hour: 40, source: contract 7, date: 2026-05-01}\n"
        "- {cloud: aws, machine: p5e.48xlarge, usd_per_hour: 0.25, source: contract 8, date: 2026-05-01}\n",
    )
    applied = apply_contract_prices(gpus, path)
    (price,) = _machine(applied, "a3-ultragpu-8g").prices
    assert (price.region, price.usd_per_hour, price.source) == ("any", 40, "contract 7")
    assert _machine(applied, "p5e.48xlarge").usd_per_hour == 0.25
    assert _machine(applied, "p5en.48xlarge") == _machine(gpus, "p5en.48xlarge")
    quoted = pricing.cost(applied["h200"], Topology(8, 1), 1, pricing.Market("gcp", "europe-west1"))
    assert quoted.usd_per_hour == 40


def test_a_contract_price_of_a_region_replaces_that_region_alone(tmp_path: Path, gpus: dict[str, Gpu]) -> None:
    """The others keep the catalogue's price, and the region's own wins over one that holds anywhere."""
    entry = "- {cloud: gcp, machine: a3-ultragpu-8g, region: us-east5, usd_per_hour: 50, source: c, date: 2026-05-01}\n"
    applied = apply_contract_prices(gpus, _contract(tmp_path, entry))
    prices = {price.region: price.usd_per_hour for price in _machine(applied, "a3-ultragpu-8g").prices}
    assert prices == {"us-east5": 50, "us-west1": 86.7, "europe-west1": 95.5}

    anywhere = "- {cloud: gcp, machine: a3-ultragpu-8g, usd_per_hour: 40, source: c, date: 2026-05-01}\n"
    applied = apply_contract_prices(gpus, _contract(tmp_path, entry + anywhere))
    in_region = [
        pricing.cost(applied["h200"], Topology(8, 1), 1, pricing.Market("gcp", region)).usd_per_hour
        for region in ("us-east5", "us-west1")
    ]
    assert in_region == [50, 40]


GOOD = "- {cloud: aws, machine: p5.48xlarge, usd_per_hour: 30, source: s, date: 2026-05-01}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + GOOD.replace("48xlarge", "48xl"), r"line 2, 1\.machine: aws has no machine.*did you mean p5\.48xlarge"),
        (GOOD.replace("aws", "awz"), r"line 1, 0\.cloud.*did you mean aws"),
        (GOOD.replace(": 30", ": 0"), r"line 1, 0\.usd_per_hour"),
        (GOOD.replace(": 30", ': "30"'), r"line 1, 0\.usd_per_hour"),
        (GOOD.replace(": 30", ": true"), r"line 1, 0\.usd_per_hour"),
        (GOOD.replace("2026-05-01", "2999-05-01"), r"line 1, 0\.date.*in the future"),
        (GOOD.replace(", date: 2026-05-01", ""), r"line 1, 0\.date"),
        (GOOD.replace("source: s", "sauce: s"), r"line 1, 0\.(source|sauce)"),
        ("# mine\n" + GOOD + GOOD, r"line 3.*second price of aws p5\.48xlarge in region any.*line 2"),
        ("prices: []\n", "must hold a list"),
        ("- 7\n", r"line 1, 0: "),
        ("- {cloud: aws\n", "not valid YAML"),
    ],
)
def test_a_contract_that_cannot_be_meant_is_refused_with_its_line(
    tmp_path: Path, gpus: dict[str, Gpu], text: str, says: str
) -> None:
    """Every mistake is named with file and line, and nothing of the file is used."""
    path = _contract(tmp_path, text)
    with pytest.raises(BadInput, match=says) as caught:
        apply_contract_prices(gpus, path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_mistake_of_a_contract_is_reported_at_once(tmp_path: Path, gpus: dict[str, Gpu]) -> None:
    """One run, all of them."""
    text = GOOD.replace(": 30", ": -1") + GOOD.replace(", date: 2026-05-01", "")
    with pytest.raises(BadInput) as caught:
        apply_contract_prices(gpus, _contract(tmp_path, text))
    assert len(caught.value.problems) == 2


# Offers are never fetched here: the source is a parameter.


def _offer(cloud: str, name: str, region: str, gpus: int, usd: float, date: datetime.date = TODAY) -> Offer:
    return Offer(cloud, name, region, gpus, usd, date, "a test")


def _source(*offers: Offer) -> OfferSource:
    def source(clouds: Collection[str]) -> Sequence[Offer]:
        return offers

    return source


def _bytes(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "hardware").iterdir()}


def test_a_refresh_changes_three_values_and_no_other_byte(root: Path) -> None:
    """Comments, order and style of the file are the reviewer's, so the difference is the price alone."""
    before = (root / "hardware" / "h200.yaml").read_text().splitlines()
    offers = _source(_offer("aws", "p5en.48xlarge", "us-east-1", 8, 44.5))
    (change,) = refresh(root / "hardware", ["h200"], ["aws"], offers)
    after = (root / "hardware" / "h200.yaml").read_text().splitlines()
    differing = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    written = f'      - {{region: us-east-1, usd_per_hour: 44.5, date: {TODAY}, source: "a test"}}  # and a third'
    assert [new for _, new in differing] == [written]
    assert change.before is not None
    assert change.before.usd_per_hour == 63.296
    assert refresh(root / "hardware", ["h200"], ["aws"], offers) == []


@pytest.mark.parametrize(
    ("gpu", "machine", "offers", "expected"),
    [
        ("h200", "a3-ultragpu-8g", [_offer("gcp", "a3-ultragpu-8g", "us-east5", 8, 70.0)], ("us-east5", 70.0)),
        (
            "h200",
            "p5e.48xlarge",
            [_offer("aws", "p5e.48xlarge", "eu-west-1", 8, 60.0), _offer("aws", "p5e.48xlarge", "us-west-2", 8, 50.0)],
            ("us-west-2", 50.0),
        ),
        (
            "h200",
            "Standard_ND96isr_H200_v5",
            [_offer("azure", "Standard_ND96isr_H200_v5", "eastus", 8, 81.0)],
            ("eastus", 81.0),
        ),
        (
            "h200",
            "runpod-h200-x8",
            [_offer("runpod", "NVIDIA H200", "US-KS-2", 1, 3.99), _offer("runpod", "NVIDIA H200", "US-KS-2", 8, 31.92)],
            ("any", 31.92),
        ),
        (
            "h200",
            "runpod-h200-x1",
            [_offer("runpod", "NVIDIA H200", "EU-RO-1", 1, 0.00009)],
            ("any", 0.00009),
        ),
        (
            "l40s",
            "gpu-l40s-d_2gpu-64vcpu-384gb",
            [_offer("nebius", "gpu-l40s-d_2gpu-64vcpu-384gb", "eu-north1", 2, 4.5)],
            ("eu-north1", 4.5),
        ),
    ],
    ids=["its region", "cheapest region", "a region at last", "card and count", "a first price, tiny", "an empty list"],
)
def test_offers_find_their_machine(
    root: Path, gpu: str, machine: str, offers: list[Offer], expected: tuple[str, float]
) -> None:
    """By name and region, or by card and count; a machine without any region gets its cheapest one."""
    refresh(root / "hardware", [gpu], [offers[0].cloud], _source(*offers))
    price = next(p for p in _machine(_loaded(root), machine).prices if p.date == TODAY)
    assert (price.region, price.usd_per_hour) == expected


def test_a_machine_in_block_style_gets_its_first_price(root: Path) -> None:
    """As somebody who adds a machine by hand would write it, comment at the end included."""
    path = root / "hardware" / "h200.yaml"
    flow = next(line for line in path.read_text().splitlines() if "p5e.48xlarge" in line)
    block = "  - name: p5e.48xlarge\n    cloud: aws\n    gpus: 8  # as all of them"
    path.write_text(path.read_text().replace(flow, block))
    refresh(root / "hardware", ["h200"], ["aws"], _source(_offer("aws", "p5e.48xlarge", "us-east-2", 8, 50.0)))
    assert "gpus: 8  # as all of them\n    prices:\n      - {region: us-east-2, usd_per_hour: 50," in path.read_text()
    assert _machine(_loaded(root), "p5e.48xlarge").usd_per_hour == 50


def test_a_price_in_block_style_keeps_its_comments(root: Path) -> None:
    """The date is put in where there was none."""
    path = root / "hardware" / "h200.yaml"
    flow = next(line for line in path.read_text().splitlines() if "us-east5" in line)
    block = "      - region: us-east5\n        usd_per_hour: 88.3  # list price\n        source: somewhere  # old"
    path.write_text(path.read_text().replace(flow, block))
    refresh(root / "hardware", ["h200"], ["gcp"], _source(_offer("gcp", "a3-ultragpu-8g", "us-east5", 8, 70.25)))
    expected = f'usd_per_hour: 70.25  # list price\n        date: {TODAY}\n        source: "a test"  # old'
    assert expected in path.read_text()


@pytest.mark.parametrize(
    "offer",
    [
        _offer("aws", "p5en.48xlarge", "us-east-1", 8, 1.0, datetime.date(2026, 7, 19)),
        _offer("aws", "p5en.48xlarge", "ap-south-1", 8, 1.0),
        _offer("aws", "p5en.48xlarge", "us-east-1", 8, 0.0),
        _offer("aws", "p9.48xlarge", "us-east-1", 8, 1.0),
        _offer("gcp", "p5en.48xlarge", "us-east-1", 8, 1.0),
    ],
    ids=["seen before", "another region", "no price", "unknown machine", "another cloud"],
)
def test_an_offer_that_says_nothing_of_a_row_changes_nothing(root: Path, offer: Offer) -> None:
    """Prices of other regions, of nobody, or from before the row's own date."""
    before = _bytes(root)
    assert refresh(root / "hardware", ["h200"], ["aws"], _source(offer)) == []
    assert _bytes(root) == before


def test_a_dry_run_says_what_would_change_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same words, and no difference."""
    before = _bytes(root)
    offers = _source(_offer("aws", "p5en.48xlarge", "us-east-1", 8, 44.5))
    assert commands.run_refresh(root, ["h200"], ["aws"], offers, dry_run=True)
    said = capsys.readouterr().out
    assert "h200 aws p5en.48xlarge: 63.296 USD/h (us-east-1, 2026-07-20) → 44.5 USD/h" in said
    assert "nothing was written" in said
    assert _bytes(root) == before


@pytest.mark.parametrize("failing", [2, 3, 4])
def test_a_refresh_writes_all_files_or_none(root: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    """The disk is full, or a file cannot be replaced, somewhere in the middle."""
    before = _bytes(root)
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Path, *given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(28, "No space left on device", str(self))
            return real(self, *given, **named)

        return call

    monkeypatch.setattr(Path, "write_text", counted(Path.write_text))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    offers = [_offer("aws", "p5en.48xlarge", "us-east-1", 8, 1.5), _offer("aws", "p5.48xlarge", "us-east-1", 8, 1.0)]
    with pytest.raises(ModelstacksError, match="No space left on device; no price was changed"):
        refresh(root / "hardware", ["h100-sxm", "h200"], ["aws"], _source(*offers))
    assert _bytes(root) == before


def test_a_source_that_cannot_be_reached_changes_nothing(root: Path) -> None:
    """One sentence, exit code 1, the files as they were."""
    before = _bytes(root)

    def offline(clouds: Collection[str]) -> Sequence[Offer]:
        raise ModelstacksError("offline", next_step="go online")

    with pytest.raises(ModelstacksError, match="offline"):
        commands.run_refresh(root, None, None, offline)
    assert _bytes(root) == before


def test_without_the_extra_the_next_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is optional, so this is what most installations say."""
    monkeypatch.setitem(__import__("sys").modules, "gpuhunt", None)
    with pytest.raises(ModelstacksError, match=r"not installed(.|\n)*modelstacks\[prices\]") as caught:
        commands.gpuhunt_offers(["aws"])
    assert caught.value.exit_code == 1


def test_gpuhunts_items_become_offers_in_our_words() -> None:
    """Zones become regions, spot and the community cloud are left out, the date is the collection's."""

    def item(provider: str, name: str, location: str, price: float, spot: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            provider=provider, instance_name=name, location=location, price=price, gpu_count=8, spot=spot, flags=[]
        )  # fmt: skip

    items = [
        item("gcp", "a3-highgpu-8g", "us-central1-a", 80.0),
        item("gcp", "a3-highgpu-8g", "us-central1-a", 20.0, spot=True),
        item("lambdalabs", "gpu_8x_h100_sxm5", "us-east-3", 23.92),
        item("nebius", "gpu-h100-sxm 8gpu-128vcpu-1600gb", "eu-north1", 30.8),
        item("runpod", "NVIDIA H200", "US", 1.0),
        item("runpod", "NVIDIA H200", "US-KS-2", 31.92),
        item("vastai", "somebody's", "US", 0.1),
    ]
    collected = {"gcp": "20261101-7", "lambdalabs": "no date", "nebius": "2026-11-02"}
    offers = commands.offers_from(items, collected, "0.1.34", TODAY)
    assert [(offer.cloud, offer.name, offer.region) for offer in offers] == [
        ("gcp", "a3-highgpu-8g", "us-central1"),
        ("lambda", "gpu_8x_h100_sxm5", "us-east-3"),
        ("nebius", "gpu-h100-sxm_8gpu-128vcpu-1600gb", "eu-north1"),
        ("runpod", "NVIDIA H200", "US-KS-2"),
    ]
    seen = [datetime.date(2026, 11, 1), TODAY, datetime.date(2026, 11, 2), TODAY]
    assert [offer.date for offer in offers] == [min(day, TODAY) for day in seen]
    assert offers[0].source == "gpuhunt 0.1.34, dstack catalogue 20261101-7"


def test_a_refresh_of_something_unknown_is_refused_with_the_nearest_name(root: Path) -> None:
    """Both options at once would be two errors in two runs otherwise; each names what there is."""
    with pytest.raises(BadInput, match="did you mean h200"):
        commands.run_refresh(root, ["h20"], None, _source())
    with pytest.raises(BadInput, match="'coreweave' is not known here"):
        commands.run_refresh(root, None, ["coreweave"], _source())


def test_prices_are_listed_with_region_source_date_and_age() -> None:
    """One row a price, the same for people and programs."""
    done = CliRunner().invoke(commands.app, ["list", "--gpu", "h200", "--cloud", "aws", "--cloud", "gcp", "--json"])
    assert done.exit_code == 0
    rows = json.loads(done.stdout)
    assert {row["cloud"] for row in rows} == {"aws", "gcp"}
    row = next(row for row in rows if row["cloud"] == "aws")
    price = next(p for m in Catalog().gpus["h200"].machines if m.cloud == "aws" for p in m.prices)
    assert (row["region"], row["usd_per_hour"], row["date"]) == (price.region, price.usd_per_hour, str(price.date))
    assert row["usd_per_gpu_hour"] == pytest.approx(price.usd_per_hour / 8)
    # The run may have begun on another day.
    assert row["age_days"] == pricing.age_days(price, datetime.date.today())
    assert row["age"] == ("old" if row["age_days"] > 90 else "current")
    assert all(row["age"] == "undated" for row in rows if row["date"] is None)


def test_old_and_undated_prices_are_marked_for_people() -> None:
    """The next step is named beneath the table."""
    done = CliRunner(env={"COLUMNS": "160"}).invoke(commands.app, ["list", "--gpu", "h200"])
    assert done.exit_code == 0
    assert re.search(r"\d{4}-\d\d-\d\d old", done.stdout)
    assert "undated" in done.stdout
    assert "next: modelstacks prices refresh" in done.stdout


def test_the_list_refuses_an_unknown_gpu() -> None:
    """Like every other command, with the nearest name."""
    done = CliRunner().invoke(commands.app, ["list", "--gpu", "h20"])
    assert isinstance(done.exception, BadInput)
    assert "did you mean h200" in str(done.exception)


def test_every_file_of_the_catalogue_can_be_refreshed(tmp_path: Path) -> None:
    """What is written into the real files is read back as it was meant."""
    shutil.copytree(HARDWARE, tmp_path / "hardware")
    source = 'says "a" \\ b: #c'
    offers = [
        Offer(m.cloud, m.name, p.region, m.gpus, 1.25 * m.gpus, TODAY, source)
        for gpu in CATALOGUE.values()
        for m in gpu.machines
        for p in m.prices or (Price(region="x-1", usd_per_hour=1, source="s"),)
    ]
    refresh(tmp_path / "hardware", CATALOGUE, {offer.cloud for offer in offers}, _source(*offers))
    for gpu in _loaded(tmp_path).values():
        for machine in gpu.machines:
            found = {(p.usd_per_hour, p.date, p.source) for p in machine.prices}
            assert found == {(1.25 * machine.gpus, TODAY, source)}
