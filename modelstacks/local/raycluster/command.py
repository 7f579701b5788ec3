"""`modelstacks local ray <stack>`: every Ray cluster of a stack for real on this machine, made from its manifests.

Nothing is simplified: the RayServices, the ConfigMaps and the application are those that `pulumi up` would apply; nodes
are Ray's own with GPUs that only it believes in, and the engine is an imitation that holds them.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from modelstacks import project, render, serving, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput, ClusterError, Problem, ToolchainError
from modelstacks.local import locks, ports, processes
from modelstacks.local.layout import Layout
from modelstacks.local.raycluster.state import Folder, NodeSpec, Wanted
from modelstacks.plan import Plan, plan
from modelstacks.render.ray import CODE_ROOT, PLAN_ROOT
from modelstacks.render.templates import Manifest
from modelstacks.render.values import form_of

Report = Callable[[str], None]

# Two minutes on two idle cores; a busy machine is no reason to give up.
_START_WITHIN_S = 600
_BEGINS_WITHIN_S = 5
# Missing nodes would come at once here, so there is no use in waiting longer.
_NODES_WITHIN_S = 15


@dataclass(frozen=True, slots=True)
class Nodes:
    """How the simulated nodes differ from the plan's: for rehearsing what happens then. None: as planned.

    `nodes` is for each replica; `facts` is what every node says of itself (probe.py lists the keys).
    """

    nodes: int | None = None
    gpus: int | None = None
    accelerator_type: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replica:
    """One running Ray cluster: where its API is, the pid of its process, and the node of every rank in order."""

    name: str
    model: str
    endpoint: str
    pid: int
    nodes_of_ranks: tuple[str, ...]

    @property
    def groups(self) -> list[dict[str, Any]]:
        """Runs of ranks on one node."""
        found: list[dict[str, Any]] = []
        for rank, node in enumerate(self.nodes_of_ranks):
            if not found or found[-1]["node"] != node:
                found.append({"node": node, "first_rank": rank, "last_rank": rank})
            found[-1]["last_rank"] = rank
        return found

    def answer(self) -> dict[str, Any]:
        """As JSON."""
        nodes = self.nodes_of_ranks
        return {
            "name": self.name,
            "model": self.model,
            "endpoint": self.endpoint,
            "pid": self.pid,
            "nodes_of_ranks": list(nodes),
            "gpus_of_nodes": {node: nodes.count(node) for node in dict.fromkeys(nodes)},
        }


def up(root: Path, stack: str, report: Report, nodes: Nodes | None = None) -> list[Replica]:
    """Bring the local Ray to what the stack asks for now: new replicas start, gone ones stop, changed ones change.

    Raises ClusterError with the application's own sentence when it stops, and when ten minutes were not enough.
    """
    decided = _plan(root, stack)
    check_installed()
    with _alone(root, report):
        return _up(root, stack, decided, report, nodes or Nodes())


def _up(root: Path, stack: str, decided: Plan, report: Report, nodes: Nodes) -> list[Replica]:
    manifests = render.render(decided, Catalog())
    services = [m for m in manifests if m["kind"] == "RayService"]
    home = _home(root, stack)
    wanted_names = {service["metadata"]["name"] for service in services}
    for old in sorted(path for path in home.glob("*") if path.name not in wanted_names):
        report(f"{old.name} is no replica of {stack} any more: stopping it")
        _stop(old)
    for service in services:
        _want(service, manifests, decided, home, report, nodes)
    return [_await(service, decided, home, report) for service in services]


def down(root: Path, stack: str | None, report: Report) -> None:
    """Stop the local Ray clusters of one stack, or of all. Raises BadInput for what is no name of a stack."""
    if stack is not None:
        stackfile.check_stack_name(stack)
    every = _home(root, "any").parent
    folders = sorted(path for path in every.glob("*") if path.is_dir()) if stack is None else [every / stack]
    with _alone(root, report):
        for folder in folders:
            for replica in sorted(path for path in folder.glob("*") if path.is_dir()):
                report(f"stopping {replica.name}")
                _stop(replica)
            if stack is not None and not folder.is_dir():
                report(f"no local Ray of {stack} runs")
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            every.rmdir()


def _alone(root: Path, report: Report) -> contextlib.AbstractContextManager[None]:
    busy = "another command is at work on the local Ray of this project: waiting for it"
    return locks.held(Layout.of(root).state / "ray.lock", report, busy)


def stream(replica: Replica) -> str:
    """One streamed answer, as text. Raises ClusterError when there is none."""
    messages = [{"role": "user", "content": "Why does this plan fit?"}]
    body = {"model": replica.model, "messages": messages, "max_tokens": 12, "stream": True}
    request = urllib.request.Request(
        f"{replica.endpoint}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    words = []
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                event = line.decode().removeprefix("data: ").strip()
                if event and event != "[DONE]":
                    chunk = json.loads(event)
                    if "error" in chunk:
                        raise ValueError(chunk["error"]["message"])
                    words.append(chunk["choices"][0]["delta"].get("content", ""))
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        raise ClusterError(
            f"{replica.name} gave no answer: {error}", next_step=f"curl {replica.endpoint}/models"
        ) from None
    return "".join(words).strip()


def check_installed() -> None:
    """Raise ToolchainError where Ray is not, which only this tier needs."""
    # Its folder of the same name makes `import ray` succeed in a checkout without Ray.
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        raise ToolchainError("Ray is not installed: it is an extra, which only the ray tier needs",
                             next_step="make env, or pip install 'modelstacks[ray]'") from None  # fmt: skip
    wanted = Catalog().engine_form("vllm", "ray", launcher="ray-serve")
    if wanted is not None and version != wanted.companions["ray"]:
        text = f"Ray {version} is installed, stacks are rendered for {wanted.companions['ray']}"
        raise ToolchainError(text, next_step="make env")


def _plan(root: Path, stack: str) -> Plan:
    catalog = Catalog()
    decided = plan(stackfile.parse_file(stackfile.stack_file(root, stack), catalog), catalog, stack=stack)
    decided.check_runs()
    if decided.tier_form.kind != "RayService":
        how = f"tier {decided.choice.tier}, launched by {decided.tier_form.launcher}"
        problem = Problem("stack", f"{stack} runs without Ray: {how}", stack, "a stack over several nodes")
        raise BadInput([problem], source="local ray", next_step=f"make up STACK={stack}")
    if not decided.spec.replicas:
        problem = Problem("stack", f"{stack} has 0 replicas: nothing to run", stack)
        raise BadInput([problem], source="local ray", next_step=f"modelstacks local ray {stack} --stop")
    return decided


def _home(root: Path, stack: str) -> Path:
    return Layout.of(root).state / "ray" / stack


def _want(
    service: Manifest, manifests: list[Manifest], decided: Plan, home: Path, report: Report, nodes: Nodes
) -> None:
    """Mount the ConfigMaps, say what is wanted, and start the process unless it runs."""
    name = service["metadata"]["name"]
    folder = Folder(home / name)
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    plan_file = _mount(manifests, service, folder)
    for application in config["applications"]:
        application["args"]["plan"] = str(plan_file)
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    container = worker["template"]["spec"]["containers"][0]
    spec = NodeSpec(
        gpus=decided.gpus_per_node if nodes.gpus is None else nodes.gpus,
        accelerator_type=nodes.accelerator_type or decided.choice.gpu.ray_accelerator_type,
        cpus=int(container["resources"]["requests"]["cpu"]),
        facts=nodes.facts,
    )
    # What a running cluster was asked for, be it still starting.
    before = folder.wanted() if _runs(folder) else None
    count = worker["replicas"] if nodes.nodes is None else nodes.nodes
    wanted = Wanted(config, (spec,) * count, 0 if before is None else before.port)
    if before == wanted:
        report(f"{name} runs already, unchanged")
        return
    if before is not None and before.nodes == wanted.nodes:
        folder.want(wanted)
        report(f"{name} has another plan: changing it in place")
        return
    if before is None:
        holder = ports.hold()
    else:
        report(f"{name} gets other nodes: restarting it")
        holder = ports.hold_on(before.port)
        _stop(folder.path, keep=True)
    # The process inherits the socket: Serve listens only a minute later, and then shares its port with any other Serve.
    with holder:
        folder.want(replace(wanted, port=holder.getsockname()[1]))
        _sweep(folder)
        (folder.path / "status.json").unlink(missing_ok=True)
        what = " ".join(filter(None, (str(spec.gpus), spec.accelerator_type)))
        report(f"{name}: a Ray head and {count} nodes with {what} each, on loopback")
        command = [sys.executable, "-m", "modelstacks.local.raycluster.runner", str(folder.path)]
        processes.start(command, environment=environment(decided, folder), log=folder.log)


def _mount(manifests: list[Manifest], service: Manifest, folder: Folder) -> Path:
    """Lay the ConfigMaps of the pods out as the kubelet would; returns the plan file."""
    maps = {m["metadata"]["name"]: m["data"] for m in manifests if m["kind"] == "ConfigMap"}
    head = service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    sources = {v["name"]: v["configMap"]["name"] for v in head["volumes"] if "configMap" in v}
    for mount in head["containers"][0]["volumeMounts"]:
        target = folder.mounts / mount["mountPath"].lstrip("/")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for key, text in maps[sources[mount["name"]]].items():
            (target / key).write_text(text, encoding="utf-8")
    return folder.mounts / PLAN_ROOT.lstrip("/") / "plan.json"


def environment(decided: Plan, folder: Folder) -> dict[str, str]:
    """The variables of a local Ray: loopback alone, the application on the path, the imitation for an engine."""
    stub = Path(__file__).parent / "stub"
    path = [str(stub), str(folder.mounts / CODE_ROOT.lstrip("/")), os.environ.get("PYTHONPATH", "")]
    arguments = project.data_root() / "templates" / "engines" / f"vllm-{form_of(decided).version}-arguments.json"
    return {**os.environ} | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "MODELSTACKS_VLLM_ARGUMENTS": str(arguments),
        "MODELSTACKS_NODES_WITHIN_S": str(_NODES_WITHIN_S),
        "RAYLLM_VLLM_ENGINE_CLS": "modelstacks.local.raycluster.engine.ImitationEngine",
        # Without it Ray takes this machine's outer address on Linux.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    }


def _await(service: Manifest, decided: Plan, home: Path, report: Report) -> Replica:
    """Wait until the application that is wanted serves. Raises ClusterError with its sentence when it stops."""
    name = service["metadata"]["name"]
    folder = Folder(home / name)
    wanted = folder.wanted()
    (application,) = (one["name"] for one in wanted.serve_config["applications"])
    began = time.monotonic()
    while True:
        waited_s = time.monotonic() - began
        status = folder.status() or {}
        app = (status.get("applications") or {}).get(application)
        if "failed" in status:
            raise ClusterError(f"{name}: {status['failed']}", next_step=f"read {folder.log}")
        if not _runs(folder) and waited_s > _BEGINS_WITHIN_S:
            raise ClusterError(f"{name} ended: {processes.tail(folder.log, 3)}", next_step=f"read {folder.log}")
        if app is not None and app["status"] == "DEPLOY_FAILED":
            raise ClusterError(f"{name}: {sentence(app)}", next_step="mend what is named, and run this again")
        placed = [g for g in status.get("placement") or [] if g["replica"].startswith(f"{application}#")]
        if app is not None and app["status"] == "RUNNING" and placed and _answers(wanted.port):
            break
        if waited_s > _START_WITHIN_S:
            said = f"it is {app['status']}" if app is not None else "it has not begun"
            raise ClusterError(
                f"{name} does not serve after {_START_WITHIN_S} s: {said}", next_step=f"read {folder.log}"
            )
        time.sleep(0.3)
    report(f"{name} serves on 127.0.0.1:{wanted.port}")
    endpoint = f"http://127.0.0.1:{wanted.port}/v1"
    return Replica(name, decided.choice.model.id, endpoint, status["pid"], tuple(placed[0]["nodes_of_bundles"]))


def sentence(application: dict[str, Any]) -> str:
    """Why an application stopped."""
    return serving.sentence([application["message"], *(one["message"] for one in application["deployments"].values())])


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def _runs(folder: Folder) -> bool:
    return bool(_processes(folder.path))


def _processes(path: Path) -> list[processes.Process]:
    # The folder is the last argument, so nothing that only mentions it is meant.
    found = processes.running(path.parent, (Path(sys.executable).name,))
    return [
        process for process in found if process.argv[-1] == str(path) and "raycluster.runner" in " ".join(process.argv)
    ]


def _stop(path: Path, *, keep: bool = False) -> None:
    """End a cluster's process, which ends the cluster; what a killed one left behind is ended too."""
    processes.end(lambda: _processes(path), patience_s=20)
    _sweep(Folder(path))
    if not keep:
        shutil.rmtree(path, ignore_errors=True)


def _sweep(folder: Folder) -> None:
    """Kill what a cluster's process has left, which is what Ray's agents do when it was killed itself."""
    status = folder.status() or {}
    if status.get("pid"):
        processes.kill_session(status["pid"], str(folder.mounts))
    if status.get("temp"):
        shutil.rmtree(status["temp"], ignore_errors=True)
