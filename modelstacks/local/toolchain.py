"""Has the embedded cluster's programs at hand: built once from the pinned Go modules, then taken from the cache."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from modelstacks.errors import ToolchainError
from modelstacks.local import build, golang, locks
from modelstacks.local.build import Report
from modelstacks.local.layout import CACHE_DIR_ENV
from modelstacks.local.programs import CLUSTER, CRDS, KEDA, KEDA_CRDS, PROGRAMS, SIMULATION, home, version

__all__ = ["CLUSTER", "CRDS", "KEDA", "PROGRAMS", "SIMULATION", "crds", "ensure", "home", "pulumi_program", "version"]


def ensure(names: Sequence[str], cache: Path, report: Report) -> dict[str, Path]:
    """The named programs' paths; builds those that are missing, which takes minutes the first time.

    Safe to interrupt and to run twice at once. Raises ToolchainError with the next step.
    """
    paths = {name: home(cache, PROGRAMS[name]) / "bin" / name for name in names}
    if all(path.exists() for path in paths.values()):
        return paths
    with _prepared(cache, report):
        missing = [PROGRAMS[name] for name, path in paths.items() if not path.exists()]
        if missing:
            build.build_all(missing, cache, report)
    return paths


def crds(names: Sequence[str], cache: Path, report: Report) -> list[Path]:
    """The files of the named entries of CRDS, SIMULATION and KEDA_CRDS, copied once from the pinned modules' source."""
    folders = {name: _folder(cache, name) for name in names}
    if not all(folder.is_dir() for folder in folders.values()):
        with _prepared(cache, report):
            for name, folder in folders.items():
                if not folder.is_dir():
                    _copy_crds(name, folder, cache, report)
    return [file for folder in folders.values() for file in sorted(folder.glob("*.yaml"))]


def pulumi_program(cache: Path, report: Report, *, beside: Sequence[str] = ()) -> Path:
    """The Pulumi command: the installed one if it is at least as new as the pinned one, else the pinned one.

    The pinned version is the one that the tests run; nobody has seen what an older one does. If it is built, so are
    the programs `beside` it that will be needed too: one announcement and one estimate then cover all.
    """
    pinned = golang.parse_version(version(PROGRAMS["pulumi"]))
    on_path = shutil.which("pulumi")
    if on_path is not None and pinned is not None:
        done = subprocess.run([on_path, "version"], capture_output=True, text=True, check=False)
        have = golang.parse_version(done.stdout)
        if have is not None and have >= pinned:
            return Path(on_path)
        report(f"{on_path} is {done.stdout.strip() or 'of unknown version'}, older than the pinned: not used")
    return ensure([*beside, "pulumi"], cache, report)["pulumi"]


@contextlib.contextmanager
def _prepared(cache: Path, report: Report) -> Iterator[None]:
    """A writable cache folder, with no other build at work in it."""
    folder = cache / "toolchain"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ToolchainError(
            f"the cache folder {folder} cannot be written ({error.strerror}); "
            f"{build.free_gb(folder):.1f} GB are free there, {build.DISK_GB[CACHE_DIR_ENV]:.0f} GB are needed",
            next_step=f"set {CACHE_DIR_ENV} to a folder that can be written, with that much room",
        ) from error
    with locks.held(folder / "lock", report, "another build is running, waiting for it"):
        yield


def _folder(cache: Path, name: str) -> Path:
    of = CRDS | SIMULATION | KEDA_CRDS
    return home(cache, PROGRAMS[of[name][0]]) / ("crds" if name in CRDS | KEDA_CRDS else name)


def _copy_crds(name: str, target: Path, cache: Path, report: Report) -> None:
    owner, patterns = (CRDS | SIMULATION | KEDA_CRDS)[name]
    program = PROGRAMS[owner]
    go = golang.find(cache / "toolchain", report)
    source = go.source(golang.modules_folder() / program.folder, program.module)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".crds-") as copied:
        for pattern in patterns:
            for file in sorted(source.glob(pattern)):
                # Not copy(): the module cache is read-only, and these are the user's own.
                (Path(copied) / file.name).write_bytes(file.read_bytes())
        Path(copied).rename(target)
        Path(copied).mkdir()  # for the context manager to remove
