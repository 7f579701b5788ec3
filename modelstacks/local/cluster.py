"""The embedded cluster's life: up, down and status, from any state that a crash leaves behind."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelstacks.errors import ClusterError
from modelstacks.local import api, control_plane, locks, nodes, operators, ports, processes, toolchain
from modelstacks.local.control_plane import CONTROL_PLANE, OPERATORS
from modelstacks.local.layout import STATE_DIR_ENV, Layout

Report = Callable[[str], None]
COMPONENTS = CONTROL_PLANE + OPERATORS


@dataclass(frozen=True, slots=True)
class Component:
    name: str
    version: str
    port: int | None
    pid: int | None

    @property
    def running(self) -> bool:
        return self.pid is not None


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    ready: bool
    instance_type: str | None
    gpus: int


@dataclass(frozen=True, slots=True)
class Status:
    components: tuple[Component, ...]
    api_answers: bool
    nodes: tuple[Node, ...]

    @property
    def up(self) -> bool:
        return self.api_answers and all(component.running for component in self.components)


def up(layout: Layout, machines: Iterable[nodes.Machine], report: Report, without: Collection[str] = ()) -> None:
    """Bring the cluster up, or back up, with these machine types; keeps what it stored where it can.

    Machine types in `without` are sold out: Karpenter knows them and gets none.

    Raises ToolchainError or ClusterError, each with the next step. After an interrupt the next `up` goes on.
    """
    programs = toolchain.ensure(toolchain.CLUSTER, layout.cache, report)
    definitions = toolchain.crds(list(toolchain.CRDS), layout.cache, report)
    simulation, stages = (toolchain.crds([name], layout.cache, report) for name in toolchain.SIMULATION)
    table = json.dumps(nodes.instance_types(machines, without), indent=1)
    with _locked(layout, report):
        began = time.monotonic()
        same_machines = layout.instance_types.exists() and layout.instance_types.read_text() == table
        alive = control_plane.alive(layout, programs)
        keep = alive.issuperset(CONTROL_PLANE) and ports.as_fixed(layout.ports) and api.answers(layout, programs)
        # One that was made otherwise, by an older version, is started again with its data.
        keep = keep and control_plane.is_current(layout, programs)
        if keep and same_machines and alive.issuperset(OPERATORS) and _marker(layout).exists():
            report("already up")
            return
        _marker(layout).unlink(missing_ok=True)
        if keep:
            processes.stop(layout.cluster, OPERATORS)
            ports.choose(layout.ports, report, keep=[_port_name(name) for name in CONTROL_PLANE] + ["etcd-peer"])
        else:
            control_plane.start(layout, programs, report)
        report("applying the Karpenter and KubeRay definitions and the system nodes")
        operators.define(layout, programs, definitions, simulation, stages)
        layout.instance_types.write_text(table)
        operators.start(layout, programs, report)
        _marker(layout).touch()
        report(f"up in {time.monotonic() - began:.0f} s: kubeconfig {layout.kubeconfig}")


def down(layout: Layout, report: Report) -> None:
    """Stop every process of the cluster and remove its files; nothing to do is not an error."""
    with _locked(layout, report):
        there = layout.cluster.exists() or processes.running(layout.cluster, control_plane.PROCESSES)
        _marker(layout).unlink(missing_ok=True)
        control_plane.stop(layout)
        shutil.rmtree(layout.cluster, ignore_errors=True)
        if layout.cluster.exists():
            raise ClusterError(f"{layout.cluster} cannot be removed", next_step=f"remove {layout.cluster}")
        report("down: all processes stopped, all files removed" if there else "already down")


def status(layout: Layout) -> Status:
    """What runs and whether it answers; needs no toolchain and changes nothing."""
    running = {process.program: process for process in processes.running(layout.cluster, COMPONENTS)}
    listen = ports.remembered(layout.ports)
    components = tuple(
        Component(
            name=name,
            version=toolchain.version(toolchain.PROGRAMS[control_plane.program(name)]),
            port=listen.get(_port_name(name)),
            pid=running[name].pid if name in running else None,
        )
        for name in COMPONENTS
    )
    kubectl = toolchain.home(layout.cache, toolchain.PROGRAMS["kubectl"]) / "bin" / "kubectl"
    if "kube-apiserver" not in running or not kubectl.exists():
        return Status(components, api_answers=False, nodes=())
    listing = api.kubectl(layout, kubectl, ["get", "nodes", "-o", "json", "--request-timeout=5s"], check=False)
    if listing.returncode != 0:
        return Status(components, api_answers=False, nodes=())
    return Status(components, True, tuple(_node(item) for item in json.loads(listing.stdout)["items"]))


def _node(item: dict[str, Any]) -> Node:
    conditions = item.get("status", {}).get("conditions", [])
    return Node(
        name=item["metadata"]["name"],
        ready=any(found["type"] == "Ready" and found["status"] == "True" for found in conditions),
        instance_type=item["metadata"].get("labels", {}).get("node.kubernetes.io/instance-type"),
        gpus=int(item.get("status", {}).get("allocatable", {}).get("nvidia.com/gpu", 0)),
    )


def _marker(layout: Layout) -> Path:
    """There only after an `up` went through to its end."""
    return layout.cluster / "complete"


@contextlib.contextmanager
def _locked(layout: Layout, report: Report) -> Iterator[None]:
    try:
        layout.state.mkdir(parents=True, exist_ok=True)
        layout.lock.touch()
    except OSError as error:
        raise ClusterError(
            f"the state folder {layout.state} cannot be written ({error.strerror})",
            next_step=f"set {STATE_DIR_ENV} to a folder that can be written",
        ) from error
    with locks.held(layout.lock, report, "another `local up` or `local down` is at work, waiting for it"):
        yield


def _port_name(component: str) -> str:
    names = {"kwok-controller": "kwok", "karpenter-kwok": "karpenter", "kuberay-operator": "kuberay"}
    return names.get(component, component)
