"""The LeaderWorkerSet launcher's part of the template context: vLLM's own processes on every node, and no Ray."""

from __future__ import annotations

from typing import Any

from modelstacks.catalog import Catalog
from modelstacks.plan import Plan
from modelstacks.plan.rollout import rollout
from modelstacks.render.cloud import affinity
from modelstacks.render.templates import part

# vLLM's --master-port by default; ranks meet there, and talk on random ports after that.
_MASTER_PORT = 29501
# Of LeaderWorkerSet, one value for each group.
_GROUP_LABEL = "leaderworkerset.sigs.k8s.io/group-index"


def values(plan: Plan, catalog: Catalog, container: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """The pod templates of leader and workers, from the container that would serve alone, and how groups change."""
    several = [
        "--nnodes", str(plan.nodes_per_replica), "--master-addr", "$(LWS_LEADER_ADDRESS)",
        "--master-port", str(_MASTER_PORT), "--distributed-executor-backend", "mp",
        # Ten minutes by default (NCCL): nodes come, and fetch, at speeds of their own.
        "--distributed-timeout-seconds", context["text"]["startup_s"],
        "--cpu-distributed-timeout-seconds", context["text"]["startup_s"],
    ]  # fmt: skip
    host = {"name": "VLLM_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    leave = {"preStop": {"sleep": {"seconds": context["leave_s"]}}}
    both = container | {
        "env": [*container["env"], host, *context["fabric"]["env"]],
        "lifecycle": leave,
        "securityContext": context["worker_security"],
        "volumeMounts": [*container["volumeMounts"], *context["fabric"]["mounts"]],
    }
    leader = both | {"args": [*container["args"], *several, "--node-rank", "0"]}
    # Workers open no port, so nothing can be asked of them: a dead rank ends the whole group.
    probes = ("startupProbe", "readinessProbe", "livenessProbe", "ports")
    worker = {key: value for key, value in both.items() if key not in probes}
    worker["args"] = [*container["args"], *several, "--node-rank", "$(LWS_WORKER_INDEX)", "--headless"]
    placed = affinity(plan, context["worker_labels"], context["worker_labels"])
    # Which group a pod is of is known only when it is made: its own value of the label is meant.
    for terms in placed["podAffinity"].values():
        for term in terms:
            term.get("podAffinityTerm", term)["matchLabelKeys"] = [_GROUP_LABEL]

    def pod(container: dict[str, Any]) -> Any:
        group = {"group": {"container": container, "affinity": placed}}
        return part(catalog, "parts/grouppod.yaml.j2", context | group)

    # A surge is a whole group more: only where the stack may hold its GPUs.
    surge = int(rollout(plan).comes_first)
    return {"leader": pod(leader), "worker": pod(worker), "surge": surge, "unavailable": 1 - surge}
