"""Scarce capacity on the embedded cluster: what `pulumi up`, `status` and `doctor` say names the cause.

Real Karpenter and a real scheduler; only nodes and kubelets are simulated.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelstacks import documents
from tests.embedded.conftest import Checkout
from tests.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.embedded

STACK = "quickstart"
# Servers go before pods without a class, so who takes a node from them has a higher one.
AHEAD = {
    "apiVersion": "scheduling.k8s.io/v1",
    "kind": "PriorityClass",
    "metadata": {"name": "ahead-of-servers"},
    "value": 2000,
    "preemptionPolicy": "Never",
}
FOREIGN = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "intruder", "namespace": "default"},
    "spec": {
        "priorityClassName": "ahead-of-servers",
        "nodeSelector": {"modelstacks.dev/pool": STACK},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "hold", "image": "pause", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
    },
}


@pytest.fixture
def fresh(checkout: Checkout) -> Iterator[Checkout]:
    """The quickstart stack with one replica on a node of its own that nobody harmed, and nothing else on the pool."""
    checkout.copy_stack(STACK)
    checkout.modelstacks("local", "up", STACK)
    checkout.source_env()
    yield checkout
    checkout.run("pulumi", "cancel", "--yes", "-s", STACK, check=False)
    checkout.copy_stack(STACK)
    checkout.kubectl("delete", "pod", "intruder", "--force", "--ignore-not-found")
    checkout.run("pulumi", "destroy", "--yes", "--non-interactive", "-s", STACK)
    own = ("-l", f"karpenter.sh/nodepool={STACK}")
    eventually("no claim is left", lambda: not checkout.objects("nodeclaims.karpenter.sh", *own))


def hear(checkout: Checkout, *texts: str) -> str:
    """What `pulumi up` prints until all of `texts` were said; then it is interrupted as with Ctrl-C."""
    environment = {**os.environ, **checkout.exports, "MODELSTACKS_STATE_DIR": str(checkout.state)}
    log = checkout.state / "heard.log"
    with log.open("w") as written:
        up = subprocess.Popen(
            ["pulumi", "up", "--yes", "--non-interactive", "--skip-preview", "-s", STACK],
            cwd=checkout.folder, env=environment, stdout=written, stderr=subprocess.STDOUT,
        )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        try:
            while not all(text in log.read_text() for text in texts):
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                assert up.poll() is None, f"ended: {log.read_text()[-3000:]}"
                time.sleep(1)
        finally:
            up.terminate()
            up.wait(timeout=60)
            said = log.read_text()
            log.unlink()
    return said


def report(checkout: Checkout, command: str, code: int) -> dict[str, Any]:
    """`modelstacks doctor` or `status` of the stack, as JSON."""
    done = checkout.modelstacks(command, STACK, "--local", "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def problems(answer: dict[str, Any]) -> str:
    """Every problem and its mend as one text."""
    found = [f for f in answer["findings"] if f["level"] == "problem"]
    assert all(f["mend"] for f in found), "every problem says what mends it"
    return "\n".join(f"{f['check']}: {f['message']} | {f['mend']}" for f in found)


def patient(holds: Callable[[], bool], what: str) -> None:
    eventually(what, holds)


def test_all_is_well_at_first(fresh: Checkout) -> None:
    """A healthy stack has no problem, and its status counts what the plan counts."""
    assert report(fresh, "doctor", 0)["healthy"]
    answer = report(fresh, "status", 0)
    assert (answer["ready_replicas"], answer["replicas"], answer["gpu_limit"]) == (1, 1, 1)
    assert [node["machine"] for node in answer["nodes"]] == ["g6.xlarge"]
    assert answer["usd_per_hour"] == pytest.approx(0.8048)


def test_a_pool_at_its_limit_names_who_holds_it(fresh: Checkout) -> None:
    """Somebody else's pod took a node of the pool: the second replica cannot come, and a runaway buys nothing."""
    for manifest in (AHEAD, FOREIGN):
        fresh.kubectl("apply", "-f", "-", text=documents.write(manifest))
    fresh.edit(STACK, "replicas: 1", "replicas: 2")
    hear(fresh, "is at its limit: 2 of 2 nvidia.com/gpu", "default/intruder")
    said = problems(report(fresh, "doctor", 1))
    assert "pool: NodePool quickstart is at its limit" in said
    assert "kubectl -n default delete pod intruder" in said
    assert "exceed limits" in said
    answer = report(fresh, "status", 1)
    assert (answer["ready_replicas"], answer["replicas"]) == (1, 2)
    assert {pod["state"] for pod in answer["pods"]} == {"Running", "Unschedulable"}
    assert len(fresh.objects("nodeclaims.karpenter.sh")) == 2, "the limit held"


