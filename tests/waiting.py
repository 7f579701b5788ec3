"""Patience with what happens by itself: controllers, clusters, servers."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 300
"""Far more than any of it takes: how fast a machine is decides no test."""


def eventually(what: str, holds: Callable[[], bool]) -> None:
    """Poll until `holds`; controllers of a real control plane take their time."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.5)
