"""Type tokens, API errors in words, and the installed commands."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from modelstacks.cluster.connection import Cluster, Kind, _api_error, identifier
from modelstacks.errors import ClusterError
from modelstacks.local.plugins.install import install
from modelstacks.local.plugins.kubernetes_state import manager_of, refuse_foreign
from modelstacks.local.plugins.serving import engine_address


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        ("kubernetes:apps/v1:Deployment", Kind("apps/v1", "Deployment")),
        ("kubernetes:core/v1:Namespace", Kind("v1", "Namespace")),
        ("kubernetes:karpenter.sh/v1:NodePool", Kind("karpenter.sh/v1", "NodePool")),
        ("kubernetes:ray.io/v1:RayService", Kind("ray.io/v1", "RayService")),
        ("kubernetes:example.com/v1:WaitList", Kind("example.com/v1", "WaitList")),
    ],
)
def test_tokens(token: str, kind: Kind) -> None:
    """A type token is a group, a version and a kind; `core` is the group without a name."""
    assert Kind.from_token(token) == kind


@pytest.mark.parametrize(
    "token",
    [
        "kubernetes:v1:Service",
        "kubernetes:helm.sh/v3:Release",
        "kubernetes:apps/v1:DeploymentPatch",
        "kubernetes:core/v1:PodList",
    ],
)
def test_tokens_that_are_no_objects_are_refused(token: str) -> None:
    """What only the official plugin does is refused with what to do instead."""
    with pytest.raises(ClusterError, match="next:"):
        Kind.from_token(token)


def test_identifiers() -> None:
    """Ids are those of the official provider."""
    assert identifier({"metadata": {"name": "a", "namespace": "n"}}) == "n/a"
    assert identifier({"metadata": {"name": "a"}}) == "a"


def test_field_managers_belong_to_one_resource() -> None:
    """The same resource finds its object again; another stack's or a renamed one does not take it."""
    urn = "urn:pulumi:dev::p::kubernetes:core/v1:ConfigMap::a"
    live = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "a", "namespace": "n", "managedFields": [{"manager": manager_of(urn)}]},
    }
    refuse_foreign(live, manager_of(urn))
    refuse_foreign(None, manager_of(urn))
    with pytest.raises(ClusterError, match="pulumi import kubernetes:core/v1:ConfigMap RESOURCE n/a"):
        refuse_foreign(live, manager_of(urn + "b"))


_CONFLICT = {"reason": "FieldManagerConflict", "field": ".spec.replicas", "message": 'conflict with "hpa"'}
_INVALID = [{"field": "a", "message": "no"}, {"field": "b", "message": "bad"}]


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (401, {"message": "Unauthorized"}, "sign in"),
        (
            403,
            {"message": 'User "u" cannot patch resource "pods" in API group "" in the namespace "n"'},
            "verb patch on pods in the namespace n",
        ),
        (404, {"message": 'namespaces "n" not found'}, "create the namespace first"),
        (
            409,
            {"message": "x", "details": {"causes": [_CONFLICT]}},
            ".spec.replicas: conflict with",
        ),
        (
            422,
            {"message": 'Pod "p" is invalid: [a, b]', "details": {"causes": _INVALID}},
            "a: no\n  b: bad",
        ),
        (400, {"message": 'strict decoding error: unknown field "spec.x"'}, "correct or remove"),
        (503, "upstream down", "upstream down"),
    ],
)  # fmt: skip
def test_api_errors_say_what_to_do(status: int, answer: object, expected: str) -> None:
    """Every cause is listed, and the next step fits the status."""
    text = answer if isinstance(answer, str) else json.dumps(answer)
    error = _api_error(status, text, "PATCH", "/api", "https://h")
    assert expected in str(error)
    assert error.status == status


def test_engine_address_is_found_among_flags() -> None:
    """The engine passes logging flags first and its address last."""
    assert engine_address(["--logtostderr", "-v=9", "127.0.0.1:4023"]) == "127.0.0.1:4023"
    assert engine_address([]) == ""


def test_a_kubeconfig_that_is_missing_is_named(tmp_path: Path) -> None:
    """A path that leads nowhere is an error, not an empty configuration."""
    with pytest.raises(ClusterError, match="does not exist"):
        Cluster.connect(str(tmp_path / "none"), None, None)


def test_install_is_idempotent(tmp_path: Path) -> None:
    """The commands are executable, and a second run leaves the files alone."""
    install(tmp_path / "bin")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "bin").iterdir()}
    install(tmp_path / "bin")
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "bin").iterdir()}
    assert set(before) == {"pulumi-resource-kubernetes", "pulumi-language-python"}
    assert all(os.access(tmp_path / "bin" / name, os.X_OK) for name in before)


@pytest.mark.parametrize("command", ["pulumi-resource-kubernetes", "pulumi-language-python"])
def test_a_plugin_prints_its_port_and_ends_when_told(tmp_path: Path, command: str) -> None:
    """The engine reads the port from the first line, and an interrupt ends the plugin at once, from any folder."""
    install(tmp_path)
    plugin = subprocess.Popen([tmp_path / command, "127.0.0.1:1"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert plugin.stdout is not None
    with plugin.stdout as output:
        assert int(output.readline()) > 0
        plugin.send_signal(2)
        assert plugin.wait(10) == 0
