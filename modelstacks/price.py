"""What a topology costs: the cheapest whole machines that carry it, with region, source and date of the price."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass

from modelstacks import cloudspec
from modelstacks.catalog import Catalog, Gpu, Machine, Price
from modelstacks.catalog.hardware import ANYWHERE, CapacityWay
from modelstacks.cloudspec import CloudSpec
from modelstacks.economics import HOURS_PER_MONTH
from modelstacks.fit import Topology

# A price list that is older than a quarter has usually been replaced.
OLD_AFTER_DAYS = 90


@dataclass(frozen=True, slots=True)
class Market:
    """Where prices may come from: one cloud's rows, or any row when `cloud` is None."""

    cloud: str | None = None
    region: str | None = None
    orderable: bool = False
    # The one machine type that may be used, and the ways it must be sold; neither matters when empty.
    machine: str | None = None
    ways: tuple[CapacityWay, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """Whole machines for all replicas. Money is None where no price is known."""

    machine: Machine | None
    machines: int
    usd_per_hour: float | None
    price: Price | None = None

    @property
    def usd_per_month(self) -> float | None:
        """USD for 730 hours."""
        return None if self.usd_per_hour is None else self.usd_per_hour * HOURS_PER_MONTH

    @property
    def rank(self) -> float:
        """USD per hour to sort by: what has no price comes last."""
        return math.inf if self.usd_per_hour is None else self.usd_per_hour

    def is_old(self, today: datetime.date, days: int = OLD_AFTER_DAYS) -> bool:
        """The price was seen more than `days` days before `today`."""
        return self.price is not None and is_old(self.price, today, days)


def age_days(price: Price, today: datetime.date) -> int | None:
    """Days since a price was seen; None when its source is undated."""
    return None if price.date is None else (today - price.date).days


def is_old(price: Price, today: datetime.date, days: int = OLD_AFTER_DAYS) -> bool:
    """A price was seen more than `days` days before `today`. An undated one is not called old: nobody knows."""
    age = age_days(price, today)
    return age is not None and age > days


def market(cloud: CloudSpec | None, catalog: Catalog) -> Market:
    """The price rows that a stack's cloud draws from."""
    if cloud is None:
        return Market()
    kind = catalog.clouds[cloud.kind]
    seller = cloud.machines_of or kind.prices_of
    region = cloudspec.region_of(cloud, kind, catalog)
    # Zones alone ask for no region's price: where none is known there, another region's is an estimate, and said to be.
    if cloud.region is None and region is not None:
        known = {p.region for machine in catalog.machines if machine.cloud == seller for p in machine.prices}
        region = region if region in known else None
    return Market(
        seller,
        region,
        orderable=kind.makes_nodes,
        machine=cloud.machine,
        ways=tuple(capacity.way for capacity in cloud.capacity) if kind.makes_nodes and not kind.simulated else (),
    )


def machines_for(gpu: Gpu, topology: Topology, market: Market) -> tuple[Machine, ...]:
    """Machines that can hold one replica's share of a node, of the market's cloud or (if it has none) of any."""
    per_node = gpus_per_node(gpu, topology)
    several = topology.gpus > per_node
    fitting = [
        machine
        for machine in gpu.machines
        if (machine.gpus == per_node if several else machine.gpus >= per_node)
        and (machine.kubernetes or not market.orderable)
        and market.machine in (None, machine.name)
        and (machine.sold_as is None or set(market.ways) <= set(machine.sold_as))
    ]
    own = [machine for machine in fitting if machine.cloud == market.cloud]
    return tuple(own if market.cloud is not None else fitting)


def cost(gpu: Gpu, topology: Topology, replicas: int, market: Market, copies: int = 1) -> Cost:
    """The cheapest way to run `replicas` of a topology in each of `copies` clusters.

    Dated prices come before undated ones.
    """
    # Scaled to zero, the machine is the one that the first replica would take.
    wanted, anywhere = max(replicas, 1), market.cloud is None
    gpus, nodes = topology.gpus, nodes_per_replica(gpu, topology)
    best: tuple[tuple[bool, bool, float, int], Machine, Price | None] | None = None
    for machine in machines_for(gpu, topology, market):
        machines = _machines_needed(machine.gpus, gpus, nodes, wanted)
        for price in _prices(machine, market.region) or (None,):
            dollars = math.inf if price is None else price.usd_per_hour * machines
            undated = price is None or price.date is None
            rank = (price is None, anywhere and undated, dollars, machines)
            if best is None or rank < best[0]:
                best = rank, machine, price
    if best is None:
        return Cost(None, nodes * replicas * copies, None)
    machine, chosen = best[1:]
    machines = _machines_needed(machine.gpus, gpus, nodes, replicas) * copies
    return Cost(machine, machines, None if chosen is None else chosen.usd_per_hour * machines, chosen)


def gpus_per_node(gpu: Gpu, topology: Topology) -> int:
    """GPUs of one replica on one node."""
    return min(topology.gpus, gpu.max_gpus_per_node)


def nodes_per_replica(gpu: Gpu, topology: Topology) -> int:
    """Nodes that one replica spans."""
    return math.ceil(topology.gpus / gpu.max_gpus_per_node)


def machines_needed(machine: Machine, gpu: Gpu, topology: Topology, replicas: int) -> int:
    """Whole machines that so many replicas take."""
    return _machines_needed(machine.gpus, topology.gpus, nodes_per_replica(gpu, topology), replicas)


def _machines_needed(per_machine: int, gpus: int, nodes: int, replicas: int) -> int:
    """Machines for replicas of so many GPUs on so many nodes; of one node, several may share a machine."""
    return nodes * replicas if nodes > 1 else math.ceil(replicas / (per_machine // gpus))


def _prices(machine: Machine, region: str | None) -> tuple[Price, ...]:
    """The prices of a machine in a region; those that hold anywhere only where the region has none of its own."""
    if region is None:
        return machine.prices
    own = tuple(price for price in machine.prices if price.region == region)
    return own or tuple(price for price in machine.prices if price.region == ANYWHERE)
