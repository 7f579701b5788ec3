"""The cluster's processes, found by their command lines: pid files outlive them and lie after a reboot."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Linux; elsewhere ps is asked.
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    argv: tuple[str, ...]

    @property
    def program(self) -> str:
        return Path(self.argv[0]).name


def running(folder: Path, programs: Collection[str]) -> list[Process]:
    """Processes of the named programs with a path in `folder` among their arguments.

    Every program of a cluster gets such a path on its command line, so two clusters' programs are told apart.
    """
    # kwokctl and this package pass absolute paths; the separator keeps "x-1" from matching "x-10".
    mark = f"{folder}{os.sep}"
    return [process for process in _all() if process.program in programs and mark in " ".join(process.argv[1:])]


def kill_session(leader: int, mark: str) -> None:
    """Kill all processes that were started under `leader`, the first process of a session, alive or not.

    `mark` must be in the environment that they were started with: the number alone may be another session's by now.
    """
    for process in _all():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader and mark in _environment(process.pid):
                os.kill(process.pid, signal.SIGKILL)


def _environment(pid: int) -> str:
    if _PROC.exists():
        with contextlib.suppress(OSError):
            return (_PROC / f"{pid}/environ").read_bytes().decode(errors="replace")
        return ""
    done = subprocess.run(["ps", "-Eww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout


def attend(command: Sequence[str], *, environment: Mapping[str, str], folder: Path | None = None) -> int:
    """Run a program in the foreground; its exit code.

    Ctrl-C reaches it by itself. It is then waited for, however often that is pressed: `pulumi` needs its time to write
    down what it has made.
    """
    process = subprocess.Popen(list(command), env=dict(environment), cwd=folder)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def start(command: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
    """Start a program that outlives this process and its terminal; its output is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        # posix_spawn, not subprocess: nothing here ever waits for the program, and Popen warns about that.
        os.posix_spawn(
            command[0],
            list(command),
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(output)


def stop(folder: Path, programs: Collection[str], *, patience_s: float = 5) -> None:
    """End the cluster's processes: ask first, and kill those that still run after `patience_s` seconds."""
    end(lambda: running(folder, programs), patience_s=patience_s)


def end(find: Callable[[], list[Process]], *, patience_s: float) -> None:
    """End the processes that `find` finds: ask first, and kill those that still run after `patience_s` seconds."""
    asked: set[int] = set()
    for sent, wait_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + wait_s
        told: set[int] = set()
        while left := {process.pid for process in find()}:
            for pid in left - told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sent)
            told |= left
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        asked |= told
    # A process loses its command line a moment before it closes its ports.
    deadline = time.monotonic() + 2
    while not all(_gone(pid) for pid in asked) and time.monotonic() < deadline:
        time.sleep(0.02)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log file, or what is known instead."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


def _gone(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # A child of this very process stays a zombie until it is waited for.
    if _PROC.exists():
        try:
            state = (_PROC / f"{pid}/stat").read_text().rpartition(") ")[2]
            # A zombie, for which another parent has yet to wait, has closed its ports when its threads ended.
            return state.startswith("Z") and len(list((_PROC / f"{pid}/task").iterdir())) == 1
        except OSError:
            return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def _all() -> list[Process]:
    if _PROC.exists():
        return list(_from_proc())
    listing = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True)
    rows = (line.split(maxsplit=1) for line in listing.stdout.splitlines())
    return [Process(int(row[0]), tuple(row[1].split())) for row in rows if len(row) == 2]


def _from_proc() -> Iterable[Process]:
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            raw = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # It ended meanwhile, or it is another user's.
        argv = tuple(part.decode(errors="replace") for part in raw.rstrip(b"\0").split(b"\0"))
        if argv[0]:
            yield Process(int(entry.name), argv)
