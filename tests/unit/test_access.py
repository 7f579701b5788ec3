"""Reaching a cluster: every way in which a kubeconfig fails is said before anything else is tried."""

import base64
import contextlib
import gc
import json
import socket
import stat
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelstacks.cluster import access
from modelstacks.cluster.connection import ApiError, Cluster
from modelstacks.errors import ClusterError


def kubeconfig(tmp_path: Path, user: dict[str, Any] | None = None, **changes: Any) -> str:
    """A kubeconfig of one context, written where `connect` finds it."""
    data: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "me"}}],
        "users": [{"name": "me", "user": user or {"token": "t"}}],
        **changes,
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.fixture(autouse=True)
def _no_other_kubeconfig(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))


@pytest.mark.parametrize(
    ("changes", "context", "says"),
    [
        ({}, "there", "has no context 'there'; it has here"),
        ({"current-context": ""}, None, "names no current context"),
        ({"users": []}, None, "names user 'me', which it does not have"),
        ({"contexts": []}, None, "has no contexts"),
    ],
)
def test_a_kubeconfig_that_contradicts_itself(
    changes: dict[str, Any], context: str | None, says: str, tmp_path: Path
) -> None:
    """Context and user by name."""
    with pytest.raises(ClusterError, match=says):
        access.connect(kubeconfig(tmp_path, **changes), context)


@pytest.mark.parametrize(
    ("text", "says"), [("[a, b]", "is no mapping"), ("a: [", "is no YAML"), ("", "does not exist or is empty")]
)
def test_a_file_that_is_no_kubeconfig(text: str, says: str, tmp_path: Path) -> None:
    """A list, half a document, nothing."""
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ClusterError, match=says):
        access.connect(str(path), None)


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named by the stack, or by the environment."""
    with pytest.raises(ClusterError, match="does not exist"):
        access.connect(str(tmp_path / "nothing"), None)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(ClusterError, match="there is no kubeconfig"):
        access.connect(None, None)


def test_a_credential_program_that_is_missing_is_named(tmp_path: Path) -> None:
    """The client would go on as nobody."""
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin"}}
    with pytest.raises(ClusterError, match="signs in with no-such-plugin, which is not on PATH"):
        access.connect(kubeconfig(tmp_path, user), None)


def test_a_server_that_does_not_answer_is_named(tmp_path: Path) -> None:
    """With its address."""
    with pytest.raises(ClusterError, match=r"https://127.0.0.1:1 does not answer"):
        access.connect(kubeconfig(tmp_path), None)


def test_a_server_that_hangs_up_is_named(tmp_path: Path) -> None:
    """An API server that restarts resets its connections before it speaks TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted, _ = server.accept()
                    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    accepted.close()

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"https://127.0.0.1:{server.getsockname()[1]}"
        clusters = [{"name": "c", "cluster": {"server": address}}]
        for _ in range(5):
            with pytest.raises(ClusterError, match=f"{address} does not answer"):
                access.connect(kubeconfig(tmp_path, clusters=clusters), None)
        server.shutdown(socket.SHUT_RDWR)
    gc.collect()


def rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers, and knows nobody."""

    def request(self: Cluster, method: str, path: str, *_: Any, **__: Any) -> dict[str, Any]:
        if path == "/version":
            return {"gitVersion": "v1.34.0"}
        raise ApiError("Unauthorized", status=401, causes=[], next_step=None)

    monkeypatch.setattr(Cluster, "request", request)


def test_a_token_that_ended_says_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The date is in the token itself."""
    rejected(monkeypatch)
    claims = base64.urlsafe_b64encode(json.dumps({"exp": 1_700_000_000}).encode()).decode().rstrip("=")
    with pytest.raises(ClusterError, match="its token expired on 2023-11-14 22:13 UTC"):
        access.connect(kubeconfig(tmp_path, {"token": f"a.{claims}.b"}), None)


def test_what_a_credential_program_complains_of_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to sign in again."""
    rejected(monkeypatch)
    plugin = tmp_path / "plugin"
    plugin.write_text("#!/bin/sh\necho 'the session has expired' >&2\nexit 3\n")
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    user = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    }
    with pytest.raises(ClusterError, match="ended with code 3: the session has expired"):
        access.connect(kubeconfig(tmp_path, user), None)
