"""The embedded cluster's life, on the real programs."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelstacks.errors import ClusterError
from modelstacks.local import cluster, ports, processes
from modelstacks.local.layout import STATE_DIR_ENV, Layout


@pytest.fixture(scope="module")
def own(make_cluster, tmp_path_factory):
    """A cluster to break; every test of this module that takes it leaves it repaired."""
    return make_cluster(tmp_path_factory.mktemp("embedded") / "broken")


@pytest.fixture
def up(machines):
    """Run `up` again on a cluster; returns what it said."""

    def run(found):
        said: list[str] = []
        cluster.up(found.layout, machines, said.append)
        return said

    return run


def pids(found):
    return {component.name: component.pid for component in cluster.status(found.layout).components}


def listening() -> dict[int, set[str]]:
    """Local addresses that listen for TCP, by port, from the kernel's tables."""
    found: dict[int, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                address, port = local.split(":")
                found.setdefault(int(port, 16), set()).add(address)
    return found


@pytest.mark.embedded
def test_everything_runs_and_answers(embedded_cluster):
    """After `up`, every component runs, the API answers, and the CPU-only nodes are ready."""
    status = cluster.status(embedded_cluster.layout)
    assert status.up
    assert {component.name for component in status.components} == set(cluster.COMPONENTS)
    assert all(component.port for component in status.components)
    system = [node for node in status.nodes if node.name.startswith("system-")]
    assert len(system) == 2
    assert all(node.ready and node.gpus == 0 and node.instance_type is None for node in system)


@pytest.mark.embedded
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's tables of sockets")
def test_only_loopback_listens(embedded_cluster):
    """None of the cluster's ports can be reached from another machine."""
    chosen = ports.remembered(embedded_cluster.layout.ports)
    addresses = listening()
    # 127.0.0.1 as the kernel prints it, and the same mapped into IPv6.
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert not {name for name, port in chosen.items() if addresses.get(port, set()) - loopback}
    assert all(addresses.get(port) for port in chosen.values())


@pytest.mark.embedded
def test_second_up_changes_nothing(embedded_cluster, up):
    """A running cluster is left as it is."""
    before = pids(embedded_cluster)
    assert up(embedded_cluster) == ["already up"]
    assert pids(embedded_cluster) == before


@pytest.mark.thorough
@pytest.mark.embedded
@pytest.mark.parametrize("name", cluster.COMPONENTS)
def test_killed_component_comes_back_with_the_data(own, up, name):
    """kill -9 of any component is repaired, and what was stored is still there."""
    own.kubectl("create", "configmap", f"before-{name}", "--from-literal=kept=yes")
    pid = pids(own)[name]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    while name in {process.program for process in processes.running(own.layout.cluster, cluster.COMPONENTS)}:
        time.sleep(0.01)
    assert not cluster.status(own.layout).up
    up(own)
    assert cluster.status(own.layout).up
    assert "yes" in own.kubectl("get", "configmap", f"before-{name}", "-o", "jsonpath={.data}")


@pytest.mark.embedded
def test_reboot_is_recovered_with_the_data(own, up):
    """All processes gone, pid files that name other processes: the cluster starts again on the same ports."""
    own.kubectl("create", "configmap", "before-reboot")
    before = ports.remembered(own.layout.ports)
    processes.stop(own.layout.cluster, cluster.COMPONENTS, patience_s=0)
    for file in (own.layout.kwok_cluster / "pids").glob("*.pid"):
        file.write_text(str(os.getpid()))
    up(own)
    own.kubectl("get", "configmap", "before-reboot")
    assert ports.remembered(own.layout.ports) == before


@pytest.mark.thorough
@pytest.mark.embedded
def test_port_taken_meanwhile_is_replaced(own, up):
    """A stopped cluster whose port another program took starts on another one."""
    processes.stop(own.layout.cluster, cluster.COMPONENTS)
    before = ports.remembered(own.layout.ports)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((ports.HOST, before["kube-apiserver"]))
        other.listen()
        said = up(own)
    assert any(f"port {before['kube-apiserver']} of kube-apiserver is taken" in line for line in said)
    after = ports.remembered(own.layout.ports)
    assert {name for name in after if after[name] != before[name]} == {"kube-apiserver"}
    assert cluster.status(own.layout).up


@pytest.mark.thorough
@pytest.mark.embedded
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: (folder / "kwok.yaml").write_text("half: ["), id="half-written configuration"),
        pytest.param(lambda folder: (folder / "kwok.yaml").unlink(), id="no configuration"),
        pytest.param(lambda folder: shutil.rmtree(folder), id="no folder"),
        pytest.param(lambda folder: shutil.rmtree(folder / "pki"), id="no certificates"),
        pytest.param(
            lambda folder: [f.write_bytes(b"no database") for f in (folder / "etcd").rglob("db")],
            id="damaged database",
        ),
    ],
)
def test_half_made_cluster_is_repaired(own, up, damage: Callable[[Path], object]):
    """Whatever an interrupt or a full disk left, `up` ends with a cluster."""
    processes.stop(own.layout.cluster, cluster.COMPONENTS)
    damage(own.layout.kwok_cluster)
    up(own)
    assert cluster.status(own.layout).up


