"""A Pulumi project beside the real one: same program, stack config that overlays the embedded cluster.

Pulumi writes the secrets provider's salt into a stack's config file, and a real cloud's stack must run on simulated
nodes; neither may touch stacks/. So the embedded cluster has its own project folder in local state, whose stack
configs hold only what differs and point at the real stack files, which are read afresh by every `pulumi up`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from modelstacks import documents, stackfile
from modelstacks.errors import ClusterError
from modelstacks.local.layout import Layout
from modelstacks.local.plugins import install

PROJECT = "modelstacks"


def folder(layout: Layout) -> Path:
    """The local project."""
    return layout.state / "project"


def prepare(layout: Layout, root: Path) -> None:
    """Write the local project, its passphrase and a config file for every stack; keeps what Pulumi put there."""
    local = folder(layout)
    (local / "stacks").mkdir(parents=True, exist_ok=True)
    layout.pulumi_backend.mkdir(parents=True, exist_ok=True)
    for sidecar in layout.pulumi_backend.rglob("*.attrs"):  # of states made before backend_url() left them out
        sidecar.unlink(missing_ok=True)
    if not layout.passphrase.is_file():
        _write(layout.passphrase, secrets.token_urlsafe(32), mode=0o600)
    project: dict[str, Any] = {
        "name": PROJECT,
        "description": "modelstacks on the embedded cluster",
        "runtime": {"name": "python", "options": {"toolchain": "pip", "virtualenv": str(root / ".venv")}},
        "main": str(root),
        "stackConfigDir": "stacks",
    }
    stand_ins = {command.rsplit("-", 1)[1] for command in install.COMMANDS if (layout.plugins / command).is_file()}
    # Named here, the engine takes the stand-ins as meant; found on PATH alone, it warns at each of them.
    kinds = {"providers": "kubernetes", "languages": "python"}
    named = {kind: [{"name": name, "path": str(layout.plugins)}] for kind, name in kinds.items() if name in stand_ins}
    project |= {"plugins": named} if named else {}
    _write(local / "Pulumi.yaml", documents.write(project))
    names = stackfile.stack_names(root)
    for name in names:
        target = local / "stacks" / f"Pulumi.{name}.yaml"
        kept: dict[str, Any] = (documents.read_file(target) or {}) if target.is_file() else {}
        text = documents.write({**kept, "config": _overlay(layout, root, name, kept.get("config", {}))})
        _write(target, text)


def _overlay(layout: Layout, root: Path, stack: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What differs on the embedded cluster: where it is, and simulated nodes unless the stack asks for them itself."""
    path = stackfile.stack_file(root, stack)
    overlay: dict[str, Any] = {
        "modelstacks:stackFile": str(path),
        "modelstacks:kubeconfig": str(layout.kubeconfig),
    }
    values = _declared(path)
    if values.get("clusters"):
        overlay["modelstacks:clusters"] = []
    # A stack that asks for simulated nodes itself keeps its own options, as they are when it is applied.
    cloud = values.get("cloud")
    if not (isinstance(cloud, Mapping) and cloud.get("kind") == "kwok"):
        overlay["modelstacks:cloud"] = {"kind": "kwok"}
    # Secrets set by hand on the local project stay.
    return {key: value for key, value in kept.items() if isinstance(value, Mapping) and "secure" in value} | overlay


def _declared(path: Path) -> Mapping[str, Any]:
    try:
        return stackfile.stack_values(path)
    except Exception:  # a broken file of another stack must not stop this one; its own `up` reports it
        return {}


def backend_url(folder: Path) -> str:
    """What Pulumi calls state in a local folder, without the sidecar file (`.attrs`) that it writes beside each file.

    The state itself is replaced in one step, the sidecar is not: a `pulumi` that is killed between its creation and
    its content leaves it empty, and from then on every command ends with "failed to load checkpoint: EOF", `pulumi
    cancel` too. Nothing that Pulumi needs is in it (gocloud.dev/blob/fileblob, `metadata`; seen with Pulumi 3.259).
    """
    return f"{folder.as_uri()}?metadata=skip"


def environment(layout: Layout, pulumi: Path, kubectl: Path | None) -> dict[str, str]:
    """The variables that make a typed `pulumi` and `kubectl` act on the embedded cluster."""
    path = [str(layout.plugins), str(pulumi.parent)]
    if kubectl is not None:
        path.append(str(kubectl.parent))
    rest = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if entry not in path]
    return {
        "PATH": os.pathsep.join([*dict.fromkeys(path), *rest]),
        "KUBECONFIG": str(layout.kubeconfig),
        "PULUMI_BACKEND_URL": backend_url(layout.pulumi_backend),
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(layout.passphrase),
        "PULUMI_OPTION_CWD": str(folder(layout)),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }


def lock_is_stale(layout: Layout, stack: str) -> bool:
    """The stack is locked, and every process that locked it is gone: killed, or of before a reboot."""
    locks = list((layout.pulumi_backend / ".pulumi" / "locks").glob(f"**/{stack}/*.json"))
    return bool(locks) and not any(_owner_lives(path) for path in locks)


def _owner_lives(lock: Path) -> bool:
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
        os.kill(int(owner["pid"]), 0)
    except (OSError, ValueError, KeyError):
        # Gone meanwhile, unreadable, or no such process; a process of another user gives PermissionError, an OSError
        # too, but state is per user.
        return False
    return True


def choose_plugins(layout: Layout, pulumi: Path) -> list[str]:
    """Put stand-ins on the plugin path for what cannot be had; returns the names of the stand-ins in use.

    Official plugins win: the ones beside the engine, on PATH or installed, and a download is tried once per state.
    """
    wanted = {
        "pulumi-language-python": _beside(pulumi, "pulumi-language-python", layout),
        "pulumi-resource-kubernetes": _beside(pulumi, "pulumi-resource-kubernetes", layout)
        or _installed(pulumi)
        or _downloaded(layout, pulumi),
    }
    stand_ins = [name for name, found in wanted.items() if not found]
    install.install(layout.plugins, stand_ins)
    return stand_ins


def _beside(pulumi: Path, name: str, layout: Layout) -> bool:
    entries = [e for e in os.environ.get("PATH", "").split(os.pathsep) if Path(e) != layout.plugins]
    return (pulumi.parent / name).is_file() or shutil.which(name, path=os.pathsep.join(entries)) is not None


def _provider_version() -> str:
    return metadata.version("pulumi-kubernetes")


def _installed(pulumi: Path) -> bool:
    listed = subprocess.run([pulumi, "plugin", "ls", "--json"], capture_output=True, text=True, check=False)
    try:
        found = json.loads(listed.stdout)
    except ValueError:
        return False
    return any(p.get("name") == "kubernetes" and p.get("version") == _provider_version() for p in found)


def _downloaded(layout: Layout, pulumi: Path) -> bool:
    """Try the official provider once; a closed network is remembered, and asked again after `down`."""
    failed = layout.state / "no-plugin-download"
    if failed.is_file():
        return False
    command = [str(pulumi), "plugin", "install", "resource", "kubernetes", f"v{_provider_version()}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        done = False
    if not done:
        _write(failed, "the official Kubernetes provider could not be downloaded\n")
    return done


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one step."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch(mode=mode)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ClusterError(
            f"{path} cannot be written: {error.strerror}", next_step="free space, or set MODELSTACKS_STATE_DIR"
        ) from None
