"""Fetches a model's weights from the Hugging Face hub into a folder, once, for servers that only read it.

Runs inside the cluster, in the engine's image, which brings huggingface_hub; everything it is told is in its
environment. Interrupted, it goes on where it stopped; complete, it only looks whether all is there.

MODEL_REPOSITORY, MODEL_REVISION   what to fetch
TARGET                             the folder that servers read; it appears when it is complete, never half filled
HF_TOKEN, HF_ENDPOINT              as the hub's own client reads them
DEADLINE_S                         give up after so many seconds (default: never; the Job has a limit of its own)

Exit codes: 0 complete; 3 another try cannot mend it (token, repository, revision, disk); 1 anything else.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MARKER = ".modelstacks.json"
CHECKSUMS = "SHA256SUMS"
VERIFIED = ".modelstacks.verified"
HOPELESS = 3
# Weights as safetensors alone: the other formats can run code when they are read.
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "tekken*", "*.py")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
_RETRIED = (408, 425, 429, 500, 502, 503, 504)


class HopelessError(Exception):
    """What another try cannot mend."""


def say(text: str) -> None:
    print(f"weights: {text}", flush=True)


def wanted(names: list[str]) -> list[str]:
    """The files of a repository that a server reads; weights are not fetched in two layouts."""
    kept = [name for name in names if any(fnmatch.fnmatch(name.rpartition("/")[2], shape) for shape in WANTED)]
    top = [name for name in kept if "/" not in name]
    if any(name.startswith("model") and name.endswith(".safetensors") for name in top):
        kept = [name for name in kept if not (name.startswith("consolidated") and "safetensors" in name)]
    # Copies for other tools: original/, metal/, onnx/.
    kept = [name for name in kept if "/" not in name or not name.endswith(".safetensors")]
    if not any(name.endswith(".safetensors") for name in kept):
        raise HopelessError("the repository has no weights as safetensors, and no other format is fetched")
    return sorted(kept)


def is_complete(target: Path) -> bool:
    """The folder holds every file that it was completed with, each as long as it was."""
    try:
        held = json.loads((target / MARKER).read_text(encoding="utf-8"))["files"]
        return all((target / name).stat().st_size == size for name, size in held.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def sha256(path: Path) -> str:
    """The checksum of a file, read in pieces."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(8 << 20):
            total.update(piece)
    return total.hexdigest()


class Verified:
    """Files whose checksums were seen to be right, so that another try does not read them all once more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: dict[str, list[object]] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            lines = []
        for line in lines:
            # One that was cut off stands for a file that is read again.
            with suppress(ValueError, TypeError):
                name, size, changed, digest = json.loads(line)
                self._held[name] = [size, changed, digest]

    def sha256(self, name: str, path: Path) -> str:
        """The checksum of a file, from memory where the file has not been touched since."""
        size, changed, digest = self._held.get(name, (None, None, None))
        now = path.stat()
        if [size, changed] == [now.st_size, now.st_mtime_ns]:
            return str(digest)
        return sha256(path)

    def keep(self, name: str, path: Path, digest: str) -> None:
        """Remember a file whose checksum is the hub's."""
        now = path.stat()
        entry = [now.st_size, now.st_mtime_ns, digest]
        if self._held.get(name) == entry:
            return
        self._held[name] = entry
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps([name, *entry])}\n")


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Only one process fills a folder; on a file system without locks, nothing keeps others out."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another pod fetches the same weights, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            say(f"this volume has no locks ({error.strerror}): going on without")
        yield


