"""The local Pulumi project: overlays, what Pulumi wrote into it, and locks of processes that are gone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelstacks import documents, project
from modelstacks.local import workspace
from modelstacks.local.layout import Layout

ROOT = project.root(Path(__file__))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(cache=tmp_path / "cache", state=tmp_path / "state")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "stacks").mkdir(parents=True)
    for stack in ("quickstart", "deepseek-r1"):
        shutil.copy(ROOT / "stacks" / f"Pulumi.{stack}.yaml", folder / "stacks")
    return folder


def config(layout: Layout, stack: str) -> dict[str, object]:
    read: dict[str, object] = documents.read_file(workspace.folder(layout) / "stacks" / f"Pulumi.{stack}.yaml")
    return read


def test_every_stack_points_at_its_file_and_runs_on_simulated_nodes(layout: Layout, root: Path) -> None:
    """The overlay holds what differs and nothing else."""
    workspace.prepare(layout, root)
    values = config(layout, "deepseek-r1")["config"]
    assert isinstance(values, dict)
    assert values["modelstacks:stackFile"] == str(root / "stacks" / "Pulumi.deepseek-r1.yaml")
    assert values["modelstacks:cloud"] == {"kind": "kwok"}
    assert set(values) == {"modelstacks:stackFile", "modelstacks:cloud", "modelstacks:kubeconfig"}


def test_what_pulumi_and_the_user_wrote_is_kept(layout: Layout, root: Path) -> None:
    """The salt of the passphrase, and secrets set by hand."""
    workspace.prepare(layout, root)
    path = workspace.folder(layout) / "stacks" / "Pulumi.quickstart.yaml"
    secret = {"secure": "v1:abc"}
    data = documents.read_file(path)
    path.write_text(
        documents.write({"encryptionsalt": "v1:salt", "config": {**data["config"], "modelstacks:hubToken": secret}})
    )
    workspace.prepare(layout, root)
    kept = config(layout, "quickstart")
    assert kept["encryptionsalt"] == "v1:salt"
    assert isinstance(kept["config"], dict)
    assert kept["config"]["modelstacks:hubToken"] == secret


def test_the_passphrase_is_made_once_and_for_its_owner_alone(layout: Layout, root: Path) -> None:
    """Another one would make the state unreadable."""
    workspace.prepare(layout, root)
    first = layout.passphrase.read_text()
    workspace.prepare(layout, root)
    assert layout.passphrase.read_text() == first
    assert layout.passphrase.stat().st_mode & 0o077 == 0


def test_a_broken_file_of_another_stack_stops_nothing(layout: Layout, root: Path) -> None:
    """Its own `up` reports it."""
    (root / "stacks" / "Pulumi.broken.yaml").write_text("config: [")
    workspace.prepare(layout, root)
    assert config(layout, "quickstart")


def test_state_has_no_file_that_a_kill_can_leave_half_written(layout: Layout, root: Path) -> None:
    """An empty sidecar, which no option keeps from being read, goes; the state beside it stays."""
    stacks = layout.pulumi_backend / ".pulumi" / "stacks" / "modelstacks"
    stacks.mkdir(parents=True)
    (stacks / "quickstart.json").write_text("{}")
    (stacks / "quickstart.json.attrs").touch()
    workspace.prepare(layout, root)
    assert [path.name for path in stacks.iterdir()] == ["quickstart.json"]
    assert workspace.environment(layout, Path("/bin/pulumi"), None)["PULUMI_BACKEND_URL"].endswith("?metadata=skip")


def test_a_lock_is_stale_when_its_process_is_gone(layout: Layout) -> None:
    """A killed `pulumi up` must not need a hand to be run again."""
    locks = layout.pulumi_backend / ".pulumi" / "locks" / "organization" / "modelstacks" / "mine"
    assert not workspace.lock_is_stale(layout, "mine")
    locks.mkdir(parents=True)
    (locks / "a.json").write_text(json.dumps({"pid": os.getpid()}))
    assert not workspace.lock_is_stale(layout, "mine")
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    (locks / "a.json").write_text(json.dumps({"pid": gone.pid}))
    assert workspace.lock_is_stale(layout, "mine")
    assert not workspace.lock_is_stale(layout, "other")
