"""The `cloud` part of a stack file: how GPU nodes are had, how they are bought, and what may be spent on them.

Which options a kind takes, and which ways to buy it can express, is declared in templates/clouds/<kind>.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, Field, model_serializer, model_validator

from modelstacks.catalog import Catalog, CloudKind, Machine
from modelstacks.catalog.hardware import CapacityWay
from modelstacks.errors import Problem, listed
from modelstacks.fields import (
    Count,
    DnsLabel,
    LabelKey,
    LabelValue,
    Section,
    Word,
    camel,
    key_path,
    nearest,
    whole_number,
)

WAYS: tuple[str, ...] = get_args(CapacityWay)
# The cluster's name where a stack says none.
DEFAULT_CLUSTER = "modelstacks"
# As camel case, which the other keys of a stack file are written in.
_CAMEL_WAYS = {camel(way.replace("-", "_")): way for way in WAYS}
# Ways that mean one piece of hardware set aside, so they must say which.
_NAMED_WAYS = ("reservation", "capacity-block")


class Toleration(Section):
    """A toleration as Kubernetes has it."""

    key: LabelKey | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, BeforeValidator(whole_number), Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("has operator Exists, which takes no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("needs a key, or operator: Exists for every taint")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("has tolerationSeconds, which go with effect: NoExecute")
        return self


class Taint(Section):
    """A taint as Kubernetes has it."""

    key: LabelKey
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Capacity(Section):
    """One way to buy: `on-demand`, `spot`, `flex-start`, or `{reservation: ID}` and `{capacity-block: ID}`."""

    way: CapacityWay
    id: Word | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_short_form(cls, value: object) -> object:
        if isinstance(value, str):
            return {"way": value}
        if isinstance(value, dict) and len(value) == 1:
            name, inner = next(iter(value.items()))
            way = _CAMEL_WAYS.get(name, name)
            if way in WAYS:
                if not isinstance(inner, str):
                    raise ValueError(f"must be written {way}: ID, with the ID as text")
                return {"way": way, "id": inner}
        return value

    @model_serializer
    def _short_form(self) -> str | dict[str, str]:
        return self.way if self.id is None else {self.way: self.id}


def _as_list(value: object) -> object:
    return (value,) if isinstance(value, str | dict) else value


class ObjectRef(Section):
    """An object that exists already, such as a Cluster API infrastructure template."""

    api_version: Annotated[Word, Field(pattern=r"^[a-z0-9.-]+/v[a-z0-9]+$")]
    kind: Annotated[Word, Field(pattern=r"^[A-Z][A-Za-z0-9]*$")]
    name: DnsLabel

    @property
    def api_group(self) -> str:
        return self.api_version.partition("/")[0]


class CloudSpec(Section):
    """How GPU nodes are had. None and empty mean: the kind's own default."""

    kind: Word = "existing"
    region: Word | None = None
    zones: Annotated[tuple[Word, ...], BeforeValidator(_as_list)] = ()
    capacity: Annotated[tuple[Capacity, ...], BeforeValidator(_as_list)] = ()
    machine: Word | None = None
    machines_of: Word | None = None
    limit_gpus: Count | None = None
    warm_spares: Annotated[int, BeforeValidator(whole_number), Field(ge=0, le=64)] = 0
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    startup_taints: tuple[Taint, ...] = ()
    boot_disk_gib: Annotated[int, BeforeValidator(whole_number), Field(ge=30, le=65536)] | None = None
    fabric: Word = "auto"
    gpu_allocation: Literal["device-plugin", "dra"] = "device-plugin"
    pool_owner: Word | None = None
    cluster: Word | None = None
    project: Word | None = None
    resource_group: Word | None = None
    node_class: DnsLabel | None = None
    node_role: Word | None = None
    subnets: tuple[Word, ...] = ()
    image: Word | None = None
    placement_group: Word | None = None
    management_context: Word | None = None
    management_namespace: DnsLabel | None = None
    infrastructure: ObjectRef | None = None
    bootstrap: ObjectRef | None = None
    kubernetes_version: Annotated[Word, Field(pattern=r"^v1\.\d+\.\d+$")] | None = None

    def ways(self, machine: Machine | None) -> tuple[Capacity, ...]:
        """The ways to buy in the order they are tried.

        When the stack says nothing: on demand, or the first way that needs no reservation of a machine type that is
        not sold on demand.
        """
        if self.capacity:
            return self.capacity
        sold = machine.sold_as if machine is not None else None
        usual: CapacityWay = "on-demand"
        if sold is not None and usual not in sold:
            usual = next((way for way in sold if way not in _NAMED_WAYS), usual)
        return (Capacity(way=usual),)


def region_of(cloud: CloudSpec, kind: CloudKind, catalog: Catalog) -> str | None:
    """The region that a stack says, or that its zones lie in; None when it says neither."""
    if cloud.region is not None or not cloud.zones or kind.regions_of is None:
        return cloud.region
    return catalog.regions_of(kind.regions_of).region_of(zone_names(cloud, kind)[0])


