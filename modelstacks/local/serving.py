"""`modelstacks local serve`: a server on loopback behind the simulated pods of a stack, as its manifests start it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelstacks.cluster import access, secrets
from modelstacks.cluster.connection import Cluster, Kind, Manifest
from modelstacks.errors import ClusterError, ModelstacksError
from modelstacks.local import journey, ports
from modelstacks.local.layout import Layout
from modelstacks.plan import Plan
from modelstacks.render.values import form_of

Report = Callable[[str], None]
_MANAGER = "modelstacks-local"
_FORWARD = Kind("kwok.x-k8s.io/v1alpha1", "ClusterPortForward")
_ANSWERS_WITHIN_S = 120.0
_LEAVES_WITHIN_S = 10.0


def serve(root: Path, stack: str, report: Report, *, load_s: float, token_s: float) -> None:
    """Serve until interrupted. Raises ClusterError when the stack is not up, or its server ends by itself."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelstacksError(f"{' and '.join(missing)} are not installed", next_step="make env")
    decided = journey.simulated_plan(root, stack)
    layout = Layout.of(root)
    if not layout.kubeconfig.is_file():
        raise ClusterError("the embedded cluster is not up", next_step=f"make up STACK={stack}")
    cluster = access.connect(str(layout.kubeconfig), None)
    container = server_of(cluster, decided)
    port = ports.a_free_one()
    process = start(cluster, decided, container, port, load_s=load_s, token_s=token_s)
    # A terminal's Ctrl-C reaches the server too; asked to end in another way, it must not stay behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        await_answers(process, port)
        cluster.apply(forward(decided, form_of(decided).port, port), _MANAGER, force=True)
        report(f"pods of {stack} answer with http://{ports.HOST}:{port}; next: modelstacks try {stack} --local")
        code = process.wait()
        raise ClusterError(
            f"the server of {stack} ended with code {code}", next_step=f"modelstacks local serve {stack}"
        )
    except KeyboardInterrupt:
        report("stopped")
    finally:
        process.terminate()
        try:
            process.wait(timeout=_LEAVES_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # A cluster that is gone has forgotten it already.
        with contextlib.suppress(ClusterError):
            cluster.delete(_FORWARD, None, decided.name, "Background")


def server_of(cluster: Cluster, plan: Plan) -> Manifest:
    """The container of the servers as the cluster has it. Raises ClusterError when the stack is not there."""
    if plan.tier_form.kind != "Deployment":
        raise ClusterError(
            f"{plan.stack} runs over several nodes",
            next_step=f"modelstacks local ray {plan.stack} runs its application",
        )
    live = cluster.get(Kind("apps/v1", "Deployment"), plan.namespace, plan.name)
    if live is None:
        raise ClusterError(f"{plan.stack} is not on the embedded cluster", next_step=f"make up STACK={plan.stack}")
    found: Manifest = next(c for c in live["spec"]["template"]["spec"]["containers"] if c["name"] == "server")
    return found


def start(
    cluster: Cluster, plan: Plan, container: Manifest, port: int, *, load_s: float, token_s: float
) -> subprocess.Popen[bytes]:
    """The server's process, with the container's arguments and the key of its API."""
    engine = plan.choice.engine
    env = dict(os.environ)
    key = secrets.api_key(cluster, plan)
    if key is not None:
        env[form_of(plan).api_key_env] = key
    command = [
        sys.executable, "-m", "modelstacks.local.modelserver", "--engine", engine, "--listen", str(port),
        "--load-s", str(load_s), "--token-s", str(token_s), "--kv-tokens", str(plan.memory.kv_cache_tokens),
        "--", *container["args"],
    ]  # fmt: skip
    return subprocess.Popen(command, env=env)


def await_answers(process: subprocess.Popen[Any], port: int) -> None:
    """Return when the server is healthy. Raises ClusterError when it ends or stays silent."""
    deadline = time.monotonic() + _ANSWERS_WITHIN_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ClusterError(f"the server ended with code {process.returncode} before it answered, see above")
        try:
            with opener.open(f"http://{ports.HOST}:{port}/health", timeout=2):
                return
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.1)
    raise ClusterError(f"the server did not answer within {_ANSWERS_WITHIN_S:.0f} s")


def forward(plan: Plan, port: int, local: int) -> Manifest:
    """KWOK's object by which a port of the namespace's pods is a port of loopback."""
    return {
        "apiVersion": _FORWARD.api_version,
        "kind": _FORWARD.kind,
        "metadata": {"name": plan.name},
        "spec": {
            "selector": {"matchNamespaces": [plan.namespace]},
            "forwards": [{"ports": [port], "target": {"address": ports.HOST, "port": local}}],
        },
    }
