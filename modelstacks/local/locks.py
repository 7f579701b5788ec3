"""One process at a time: a lock file that the operating system frees when its holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, report: Callable[[str], None], busy: str) -> Iterator[None]:
    """Hold the lock file `path`; while another process does, say `busy` once and wait.

    Raises OSError if the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(busy)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
