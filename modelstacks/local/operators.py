"""Gives the cluster its GPU side: Karpenter and KubeRay, their definitions, and the nodes that are always there."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from modelstacks.errors import ClusterError
from modelstacks.local import api, nodes, ports, processes
from modelstacks.local.control_plane import OPERATORS, alive
from modelstacks.local.layout import Layout

# Between the start of a process and its command line in the process table lie microseconds, on a busy machine more.
_SPAWN_S = 2


def define(
    layout: Layout,
    programs: dict[str, Path],
    definitions: Sequence[Path],
    simulation: Sequence[Path],
    stages: Sequence[Path],
) -> None:
    """Bring in the custom resource definitions, the node class and the system nodes; returns when all are ready.

    `simulation` are KWOK's own definitions, `stages` what lets simulated pods and nodes live.
    """
    kubectl = programs["kubectl"]
    server_side = ["apply", "--server-side", "--force-conflicts", "--field-manager=modelstacks-local"]
    files = [argument for file in definitions for argument in ("-f", str(file))]
    wait = f"--timeout={api.START_TIMEOUT_S}s"
    ready = ["wait", "--for=condition=Ready", "node", f"-l{nodes.SYSTEM_LABEL}=true", wait]
    # Server-side apply takes twice as long as a plain create (3 s of 6 for KubeRay's 3 MB), so it is for repairs.
    if api.kubectl(layout, kubectl, ["create", "--validate=false", *files], check=False).returncode != 0:
        api.insist(layout, kubectl, [*server_side, *files])
    api.insist(layout, kubectl, [*server_side, *(argument for file in simulation for argument in ("-f", str(file)))])
    api.insist(layout, kubectl, ["wait", "--for=condition=Established", "crd", "--all", wait])
    api.insist(layout, kubectl, [*server_side, *(argument for file in stages for argument in ("-f", str(file)))])
    api.insist(layout, kubectl, [*server_side, "-f", "-"], text=yaml.safe_dump_all(nodes.always_there()))
    api.insist(layout, kubectl, ready)


def start(layout: Layout, programs: dict[str, Path], report: Callable[[str], None]) -> None:
    """Start those operators that do not run; returns when all are healthy."""
    listen = ports.remembered(layout.ports)
    kubeconfig = {"KUBECONFIG": str(layout.kubeconfig)}
    # Each gets a path of the state folder as an argument: processes.running knows them by it.
    karpenter = [
        f"--instance-types-file-path={layout.instance_types}",
        f"--metrics-port={listen['karpenter']}",
        f"--health-probe-port={listen['karpenter-health']}",
        "--disable-leader-election=true",
    ]
    kuberay = [
        f"--kubeconfig={layout.kubeconfig}",
        f"--metrics-addr={ports.HOST}:{listen['kuberay']}",
        f"--health-probe-bind-address={ports.HOST}:{listen['kuberay-health']}",
        "--enable-leader-election=false",
    ]
    running = alive(layout, programs)
    for name, arguments in zip(OPERATORS, (karpenter, kuberay), strict=True):
        if name not in running:
            report(f"starting {name}")
            processes.start(
                [str(programs[name]), *arguments],
                environment=api.clean_environment() | kubeconfig | {"SYSTEM_NAMESPACE": "kube-system"},
                log=layout.logs / f"{name}.log",
            )
    for name, port in zip(OPERATORS, ("karpenter-health", "kuberay-health"), strict=True):
        began = time.monotonic()
        while not _healthy(listen[port]):
            waited_s = time.monotonic() - began
            # A program that was just started has no command line yet, by which it would be found.
            ended = waited_s > _SPAWN_S and name not in alive(layout, programs)
            if waited_s > api.START_TIMEOUT_S or ended:
                log = layout.logs / f"{name}.log"
                raise ClusterError(
                    f"{name} did not become healthy; the end of {log}:\n{processes.tail(log)}",
                    next_step="`modelstacks local up` again, or `modelstacks local down` first",
                )
            time.sleep(0.1)


def _healthy(port: int) -> bool:
    # A proxy in the environment is not asked for loopback addresses.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{ports.HOST}:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
