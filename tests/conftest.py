"""Fixtures shared by all tests: the embedded cluster that every `embedded` test of a worker runs on.

Tests are handed out one by one, so each worker has a cluster of its own, and a test follows any other.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelstacks.local import cluster, toolchain
from modelstacks.local.layout import Layout

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Machine:
    """A machine type as the catalogue would give it; the tests' own, so that prices and files may change."""

    name: str
    gpu: str
    gpus: int
    vcpu: int
    memory_gib: float
    disk_gib: float = 500
    cloud: str = "aws"
    usd_per_hour: float | None = 1.0


MACHINES = (
    Machine("g6.xlarge", "l4", 1, 4, 16),
    Machine("g6.12xlarge", "l4", 4, 48, 192, usd_per_hour=4.6),
    Machine("p4d.24xlarge", "a100-40", 8, 96, 1152, usd_per_hour=22.0),
    Machine("p5.48xlarge", "h100-sxm", 8, 192, 2048, usd_per_hour=55.0),
)


@dataclass(frozen=True)
class EmbeddedCluster:
    """A running embedded cluster."""

    layout: Layout
    programs: dict[str, Path]

    @property
    def kubeconfig(self) -> Path:
        return self.layout.kubeconfig

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """What kubectl prints; a failure shows its complaint."""
        command = [str(self.programs["kubectl"]), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def machines() -> tuple[Machine, ...]:
    """The machine types that embedded clusters of tests can make nodes of."""
    return MACHINES


@pytest.fixture(scope="session")
def make_cluster(machines: tuple[Machine, ...]) -> Iterator[Callable[[Path], EmbeddedCluster]]:
    """Start a cluster with its state in a given folder and its programs from the user's cache."""
    made: list[Layout] = []

    def make(state: Path) -> EmbeddedCluster:
        layout = Layout(cache=Layout.of(ROOT).cache, state=state)
        made.append(layout)
        programs = toolchain.ensure(toolchain.CLUSTER, layout.cache, print)
        cluster.up(layout, machines, print)
        return EmbeddedCluster(layout, programs)

    yield make
    for layout in made:
        cluster.down(layout, print)


@pytest.fixture(scope="session")
def embedded_cluster(
    make_cluster: Callable[[Path], EmbeddedCluster], tmp_path_factory: pytest.TempPathFactory
) -> EmbeddedCluster:
    """One cluster for all tests of this process; tests keep apart by namespaces and pool names of their own."""
    return make_cluster(tmp_path_factory.mktemp("embedded") / "shared")
