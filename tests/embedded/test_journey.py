"""The main job with the literal commands: up, scale by editing the stack file, destroy; on a real control plane."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from modelstacks import documents, stackfile
from modelstacks.cluster.nodes import pod_templates
from modelstacks.local import journey
from tests.embedded.conftest import ROOT, Checkout, trial_pod
from tests.waiting import eventually

pytestmark = pytest.mark.embedded

# One stack for each tier and engine; `make test-all` takes every one.
SAMPLE = ("quickstart", "qwen-2.5-72b", "gemma-2-27b", "deepseek-r1")
STACKS = stackfile.stack_names(ROOT) if os.environ.get("MODELSTACKS_ALL_STACKS") else SAMPLE


def gpus_of(pod: dict[str, Any]) -> int:
    """GPUs that a pod holds."""
    return sum(int(c["resources"].get("limits", {}).get("nvidia.com/gpu", 0)) for c in pod["spec"]["containers"])


def changes(checkout: Checkout, stack: str) -> dict[str, set[str]]:
    """What a preview would do: operation → kinds, unchanged resources left out."""
    shown = checkout.run("pulumi", "preview", "--json", "--non-interactive", "-s", stack).stdout
    found: dict[str, set[str]] = {}
    for step in json.loads(shown)["steps"]:
        # The stack itself changes when its outputs do.
        if step["op"] != "same" and not step["urn"].startswith(f"urn:pulumi:{stack}::modelstacks::pulumi:pulumi:Stack"):
            found.setdefault(step["op"], set()).add(step["urn"].split("::")[2].split(":")[-1])
    return found


@pytest.mark.parametrize("stack", STACKS)
def test_up_scale_destroy(stack: str, checkout: Checkout) -> None:
    """GPU pods run on nodes made for them, an edited line scales them, and nothing is left at the end."""
    shipped = checkout.copy_stack(stack)
    said = checkout.modelstacks("local", "up", stack).stdout
    assert f"{stack} is up" in said
    assert checkout.stack_file(stack).read_bytes() == shipped, "up leaves the stack file alone"
    checkout.source_env()
    decided = journey.simulated_plan(checkout.folder, stack)
    assert ("runs no Ray" in " ".join(said.split()) or "run no Ray" in said) == (decided.choice.tier == "ray")

    def gpu_pods() -> list[dict[str, Any]]:
        return [pod for pod in checkout.objects("pods", "-n", decided.namespace) if gpus_of(pod)]

    def all_run_on_their_pool(nodes: int) -> bool:
        pods = gpu_pods()
        pool = {
            node["metadata"]["name"]: int(node["status"]["allocatable"].get("nvidia.com/gpu", 0))
            for node in checkout.objects("nodes", "-l", f"karpenter.sh/nodepool={decided.name}")
        }
        expected = decided.nodes_per_replica * nodes
        running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
        assert len(pods) <= expected + 1, "never more pods than replicas, save one that is leaving"
        return (
            len(running) == len(pods) == expected
            and all(gpus_of(pod) == decided.gpus_per_node for pod in pods)
            and all(pod["spec"]["nodeName"] in pool for pod in pods)
            and decided.cost.machine is not None
            and set(pool.values()) == {decided.cost.machine.gpus}
        )

    eventually("every GPU pod on its own pool", lambda: all_run_on_their_pool(1))
    assert checkout.run("pulumi", "preview", "--expect-no-changes", "--non-interactive", "-s", stack)
    outputs = json.loads(checkout.run("pulumi", "stack", "output", "--json", "-s", stack).stdout)
    assert outputs["model"] == decided.choice.model.id
    assert outputs["gpus"] == decided.gpus
    assert outputs["endpoint"].startswith("http://")

    first = {pod["metadata"]["uid"] for pod in gpu_pods()}
    checkout.edit(stack, "replicas: 1", "replicas: 2")
    planned = changes(checkout, stack)
    if decided.choice.tier == "ray":
        # A replica is a Ray cluster of its own, and the disruption budget counts pods, so it follows.
        assert planned.pop("create") == {"RayService"}
        # What runs is awaited longer, and is not changed.
        assert planned == {"update": {"NodePool", "PodDisruptionBudget", "ResourceQuota", "RayService"}}
    else:
        assert planned.keys() == {"update"}, "nothing is created, replaced or deleted"
        assert planned["update"] <= {"Deployment", "NodePool", "ResourceQuota"}
    checkout.run("pulumi", "up", "--yes", "--non-interactive", "-s", stack)
    eventually("two replicas", lambda: all_run_on_their_pool(2))
    kept = {pod["metadata"]["uid"] for pod in gpu_pods()}
    assert first < kept, "the replica that ran was not restarted"

    checkout.edit(stack, "replicas: 2", "replicas: 1")
    checkout.run("pulumi", "up", "--yes", "--non-interactive", "-s", stack)
    eventually("one replica again", lambda: all_run_on_their_pool(1))
    assert {pod["metadata"]["uid"] for pod in gpu_pods()} < kept, "the replica that stays was not restarted"

    checkout.run("pulumi", "destroy", "--yes", "--non-interactive", "-s", stack)
    namespaces = [item["metadata"]["name"] for item in checkout.objects("namespaces")]
    assert decided.namespace not in namespaces
    # Other tests may have a stack of their own on this cluster.
    assert decided.name not in [pool["metadata"]["name"] for pool in checkout.objects("nodepools.karpenter.sh")]
    own = ("-l", f"karpenter.sh/nodepool={decided.name}")
    eventually("the nodes are gone", lambda: not checkout.objects("nodeclaims.karpenter.sh", *own))
    eventually("no GPU is left", lambda: not checkout.objects("nodes", *own))


@pytest.mark.parametrize("stack", stackfile.stack_names(ROOT))
def test_every_manifest_is_accepted_by_the_api_server(stack: str, running: Checkout) -> None:
    """Strict fields, real CRDs, and the namespace's own Pod Security level for every pod template."""
    checkout = running
    folder = ROOT / "rendered" / stack
    manifests = [documents.read_file(path) for path in sorted(folder.glob("*.yaml"))]
    (namespace,) = [m for m in manifests if m["kind"] == "Namespace"]
    trial = f"trial-{stack.replace('.', '-')}"
    namespace["metadata"]["name"] = trial
    checkout.kubectl("apply", "-f", "-", text=documents.write(namespace))
    try:
        for manifest in manifests:
            if "namespace" in manifest["metadata"]:
                manifest["metadata"]["namespace"] = trial
            apply = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
            checkout.kubectl(*apply, text=documents.write(manifest))
        for _, _, template in (each for manifest in manifests for each in pod_templates(manifest)):
            pod = documents.write(trial_pod(template, trial))
            checkout.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", text=pod)
    finally:
        checkout.kubectl("delete", "namespace", trial, "--wait=false")


