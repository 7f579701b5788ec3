"""GPU nodes that Karpenter makes on the embedded cluster, and what runs on them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
import yaml

pytestmark = pytest.mark.embedded

TIMEOUT_S = 60
"""Nodes take 2 to 3 s on an idle machine."""


def eventually(holds: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.3)


class Place:
    """A namespace and the NodePools of one test."""

    def __init__(self, cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        cluster.kubectl("create", "namespace", name)

    def apply(self, *manifests: dict) -> None:
        self.cluster.kubectl("-n", self.name, "apply", "-f", "-", text=yaml.safe_dump_all(manifests))

    def pods(self, phase: str) -> list[dict]:
        listing = self.cluster.kubectl("-n", self.name, "get", "pods", "-o", "json")
        return [pod for pod in json.loads(listing)["items"] if pod["status"].get("phase") == phase]

    def nodes(self) -> list[dict]:
        listing = self.cluster.kubectl("get", "nodes", "-l", f"karpenter.sh/nodepool={self.name}", "-o", "json")
        return json.loads(listing)["items"]

    def events(self) -> str:
        return self.cluster.kubectl("-n", self.name, "get", "events")

    def pool(self, machine: str, gpus: int, **requirements: str) -> dict:
        keys = {"node.kubernetes.io/instance-type": machine, **requirements}
        return {
            "apiVersion": "karpenter.sh/v1",
            "kind": "NodePool",
            "metadata": {"name": self.name},
            "spec": {
                "limits": {"nvidia.com/gpu": str(gpus)},
                "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "1s"},
                "template": {
                    "spec": {
                        "nodeClassRef": {
                            "group": "karpenter.kwok.sh",
                            "kind": "KWOKNodeClass",
                            "name": "default",
                        },
                        "requirements": [
                            {"key": key, "operator": "In", "values": [value]} for key, value in keys.items()
                        ],
                    }
                },
            },
        }

    def deployment(self, replicas: int, gpus: int, **selector: str) -> dict:
        limits = {"nvidia.com/gpu": str(gpus)} if gpus else {}
        container = {"name": "engine", "image": "engine", "resources": {"limits": limits, "requests": {"cpu": "1"}}}
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "engine"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "engine"}},
                "template": {
                    "metadata": {"labels": {"app": "engine"}},
                    "spec": {"nodeSelector": selector, "containers": [container]},
                },
            },
        }


@pytest.fixture
def place(embedded_cluster, request) -> Iterator[Place]:
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    made = Place(embedded_cluster, name)
    yield made
    embedded_cluster.kubectl("delete", "nodepool", name, "--ignore-not-found", "--wait=false")
    embedded_cluster.kubectl("delete", "namespace", name, "--wait=false")


def test_gpu_pod_gets_a_node(place):
    """A pending pod with one GPU brings up one node of the machine type that the pool names."""
    place.apply(place.pool("g6.xlarge", 1), place.deployment(1, 1))
    eventually(lambda: len(place.pods("Running")) == 1)
    (node,) = place.nodes()
    assert node["metadata"]["labels"]["node.kubernetes.io/instance-type"] == "g6.xlarge"
    assert node["metadata"]["labels"]["modelstacks.dev/gpu"] == "l4"
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "1"
    (pod,) = place.pods("Running")
    assert pod["spec"]["nodeName"] == node["metadata"]["name"]


def test_limit_of_the_pool_holds(place):
    """The second GPU is beyond the pool's limit: its pod stays pending, and an event says why."""
    place.apply(place.pool("g6.xlarge", 1), place.deployment(2, 1))
    eventually(lambda: len(place.pods("Running")) == 1 and "exceed limits for nodepool" in place.events())
    assert len(place.pods("Pending")) == 1
    assert len(place.nodes()) == 1


def test_limit_counts_the_machine_not_the_requests(place):
    """A 4-GPU machine counts 4 against the limit though one pod asks for 1 and the next for no room on it."""
    place.apply(place.pool("g6.12xlarge", 7), place.deployment(2, 3))
    eventually(lambda: len(place.pods("Running")) == 1 and "exceed limits for nodepool" in place.events())
    (node,) = place.nodes()
    assert node["status"]["capacity"]["nvidia.com/gpu"] == "4"


@pytest.mark.thorough
def test_two_nodes_of_eight_gpus(place):
    """Two pods of 8 GPUs get a node each, selected by GPU type."""
    place.apply(place.pool("p5.48xlarge", 16), place.deployment(2, 8, **{"modelstacks.dev/gpu": "h100-sxm"}))
    eventually(lambda: len(place.pods("Running")) == 2)
    assert len({pod["spec"]["nodeName"] for pod in place.pods("Running")}) == 2
    assert [node["status"]["allocatable"]["nvidia.com/gpu"] for node in place.nodes()] == ["8", "8"]


@pytest.mark.thorough
def test_empty_node_goes_away(place):
    """Scaled to zero, the pool's nodes are removed."""
    place.apply(place.pool("g6.xlarge", 1), place.deployment(1, 1))
    eventually(lambda: len(place.nodes()) == 1 and len(place.pods("Running")) == 1)
    place.apply(place.deployment(0, 1))
    eventually(lambda: not place.nodes(), timeout_s=120)


def test_pool_of_another_gpu_makes_no_node(place):
    """A pool whose machine has another GPU than the pod selects leaves the pod pending."""
    place.apply(place.pool("g6.xlarge", 8), place.deployment(1, 1, **{"modelstacks.dev/gpu": "a100-40"}))
    eventually(lambda: "FailedScheduling" in place.events())
    assert len(place.pods("Pending")) == 1
    assert place.nodes() == []


@pytest.mark.thorough
def test_cpu_pod_runs_on_a_system_node(place):
    """Pods without GPUs need no pool."""
    place.apply(place.deployment(1, 0))
    eventually(lambda: len(place.pods("Running")) == 1)
    (pod,) = place.pods("Running")
    assert pod["spec"]["nodeName"].startswith("system-")


@pytest.mark.thorough
def test_ray_service_has_head_and_workers(place):
    """KubeRay turns a RayService into a head on a CPU node and workers on GPU nodes."""

    def group(gpus: int) -> dict:
        limits = {"cpu": "4", "memory": "8Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
        container = {"name": "ray", "image": "ray", "resources": {"limits": limits}}
        return {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}

    worker = {"groupName": "gpu", "replicas": 2, "minReplicas": 2, "maxReplicas": 2, **group(8)}
    place.apply(
        place.pool("p4d.24xlarge", 16),
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayService",
            "metadata": {"name": "serve"},
            "spec": {
                "serveConfigV2": "applications: []",
                "rayClusterConfig": {"headGroupSpec": group(0), "workerGroupSpecs": [worker]},
            },
        },
    )
    eventually(lambda: len(place.pods("Running")) == 3)
    kinds = sorted(pod["metadata"]["labels"]["ray.io/node-type"] for pod in place.pods("Running"))
    assert kinds == ["head", "worker", "worker"]
    assert len(place.nodes()) == 2