def test_a_machine_type_that_is_sold_out_is_named(fresh: Checkout) -> None:
    """The cloud has no such machine to give: the way and the type are in the message."""
    fresh.modelstacks("local", "up", STACK, "--without", "g6.xlarge")
    fresh.edit(STACK, "replicas: 1", "replicas: 2")
    hear(fresh, "no g6.xlarge is to be had as on-demand")
    said = problems(report(fresh, "doctor", 1))
    assert "modelstacks:cloud.capacity" in said
    assert len(fresh.objects("nodeclaims.karpenter.sh")) == 1


def test_a_dead_node_is_named_and_replaced(fresh: Checkout) -> None:
    """Its machine is gone: the node and its pod are named until another one serves."""
    (node,) = [n["metadata"]["name"] for n in fresh.objects("nodes", "-l", "karpenter.sh/nodepool=quickstart")]
    (kubelets,) = [
        component["pid"]
        for component in json.loads(fresh.modelstacks("local", "status", "--json").stdout)["components"]
        if component["name"] == "kwok-controller"
    ]
    os.kill(kubelets, signal.SIGSTOP)
    try:
        ready = {"type": "Ready", "status": "False", "reason": "KubeletStopped", "message": "the kubelet stopped"}
        patch = json.dumps({"status": {"conditions": [ready]}})
        fresh.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)
        said = problems(report(fresh, "doctor", 1))
        assert f"node {node} is not ready: the kubelet stopped" in said
        assert f"is on node {node}, which is not ready" in said
    finally:
        os.kill(kubelets, signal.SIGCONT)
    fresh.kubectl("delete", "nodeclaims.karpenter.sh", "--all", "--wait=false")
    fresh.kubectl("delete", "pods", "--all", "-n", STACK, "--force")
    patient(lambda: report_is_healthy(fresh), "another node serves")
    serving = {pod["spec"]["nodeName"] for pod in fresh.objects("pods", "-n", STACK)}
    assert serving
    assert node not in serving


def report_is_healthy(checkout: Checkout) -> bool:
    done = checkout.modelstacks("status", STACK, "--local", "--json", check=False)
    return done.returncode == 0


def test_a_node_without_its_gpus_is_named(fresh: Checkout) -> None:
    """The device plugin never came: the node is there, ready, and offers nothing."""
    (node,) = [n["metadata"]["name"] for n in fresh.objects("nodes", "-l", "karpenter.sh/nodepool=quickstart")]
    fresh.kubectl("annotate", "node", node, "kwok.x-k8s.io/node-")
    patch = json.dumps({"status": {"allocatable": {"nvidia.com/gpu": "0"}}})
    fresh.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)
    said = problems(report(fresh, "doctor", 1))
    assert f"node {node} offers none of its 1 GPUs" in said


def test_a_startup_taint_that_nobody_removes_is_named(fresh: Checkout) -> None:
    """The node waits for a controller that does not run, and the pod for the node."""
    taint = "kind: kwok\n    startupTaints: [{key: example.com/agent, value: starting}]"
    fresh.edit(STACK, "kind: kwok", taint)
    fresh.edit(STACK, "replicas: 1", "replicas: 2")
    hear(fresh, "example.com/agent")
    said = problems(report(fresh, "doctor", 1))
    assert "StartupTaintsExist" in said
    assert "cloud.startupTaints" in said


def test_a_warm_spare_gives_way_to_a_server(fresh: Checkout) -> None:
    """The spare holds a node; a new replica takes its place at once, and the spare waits for another node."""
    fresh.edit(STACK, "kind: kwok", "kind: kwok\n    warmSpares: 1")
    fresh.run("pulumi", "up", "--yes", "--non-interactive", "--skip-preview", "-s", STACK)

    def running() -> list[str]:
        pods = fresh.objects("pods", "-n", STACK)
        return sorted(p["metadata"]["name"].rsplit("-", 2)[0] for p in pods if p["status"]["phase"] == "Running")

    patient(lambda: running() == ["quickstart", "quickstart-spare"], "server and spare run")
    nodes = {n["metadata"]["name"] for n in fresh.objects("nodes", "-l", "karpenter.sh/nodepool=quickstart")}
    assert len(nodes) == 2
    fresh.edit(STACK, "replicas: 1", "replicas: 2")
    fresh.run("pulumi", "up", "--yes", "--non-interactive", "--skip-preview", "-s", STACK)
    pods = fresh.objects("pods", "-n", STACK, "-l", "app.kubernetes.io/instance=quickstart")
    assert {pod["spec"]["nodeName"] for pod in pods} == nodes, "the second server took the spare's node"
    patient(
        lambda: running() == ["quickstart", "quickstart", "quickstart-spare"], "the spare has a node of its own again"
    )
    assert report(fresh, "status", 0)["gpu_limit"] == 3
