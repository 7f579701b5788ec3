"""Plan → node pool in numbers: which machines, how many at most, how they are bought and in which order.

What may be spent is bounded here: a pool never holds more machines than the replicas (and the spares that were asked
for) can use, and the budget is checked against that number, not against today's.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelstacks.catalog import CloudKind, Machine, Price
from modelstacks.cloudspec import Capacity, CloudSpec
from modelstacks.economics import HOURS_PER_MONTH
from modelstacks.errors import BadInput, Problem
from modelstacks.fields import key_path
from modelstacks.stackfile import object_name

# What Karpenter takes first among the capacity types of one pool: reserved capacity counts as free, spot is cheaper.
_CHEAPEST_FIRST = {"reservation": 0, "capacity-block": 0, "spot": 1, "on-demand": 2}


@dataclass(frozen=True, slots=True)
class Pool:
    """The machines of one stack.

    `machines` is for the replicas that are asked for now, `machines_at_most` is what each of `steps` may hold, spares
    included. `steps` are the ways to buy in order: one pool object each, the first preferred.
    """

    name: str
    owner: str | None
    machine: Machine
    machines: int
    spares: int
    machines_at_most: int
    steps: tuple[tuple[Capacity, ...], ...]
    price: Price | None

    @property
    def gpus_at_most(self) -> int:
        """GPUs that one pool object may hold: whole machines, and not one more."""
        return self.machines_at_most * self.machine.gpus

    @property
    def all_machines_at_most(self) -> int:
        """Machines that all pool objects together may hold."""
        return self.machines_at_most * len(self.steps)

    @property
    def usd_per_month_at_most(self) -> float | None:
        """USD for 730 hours of everything that may be bought, at the on-demand price; None without a price."""
        if self.price is None:
            return None
        return self.price.usd_per_hour * self.all_machines_at_most * HOURS_PER_MONTH


def pool(
    name: str,
    cloud: CloudSpec,
    kind: CloudKind,
    machine: Machine | None,
    price: Price | None,
    *,
    machines: int,
    machines_of_one: int,
    machines_at_most: int,
) -> Pool | None:
    """The pool of a stack; None where nodes exist already or no machine type carries the plan.

    `machines`, `machines_of_one` and `machines_at_most` are for the replicas now, for one, and for the most there may
    be. Raises BadInput when the stack's own limit is below what it asks for.
    """
    if not kind.makes_nodes or machine is None:
        return None
    taken = next((word for word in kind.names_not_with if name.startswith(word)), None)
    if taken is not None and cloud.pool_owner is None:
        problem = Problem("stack", f"{name} begins with {taken}, which {kind.id} keeps for itself", name)
        raise BadInput([problem], source=name, next_step="give the stack another name")
    most = machines_at_most + cloud.warm_spares
    if cloud.limit_gpus is not None:
        allowed = cloud.limit_gpus // machine.gpus
        if allowed < machines_of_one or allowed < most:
            need = max(machines_of_one, most) * machine.gpus
            what = "one replica" if allowed < machines_of_one else "the replicas"
            if allowed >= machines_of_one and cloud.warm_spares:
                what += f" and {cloud.warm_spares} warm spare{'s' * (cloud.warm_spares > 1)}"
            text = f"{cloud.limit_gpus} GPUs are below what {what} need: {need} GPUs on {machine.name}"
            problem = Problem(key_path("cloud.limitGpus"), text, cloud.limit_gpus, f"{need} or more")
            raise BadInput([problem], source=name, next_step="raise the limit, or ask for fewer replicas")
        most = allowed
    return Pool(
        name=object_name(cloud.pool_owner) if cloud.pool_owner is not None else name,
        owner=cloud.pool_owner,
        machine=machine,
        machines=machines,
        spares=cloud.warm_spares,
        machines_at_most=most,
        steps=steps(cloud.ways(machine), kind),
        price=price,
    )


def steps(ways: tuple[Capacity, ...], kind: CloudKind) -> tuple[tuple[Capacity, ...], ...]:
    """The ways to buy as pool objects.

    A pool that goes by price takes only ways that price sorts as the stack does; what should be tried later although it
    is cheaper goes into a pool of its own.
    """
    if kind.capacity_order != "cheapest-first":
        return (ways,)
    groups: list[list[Capacity]] = []
    for way in ways:
        rank = _CHEAPEST_FIRST[way.way]
        if groups and _CHEAPEST_FIRST[groups[-1][-1].way] <= rank:
            groups[-1].append(way)
        else:
            groups.append([way])
    return tuple(tuple(group) for group in groups)
