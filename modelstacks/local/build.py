"""Builds programs from the pinned Go modules into the cache, with honest progress and room enough."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from modelstacks.errors import ToolchainError
from modelstacks.local import golang
from modelstacks.local.layout import CACHE_DIR_ENV
from modelstacks.local.processes import tail
from modelstacks.local.programs import KEDA, PROGRAMS, Program, home, linker_flags, version

Report = Callable[[str], None]
PROGRESS_EVERY_S = 15
# What a cold build of everything leaves (measured 2026-11-24: 3.3, 6.5 and 0.7 GB), by the variable that moves it.
DISK_GB = {"GOMODCACHE": 3.5, "GOCACHE": 6.7, CACHE_DIR_ENV: 0.8}


def free_gb(folder: Path) -> float:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def check_room(folders: dict[str, Path], share: float) -> None:
    """Refuse to begin a build that will not fit; `share` is the part of all programs that it builds (0 to 1).

    `folders` are by the variable that moves each. Folders of one disk share its room.
    """
    disks: dict[int, list[str]] = {}
    for variable, folder in folders.items():
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        disks.setdefault(folder.stat().st_dev, []).append(variable)
    for variables in disks.values():
        need = sum(DISK_GB[variable] for variable in variables) * share
        free = free_gb(folders[variables[0]])
        if free < need:
            where = ", ".join(f"{folders[variable]} ({variable})" for variable in variables)
            raise ToolchainError(
                f"too little room to build the embedded toolchain: {need:.1f} GB are needed and "
                f"{free:.1f} GB free on the disk of {where}",
                next_step=f"make room, or move folders to a larger disk with {', '.join(variables)}",
            )


def build_all(missing: list[Program], cache: Path, report: Report) -> None:
    go = golang.find(cache / "toolchain", report)
    # KEDA is built by one test alone, and counts for no one else.
    total_s = sum(program.seconds for program in PROGRAMS.values() if program.name not in KEDA)
    # The estimates are of two cores. Linking is not parallel, so this is rough; each build corrects it.
    pace = 2 / min(os.cpu_count() or 2, 8)
    share = sum(program.seconds for program in missing) / total_s
    folders = go.caches(golang.modules_folder() / missing[0].folder)
    check_room(folders | {CACHE_DIR_ENV: cache}, share)
    report(
        f"building {len(missing)} program{'s' if len(missing) > 1 else ''} from source, this once: about "
        f"{_minutes(share * total_s * pace)}, less if Go's caches are warm; Ctrl-C loses nothing finished"
    )
    spent_s = expected_s = 0.0
    for number, program in enumerate(missing, 1):
        this_s = program.seconds * pace
        later_s = sum(other.seconds for other in missing[number:]) * pace
        head = f"{program.name} {version(program)} ({number} of {len(missing)})"
        took_s = _build(go, program, cache, _progress(report, head, this_s, later_s))
        report(f"{head}: built in {took_s:.0f} s")
        spent_s, expected_s = spent_s + took_s, expected_s + program.seconds
        pace = spent_s / expected_s


def _progress(report: Report, head: str, this_s: float, later_s: float) -> Callable[[float], None]:
    def progress(elapsed_s: float) -> None:
        # A program that takes longer than thought is always about to be done, never overdue.
        left_s = max(this_s - elapsed_s, 5) + later_s
        report(f"{head}: {elapsed_s:.0f} s of about {this_s:.0f} s; all done in about {_minutes(left_s)}")

    return progress


def _build(go: golang.Go, program: Program, cache: Path, progress: Callable[[float], None]) -> float:
    """Build one program into the cache; returns the seconds it took."""
    module = golang.modules_folder() / program.folder
    target = home(cache, program) / "bin" / program.name
    log = cache / "toolchain" / "logs" / f"{program.name}.log"
    for folder in (target.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    # Renamed when complete: a program that is there is whole.
    unfinished = target.with_name(f".{program.name}.unfinished")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=log.parent, prefix="patched-") as patched, log.open("w") as output:
        command = [str(go.program), "build", "-ldflags", linker_flags(program), "-o", str(unfinished)]
        if program.patches:
            source = go.source(module, program.module)
            command.append(f"-modfile={patched_modfile(source, program, Path(patched))}")
        build = subprocess.Popen(
            [*command, program.package], cwd=module, env=go.environment(), stdout=output, stderr=output
        )
        try:
            while build.poll() is None:
                try:
                    build.wait(PROGRESS_EVERY_S)
                except subprocess.TimeoutExpired:
                    progress(time.monotonic() - began)
        finally:
            if build.poll() is None:  # Interrupted.
                build.terminate()
                build.wait()
                unfinished.unlink(missing_ok=True)
    if build.returncode != 0:
        unfinished.unlink(missing_ok=True)
        last = tail(log)
        raise ToolchainError(
            f"building {program.name} failed; the end of {log}:\n{last}", next_step=golang.advice(last)
        )
    (home(cache, program) / "go-version").write_text(".".join(map(str, go.version)) + "\n")
    unfinished.rename(target)
    log.unlink()
    return time.monotonic() - began


def patched_modfile(source: Path, program: Program, folder: Path) -> Path:
    """A go.mod for `go build -modfile` that has the program's patches applied to a copy of its module."""
    copy = folder / "source"
    for file in source.rglob("*"):
        target = copy / file.relative_to(source)
        if file.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            # Not copy(): the module cache is read-only, and these are the user's own.
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    for patch in program.patches:
        text = (copy / patch.file).read_text()
        if text.count(patch.old) != 1:
            raise ToolchainError(
                f"{program.module} {version(program)}: {patch.file} lacks the line to patch ({patch.reason})",
                next_step=f"adapt the patches of {program.name} to this version, or pin the former one",
            )
        (copy / patch.file).write_text(text.replace(patch.old, patch.new))
    module = golang.modules_folder() / program.folder
    modfile = folder / "go.mod"
    modfile.write_text(f"{(module / 'go.mod').read_text()}\nreplace {program.module} => {copy}\n")
    (folder / "go.sum").write_bytes((module / "go.sum").read_bytes())
    return modfile


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
