"""Talks to the embedded cluster's API server, by its own kubectl and nothing else of the user's environment."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from modelstacks.errors import ClusterError
from modelstacks.local.layout import Layout

# The slowest start seen on two busy cores was 24 s; a machine half as fast still makes it.
START_TIMEOUT_S = 60


def clean_environment() -> dict[str, str]:
    """The user's environment without what would steer these programs to another cluster or a proxy."""
    steering = ("KWOK_", "KUBECONFIG", "KUBERNETES_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "ETCD_")
    return {key: value for key, value in os.environ.items() if not key.upper().startswith(steering)}


def answers(layout: Layout, programs: dict[str, Path]) -> bool:
    if not layout.kubeconfig.exists():
        return False
    ready = kubectl(layout, programs["kubectl"], ["get", "--raw", "/readyz", "--request-timeout=5s"], check=False)
    return ready.returncode == 0


def insist(layout: Layout, program: Path, arguments: Sequence[str], *, text: str | None = None) -> None:
    """Run kubectl until it succeeds: a definition just made has no status yet, a new kind is not yet served."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while kubectl(layout, program, arguments, text=text, check=False).returncode != 0:
        if time.monotonic() > deadline:
            kubectl(layout, program, arguments, text=text)
            return
        time.sleep(0.3)


def kubectl(
    layout: Layout, program: Path, arguments: Sequence[str], *, text: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(program), f"--kubeconfig={layout.kubeconfig}", *arguments],
        input=text,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        raise ClusterError(
            f"kubectl {arguments[0]} failed on the embedded cluster: {done.stderr.strip()[-800:]}",
            next_step="`modelstacks local status` tells what runs; `modelstacks local up` repairs it",
        )
    return done
