"""Replicas over several nodes on the real control plane, by KubeRay's own operator: changed, replaced, gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelstacks import documents, render, stackfile
from modelstacks.catalog import Catalog
from modelstacks.cluster.connection import Cluster
from modelstacks.cluster.nodes import pod_templates
from modelstacks.plan import plan
from tests.embedded.conftest import ROOT, Checkout, trial_pod
from tests.embedded.test_cloud_kinds import DEFINITIONS, modules
from tests.embedded.test_journey import changes, gpus_of
from tests.waiting import eventually

__all__ = ["modules"]
pytestmark = pytest.mark.embedded

CATALOG = Catalog()
STACK = "deepseek-r1"


def pods(checkout: Checkout) -> list[dict[str, Any]]:
    found = checkout.objects("pods", "-n", STACK)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def clusters(checkout: Checkout) -> list[dict[str, Any]]:
    return checkout.objects("rayclusters", "-n", STACK)


def names(checkout: Checkout) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods(checkout)}


def is_whole(checkout: Checkout) -> bool:
    """One head without GPUs and two workers with eight each, all running, no two workers on one node."""
    found = pods(checkout)
    workers = [pod for pod in found if gpus_of(pod)]
    return (
        [pod["status"]["phase"] for pod in found] == ["Running"] * 3
        and [gpus_of(pod) for pod in workers] == [8, 8]
        and len({pod["spec"]["nodeName"] for pod in workers}) == 2
    )


def up(checkout: Checkout) -> None:
    checkout.run("pulumi", "up", "--yes", "--non-interactive", "-s", STACK)


def test_a_replica_is_changed_in_place_or_replaced_and_leaves_nothing(checkout: Checkout) -> None:
    """Never a GPU more than the quota has, whichever way the change goes.

    A second cluster beside the first is begun only when Serve answered, which simulated pods never do.
    """
    checkout.copy_stack(STACK)
    checkout.modelstacks("local", "up", STACK)
    checkout.source_env()
    eventually("a whole replica", lambda: is_whole(checkout))
    (service,) = checkout.objects("rayservices", "-n", STACK)
    (application,) = documents.read(service["spec"]["serveConfigV2"], source="serveConfigV2")[0]["applications"]
    kept = names(checkout)

    checkout.edit(STACK, "context: 65536", "context: 32768")
    assert changes(checkout, STACK) == {"update": {"RayService", "ConfigMap"}}
    up(checkout)
    (service,) = checkout.objects("rayservices", "-n", STACK)
    (changed,) = documents.read(service["spec"]["serveConfigV2"], source="serveConfigV2")[0]["applications"]
    assert changed["name"] != application["name"]
    assert names(checkout) == kept, "on the same pods"

    # Other variables are other pods: without spare GPUs the old cluster goes first.
    checkout.edit(STACK, "replicas: 1", "replicas: 1\n  modelstacks:hubTokenSecret: other")
    assert any("replace" in operation for operation in changes(checkout, STACK))
    up(checkout)
    eventually("a whole new replica", lambda: is_whole(checkout) and not names(checkout) & kept)
    assert len(clusters(checkout)) == 1
    (quota,) = checkout.objects("resourcequotas", "-n", STACK)
    assert quota["status"]["used"]["requests.nvidia.com/gpu"] == "16"

    # KubeRay keeps a cluster of this sort until it has cleaned its Redis up.
    state = '{redis: "redis.state.svc:6379", passwordSecret: redis}'
    checkout.edit(STACK, "hubTokenSecret: other", f"headRecovery: {state}")
    up(checkout)
    eventually("a whole replica with its state kept", lambda: is_whole(checkout))
    eventually(
        "the operator takes it so",
        lambda: any("gcs-ft-redis" in f for c in clusters(checkout) for f in c["metadata"].get("finalizers", [])),
    )
    checkout.run("pulumi", "destroy", "--yes", "--non-interactive", "-s", STACK)
    assert STACK not in [item["metadata"]["name"] for item in checkout.objects("namespaces")]
    assert not checkout.objects("rayclusters", "-A")
    own = ("-l", f"karpenter.sh/nodepool={STACK}")
    eventually("no GPU is left", lambda: not checkout.objects("nodes", *own))


def test_groups_are_accepted_by_their_own_definition(running: Checkout, modules: dict[str, Path]) -> None:
    """LeaderWorkerSet's real definition with strict fields, and its pods under the namespace's security level."""
    (row,) = [r for r in documents.read_file(DEFINITIONS / "modules.yaml") if r["module"] == "sigs.k8s.io/lws"]
    (file,) = row["files"]
    running.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(modules[row["module"]] / file))
    name = "leaderworkersets.leaderworkerset.x-k8s.io"
    eventually("the kind is served", lambda: "Established" in running.kubectl("get", "crd", name, "-o", "yaml"))
    cluster = Cluster.connect(running.exports["KUBECONFIG"], None, None)
    trial = "trial-groups"
    running.kubectl("create", "namespace", trial)
    running.kubectl("label", "namespace", trial, "pod-security.kubernetes.io/enforce=restricted")
    tried = 0
    for stack in stackfile.stack_names(ROOT):
        path = stackfile.stack_file(ROOT, stack)
        for cloud in ({"kind": "existing"}, {"kind": "karpenter-aws", "zones": ["us-east-1a"], "limitGpus": 64}):
            declared = stackfile.parse_file(path, CATALOG, overlay={"cloud": cloud})
            if plan(declared, CATALOG, stack=stack, thorough=False).nodes_per_replica == 1:
                continue
            overlay = {"cloud": cloud, "launcher": "leader-worker-set"}
            decided = plan(stackfile.parse_file(path, CATALOG, overlay=overlay), CATALOG, stack=stack, thorough=False)
            if not decided.fits:
                continue
            (groups,) = [m for m in render.render(decided, CATALOG) if m["kind"] == "LeaderWorkerSet"]
            groups["metadata"]["namespace"] = trial
            cluster.apply(groups, "trial", dry_run=True, force=True)
            for _, _, template in pod_templates(groups):
                pod = json.dumps(trial_pod(template, trial))
                running.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", text=pod)
            tried += 1
    assert tried >= 4
    running.kubectl("delete", "namespace", trial, "--wait=false")
