"""Simulated nodes of a local Ray: one that does not start in Ray's half a minute is no end of the cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelstacks.local.raycluster.nodes import REPLACED_AFTER_S, SimulatedNodes
from modelstacks.local.raycluster.state import NodeSpec

WHOLE = NodeSpec(gpus=8, accelerator_type="H100", cpus=16)
OTHER = NodeSpec(gpus=4, accelerator_type=None, cpus=8)


class FakeNode:
    """What Ray's cluster hands out: a node by the processes it has."""

    def __init__(self, gpus: int, raylet: subprocess.Popen[bytes]) -> None:
        self.gpus = gpus
        self.node_id = f"{gpus}-{raylet.pid}"
        self.all_processes = {"raylet": [SimpleNamespace(process=raylet)]}

    def live_processes(self) -> list[tuple[str, Any]]:
        raylet = self.all_processes["raylet"][0].process
        return [("raylet", raylet)] if raylet.poll() is None else []


@dataclass
class FakeCluster:
    """Starts a process for a raylet, and `fails` as Ray does: before the node is one, or after it was listed."""

    temp: Path
    fails: list[str] = field(default_factory=list)
    worker_nodes: set[FakeNode] = field(default_factory=set)
    raylets: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add_node(self, *, num_gpus: int, **_: Any) -> FakeNode:
        program = self.temp / "bin" / "raylet"
        program.parent.mkdir(exist_ok=True)
        if not program.exists():
            program.symlink_to(sys.executable)
        code = "import time; print('begun', flush=True); time.sleep(600)"
        raylet = subprocess.Popen([str(program), "-c", code, f"{self.temp}/sockets"], stdout=subprocess.PIPE)
        self.raylets.append(raylet)
        # The command line of a process that only just begins is empty; Ray gives up after half a minute.
        assert raylet.stdout is not None
        assert raylet.stdout.readline() == b"begun\n"
        how = self.fails.pop(0) if self.fails else ""
        if how == "early":
            raise Exception("The current node timed out during startup")
        node = FakeNode(num_gpus, raylet)
        self.worker_nodes.add(node)
        if how == "late":
            raise TimeoutError("waiting for nodes to join")
        return node

    def remove_node(self, node: FakeNode, *, allow_graceful: bool) -> None:
        assert not allow_graceful
        node.all_processes["raylet"][0].process.kill()
        node.all_processes["raylet"][0].process.wait()
        self.worker_nodes.remove(node)

    def list_all_nodes(self) -> list[FakeNode]:
        return list(self.worker_nodes)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    found = FakeCluster(tmp_path)
    yield found
    for raylet in found.raylets:
        raylet.kill()
        raylet.communicate()


def kept(cluster: FakeCluster, nodes: SimulatedNodes) -> list[int]:
    """The GPUs of the nodes, after each has been looked at, and as many raylets as there are nodes were seen."""
    held = nodes.status()
    alive = [raylet.pid for raylet in cluster.raylets if raylet.poll() is None]
    assert sorted(node["raylet"] for node in held) == sorted(alive)
    return [int(node["id"].partition("-")[0]) for node in held]


@pytest.mark.parametrize("how", ["early", "late"])
def test_a_node_that_does_not_start_is_tried_again(
    cluster: FakeCluster, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the half of it that was started is gone, which would join as one node too many."""
    now = 100.0
    nodes = SimulatedNodes(cluster, cluster.temp, lambda: now)
    cluster.fails = ["", how, how]
    nodes.keep([WHOLE, OTHER])
    _settle(cluster)
    assert kept(cluster, nodes) == [8]
    assert "a node did not start, another is tried: " in capfd.readouterr().err
    now += 0.9 * REPLACED_AFTER_S
    nodes.keep([WHOLE, OTHER])
    assert kept(cluster, nodes) == [8], "not at once"
    for _ in range(2):
        now += REPLACED_AFTER_S
        nodes.keep([WHOLE, OTHER])
        _settle(cluster)
    assert kept(cluster, nodes) == [8, 4]


def test_a_lost_node_is_replaced_by_one_like_it(cluster: FakeCluster) -> None:
    """After a moment, as a pod would be, and what else is wanted meanwhile is added beside it."""
    now = 100.0
    nodes = SimulatedNodes(cluster, cluster.temp, lambda: now)
    nodes.keep([OTHER, WHOLE])
    cluster.raylets[0].kill()
    cluster.raylets[0].wait()
    nodes.keep([OTHER, WHOLE])
    assert kept(cluster, nodes) == [8]
    now += REPLACED_AFTER_S
    nodes.keep([OTHER, WHOLE, WHOLE])
    assert kept(cluster, nodes) == [8, 4, 8]


def _settle(cluster: FakeCluster) -> None:
    """A killed child is one that was waited for; the runner's own are reaped by Ray."""
    listed = {node.all_processes["raylet"][0].process for node in cluster.worker_nodes}
    for raylet in cluster.raylets:
        if raylet not in listed:
            raylet.wait(timeout=30)
