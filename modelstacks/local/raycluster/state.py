"""What the command and the process of a local Ray cluster tell each other: two files in one folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One simulated node. `facts` is what it says of itself to the application's probe."""

    gpus: int
    accelerator_type: str | None
    cpus: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The serve config to run, the nodes to run it on, and the port of its API."""

    serve_config: dict[str, Any]
    nodes: tuple[NodeSpec, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one cluster."""

    path: Path

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def mounts(self) -> Path:
        """Where the ConfigMaps of the stack lie, as a pod would have them mounted."""
        return self.path / "mounts"

    def want(self, wanted: Wanted) -> None:
        """Ask for `wanted`."""
        _write(self.path / "wanted.json", asdict(wanted))

    def wanted(self) -> Wanted:
        """What was last asked for. Raises OSError when nothing was."""
        data = json.loads((self.path / "wanted.json").read_text(encoding="utf-8"))
        return Wanted(**(data | {"nodes": tuple(NodeSpec(**node) for node in data["nodes"])}))

    def say(self, status: dict[str, Any]) -> None:
        """Publish how it goes."""
        _write(self.path / "status.json", status)

    def fail(self, message: str) -> None:
        """Publish why there is no cluster."""
        self.say({"pid": os.getpid(), "failed": message})

    def status(self) -> dict[str, Any] | None:
        """What was last published; None before that."""
        try:
            data = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) else None


def _write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(data, indent=1), encoding="utf-8")
    partial.replace(path)