class Hub:
    """The hub's client with patience: what passes by itself is tried again, slower and slower."""

    def __init__(self, deadline: float | None) -> None:
        import huggingface_hub
        from huggingface_hub import errors

        self._hub, self._errors, self._deadline = huggingface_hub, errors, deadline

    def files(self, repository: str, revision: str) -> tuple[str, dict[str, tuple[int | None, str | None]]]:
        """The commit that a revision means, and name → size and checksum of its files."""
        info = self._patiently(
            lambda: self._hub.HfApi().model_info(repository, revision=revision, files_metadata=True), "list the files"
        )
        found = {}
        for file in info.siblings or []:
            lfs = file.lfs
            found[file.rfilename] = (file.size, None if lfs is None else lfs.sha256)
        return str(info.sha), found

    def fetch(self, repository: str, commit: str, name: str, folder: Path) -> None:
        """One file into `folder`, resumed where an earlier try stopped."""
        self._patiently(
            lambda: self._hub.hf_hub_download(repository, name, revision=commit, local_dir=folder), f"fetch {name}"
        )

    def _patiently(self, ask: Any, what: str) -> Any:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return ask()
            except self._errors.GatedRepoError:
                raise HopelessError("the repository is gated and the token has no access: accept its terms") from None
            except self._errors.RepositoryNotFoundError:
                raise HopelessError("there is no such repository, or the token is missing or wrong") from None
            except self._errors.RevisionNotFoundError:
                raise HopelessError("the repository has no such revision") from None
            except Exception as error:
                if isinstance(error, OSError) and error.errno == 28:
                    raise HopelessError("the volume is full: make it larger") from None
                wait_s = self._wait_s(error, pause_s)
                why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                if self._deadline is not None and time.monotonic() + wait_s > self._deadline:
                    raise TimeoutError(f"could not {what} in time: {why}") from None
                say(f"could not {what}: {why}; again in {wait_s:.0f} s")
                time.sleep(wait_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _wait_s(self, error: Exception, pause_s: float) -> float:
        """Seconds until the next try. Raises HopelessError for answers that stay the same."""
        # The client wraps what it met in an error of its own.
        chain = [error, error.__cause__, error.__context__]
        response = next((found for one in chain if (found := getattr(one, "response", None)) is not None), None)
        status = getattr(response, "status_code", None)
        if status in (401, 403):
            raise HopelessError(f"the hub refuses the token (HTTP {status})") from None
        if status is not None and status < 500 and status not in _RETRIED:
            raise HopelessError(f"the hub answers HTTP {status}") from None
        asked = str(getattr(response, "headers", {}).get("Retry-After", ""))
        if asked.isdigit():
            pause_s = max(pause_s, min(float(asked), _LONGEST_PAUSE_S))
        # Pods that were refused together must not come back together.
        return pause_s * random.uniform(1.0, 1.5)


def fill(repository: str, revision: str, target: Path, hub: Hub) -> None:
    """Make `target` hold the repository's weights. Raises HopelessError, or TimeoutError at the deadline."""
    commit, sizes = hub.files(repository, revision)
    names = wanted(list(sizes))
    total = sum(sizes[name][0] or 0 for name in names)
    part = target.with_name(f"{target.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    held = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    room = shutil.disk_usage(part).free + held
    if total > room:
        raise HopelessError(f"the weights are {total / 2**30:.1f} GiB, the volume has room for {room / 2**30:.1f}")
    say(f"{repository} at {commit[:12]}: {len(names)} files, {total / 2**30:.2f} GiB" + (", going on" if held else ""))
    sums = {}
    verified = Verified(part / VERIFIED)
    done = 0
    for name in names:
        size, expected = sizes[name]
        began = time.monotonic()
        for attempt in (1, 2):
            hub.fetch(repository, commit, name, part)
            sums[name] = verified.sha256(name, part / name)
            if expected is None or sums[name] == expected:
                verified.keep(name, part / name, sums[name])
                break
            (part / name).unlink()
            if attempt == 2:
                raise HopelessError(f"{name} has another checksum than the hub says, twice: {sums[name]}")
            say(f"{name} arrived damaged, once more")
        done += size or (part / name).stat().st_size
        share = 100 * done / total if total else 100
        say(f"{share:.0f} % {name} ({time.monotonic() - began:.0f} s)")
    shutil.rmtree(part / ".cache", ignore_errors=True)
    (part / VERIFIED).unlink(missing_ok=True)
    (part / CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()), encoding="utf-8")
    marker = {
        "repository": repository,
        "commit": commit,
        "files": {name: (part / name).stat().st_size for name in (*names, CHECKSUMS)},
    }
    (part / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    if target.exists():
        # Somebody took files away: what servers still have open stays open.
        shutil.rmtree(target)
    part.rename(target)


def main() -> int:
    """Exit code, with the reason on the last line."""
    repository, revision = os.environ["MODEL_REPOSITORY"], os.environ.get("MODEL_REVISION", "main")
    target = Path(os.environ["TARGET"])
    # A token with the line break of an editor is refused without a word about it.
    if "HF_TOKEN" in os.environ:
        os.environ["HF_TOKEN"] = os.environ["HF_TOKEN"].strip()
    limit = os.environ.get("DEADLINE_S")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target.with_name(f"{target.name}.lock")):
            if is_complete(target):
                say(f"{target} is complete, nothing to fetch")
                return 0
            fill(repository, revision, target, Hub(time.monotonic() + float(limit) if limit else None))
    except HopelessError as error:
        say(f"{repository} at {revision} cannot be fetched: {error}")
        return HOPELESS
    except (OSError, TimeoutError) as error:
        say(f"{repository} at {revision} was not fetched: {error}")
        return HOPELESS if getattr(error, "errno", None) in (13, 28, 30) else 1
    say(f"{target} is complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
