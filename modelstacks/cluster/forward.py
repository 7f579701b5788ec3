"""Reaches a pod's port through the API server and the kubelet, as `kubectl port-forward` does: no route, no policy."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelstacks.cluster.connection import Cluster
from modelstacks.errors import ClusterError

HOST = "127.0.0.1"
_ANSWER_S = 30.0


def connect(cluster: Cluster, namespace: str, pod: str, port: int) -> socket.socket:
    """A socket to a pod's port. Raises ClusterError where the kubelet does not let it through."""
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException
    from kubernetes.stream import portforward

    # A client of its own: the stream replaces parts of the one that it is given, and others use theirs meanwhile.
    core = client.CoreV1Api(client.ApiClient(cluster.client.configuration))
    try:
        forward = portforward(core.connect_get_namespaced_pod_portforward, pod, namespace, ports=str(port))
        found: socket.socket = forward.socket(port)
    except (ApiException, OSError, ValueError) as error:
        reason = str(getattr(error, "reason", None) or error).strip() or type(error).__name__
        raise ClusterError(
            f"port {port} of pod {pod} cannot be forwarded: {reason.splitlines()[0]}",
            next_step=f"kubectl auth can-i create pods/portforward -n {namespace}",
        ) from None
    found.settimeout(_ANSWER_S)
    return found


def get(cluster: Cluster, namespace: str, pod: str, port: int, path: str) -> str:
    """The body that a pod answers a GET with. Raises ClusterError for no answer and for any status but 200."""
    with http_to(cluster, namespace, pod, port) as connection:
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            # The kubelet opens a tunnel before it knows whether anybody listens at its end.
            raise ClusterError(f"nothing in pod {pod} answers on port {port} ({type(error).__name__})") from None
    if answer.status != 200:
        raise ClusterError(f"pod {pod} answers {path} with HTTP {answer.status}")
    return body


@contextmanager
def http_to(cluster: Cluster, namespace: str, pod: str, port: int) -> Iterator[http.client.HTTPConnection]:
    """An HTTP connection to a pod's port."""
    connection = http.client.HTTPConnection(pod, port, timeout=_ANSWER_S)
    connection.sock = connect(cluster, namespace, pod, port)
    try:
        yield connection
    finally:
        connection.close()


class Listener:
    """A port of loopback behind which a pod's port is; every connection is forwarded by itself."""

    def __init__(self, cluster: Cluster, namespace: str, pod: str, port: int, local: int = 0) -> None:
        self._target = (cluster, namespace, pod, port)
        try:
            self._server = socket.create_server((HOST, local))
        except OSError as error:
            raise ClusterError(
                f"port {local} of {HOST} cannot be listened on: {error.strerror}", next_step="name another one"
            ) from None
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True, name="forward").start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(accepted,), daemon=True, name="forwarded").start()

    def _carry(self, near: socket.socket) -> None:
        # The client's end of a tunnel is like a socket, and no context manager.
        with contextlib.suppress(ClusterError, OSError), near, contextlib.closing(connect(*self._target)) as far:
            far.settimeout(None)
            ends: dict[Any, Any] = {near: far, far: near}
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    piece = end.recv(65536)
                    if not piece:
                        return
                    ends[end].sendall(piece)
