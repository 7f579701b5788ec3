"""Patience with what happens by itself: controllers, clusters, servers."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(what: str, holds: Callable[[], bool], timeout_s: float = 90) -> None:
    """Poll until `holds`; controllers of a real control plane take their time."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.5)
