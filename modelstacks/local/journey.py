"""`modelstacks local up <stack>`: toolchain, embedded cluster, `pulumi up`, and a summary with what to type next."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from modelstacks import render, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput, ClusterError, Problem
from modelstacks.fields import nearest
from modelstacks.local import cluster, machines, processes, toolchain, workspace
from modelstacks.local.layout import Layout
from modelstacks.plan import Plan, plan

Report = Callable[[str], None]

# Simulated pods start within seconds once Karpenter has made their nodes.
_PODS_TIMEOUT_S = 180


def up(root: Path, stack: str, report: Report, without: Collection[str] = ()) -> list[str]:
    """Bring up `stack` on simulated nodes and return the summary; machine types in `without` are sold out.

    Everything that can be refused is refused before anything is built or started.
    """
    decided = simulated_plan(root, stack)
    layout = Layout.of(root)
    pulumi = start(root, layout, report, without)
    run_pulumi(layout, pulumi, ["up", "--yes", "--stack", stack], report)
    if decided.tier_form.waits_for is not None:
        report("simulated pods run no Ray: for this tier `up` waits for a running head and workers, not for Serve")
        _await_pods(layout, decided)
    return summary(layout, decided, stack)


def preview(root: Path, stack: str, report: Report) -> None:
    """Show what `pulumi up` would change on the embedded cluster."""
    simulated_plan(root, stack)
    layout = Layout.of(root)
    pulumi = start(root, layout, report)
    run_pulumi(layout, pulumi, ["preview", "--diff", "--stack", stack], report)


def simulated_plan(root: Path, stack: str) -> Plan:
    """The stack's plan with simulated nodes in place of its cloud. Raises BadInput or Refused."""
    catalog = Catalog()
    path = stackfile.stack_file(root, stack)
    decided = plan(stackfile.parse_file(path, catalog, overlay=overlay(path, catalog)), catalog, stack=stack)
    decided.check_runs()
    return decided


def overlay(path: Path, catalog: Catalog) -> dict[str, Any]:
    """What differs on the embedded cluster: simulated nodes, unless the stack asks for them itself."""
    declared = stackfile.parse_file(path, catalog)
    own = declared.cloud is not None and declared.cloud.kind == "kwok"
    one: dict[str, Any] = {"clusters": []} if declared.clusters else {}
    return one if own else one | {"cloud": {"kind": "kwok"}}


def start(root: Path, layout: Layout, report: Report, without: Collection[str] = ()) -> Path:
    """A running cluster and a prepared local project; returns the Pulumi program."""
    offered = Catalog().machines
    unknown = sorted(set(without) - {machine.name for machine in offered})
    if unknown:
        near = nearest(unknown[0], tuple(machine.name for machine in offered))
        problem = Problem("--without", f"{unknown[0]!r} is no machine type of the catalogue", unknown[0], None, near)
        raise BadInput([problem], source="local up", next_step="modelstacks gpus --json lists them")
    pulumi = toolchain.pulumi_program(layout.cache, report, beside=toolchain.CLUSTER)
    cluster.up(layout, machines.simulated(offered), report, without)
    for name in workspace.choose_plugins(layout, pulumi):
        report(f"{name}: the official plugin is neither installed nor to be had here, so modelstacks' stand-in is used")
    workspace.prepare(layout, root)
    return pulumi


def variables(root: Path, layout: Layout) -> dict[str, str]:
    """The environment of the embedded cluster for a shell. Raises ClusterError when it was never started."""
    if not layout.kubeconfig.is_file():
        raise ClusterError("the embedded cluster is not up", next_step="make up")
    workspace.prepare(layout, root)

    def quiet(_line: str) -> None:
        return

    pulumi = toolchain.pulumi_program(layout.cache, quiet)
    kubectl = toolchain.ensure(["kubectl"], layout.cache, quiet)["kubectl"]
    return workspace.environment(layout, pulumi, kubectl)