def problems(cloud: CloudSpec, catalog: Catalog, *, gpu: str | None, gpus: int | None) -> list[Problem]:
    """What in a stack's `cloud` contradicts the kind, the cloud's regions and machines, or itself."""
    kind = catalog.clouds[cloud.kind]
    given = cloud.model_dump(by_alias=True, exclude_unset=True, exclude={"kind"})
    found = []
    for option in given:
        if option not in kind.options:
            allowed = ", ".join(kind.options) or "no options"
            near = nearest(option, tuple(kind.options))
            text = f"is not an option of kind {kind.id}"
            found.append(Problem(key_path(f"cloud.{option}"), text, given[option], allowed, near))
    found += [
        Problem(key_path(f"cloud.{option}"), f"is needed by kind {kind.id}: {row.about}")
        for option, row in kind.options.items()
        if row.required and option not in given
    ]
    for option, row in kind.options.items():
        value = given.get(option)
        if row.allowed is not None and isinstance(value, str) and value not in row.allowed:
            near = nearest(value, row.allowed)
            text = f"{value!r} is not known"
            found.append(Problem(key_path(f"cloud.{option}"), text, value, ", ".join(row.allowed), near))
    found += _places(cloud, kind, catalog)
    found += _ways(cloud, kind)
    found += _machine(cloud, kind, catalog, gpu=gpu, gpus=gpus)
    if cloud.limit_gpus is not None and gpus is not None and cloud.limit_gpus < gpus:
        text = f"{cloud.limit_gpus} is below the {gpus} GPUs of one replica"
        found.append(Problem(key_path("cloud.limitGpus"), text, cloud.limit_gpus, f"{gpus} or more"))
    if cloud.node_class is not None and (cloud.image or cloud.boot_disk_gib or cloud.placement_group):
        extra = [camel(name) for name in ("image", "boot_disk_gib", "placement_group") if getattr(cloud, name)]
        text = f"names a class that exists, which settles {', '.join(extra)} itself"
        found.append(Problem(key_path("cloud.nodeClass"), text, cloud.node_class, "one or the other"))
    if cloud.pool_owner is not None:
        fixed = sorted(set(given) - {"poolOwner", "fabric", "tolerations", "machinesOf", "region"})
        found += [
            Problem(key_path(f"cloud.{option}"), f"is settled by the pool's owner, {cloud.pool_owner}", given[option])
            for option in fixed
            if option in kind.options
        ]
    return found


def zone_names(cloud: CloudSpec, kind: CloudKind) -> tuple[str, ...]:
    """Zones by their full names; a bare number belongs to the region."""
    numbers = kind.numbered_zones and cloud.region is not None
    return tuple(f"{cloud.region}-{zone}" if numbers and zone.isdigit() else zone for zone in cloud.zones)


def _places(cloud: CloudSpec, kind: CloudKind, catalog: Catalog) -> list[Problem]:
    """Zones and regions that do not exist, or not together."""
    found = []
    fixed = kind.options["zones"].allowed if "zones" in kind.options else None
    if fixed is not None:
        return [
            Problem(key_path("cloud.zones"), f"{zone!r} is not known", zone, ", ".join(fixed), nearest(zone, fixed))
            for zone in cloud.zones
            if zone not in fixed
        ]
    if kind.regions_of is None:
        return []
    regions = catalog.regions_of(kind.regions_of)
    if cloud.region is not None and cloud.region not in regions.zones:
        near = nearest(cloud.region, tuple(regions.zones))
        text = f"{cloud.region!r} is no region of {kind.regions_of}"
        known = listed(sorted(regions.zones), most=60)
        return [Problem(key_path("cloud.region"), text, cloud.region, known, near)]
    of_zones = {}
    for zone in zone_names(cloud, kind):
        found_in = regions.region_of(zone)
        if found_in is None:
            text, allowed, near = regions.why_no_zone(zone, cloud.region)
            found.append(Problem(key_path("cloud.zones"), text, zone, allowed, near))
        elif cloud.region is not None and found_in != cloud.region:
            text = f"{zone} is a zone of {found_in}, and region is {cloud.region}"
            found.append(Problem(key_path("cloud.zones"), text, zone, listed(regions.names_in(cloud.region))))
        else:
            of_zones[zone] = found_in
    if not found and len(set(of_zones.values())) > 1:
        text = "lie in " + " and ".join(dict.fromkeys(of_zones.values())) + "; a pool is in one region"
        found.append(Problem(key_path("cloud.zones"), text, list(cloud.zones)))
    if len(set(cloud.zones)) < len(cloud.zones):
        found.append(Problem(key_path("cloud.zones"), "names a zone twice", list(cloud.zones)))
    return found


