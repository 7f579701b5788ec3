"""The simulated GPU nodes of a Ray cluster: as many as are wanted, whatever becomes of each."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelstacks.local import processes
from modelstacks.local.raycluster.state import NodeSpec

_MEMORY = 100 * 2**20
# A lost node comes back as a worker pod would, and sooner.
REPLACED_AFTER_S = 3.0


class SimulatedNodes:
    """Nodes of `cluster` (ray.cluster_utils.Cluster) whose sockets are in the folder `temp`."""

    def __init__(self, cluster: Any, temp: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._temp = temp
        self._clock = clock
        self._nodes: list[tuple[NodeSpec, Any]] = []
        # With the time of the clock from which each may be added; what is wanted newly, at once.
        self._missing: list[tuple[float, NodeSpec]] = []

    def keep(self, wanted: Sequence[NodeSpec]) -> None:
        """Add what is wanted and not there; take lost nodes away, and add others for them a moment later."""
        self._missing += [(float("-inf"), spec) for spec in wanted[len(self._nodes) + len(self._missing) :]]
        self._remove_lost()
        self._add_missing()

    def status(self) -> list[dict[str, Any]]:
        """Ray's id of each node and the pid of its raylet."""
        return [{"id": node.node_id, "raylet": next(iter(_raylets(node)), None)} for _, node in self._nodes]

    def _remove_lost(self) -> None:
        for spec, node in list(self._nodes):
            if "raylet" not in {name for name, _ in node.live_processes()}:
                self._nodes.remove((spec, node))
                self._remove(node)
                self._missing.append((self._clock() + REPLACED_AFTER_S, spec))

    def _add_missing(self) -> None:
        for due, spec in list(self._missing):
            if self._clock() < due:
                continue
            self._missing.remove((due, spec))
            try:
                self._nodes.append((spec, self._add(spec)))
            # Ray gives a node half a minute, of which a busy machine may need more, and has no class for saying so.
            except Exception as error:
                print(f"a node did not start, another is tried: {error}", file=sys.stderr, flush=True)
                self._end_half_started()
                self._missing.append((self._clock() + REPLACED_AFTER_S, spec))

    def _add(self, spec: NodeSpec) -> Any:
        kind = {f"accelerator_type:{spec.accelerator_type}": 1} if spec.accelerator_type else {}
        return self._cluster.add_node(
            num_cpus=spec.cpus, num_gpus=spec.gpus, resources=kind, object_store_memory=_MEMORY,
            dashboard_agent_listen_port=0, env_vars={"MODELSTACKS_SIMULATED_NODE": json.dumps(spec.facts)},
        )  # fmt: skip

    def _remove(self, node: Any) -> None:
        # Its other processes may be gone by themselves, or not reaped yet.
        with contextlib.suppress(AssertionError, OSError):
            self._cluster.remove_node(node, allow_graceful=False)

    def _end_half_started(self) -> None:
        """End what is left of a node that Ray gave up, before it joins as one too many."""
        for node in self._cluster.worker_nodes - {node for _, node in self._nodes}:
            self._remove(node)
        known = {pid for node in self._cluster.list_all_nodes() for pid in _raylets(node)}
        processes.end(
            lambda: [p for p in processes.running(self._temp, {"raylet"}) if p.pid not in known], patience_s=0
        )


def _raylets(node: Any) -> list[int]:
    return [info.process.pid for info in node.all_processes.get("raylet", [])]