def test_an_up_killed_in_the_middle_can_be_run_again(checkout: Checkout) -> None:
    """SIGKILL of the engine while it waits: the next up converges, nothing exists twice."""
    checkout.copy_stack("quickstart")
    checkout.modelstacks("local", "up", "quickstart")
    checkout.source_env()
    checkout.run("pulumi", "destroy", "--yes", "--non-interactive", "-s", "quickstart")
    environment = {**os.environ, **checkout.exports}
    up = subprocess.Popen(
        ["pulumi", "up", "--yes", "--non-interactive", "-s", "quickstart"],
        cwd=checkout.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    eventually("the namespace is there", lambda: "quickstart" in checkout.kubectl("get", "namespaces"))
    os.killpg(up.pid, signal.SIGKILL)
    up.wait()
    assert "left its lock: released" in checkout.modelstacks("local", "up", "quickstart").stdout
    assert len(checkout.objects("pods", "-n", "quickstart")) == 1
    checkout.run("pulumi", "preview", "--expect-no-changes", "--non-interactive", "-s", "quickstart")


def test_a_killed_cluster_starts_again_with_what_it_stored(checkout: Checkout) -> None:
    """kill -9 of everything, as a power cut does."""
    checkout.copy_stack("quickstart")
    checkout.modelstacks("local", "up", "quickstart")
    status = json.loads(checkout.modelstacks("local", "status", "--json").stdout)
    for component in status["components"]:
        os.kill(component["pid"], signal.SIGKILL)
    time.sleep(1)
    assert "make up" in checkout.modelstacks("local", "status").stdout
    checkout.modelstacks("local", "up", "quickstart")
    checkout.source_env()
    eventually(
        "the pod is back",
        lambda: [p["status"]["phase"] for p in checkout.objects("pods", "-n", "quickstart")] == ["Running"],
    )


@pytest.mark.parametrize(
    ("old", "new", "code", "says"),
    [
        ("gpu: l4", "gpu: l44", 2, "did you mean l4"),
        ("context: 32768", "context: 131072\n  modelstacks:gpus: 1", 3, "kv-cache-too-small"),
        ("replicas: 1", "replicas: 1\n  modelstacks:budgetUsdPerMonth: 10", 3, "over-budget"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_touched(
    old: str, new: str, code: int, says: str, checkout: Checkout
) -> None:
    """Both ways in: `make up`, and `pulumi up` typed by hand."""
    checkout.copy_stack("quickstart")
    checkout.modelstacks("local", "up", "quickstart")
    checkout.source_env()
    checkout.edit("quickstart", old, new)
    done = checkout.modelstacks("local", "up", "quickstart", check=False)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    typed = checkout.run("pulumi", "up", "--yes", "--non-interactive", "-s", "quickstart", check=False)
    assert typed.returncode != 0
    assert says in typed.stdout + typed.stderr
    assert "Traceback" not in typed.stdout + typed.stderr
    checkout.copy_stack("quickstart")


def test_the_repository_stays_clean(checkout: Checkout) -> None:
    """Nothing but local state is written: the project holds what it held."""

    def held() -> set[Path]:
        found = {path.relative_to(checkout.folder) for path in checkout.folder.rglob("*")}
        return {path for path in found if path.parts[0] != ".venv" and "__pycache__" not in path.parts}

    checkout.copy_stack("quickstart")
    before = held()
    checkout.modelstacks("local", "up", "quickstart")
    assert held() == before
