"""A network between nodes as data: what worker pods ask for and set, and what image and cluster must bring."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from modelstacks.catalog.hardware import Machine
from modelstacks.catalog.row import Id, Row, named_rows


class FabricVolume(Row):
    """A volume of a worker pod: a path of the host, or an empty folder shared with the sidecar when `host` is None."""

    name: str
    host: str | None = None
    # Where the engine's container has it, and the sidecar; None: not there.
    mount: str | None = None
    sidecar_mount: str | None = None
    read_only: bool = False


class Sidecar(Row):
    """A container that must run beside the engine."""

    name: str
    image: str = Field(pattern=r"^[^\s@]+:[^\s:@]+$")
    command: tuple[str, ...]
    env: dict[str, str] = Field(default_factory=dict)
    capabilities: tuple[str, ...] = ()


class Fabric(Row):
    """One network between nodes. Amounts are Kubernetes quantities, per worker pod that owns its node."""

    id: Id
    about: str
    resources: dict[str, str] = Field(default_factory=dict)
    resources_of_cloud: dict[Id, dict[str, str]] = Field(default_factory=dict)
    # A resource whose amount is a field of the machine row.
    count_of: dict[str, Literal["efa_interfaces"]] = Field(default_factory=dict)
    huge_pages_2mi: str | None = None
    env_without_huge_pages: dict[str, str] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    env_of_cloud: dict[Id, dict[str, str]] = Field(default_factory=dict)
    env_of_machine: dict[str, dict[str, str]] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    capabilities_of_root: tuple[str, ...] = ()
    volumes: tuple[FabricVolume, ...] = ()
    sidecar: Sidecar | None = None
    pod_security: Literal["restricted", "baseline", "privileged"] = "restricted"
    pod_security_reason: str | None = None
    # What a worker finds in its file system when the network is there, each may be a glob.
    paths: tuple[str, ...] = ()
    image_needs: str | None = None
    cluster_needs: tuple[str, ...] = ()
    verify: str
    source: str

    def asks(self, machine: Machine | None, *, huge_pages: bool) -> dict[str, str]:
        """The resources beside GPUs that a worker on `machine` asks for, where nodes can be had for huge pages."""
        cloud = machine.cloud if machine is not None else None
        found = dict(self.resources_of_cloud.get(cloud or "", self.resources))
        for name, field in self.count_of.items():
            count = getattr(machine, field) if machine is not None else None
            if count is not None:
                found[name] = str(count)
        if self.huge_pages_2mi is not None and huge_pages:
            found["hugepages-2Mi"] = self.huge_pages_2mi
        return found

    def variables(self, machine: Machine | None, *, huge_pages: bool) -> dict[str, str]:
        """The environment of a worker on `machine`."""
        found = self.env | ({} if huge_pages else self.env_without_huge_pages)
        if machine is None:
            return found
        return found | self.env_of_cloud.get(machine.cloud, {}) | self.env_of_machine.get(machine.name, {})


class Fabrics(Row):
    """templates/fabrics.yaml."""

    fabrics: dict[str, Fabric]
    date: datetime.date

    @model_validator(mode="before")
    @classmethod
    def _name_the_fabrics(cls, data: dict[str, Any]) -> dict[str, Any]:
        return named_rows(data, "fabrics")