def _ways(cloud: CloudSpec, kind: CloudKind) -> list[Problem]:
    """Ways to buy that the kind cannot express, or that exclude one another."""
    found = []
    path = key_path("cloud.capacity")
    if "capacity" in cloud.model_fields_set and not cloud.capacity:
        found.append(Problem(path, "is an empty list", None, ", ".join(kind.capacities)))
    if "capacity" not in kind.options:
        return []
    for capacity in cloud.capacity:
        way, form = capacity.way, kind.capacity_ids.get(capacity.way)
        if way not in kind.capacities:
            text = f"{way} cannot be had with kind {kind.id}"
            if kind.no_capacity.get(way):
                text += f": {kind.no_capacity[way]}"
            found.append(Problem(path, text, way, ", ".join(kind.capacities)))
        elif way in _NAMED_WAYS and capacity.id is None:
            example = form.example if form is not None else "ID"
            found.append(Problem(path, f"a {way} needs its id", way, f"{{{way}: {example}}}"))
        elif capacity.id is not None and form is None:
            found.append(Problem(path, f"{way} takes no id", capacity.id, way))
        elif capacity.id is not None and form is not None and not re.fullmatch(form.pattern, capacity.id):
            text = f"{capacity.id!r} is no id of a {way} here"
            found.append(Problem(path, text, capacity.id, f"such as {form.example}"))
    named = [(capacity.way, capacity.id) for capacity in cloud.capacity]
    twice = sorted({way for way, number in named if named.count((way, number)) > 1})
    if twice:
        found.append(Problem(path, f"names {', '.join(twice)} twice", [way for way, _ in named]))
    ways = list(dict.fromkeys(way for way, _ in named))
    if not found and len(ways) > 1 and kind.capacity_order == "one":
        text = f"{' and '.join(ways)}: a pool of kind {kind.id} is bought in one way"
        found.append(Problem(path, text, ways, kind.one_way_note or "one of them"))
    if "capacity-block" in ways and len(cloud.zones) > 1:
        text = "a capacity block lies in one zone, and zones names " + ", ".join(cloud.zones)
        found.append(Problem(key_path("cloud.zones"), text, list(cloud.zones), "the block's zone"))
    if "flex-start" in ways and cloud.warm_spares:
        found.append(flex_start_spares(cloud))
    return found


def flex_start_spares(cloud: CloudSpec, more: str = "") -> Problem:
    """Spares that cannot be kept."""
    text = f"flex-start nodes leave after seven days at most, so a warm spare would be bought again and again{more}"
    return Problem(key_path("cloud.warmSpares"), text, cloud.warm_spares, "0, or no flex-start")


def _machine(
    cloud: CloudSpec, kind: CloudKind, catalog: Catalog, *, gpu: str | None, gpus: int | None
) -> list[Problem]:
    """A machine type that does not exist, is of another cloud, or does not go with the stack's GPUs."""
    found: list[Problem] = []
    of, wanted = cloud.machines_of, cloud.machine
    clouds = tuple(sorted({machine.cloud for machine in catalog.machines})) if of or wanted else ()
    if of is not None and of not in clouds:
        found.append(Problem(key_path("cloud.machinesOf"), f"{of!r} is not known", of, ", ".join(clouds)))
    if wanted is None or found or "machine" not in kind.options:
        return found
    path = key_path("cloud.machine")
    here = of or kind.prices_of
    offered = [m for m in catalog.machines if m.kubernetes and (here is None or m.cloud == here)]
    if gpu is not None:
        offered = [m for m in offered if m.gpu == gpu]
    machine = next((m for m in catalog.machines if m.name == wanted and (here is None or m.cloud == here)), None)
    of_gpu = f" with {gpu}" if gpu is not None else ""
    carriers = carrying(offered)
    if machine is None:
        elsewhere = next((m for m in catalog.machines if m.name == wanted), None)
        where = f" of {here}" if here is not None else ""
        text = f"{wanted!r} is no machine type{where} in this catalogue"
        if elsewhere is not None:
            text = f"{wanted} is a machine type of {elsewhere.cloud}, and kind {kind.id} buys from {here}"
        near = nearest(wanted, tuple(m.name for m in offered))
        return [Problem(path, text, wanted, f"machine types{of_gpu}: {carriers}", near)]
    if gpu is not None and machine.gpu != gpu:
        text = f"{wanted} carries {machine.gpus} × {machine.gpu}, and gpu is {gpu}"
        return [Problem(path, text, wanted, f"machine types{of_gpu}: {carriers}")]
    per_node = None if gpus is None else min(gpus, catalog.gpus[machine.gpu].max_gpus_per_node)
    if per_node is not None and machine.gpus < per_node:
        fitting = [m for m in offered if m.gpus >= per_node and m.gpu == machine.gpu]
        text = f"{wanted} has {machine.gpus} GPU{'s' * (machine.gpus > 1)}, and a node of this stack needs {per_node}"
        return [Problem(path, text, wanted, f"machine types{of_gpu}: {carrying(fitting)}")]
    sold = machine.sold_as
    missing = [capacity.way for capacity in cloud.capacity if sold is not None and capacity.way not in sold]
    if sold is not None and missing:
        text = f"{wanted} is sold as {', '.join(sold)}, not {', '.join(missing)}"
        found.append(Problem(key_path("cloud.capacity"), text, missing, ", ".join(sold)))
    return found


def carrying(machines: Iterable[Machine]) -> str:
    """Machine types as refusals list them: name and GPU count."""
    by_count = sorted({(machine.gpus, machine.name) for machine in machines})
    return listed([f"{name} ({count})" for count, name in by_count], most=20) or "none"
