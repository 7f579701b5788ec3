"""The literal `pulumi` command with both stand-ins against a real API server: the life of a small stack."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from modelstacks.local import workspace
from modelstacks.local.layout import Layout
from modelstacks.local.plugins.install import install
from modelstacks.local.toolchain import pulumi_program

pytestmark = pytest.mark.embedded

_PROGRAM = """
import pulumi
import pulumi_kubernetes as k8s

config = pulumi.Config()
name = config.require("name")
patience = {"pulumi.com/timeoutSeconds": config.get("timeout") or "60"}
provider = k8s.Provider("cluster", kubeconfig=config.require("kubeconfig"))
namespace = k8s.core.v1.Namespace("namespace", metadata={"name": name}, opts=pulumi.ResourceOptions(provider=provider))
options = pulumi.ResourceOptions(provider=provider, depends_on=[namespace])
schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
definition = k8s.apiextensions.v1.CustomResourceDefinition(
    "definition",
    metadata={"name": f"widgets.{name}.example.com"},
    spec={
        "group": f"{name}.example.com",
        "scope": "Namespaced",
        "names": {"kind": "Widget", "plural": "widgets", "singular": "widget", "listKind": "WidgetList"},
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
    },
    opts=pulumi.ResourceOptions(provider=provider),
)
secret = k8s.core.v1.Secret(
    "secret", metadata={"name": "token", "namespace": name}, string_data={"token": "hush-hush"}, opts=options
)
container = {
    "name": "c",
    "image": "registry.invalid/server:1",
    "ports": [{"containerPort": config.get_int("port") or 80}],
    "resources": {"requests": {"cpu": config.get("cpu") or "1000m"}},
}
labels = {"app": "web"}
k8s.apps.v1.Deployment(
    "web",
    metadata={"name": "web", "namespace": name, "annotations": patience},
    spec={
        "replicas": config.get_int("replicas") or 2,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "containers": [container],
                "nodeSelector": {"plugins-test": name},
                "tolerations": [{"key": "plugins-test", "operator": "Exists"}],
            },
        },
    },
    opts=options,
)
service = k8s.core.v1.Service(
    "service",
    metadata={"name": "web", "namespace": name, "annotations": patience},
    spec={"selector": labels, "ports": [{"port": 80}]},
    opts=options,
)
k8s.apiextensions.CustomResource(
    "widget",
    api_version=f"{name}.example.com/v1",
    kind="Widget",
    metadata={"name": "widget", "namespace": name},
    spec={"size": config.get_int("size") or 3},
    opts=pulumi.ResourceOptions(provider=provider, depends_on=[namespace, definition]),
)
pulumi.export("address", service.spec.cluster_ip)
pulumi.export("token", secret.data)
"""


@dataclass(frozen=True)
class Stack:
    """One stack of the program above, and its cluster."""

    folder: Path
    name: str
    environment: dict[str, str]
    pulumi: Path
    api: client.ApiClient

    def command(self, *arguments: str) -> list[str]:
        return [str(self.pulumi), *arguments, "--non-interactive"]

    def run(self, *arguments: str, ok: bool = True) -> str:
        """The output of one command, which must succeed, or fail, as `ok` says."""
        done = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=180
        )
        output = done.stdout + done.stderr
        assert (done.returncode == 0) is ok, output
        return output

    def set(self, key: str, value: object) -> None:
        self.run("config", "set", key, str(value))

    def unset(self, key: str) -> None:
        self.run("config", "rm", key)

    def deployment(self) -> Any:
        return client.AppsV1Api(self.api).read_namespaced_deployment("web", self.name)


@pytest.fixture(scope="module")
def stack(embedded_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack, up; a node of its own keeps it apart from whatever else the cluster runs."""
    root = tmp_path_factory.mktemp("plugins")
    name = f"plugins-{os.getpid()}"
    for folder in ("program", "project", "state", "bin"):
        (root / folder).mkdir()
    (root / "program" / "__main__.py").write_text(_PROGRAM)
    # The project lies elsewhere, as `make up` has it: only `main` says where the program is.
    (root / "project" / "Pulumi.yaml").write_text(f"name: plugins\nruntime: python\nmain: {root / 'program'}\n")
    install(root / "bin")
    pulumi = pulumi_program(Layout.of(Path(__file__).parents[2]).cache, print)
    environment = os.environ | {
        "PATH": f"{root / 'bin'}:{pulumi.parent}:{os.environ['PATH']}",
        "PULUMI_HOME": str(root / "home"),
        "PULUMI_BACKEND_URL": workspace.backend_url(root / "state"),
        "PULUMI_CONFIG_PASSPHRASE": "test",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    api = config.new_client_from_config(str(embedded_cluster.kubeconfig))  # type: ignore[no-untyped-call]
    node = {
        "metadata": {
            "name": name,
            "labels": {"plugins-test": name},
            "annotations": {"kwok.x-k8s.io/node": "fake"},
        },
        "spec": {"taints": [{"key": "plugins-test", "value": "true", "effect": "NoSchedule"}]},
        "status": {
            "allocatable": {"cpu": "8", "memory": "8Gi", "pods": "50"},
            "capacity": {"cpu": "8", "memory": "8Gi", "pods": "50"},
        },
    }
    client.CoreV1Api(api).create_node(node)
    made = Stack(root / "project", name, environment, pulumi, api)
    try:
        made.run("stack", "init", "test")
        made.set("name", name)
        made.set("kubeconfig", embedded_cluster.kubeconfig)
        made.run("up", "--yes")
        yield made
    finally:
        subprocess.run(
            made.command("destroy", "--yes", "--skip-preview"),
            cwd=made.folder,
            env=environment,
            timeout=180,
            check=False,
        )
        client.CoreV1Api(api).delete_node(name)


def test_what_is_up_has_nothing_to_change(stack: Stack) -> None:
    """Right after `up`, preview and refresh find no change."""
    stack.run("preview", "--expect-no-changes")
    stack.run("refresh", "--yes", "--expect-no-changes")
    assert stack.run("stack", "output", "address").strip().startswith("10.")


def test_secrets_are_in_no_state_and_no_output(stack: Stack) -> None:
    """A Secret's payload leaves the provider encrypted, as text and as base64."""
    exported = stack.run("stack", "export")
    assert "hush-hush" not in exported
    assert "aHVzaC1odXNo" not in exported
    assert "[secret]" in stack.run("stack", "output")


def test_an_update_shows_the_fields_that_change(stack: Stack) -> None:
    """Two replicas become three, in one updated resource, and are there when `up` ends."""
    stack.set("replicas", 3)
    assert "replicas: 2 => 3" in stack.run("preview", "--diff")
    assert "1 updated" in stack.run("up", "--yes", "--skip-preview")
    assert stack.deployment().status.available_replicas == 3


def test_the_server_refuses_in_preview(stack: Stack) -> None:
    """A value that the API server does not take fails the preview, with the field's path."""
    stack.set("port", 99999)
    output = stack.run("preview", ok=False)
    stack.unset("port")
    assert "spec.template.spec.containers[0].ports[0].containerPort" in output
    assert "Traceback" not in output


def test_drift_is_found_and_repaired(stack: Stack) -> None:
    """What somebody changed by hand shows up in refresh, and the next `up` sets it back."""
    apps = client.AppsV1Api(stack.api)
    wanted = stack.deployment().spec.replicas
    apps.patch_namespaced_deployment("web", stack.name, {"spec": {"replicas": 5}})
    client.CoreV1Api(stack.api).patch_namespaced_secret("token", stack.name, {"stringData": {"token": "stolen"}})
    stack.run("refresh", "--yes")
    assert f"replicas: 5 => {wanted}" in stack.run("preview", "--diff")
    assert "2 updated" in stack.run("up", "--yes", "--skip-preview")
    assert stack.deployment().spec.replicas == wanted
    stack.run("preview", "--expect-no-changes")


def test_an_object_of_somebody_else_is_not_taken(stack: Stack) -> None:
    """Creating what exists already is an error that names the import."""
    program = stack.folder.parent / "program" / "__main__.py"
    extra = """
    k8s.core.v1.ConfigMap("root", metadata={"name": "kube-root-ca.crt", "namespace": name}, data={}, opts=options)
    """
    try:
        program.write_text(_PROGRAM + textwrap.dedent(extra))
        output = stack.run("preview", ok=False)
    finally:
        program.write_text(_PROGRAM)
    assert f"pulumi import kubernetes:core/v1:ConfigMap RESOURCE {stack.name}/kube-root-ca.crt" in output


def test_a_program_error_shows_its_message_alone(stack: Stack) -> None:
    """An error made for users comes without a traceback; any other comes with one."""
    program = stack.folder.parent / "program" / "__main__.py"
    try:
        program.write_text('from modelstacks.errors import Refused\nraise Refused("too big", next_step="take less")\n')
        refused = stack.run("preview", ok=False)
        program.write_text("1 / 0\n")
        crashed = stack.run("preview", ok=False)
    finally:
        program.write_text(_PROGRAM)
    assert "too big\n" in refused
    assert "next: take less" in refused
    assert "Traceback" not in refused
    assert "ZeroDivisionError" in crashed


def test_a_time_out_names_the_pods_and_the_scheduler(stack: Stack) -> None:
    """An `up` that is not ready in time says why, and the next one goes on from what is there."""
    stack.set("cpu", 1000)
    stack.set("timeout", 4)
    output = stack.run("up", "--yes", "--skip-preview", ok=False)
    stack.unset("cpu")
    stack.unset("timeout")
    assert f"Deployment {stack.name}/web is not ready after 4 s" in output
    assert "Insufficient cpu" in output
    assert "updated" in stack.run("up", "--yes", "--skip-preview")


def test_an_interrupted_up_can_be_run_again(stack: Stack) -> None:
    """An `up` killed while it waits leaves objects without state; the next one adopts them and waits on."""
    stack.run("destroy", "--yes", "--skip-preview")
    stack.set("cpu", 1000)  # no node has as many, so the deployment is waited for
    up = subprocess.Popen(
        stack.command("up", "--yes", "--skip-preview"),
        cwd=stack.folder,
        env=stack.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(300):
        try:
            orphan = stack.deployment()
            break
        except client.ApiException:
            time.sleep(0.1)
    else:
        pytest.fail("the deployment was not created in 30 s")
    up.send_signal(signal.SIGKILL)
    up.wait()
    stack.unset("cpu")
    stack.run("cancel", "--yes")
    stack.run("up", "--yes", "--skip-preview")
    stack.run("refresh", "--yes", "--clear-pending-creates")
    stack.run("preview", "--expect-no-changes")
    assert stack.deployment().metadata.uid == orphan.metadata.uid


def test_destroy_leaves_nothing(stack: Stack) -> None:
    """Every object is gone when `destroy` ends, the namespace and the definition too."""
    stack.run("destroy", "--yes", "--skip-preview")
    assert stack.name not in {item.metadata.name for item in client.CoreV1Api(stack.api).list_namespace().items}
    definitions = client.ApiextensionsV1Api(stack.api).list_custom_resource_definition().items
    assert f"widgets.{stack.name}.example.com" not in {item.metadata.name for item in definitions}
