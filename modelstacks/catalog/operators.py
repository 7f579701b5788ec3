"""An operator as data: its pinned chart, the values that GPU clusters need, and how an installation is recognised."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from modelstacks.catalog.row import Id, Row, named_rows


class Workload(Row):
    """A workload by whose labels an operator is recognised."""

    kind: Literal["Deployment", "DaemonSet"]
    labels: dict[str, str]


class Operator(Row):
    """One operator. `repo` is None for charts that an OCI address names whole."""

    id: Id
    about: str
    chart: str
    repo: str | None = Field(default=None, pattern=r"^https://")
    version: str = Field(pattern=r"^v?\d+\.\d+\.\d+$")
    namespace: str
    release: str
    crds: tuple[str, ...] = ()
    workloads: tuple[Workload, ...]
    values: dict[str, Any] = Field(default_factory=dict)
    values_of_kind: dict[Id, dict[str, Any]] = Field(default_factory=dict)
    # Cloud kinds that bring the same themselves, with the reason, and the only kinds it is for.
    never_with: dict[Id, str] = Field(default_factory=dict)
    only_with: tuple[Id, ...] | None = None
    not_beside: tuple[Id, ...] = ()
    source: str

    @model_validator(mode="after")
    def _has_a_place(self) -> Operator:
        if (self.repo is None) != self.chart.startswith("oci://"):
            raise ValueError("repo is for charts by name; an oci:// chart has none")
        return self

    def values_for(self, kind: str | None) -> dict[str, Any]:
        """The chart's values on a cloud kind."""
        return self.values | self.values_of_kind.get(kind or "", {})

    @property
    def install_command(self) -> str:
        """How a person installs the pinned chart by hand."""
        repo = f" --repo {self.repo}" if self.repo is not None else ""
        return (
            f"helm upgrade --install {self.release} {self.chart}{repo} --version {self.version} "
            f"--namespace {self.namespace} --create-namespace"
        )


class Operators(Row):
    """templates/operators.yaml."""

    gpu_toleration: list[dict[str, str]]
    operators: dict[str, Operator]
    date: datetime.date

    @model_validator(mode="before")
    @classmethod
    def _name_the_operators(cls, data: dict[str, Any]) -> dict[str, Any]:
        return named_rows(data, "operators")