def run_pulumi(layout: Layout, pulumi: Path, arguments: list[str], report: Report) -> None:
    """Run the engine in the local project with its output passed through. Raises ClusterError when it fails."""
    kubectl = toolchain.ensure(["kubectl"], layout.cache, report)["kubectl"]
    environment = {**os.environ, **workspace.environment(layout, pulumi, kubectl)}
    stack = arguments[-1]
    known = subprocess.run(
        [pulumi, "stack", "ls", "--json"], env=environment, capture_output=True, text=True, check=False
    )
    if known.returncode != 0:
        raise ClusterError(f"pulumi stack ls failed: {known.stderr.strip()}", next_step="modelstacks local status")
    if stack not in {entry["name"] for entry in json.loads(known.stdout or "[]")}:
        made = subprocess.run(
            [pulumi, "stack", "init", stack, "--non-interactive"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise ClusterError(f"pulumi stack init {stack} failed: {made.stderr.strip()}")
    if workspace.lock_is_stale(layout, stack):
        report("an earlier pulumi was killed and left its lock: released")
        subprocess.run([pulumi, "cancel", "--yes", "--stack", stack], env=environment, capture_output=True, check=False)
    report(f"pulumi {shlex.join(arguments)}")
    if processes.attend([str(pulumi), *arguments, "--non-interactive"], environment=environment) != 0:
        raise ClusterError(
            f"pulumi {arguments[0]} of {stack} failed, see above",
            next_step=f"mend what is named above; make up STACK={stack} goes on where it stopped",
        )


def summary(layout: Layout, decided: Plan, stack: str) -> list[str]:
    """What runs now, what it would cost for real, and what to type next."""
    pods = _pods(layout, decided.namespace)
    used = {pod["node"] for pod in pods}
    nodes = [node for node in cluster.status(layout).nodes if node.gpus and node.name in used]
    month = decided.cost.usd_per_month
    machine = decided.cost.machine
    choice = decided.choice
    lines = ["", f"{stack} is up: {choice.model.name} {choice.quantization} on {choice.engine}, tier {choice.tier}"]
    lines += [f"  node      {node.name}  {node.instance_type}  {node.gpus} GPU(s)" for node in nodes]
    lines += [f"  pod       {pod['name']}  {pod['phase']}  on {pod['node']}" for pod in pods]
    lines += [
        f"  endpoint  {render.endpoint(decided)} (simulated: nothing answers there)",
        f"  plan      {choice.topology.gpus} × {choice.gpu.id} a replica, {decided.memory.kv_cache_tokens:,} tokens of "
        f"KV cache, {choice.load.concurrency} × {choice.load.context:,} guaranteed",
    ]
    if month is not None and machine is not None:
        lines.append(
            f"  cost      ${month:,.0f} a month for real ({decided.cost.machines} × {machine.cloud} {machine.name})"
        )
    lines += [
        "",
        "next:",
        '  eval "$(.venv/bin/modelstacks local env)"      # pulumi and kubectl now mean this cluster',
        f"  edit modelstacks:replicas in stacks/Pulumi.{stack}.yaml, then: pulumi up -s {stack}",
        "  make down                                       # stops everything and leaves nothing",
    ]
    return lines


def _await_pods(layout: Layout, decided: Plan) -> None:
    """Wait until every GPU pod of the plan runs. Raises ClusterError that names those that do not."""
    expected = (decided.nodes_per_replica + decided.tier_form.helpers_per_replica) * decided.spec.replicas
    deadline = time.monotonic() + _PODS_TIMEOUT_S
    while True:
        pods = _pods(layout, decided.namespace)
        running = [pod for pod in pods if pod["phase"] == "Running"]
        if len(running) == len(pods) == expected:
            return
        if time.monotonic() > deadline:
            waiting = ", ".join(f"{pod['name']} is {pod['phase']}" for pod in pods if pod not in running)
            raise ClusterError(
                f"{len(running)} of {expected} pods run after {_PODS_TIMEOUT_S} s: {waiting or 'no others exist'}",
                next_step=f"kubectl describe pods -n {decided.namespace}",
            )
        time.sleep(1)


def _pods(layout: Layout, namespace: str) -> list[dict[str, str]]:
    kubectl = toolchain.home(layout.cache, toolchain.PROGRAMS["kubectl"]) / "bin" / "kubectl"
    command = [str(kubectl), f"--kubeconfig={layout.kubeconfig}", "get", "pods", "-n", namespace, "-o", "json"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    items = json.loads(listing.stdout)["items"] if listing.returncode == 0 else []
    return [
        {
            "name": item["metadata"]["name"],
            "phase": item["status"].get("phase", "Unknown"),
            "node": item["spec"].get("nodeName", "no node yet"),
        }
        for item in sorted(items, key=lambda item: str(item["metadata"]["name"]))
    ]
