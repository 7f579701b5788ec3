"""Dynamic Resource Allocation on the embedded cluster: the real scheduler gives a server the GPUs of its claim."""

from __future__ import annotations

import json

import pytest

from modelstacks import documents, render
from modelstacks.local import nodes
from tests.embedded.conftest import Checkout
from tests.embedded.test_cloud_kinds import CATALOG, decide
from tests.waiting import eventually

pytestmark = pytest.mark.embedded

PRODUCT = "NVIDIA L4"


def gpu_node(name: str, devices: int, product: str = PRODUCT) -> list[dict[str, object]]:
    """A node without any device plugin, and what NVIDIA's driver publishes of its GPUs."""
    node = {**nodes.always_there()[1]}
    resources = {"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "1000Gi"}
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    node["metadata"] = {"name": name, "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": labels}
    node["spec"] = {"taints": [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}]}
    node["status"] = {"capacity": resources, "allocatable": resources}
    listed = [
        {"name": f"gpu-{n}", "attributes": {"productName": {"string": product}, "type": {"string": "gpu"}}}
        for n in range(devices)
    ]
    slices = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{name}-gpus"},
        "spec": {
            "driver": "gpu.nvidia.com", "nodeName": name, "devices": listed,
            "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
        },
    }  # fmt: skip
    return [node, slices]


def test_a_server_gets_the_gpus_of_its_claim(running: Checkout) -> None:
    """Only the node with enough GPUs of the plan's product takes it; the doctor is content, and the quota counts."""
    decided = decide("quickstart", {"kind": "existing", "gpuAllocation": "dra"})
    manifests = render.render(decided, CATALOG)
    space = "claims"
    device_class = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": "gpu.nvidia.com"},
        "spec": {"selectors": [{"cel": {"expression": "device.driver == 'gpu.nvidia.com'"}}]},
    }
    made = [device_class, *gpu_node("dra-a10", 1, "NVIDIA A10G"), *gpu_node("dra-l4", 1)]
    try:
        for found in made:
            running.kubectl("apply", "--server-side", "-f", "-", text=documents.write(found))
        running.kubectl("create", "namespace", space)
        for manifest in manifests:
            if manifest["kind"] in ("ResourceClaimTemplate", "ResourceQuota", "ServiceAccount", "Deployment"):
                manifest["metadata"]["namespace"] = space
                running.kubectl("apply", "--server-side", "-f", "-", text=documents.write(manifest))

        def hosts() -> list[str]:
            return [p["spec"].get("nodeName", "") for p in running.objects("pods", "-n", space)]

        eventually("the pod is on the L4", lambda: hosts() == ["dra-l4"])
        (claim,) = running.objects("resourceclaims", "-n", space)
        (given,) = claim["status"]["allocation"]["devices"]["results"]
        assert (given["driver"], given["pool"]) == ("gpu.nvidia.com", "dra-l4")
        running.kubectl("scale", "deployment", "quickstart", "-n", space, "--replicas=2")
        claims = ("resourceclaims", "-n", space)
        eventually("the quota or the devices end it", lambda: len(running.objects(*claims)) == 1)
        assert sorted(hosts()) in (["", "dra-l4"], ["dra-l4"])
    finally:
        running.kubectl("delete", "namespace", space, "--wait=true", "--timeout=60s")
        for found in made:
            metadata = json.loads(json.dumps(found))["metadata"]
            running.kubectl("delete", str(found["kind"]).lower(), metadata["name"], "--ignore-not-found")
