"""One way to get GPU nodes as data: its options, how it buys, what it installs, what a cluster must serve."""

from __future__ import annotations

import datetime
import difflib
import re
from typing import Any, Literal

from pydantic import Field, model_validator

from modelstacks.catalog.hardware import CapacityWay
from modelstacks.catalog.row import Id, PositiveInt, Row, named_rows
from modelstacks.errors import listed


class CloudOption(Row):
    """One key under `cloud` that a kind takes."""

    about: str
    default: str = "none"
    allowed: tuple[str, ...] | None = None
    required: bool = False


class CapacityId(Row):
    """What the id of a reservation looks like in this cloud."""

    pattern: str
    example: str


class ClusterApi(Row):
    """A kind that the cluster must serve, and the command that brings it where it is missing."""

    kind: str
    api_version: str = Field(pattern=r"^[a-z0-9.-]+/v[a-z0-9]+$")
    plural: str
    mend: str

    @property
    def crd(self) -> str:
        return f"{self.plural}.{self.api_version.partition('/')[0]}"


class Software(Row):
    """One piece of GPU software, who brings it, and the operator that does where nobody else does."""

    name: str
    brought_by: Literal["cloud", "image", "you"]
    operator: Id | None = None
    note: str | None = None


class NodeClass(Row):
    """The kind of object that describes a pool's machines; `name` is set where one serves every pool."""

    group: str
    kind: str
    name: str | None = None


class CloudKind(Row):
    """One way to get nodes. `package` is the extra whose Pulumi SDK makes the pool, where no manifest does."""

    id: Id
    about: str
    prices_of: Id | None = None
    simulated: bool = False
    makes_nodes: bool
    package: str | None = None
    # Whose regions and zones the stack may name, and whether a zone may be written as its number alone.
    regions_of: Id | None = None
    numbered_zones: bool = False
    options: dict[str, CloudOption] = Field(default_factory=dict)
    capacities: tuple[CapacityWay, ...] = ("on-demand",)
    capacity_ids: dict[CapacityWay, CapacityId] = Field(default_factory=dict)
    # "listed": the pool itself tries them in the given order; "cheapest-first": it goes by price within one pool, so
    # another order takes pools of falling weight; "one": a pool is bought in one way.
    capacity_order: Literal["listed", "cheapest-first", "one"] = "one"
    no_capacity: dict[CapacityWay, str] = Field(default_factory=dict)
    one_way_note: str | None = None
    # Parts that make the pool before the kind's own template, and the class of machines they name.
    pool_parts: tuple[str, ...] = ()
    node_class: NodeClass | None = None
    consolidate_after: str | None = None
    # The machine image of nodes unless the stack names one, pinned.
    image: str | None = None
    # How pods find the pool's nodes, and what they must tolerate and carry there beside the taint of GPUs.
    pool_label: str = "modelstacks.dev/pool"
    spot_tolerations: tuple[dict[str, str], ...] = ()
    tolerations: tuple[dict[str, str], ...] = ()
    pod_annotations: dict[str, str] = Field(default_factory=dict)
    # The annotation that keeps an autoscaler from a pod for so long: Karpenter takes a duration since 1.12. Older ones
    # ignore it, and pools that only give up empty nodes need it only beside others.
    protects_for: str | None = None
    # From the order of a node until its GPUs can be asked for, where it takes longer than elsewhere.
    node_ready_s: PositiveInt | None = None
    # Seconds between a spot machine's notice and its end.
    spot_notice_s: PositiveInt | None = None
    # The cloud, or what this project tells it, puts the kubelet's files on local NVMe where the machine has some.
    local_disks: bool = False
    # Nodes carry the well-known zone label, and labels that tell how near they are in the network, nearest first.
    zoned: bool = False
    near: tuple[str, ...] = ()
    # Nodes can be had for pods that ask for huge pages.
    huge_pages: bool = True
    # Beginnings of names that the cloud keeps for itself.
    names_not_with: tuple[str, ...] = ()
    max_boot_disk_gib: PositiveInt = 16384
    # What keeps the pool from growing past the plan: its own limit, or only the namespace's quota of GPUs.
    bounded_by: Literal["pool", "quota"] = "quota"
    serves: tuple[ClusterApi, ...] = ()
    software: tuple[Software, ...] = ()
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> CloudKind:
        strange = [way for way in (*self.capacity_ids, *self.no_capacity) if not isinstance(way, str)]
        if strange:
            raise ValueError(f"capacity ways {strange} are not known")
        for way in self.capacity_ids:
            if way not in self.capacities:
                raise ValueError(f"capacity_ids.{way} speaks of a way that capacities leaves out")
        return self


class Regions(Row):
    """The regions of one cloud, each with the endings of its zones: us-east-1 → [a, b, …]."""

    cloud: Id
    # How a region and an ending make a zone's name.
    form: str
    # Endings of zones that are not listed one by one: letters that differ by account, local zones.
    other_endings: str | None = None
    source: str
    zones: dict[str, tuple[str, ...]]

    def name(self, region: str, ending: str) -> str:
        return self.form.format(region=region, ending=ending)

    def names_in(self, region: str) -> list[str]:
        """Zone names of a region."""
        return [self.name(region, ending) for ending in self.zones.get(region, ())]

    def region_of(self, zone: str) -> str | None:
        """The region of a zone; None for a name that is no zone."""
        for region, endings in self.zones.items():
            head = self.name(region, "")
            if not zone.startswith(head):
                continue
            ending = zone.removeprefix(head)
            if ending in endings or (self.other_endings and re.fullmatch(self.other_endings, ending)):
                return region
        return None

    def why_no_zone(self, zone: str, region: str | None) -> tuple[str, str | None, str | None]:
        """Why a name is no zone: text, what is allowed, and the nearest name."""
        if zone in self.zones:
            names = self.names_in(zone)
            if not names:
                return f"{zone} is a region without zones; leave zones out", None, None
            return f"{zone} is a region, not a zone", listed(names), None
        parent = next((r for r in sorted(self.zones, key=len, reverse=True) if zone.startswith(r)), None)
        if parent is not None and (region is None or parent == region):
            return f"{zone!r} is no zone of {parent}", listed(self.names_in(parent)), None
        if region is not None:
            return f"{zone!r} is no zone of {region}", listed(self.names_in(region)), None
        every = [name for r in self.zones for name in self.names_in(r)]
        near = difflib.get_close_matches(re.sub(r"[\s_]+", "-", zone.lower()), every, n=1, cutoff=0.6)
        return f"{zone!r} is no zone of {self.cloud}", None, near[0] if near else None


class AllRegions(Row):
    """templates/regions.yaml."""

    date: datetime.date
    clouds: dict[str, Regions]

    @model_validator(mode="before")
    @classmethod
    def _name_the_clouds(cls, data: dict[str, Any]) -> dict[str, Any]:
        return named_rows(data, "clouds", "cloud")
