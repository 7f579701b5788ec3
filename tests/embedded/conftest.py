"""A project of its own and a cluster of its own for the tests that type the commands of the README."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelstacks import project

ROOT = project.root(Path(__file__))


@dataclass
class Checkout:
    """A copy of the project with chosen stacks, and the commands as a user types them in it."""

    folder: Path
    state: Path
    exports: dict[str, str] = field(default_factory=dict)

    def stack_file(self, stack: str) -> Path:
        return self.folder / "stacks" / f"Pulumi.{stack}.yaml"

    def copy_stack(self, stack: str) -> bytes:
        """The stack file as the project ships it; returns its bytes."""
        shutil.copy(ROOT / "stacks" / f"Pulumi.{stack}.yaml", self.folder / "stacks")
        return self.stack_file(stack).read_bytes()

    def edit(self, stack: str, old: str, new: str) -> None:
        """What an editor does."""
        text = self.stack_file(stack).read_text()
        assert old in text
        self.stack_file(stack).write_text(text.replace(old, new))

    def run(self, *command: str, check: bool = True, timeout_s: int = 900) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout, with the exports of `modelstacks local env` when they are known."""
        environment = {**os.environ, **self.exports, "MODELSTACKS_STATE_DIR": str(self.state)}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done

    def modelstacks(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(str(Path(sys.executable).parent / "modelstacks"), *arguments, check=check, timeout_s=3600)

    def source_env(self) -> None:
        """eval "$(modelstacks local env)"."""
        script = 'eval "$("$0" local env)"; exec "$1" -c "import json, os; print(json.dumps(dict(os.environ)))"'
        command = str(Path(sys.executable).parent / "modelstacks")
        done = self.run("bash", "-c", script, command, sys.executable)
        self.exports = json.loads(done.stdout)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        environment = {**os.environ, **self.exports}
        done = subprocess.run(
            ["kubectl", *arguments], env=environment, input=text, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """`kubectl get … -o json`, its items."""
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", *arguments, "-o", "json"))["items"]
        return items


def trial_pod(template: dict[str, Any], namespace: str) -> dict[str, Any]:
    """The pod of a template, to be tried for admission where its stack was only tried too.

    A dry run makes no service account and no priority class, and admission asks for both.
    """
    spec = {k: v for k, v in template["spec"].items() if k not in ("serviceAccountName", "priorityClassName")}
    metadata = {"name": "trial", "namespace": namespace, "labels": template["metadata"]["labels"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A project with no stack yet; its cluster starts with the first `local up` and is gone afterwards."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "stacks").mkdir()
    for name in ("Pulumi.yaml", "__main__.py"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").symlink_to(sys.prefix)
    made = Checkout(folder, tmp_path_factory.mktemp("state"))
    yield made
    made.modelstacks("local", "down")
    assert not list(made.state.rglob("*")), "down leaves nothing"


@pytest.fixture(scope="session")
def running(checkout: Checkout) -> Checkout:
    """The checkout with its cluster up and the quickstart stack on it."""
    checkout.copy_stack("quickstart")
    checkout.modelstacks("local", "up", "quickstart")
    checkout.source_env()
    return checkout