@pytest.mark.thorough
@pytest.mark.embedded
def test_other_machines_restart_only_karpenter_and_kuberay(own, machines):
    """A changed catalogue reaches Karpenter; the control plane keeps running."""
    before = pids(own)
    more = dataclasses.replace(machines[0], name="g6e.xlarge", gpu="l40s")
    cluster.up(own.layout, [*machines, more], print)
    changed = {name for name, pid in pids(own).items() if pid != before[name]}
    assert changed == set(cluster.OPERATORS)
    assert "g6e.xlarge" in own.layout.instance_types.read_text()


@pytest.mark.thorough
@pytest.mark.embedded
@pytest.mark.parametrize("after_s", [0.5, 2, 4, 6])
def test_interrupted_up_is_repaired_by_the_next(own, machines, tmp_path, after_s):
    """Ctrl-C at any moment of `up` leaves something that the next `up` finishes and `down` removes."""
    layout = Layout(cache=own.layout.cache, state=tmp_path / "interrupted")
    code = (
        "import sys; from pathlib import Path; from modelstacks.local import cluster; "
        "from modelstacks.local.layout import Layout; "
        "cluster.up(Layout(cache=Path(sys.argv[1]), state=Path(sys.argv[2])), [], print)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(layout.cache), str(layout.state)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(after_s)
        child.send_signal(signal.SIGINT)
        child.wait(30)
        cluster.up(layout, machines, print)
        assert cluster.status(layout).up
    finally:
        cluster.down(layout, print)
    assert not layout.cluster.exists()
    assert processes.running(layout.cluster, [*cluster.COMPONENTS, "kwokctl"]) == []


@pytest.mark.embedded
def test_two_projects_side_by_side(own, embedded_cluster):
    """Each project has its own API server; what one stores the other does not see."""
    one, two = ports.remembered(own.layout.ports), ports.remembered(embedded_cluster.layout.ports)
    assert not set(one.values()) & set(two.values())
    own.kubectl("create", "namespace", "only-here")
    assert "only-here" not in embedded_cluster.kubectl("get", "namespaces")


@pytest.mark.embedded
def test_down_leaves_nothing_and_can_be_repeated(own, up):
    """No process and no file of the cluster is left; a second `down` is no error; `up` starts afresh."""
    cluster.down(own.layout, print)
    assert processes.running(own.layout.cluster, [*cluster.COMPONENTS, "kwokctl"]) == []
    assert sorted(path.name for path in own.layout.state.iterdir()) == ["lock"]
    said: list[str] = []
    cluster.down(own.layout, said.append)
    assert said == ["already down"]
    status = cluster.status(own.layout)
    assert not status.up
    assert not any(component.running for component in status.components)
    up(own)
    assert cluster.status(own.layout).up


def test_status_of_nothing(tmp_path):
    """A project that never had a cluster has a status."""
    status = cluster.status(Layout(cache=tmp_path / "cache", state=tmp_path / "state"))
    assert not status.up
    assert status.nodes == ()


def test_down_of_nothing(tmp_path):
    """A project that never had a cluster can be brought down."""
    said: list[str] = []
    cluster.down(Layout(cache=tmp_path / "cache", state=tmp_path / "state"), said.append)
    assert said == ["already down"]


def test_state_folder_that_cannot_be_written(tmp_path):
    """The error names the folder and the variable that moves it."""
    (tmp_path / "state").write_text("a file in the way")
    with pytest.raises(ClusterError, match="cannot be written") as caught:
        cluster.down(Layout(cache=tmp_path / "cache", state=tmp_path / "state" / "app"), print)
    assert STATE_DIR_ENV in (caught.value.next_step or "")
