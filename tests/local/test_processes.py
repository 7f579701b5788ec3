"""Finding, starting and ending a cluster's processes."""

import os
import time

import pytest

from modelstacks.local import processes


@pytest.fixture
def sleeper(tmp_path):
    """A program of an unmistakable name that does nothing for a minute."""
    program = tmp_path / "fake-etcd"
    program.symlink_to("/bin/sh")
    return program


def begin(program, folder, code="while :; do sleep 0.1; done"):
    command = [str(program), "-c", code, f"--data-dir={folder}/etcd"]
    processes.start(command, environment=os.environ, log=folder / "logs" / "fake.log")
    deadline = time.monotonic() + 10
    while not processes.running(folder, ["fake-etcd"]) and time.monotonic() < deadline:
        time.sleep(0.01)


def test_processes_are_told_apart_by_folder(sleeper, tmp_path):
    """A cluster whose folder's name begins another's is not that other one."""
    one, ten = tmp_path / "x-1", tmp_path / "x-10"
    begin(sleeper, ten)
    try:
        assert [process.program for process in processes.running(ten, ["fake-etcd"])] == ["fake-etcd"]
        assert processes.running(one, ["fake-etcd"]) == []
        assert processes.running(ten, ["kwok"]) == []
    finally:
        processes.stop(ten, ["fake-etcd"])
    assert processes.running(ten, ["fake-etcd"]) == []


def test_started_program_is_its_own_session(sleeper, tmp_path):
    """Ctrl-C in the terminal that started the cluster does not reach it."""
    begin(sleeper, tmp_path / "c")
    # On a busy machine the fork that will become it may still be seen beside it.
    started = processes.running(tmp_path / "c", ["fake-etcd"])
    try:
        sessions = {os.getsid(process.pid) for process in started}
        assert os.getsid(0) not in sessions
        assert sessions <= {process.pid for process in started}
    finally:
        processes.stop(tmp_path / "c", ["fake-etcd"])


def test_program_that_ignores_being_asked_is_killed(sleeper, tmp_path):
    """Stopping ends in an end."""
    folder = tmp_path / "c"
    begin(sleeper, folder, "trap '' TERM; echo deaf; while :; do sleep 0.1; done")
    deadline = time.monotonic() + 10
    while "deaf" not in processes.tail(folder / "logs" / "fake.log") and time.monotonic() < deadline:
        time.sleep(0.01)
    processes.stop(folder, ["fake-etcd"], patience_s=0.3)
    assert processes.running(folder, ["fake-etcd"]) == []


def test_stopping_nothing(tmp_path):
    """A cluster that does not run can be stopped."""
    processes.stop(tmp_path, ["fake-etcd"])


def test_tail(tmp_path):
    """The last lines of a log, and a word where there are none."""
    log = tmp_path / "log"
    assert processes.tail(log) == "(no log)"
    log.write_text("")
    assert processes.tail(log) == "(the log is empty)"
    log.write_text("one\ntwo\nthree\n")
    assert processes.tail(log, 2) == "two\nthree"
