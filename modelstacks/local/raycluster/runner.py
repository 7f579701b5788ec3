"""One Ray cluster of one replica: a head without GPUs, simulated GPU nodes, and the serve config on it.

Runs as a process of its own (`python -m modelstacks.local.raycluster.runner FOLDER`), because a process can be in one
Ray cluster only. It reads FOLDER/wanted.json again whenever that changes, and says in FOLDER/status.json how it goes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema
from ray.util import placement_group_table

from modelstacks.local.raycluster.nodes import SimulatedNodes
from modelstacks.local.raycluster.state import Folder

_HEAD_MEMORY = 200 * 2**20
_BEAT_S = 0.5


class Runner:
    """Holds the cluster; `beat` brings it nearer to what is wanted and writes down what is."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._deployed: dict[str, Any] | None = None
        self._client: Any = None
        self._cluster: Any = None
        self._nodes: Any = None
        self._temp = ""
        self._port = 0

    def start(self) -> None:
        """The head and Serve on it, on loopback."""
        wanted = self._folder.wanted()
        # Ray keeps its sockets there, whose paths must be short, and notes there which cluster is the current one.
        # The user's own folder for such things may be a long one.
        self._temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp" if Path("/tmp").is_dir() else None)
        os.environ["RAY_TMPDIR"] = self._temp
        Path(self._temp, "ray").mkdir()
        self._folder.say(self._begun())
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "object_store_memory": _HEAD_MEMORY,
                "dashboard_agent_listen_port": 0, "include_log_monitor": False, "no_monitor": True,
            },
        )  # fmt: skip
        self._nodes = SimulatedNodes(self._cluster, Path(self._temp))
        ray.init(self._cluster.address, namespace="serve", log_to_driver=False, configure_logging=False)
        self._port = wanted.port
        serve.start(http_options={"host": "127.0.0.1", "port": wanted.port, "location": "EveryNode"})
        self._client = serve.context._get_global_client()

    def beat(self) -> None:
        """Add missing nodes, deploy a changed config, write the status."""
        wanted = self._folder.wanted()
        self._nodes.keep(wanted.nodes)
        if wanted.serve_config != self._deployed:
            self._client.deploy_apps(ServeDeploySchema.model_validate(wanted.serve_config))
            self._deployed = wanted.serve_config
        self._folder.say(self._status())

    def stop(self) -> None:
        """End every process of the cluster."""
        # Without ceremony: Ray's own shutdown waits for what nobody needs any more. Workers end with their raylet.
        nodes = self._cluster.list_all_nodes() if self._cluster is not None else []
        for info in [info for node in nodes for infos in node.all_processes.values() for info in infos]:
            with contextlib.suppress(OSError):
                os.kill(info.process.pid, signal.SIGKILL)
        if self._temp:
            shutil.rmtree(self._temp, ignore_errors=True)

    def _begun(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "temp": self._temp}

    def _status(self) -> dict[str, Any]:
        applications = serve.status().applications
        apps = {
            name: {
                "status": str(app.status.value),
                "message": app.message,
                "deployments": {
                    key: {"status": str(one.status.value), "message": one.message}
                    for key, one in app.deployments.items()
                },
            }
            for name, app in applications.items()
        }
        return self._begun() | {
            "address": self._cluster.address,
            "port": self._port,
            "applications": apps,
            "nodes": self._nodes.status(),
            "placement": _placement(),
        }


def _placement() -> list[dict[str, Any]]:
    """Each replica's placement group: GPUs on each node, and the nodes of its bundles in order."""
    found = []
    for group in placement_group_table().values():
        if group["state"] != "CREATED" or not group["name"].startswith("SERVE_REPLICA::"):
            continue
        order = [group["bundles_to_node_id"][index] for index in sorted(group["bundles_to_node_id"])]
        found.append(
            {
                "replica": group["name"].removeprefix("SERVE_REPLICA::"),
                "nodes_of_bundles": order,
                "gpus_of_nodes": {node: order.count(node) for node in dict.fromkeys(order)},
            }
        )
    return found


def main(arguments: list[str]) -> int:
    """Run until asked to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = Folder(parser.parse_args(arguments).folder)
    runner = Runner(folder)
    ended = False

    def end(_signal: int, _frame: object) -> None:
        nonlocal ended
        ended = True

    try:
        runner.start()
        while not ended:
            try:
                runner.beat()
            # Serve's controller is an actor, which Ray starts again when it is lost.
            except ray.exceptions.RayActorError as error:
                print(f"Serve does not answer, trying again: {error}", file=sys.stderr, flush=True)
            # Every node that Ray makes puts a handler of its own here, which would drain that node for a while.
            signal.signal(signal.SIGTERM, end)
            signal.signal(signal.SIGINT, end)
            time.sleep(_BEAT_S)
    except Exception as error:
        folder.fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        runner.stop()
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # The connection to the cluster that has just been ended would be waited for.
    os._exit(code)
