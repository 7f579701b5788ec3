"""Ports of 127.0.0.1 for the cluster's programs: the same ones every time, unless somebody else took them."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from modelstacks.errors import ClusterError

HOST = "127.0.0.1"
API_PORT_ENV = "MODELSTACKS_API_PORT"
NAMES = (
    "kube-apiserver",
    "etcd",
    "etcd-peer",
    "kube-controller-manager",
    "kube-scheduler",
    "kwok",
    "karpenter",
    "karpenter-health",
    "kuberay",
    "kuberay-health",
)
# Below 32768, where Linux begins to hand out ports for outgoing connections, which could take one of these.
FIRST, LAST = 20000, 32000


def is_free(port: int) -> bool:
    """Whether a program could listen on this port now; one where old connections still close is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def a_free_one() -> int:
    """Some port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def hold() -> socket.socket:
    """A socket bound to a free port, which no other program gets while it is open, be it in a process that inherits it.

    Servers of the same user that share a port among them (SO_REUSEPORT) can listen on it, as Ray Serve's proxies do.
    """
    for port in range(FIRST, LAST):
        if (holder := _bound(port, shared=False)) is not None:
            return holder
    raise _none_free()


def hold_on(port: int) -> socket.socket:
    """Another socket like that of `hold`, for a port that this user's programs still have, and are about to leave."""
    return _bound(port, shared=True) or hold()


def _bound(port: int, *, shared: bool) -> socket.socket | None:
    holder = socket.socket()
    try:
        # Set before it is bound where others have it; after that where two that ask at once must not both get it.
        if shared:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((HOST, port))
    except OSError:
        holder.close()
        return None
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.set_inheritable(True)
    return holder


def remembered(path: Path) -> dict[str, int]:
    """The ports chosen earlier, or nothing if there is no readable choice."""
    try:
        ports = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(ports, dict):
        return {}
    return {name: ports[name] for name in NAMES if isinstance(ports.get(name), int)}


def choose(
    path: Path,
    report: Callable[[str], None],
    free: Callable[[int], bool] = is_free,
    keep: Collection[str] = (),
) -> dict[str, int]:
    """A free port for each of NAMES, written to `path`: the remembered one where it is free, else another.

    Raises ClusterError if the API server's port was fixed by MODELSTACKS_API_PORT and is not free.
    """
    old = remembered(path)
    # The programs that listen on the ports to keep are the cluster's own.
    chosen = {name: old[name] for name in keep if name in old}
    fixed = _fixed()
    if fixed is not None and fixed not in chosen.values():
        if not free(fixed):
            raise ClusterError(
                f"port {fixed} ({API_PORT_ENV}) is taken by another program",
                next_step=f"unset {API_PORT_ENV} to have a free port chosen, or name another one",
            )
        chosen["kube-apiserver"] = fixed
    candidates = _candidates(path)
    for name in NAMES:
        if name in chosen:
            continue
        if name in old and old[name] not in chosen.values():
            if free(old[name]):
                chosen[name] = old[name]
                continue
            report(f"port {old[name]} of {name} is taken by another program: choosing another one")
        chosen[name] = next(port for port in candidates if port not in {*chosen.values(), *old.values()} and free(port))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(chosen, indent=1) + "\n")
    return chosen


def _candidates(path: Path) -> Iterator[int]:
    # Starting where the project's path says makes two projects' choices differ even when both start at once.
    start = int.from_bytes(hashlib.sha256(str(path).encode()).digest()[:4], "big") % (LAST - FIRST)
    for step in range(LAST - FIRST):
        yield FIRST + (start + step) % (LAST - FIRST)
    raise _none_free()


def _none_free() -> ClusterError:
    return ClusterError(
        f"no free port between {FIRST} and {LAST} on {HOST}",
        next_step="stop some of the programs that listen there (ss -ltnp lists them)",
    )


def as_fixed(path: Path) -> bool:
    """Whether the API server's remembered port is the one that the user fixed, if any."""
    return _fixed() in (None, remembered(path).get("kube-apiserver"))


def _fixed() -> int | None:
    text = os.environ.get(API_PORT_ENV)
    if not text:
        return None
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise ClusterError(f"{API_PORT_ENV}={text} is not a port between 1024 and 65535")
    return int(text)
