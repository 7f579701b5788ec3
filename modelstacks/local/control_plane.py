"""Starts and stops the control plane: etcd, Kubernetes' own programs and KWOK, by kwokctl's binary runtime."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from modelstacks.errors import ClusterError
from modelstacks.local import api, ports, processes, toolchain
from modelstacks.local.layout import Layout

Report = Callable[[str], None]
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok-controller")
OPERATORS = ("karpenter-kwok", "kuberay-operator")
_SIMULATION_KINDS = ("Stage", "ClusterPortForward", "PortForward", "ClusterLogs", "Logs")
# kwokctl is among the processes to stop: an interrupted `up` may have left one at work.
PROCESSES = (*CONTROL_PLANE, *OPERATORS, "kwokctl")


def alive(layout: Layout, programs: dict[str, Path]) -> set[str]:
    """The components that run, from the current toolchain: an upgrade's programs replace those that run."""
    return {
        process.program
        for process in processes.running(layout.cluster, PROCESSES)
        if process.program != "kwokctl"
        and Path(process.argv[0]).resolve() == programs[program(process.program)].resolve()
    }


def stop(layout: Layout) -> None:
    """End all processes of the cluster."""
    # etcd last: an API server without it does not end when asked. Killing the API server loses nothing; asked,
    # it would wait up to a minute for its clients' watches.
    processes.stop(layout.cluster, [name for name in PROCESSES if name != "etcd"], patience_s=2)
    processes.stop(layout.cluster, ["etcd"])


def start(layout: Layout, programs: dict[str, Path], report: Report) -> None:
    """Start what a stopped, killed or half-made cluster left, with its data; or else a new one."""
    etcd = layout.kwok_cluster / "etcd"
    recovering = etcd.exists()
    report("starting the stopped or half-made cluster again" if recovering else "starting the control plane")
    stop(layout)
    try:
        _create(layout, programs, report)
    except ClusterError:
        if not recovering:
            raise
        report("its stored state does not start any more: making the cluster anew")
        stop(layout)
        shutil.rmtree(layout.kwok_cluster)
        _create(layout, programs, report)


def _create(layout: Layout, programs: dict[str, Path], report: Report) -> None:
    listen = ports.choose(layout.ports, report)
    # kwokctl skips its set-up when it finds kwok.yaml, even one of other ports and programs. Without it, it
    # sets up again and keeps the certificates and etcd's data. Of pid files it believes any number in use.
    (layout.kwok_cluster / "kwok.yaml").unlink(missing_ok=True)
    for folder in ("pids", "bin"):
        shutil.rmtree(layout.kwok_cluster / folder, ignore_errors=True)
    config = _config_file(layout)
    config.write_text(yaml.safe_dump(_kwokctl_config(listen, programs)))
    command = [
        str(programs["kwokctl"]),
        f"--config={config}",
        f"--name={layout.cluster_name}",
        "create",
        "cluster",
        f"--kubeconfig={layout.kubeconfig}",
        f"--timeout={api.START_TIMEOUT_S}s",
    ]
    # kwokctl prefers a kubectl on PATH to the one it is given.
    path = f"{programs['kubectl'].parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = api.clean_environment() | {"KWOK_WORKDIR": str(layout.kwok_workdir), "PATH": path}
    log = layout.logs / "kwokctl.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + api.START_TIMEOUT_S
    while time.monotonic() < deadline:
        with log.open("w") as output:
            kwokctl = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            try:
                _wait_while_etcd_runs(layout, kwokctl)
            finally:
                kwokctl.kill()
                kwokctl.wait()
        if "etcd" not in alive(layout, programs):
            break
        # On a slow machine a component may give up waiting for the API server; kwokctl, run again, starts it again.
        if alive(layout, programs).issuperset(CONTROL_PLANE) and api.answers(layout, programs):
            return
    culprit = "kube-apiserver" if "etcd" in alive(layout, programs) else "etcd"
    culprit_log = layout.kwok_cluster / "logs" / f"{culprit}.log"
    raise ClusterError(
        f"the control plane did not start; the end of {log}:\n{processes.tail(log, 5)}\n"
        f"the end of {culprit_log}:\n{processes.tail(culprit_log, 5)}",
        next_step="`modelstacks local down`, then `modelstacks local up`",
    )


def _wait_while_etcd_runs(layout: Layout, kwokctl: subprocess.Popen[bytes]) -> None:
    """Wait for kwokctl, but not for the minutes that it waits for an API server whose etcd has ended."""
    seen = False
    while kwokctl.poll() is None:
        alive = bool(processes.running(layout.cluster, ["etcd"]))
        if seen and not alive:
            return
        seen = seen or alive
        with contextlib.suppress(subprocess.TimeoutExpired):
            kwokctl.wait(0.2)


def _config_file(layout: Layout) -> Path:
    return layout.cluster / "kwokctl.yaml"


def is_current(layout: Layout, programs: dict[str, Path]) -> bool:
    """The cluster was made with today's options."""
    try:
        made = yaml.safe_load(_config_file(layout).read_text())
        return bool(made == _kwokctl_config(ports.remembered(layout.ports), programs))
    except (OSError, KeyError, yaml.YAMLError):
        return False


def _kwokctl_config(listen: dict[str, int], programs: dict[str, Path]) -> dict[str, Any]:
    return {
        "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
        "kind": "KwokctlConfiguration",
        "options": {
            "runtime": "binary",
            "bindAddress": ports.HOST,
            "kubeVersion": toolchain.version(toolchain.PROGRAMS["kube-apiserver"]),
            "etcdBinary": str(programs["etcd"]),
            "kubeApiserverBinary": str(programs["kube-apiserver"]),
            "kubeControllerManagerBinary": str(programs["kube-controller-manager"]),
            "kubeSchedulerBinary": str(programs["kube-scheduler"]),
            "kwokControllerBinary": str(programs["kwok"]),
            "kubectlBinary": str(programs["kubectl"]),
            "etcdPort": listen["etcd"],
            "etcdPeerPort": listen["etcd-peer"],
            "kubeApiserverPort": listen["kube-apiserver"],
            "kubeControllerManagerPort": listen["kube-controller-manager"],
            "kubeSchedulerPort": listen["kube-scheduler"],
            "kwokControllerPort": listen["kwok"],
            # How simulated pods live, what answers for them and what they log are objects that can be changed.
            "enableCRDs": list(_SIMULATION_KINDS),
            # A restarted KWOK waits for the leases of the one before, which kwokctl makes five times as long: minutes,
            # by default, in which no pod becomes ready.
            "nodeLeaseDurationSeconds": 2,
        },
    }


def program(component: str) -> str:
    # kwokctl starts `kwok` through a link of another name.
    return "kwok" if component == "kwok-controller" else component
