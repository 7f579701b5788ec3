"""Figures seen elsewhere: measured throughput with what the roofline was fitted to, API prices, card prices."""

from __future__ import annotations

import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from modelstacks import project
from modelstacks.catalog.models import Architecture
from modelstacks.catalog.row import Id, PositiveFloat, PositiveInt, Row, load_row

Share = Annotated[float, Field(gt=0, le=1)]
Cost = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Scenario = Literal["closed-loop", "burst", "server", "offline"]
# What a scenario says of the number of requests in flight; only the first can be compared with an estimate.
SCENARIOS: dict[Scenario, str] = {
    "closed-loop": "a fixed number of requests at once",
    "burst": "all prompts sent at once, the tail runs with few",
    "server": "random arrivals under latency limits, requests at once not stated",
    "offline": "unbounded batch, no latency limit",
}


class Measurement(Row):
    """Output tokens per second of one replica as a source states it; `gpus` is None where a whole system is meant."""

    model: Id
    stands_for: tuple[Id, ...] = ()
    stand_in: str | None = None
    gpu: Id
    gpus: PositiveInt | None = None
    system_gpus: PositiveInt | None = None
    quantization: str | None = None
    weights_gib: PositiveFloat | None = None
    engine: str
    engine_version: str | None = None
    scenario: Scenario
    concurrency: PositiveInt | None = None
    input_tokens: PositiveInt | None = None
    output_tokens: PositiveInt | None = None
    output_tokens_per_s: PositiveFloat
    approximate: bool = False
    note: str | None = None
    source: str = Field(min_length=1)
    url: str | None = None
    date: datetime.date | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Measurement:
        if self.scenario == "closed-loop" and None in (
            self.gpus,
            self.quantization,
            self.concurrency,
            self.input_tokens,
            self.output_tokens,
        ):
            raise ValueError("closed-loop: gpus, quantization, concurrency and both lengths must be stated")
        if (self.gpus is None) == (self.system_gpus is None):
            raise ValueError("state gpus (of one replica) or system_gpus (of replicas unknown), not both")
        if self.stands_for and not self.stand_in:
            raise ValueError("stands_for: stand_in must say why the figure may stand for another model")
        return self

    @property
    def is_comparable(self) -> bool:
        """The number of requests at once and their lengths are known, so an estimate can be asked for the same."""
        return self.scenario == "closed-loop"

    def speaks_of(self, model: str, gpu: str, quantization: str, gpus: int) -> bool:
        """One replica of the same model (or one it stands for), GPU type, quantization and GPU count."""
        same = model == self.model or model in self.stands_for
        return same and (gpu, quantization, gpus) == (self.gpu, self.quantization, self.gpus)

    @property
    def where(self) -> str:
        """Engine, source and date in one line."""
        engine = (
            f"{self.engine} {self.engine_version}" if self.engine_version else f"{self.engine} (version not stated)"
        )
        seen = f", {self.date}" if self.date else ", undated"
        stand_in = f"; {self.stand_in}" if self.stand_in else ""
        return f"{engine}, {self.source}{seen}{stand_in}"


class Efficiency(Row):
    """Shares of the data-sheet figures that serving reaches, and what a step costs beyond them."""

    bandwidth: Share
    expert_bandwidth: Share
    compute: Share
    link: Share
    layer_us: PositiveFloat
    tensor_parallel_layer_us: PositiveFloat
    expert_layer_us: PositiveFloat
    stage_ms: PositiveFloat
    source: str = Field(min_length=1)

    @property
    def words(self) -> str:
        """The shares in one line, for an answer."""
        return (
            f"{self.bandwidth:.0%} of memory bandwidth ({self.expert_bandwidth:.0%} for routed experts), "
            f"{self.compute:.0%} of dense compute"
        )


class Evidence(Row):
    """templates/throughput.yaml: measurements, the efficiencies fitted to them, and models that only appear there."""

    efficiency: Efficiency
    architectures: dict[str, Architecture] = Field(default_factory=dict)
    measured: tuple[Measurement, ...]


class ApiPrice(Row):
    """What a provider asks for a model, USD per million tokens, input and output apart."""

    model: Id
    provider: str = Field(min_length=1)
    input_usd_per_million: Cost
    output_usd_per_million: PositiveFloat
    source: str = Field(min_length=1)
    date: datetime.date | None = None


class Card(Row):
    """A card one can buy: price in USD and board power in W, each with where it was seen."""

    usd: PositiveFloat
    usd_source: str = Field(min_length=1)
    watts: PositiveFloat
    watts_source: str = Field(min_length=1)


class Power(Row):
    """The price of electricity, USD per kWh."""

    usd_per_kwh: PositiveFloat
    source: str = Field(min_length=1)


class Market(Row):
    """templates/api-prices.yaml."""

    api: tuple[ApiPrice, ...]
    cards: dict[str, Card]
    power: Power

    def of_model(self, model: str) -> tuple[ApiPrice, ...]:
        """Every known API price of a model."""
        return tuple(price for price in self.api if price.model == model)


def evidence(templates: Path | None = None) -> Evidence:
    """The measured rows of a templates folder, of the project's own when None."""
    return _evidence(templates or project.data_root() / "templates")


def market(templates: Path | None = None) -> Market:
    """API and card prices of a templates folder, of the project's own when None."""
    return _market(templates or project.data_root() / "templates")


@cache
def _evidence(templates: Path) -> Evidence:
    return load_row(Evidence, templates / "throughput.yaml")


@cache
def _market(templates: Path) -> Market:
    return load_row(Market, templates / "api-prices.yaml")
