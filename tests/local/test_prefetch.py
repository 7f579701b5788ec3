"""The program that fetches weights, run as its pod runs it, against a hub on loopback that misbehaves as hubs do."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelstacks import project
from tests.local.fakehub import COMMIT, REPOSITORY, Hub, serving

PROGRAM = project.data_root() / "templates" / "programs" / "prefetch.py"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"tokens": []}',
    "model-00001-of-00002.safetensors": os.urandom(300_000),
    "model-00002-of-00002.safetensors": os.urandom(200_000),
    "consolidated.safetensors": os.urandom(1000),
    "pytorch_model.bin": b"pickled code",
    "original/params.json": b"{}",
    "onnx/model.safetensors": os.urandom(10),
    "README.md": b"hello",
}


@pytest.fixture
def hub() -> Hub:
    return Hub(dict(FILES))


class Fetch:
    """One run of the program."""

    def __init__(self, address: str, target: Path, **env: str) -> None:
        quick = f"import runpy, sys; sys.argv = ['prefetch']; m = runpy.run_path({str(PROGRAM)!r}); "
        # As in the pod, save that nobody waits five seconds for the second try.
        quick += (
            "m['Hub']._patiently.__globals__.update(_FIRST_PAUSE_S=0.05, _LONGEST_PAUSE_S=0.2); sys.exit(m['main']())"
        )
        settings = {
            "MODEL_REPOSITORY": REPOSITORY, "MODEL_REVISION": COMMIT, "TARGET": str(target), "HF_ENDPOINT": address,
            "HOME": str(target.parent), "HF_HOME": str(target.parent / "cache"), "HF_HUB_DISABLE_XET": "1",
            "PATH": os.environ["PATH"], "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", quick],
            env=settings | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=120)
        return self.process.returncode, said


def fetch(address: str, target: Path, **env: str) -> tuple[int, str]:
    return Fetch(address, target, **env).end()


def test_weights_arrive_whole_once_and_with_their_checksums(hub: Hub, tmp_path: Path) -> None:
    """Safetensors of one layout and what describes them; a second run fetches nothing."""
    target = tmp_path / "model" / COMMIT
    with serving(hub) as address:
        code, said = fetch(address, target)
        assert code == 0, said
        held = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
        weights = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
        assert held == weights | {
            "config.json", "tokenizer.json", "original/params.json", "SHA256SUMS", ".modelstacks.json",
        }  # fmt: skip
        for name in weights:
            assert (target / name).read_bytes() == FILES[name]
        sums = dict(reversed(line.split("  ")) for line in (target / "SHA256SUMS").read_text().splitlines())
        assert all(sums[name] == hashlib.sha256(FILES[name]).hexdigest() for name in weights)
        assert json.loads((target / ".modelstacks.json").read_text())["commit"] == COMMIT
        before = len(hub.asked)
        code, said = fetch(address, target)
        assert (code, len(hub.asked)) == (0, before), "nothing was asked of the hub"
        assert "is complete, nothing to fetch" in said
        (target / "config.json").unlink()
        assert fetch(address, target)[0] == 0
        assert (target / "config.json").is_file(), "what somebody took away is there again"


def test_a_hub_that_is_busy_is_waited_for(hub: Hub, tmp_path: Path) -> None:
    """429 and 503 are answered with patience, a broken connection by going on."""
    hub.refusals = [(429, {"Retry-After": "0"}), (503, {}), (429, {})]
    hub.cut = {"model-00001-of-00002.safetensors"}
    with serving(hub) as address:
        code, said = fetch(address, tmp_path / "model")
    assert code == 0, said
    assert "429" in said
    assert "again in" in said
    assert (tmp_path / "model" / "model-00001-of-00002.safetensors").read_bytes() == FILES[
        "model-00001-of-00002.safetensors"
    ]


def test_an_interrupted_fetch_goes_on_with_what_it_has(hub: Hub, tmp_path: Path) -> None:
    """Killed in the middle: the folder of servers is not there, and the next run fetches only what is missing."""
    target = tmp_path / "model"
    hub.held = {"model-00002-of-00002.safetensors"}
    with serving(hub) as address:
        run = Fetch(address, target)
        part = tmp_path / "model.part" / "model-00001-of-00002.safetensors"
        deadline = time.monotonic() + 60
        while not part.is_file() and run.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        run.process.send_signal(signal.SIGKILL)
        run.end()
        assert part.is_file()
        assert not target.exists()
        hub.held, hub.sent = set(), 0
        hub.release.set()
        code, said = fetch(address, target)
    assert code == 0, said
    assert "going on" in said
    assert hub.sent < len(FILES["model-00001-of-00002.safetensors"]) + len(FILES["model-00002-of-00002.safetensors"])


def test_what_was_checked_is_not_read_again_unless_it_changed(tmp_path: Path) -> None:
    """Hundreds of GiB take a quarter of an hour to read, and a pod may be tried often."""
    program = runpy.run_path(str(PROGRAM))
    verified, file = tmp_path / program["VERIFIED"], tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    program["Verified"](verified).keep("model.safetensors", file, right)
    verified.write_text(verified.read_text().replace(right, "remembered") + '["cut off')
    program["Verified"](verified).keep("other.safetensors", file, "too")
    for name, digest in (("model.safetensors", "remembered"), ("other.safetensors", "too")):
        assert program["Verified"](verified).sha256(name, file) == digest
    file.write_bytes(b"damaged")
    os.utime(file, ns=(1, 1))
    found = program["Verified"](verified).sha256("model.safetensors", file)
    assert found == hashlib.sha256(b"damaged").hexdigest()


def test_a_file_that_arrives_damaged_is_fetched_again(hub: Hub, tmp_path: Path) -> None:
    """Its checksum is not what the hub says."""
    hub.damaged = {"model-00002-of-00002.safetensors"}
    with serving(hub) as address:
        code, said = fetch(address, tmp_path / "model")
    assert code == 0, said
    assert "arrived damaged, once more" in said


@pytest.mark.parametrize(
    ("harm", "env", "says"),
    [
        ("token", {"HF_TOKEN": "hf_wrong"}, "the token is missing or wrong"),
        ("gated", {}, "accept its terms"),
        ("repository", {"MODEL_REPOSITORY": "acme/nothing"}, "no such repository"),
        ("pickles", {}, "no weights as safetensors"),
    ],
)
def test_what_another_try_cannot_mend_ends_at_once(
    harm: str, env: dict[str, str], says: str, hub: Hub, tmp_path: Path
) -> None:
    """Exit code 3 ends the Job, and the last line says why."""
    if harm == "token":
        hub.token = "hf_right"
    if harm == "gated":
        hub.refusals = [(403, {"X-Error-Code": "GatedRepo"})] * 9
    if harm == "pickles":
        hub.files = {"pytorch_model.bin": b"code", "config.json": b"{}"}
    with serving(hub) as address:
        code, said = fetch(address, tmp_path / "model", **env)
    assert code == 3, said
    assert says in said.strip().splitlines()[-1]
    assert not (tmp_path / "model").exists()


def test_a_token_with_a_line_break_works(hub: Hub, tmp_path: Path) -> None:
    """As `echo` and editors leave it."""
    hub.token = "hf_right"
    with serving(hub) as address:
        assert fetch(address, tmp_path / "model", HF_TOKEN="hf_right\n")[0] == 0


def test_two_pods_fill_one_folder_once(hub: Hub, tmp_path: Path) -> None:
    """The second waits for the first, and finds all there."""
    with serving(hub) as address:
        runs = [Fetch(address, tmp_path / "model") for _ in range(3)]
        ends = [run.end() for run in runs]
    assert [code for code, _ in ends] == [0, 0, 0], ends
    assert sum("nothing to fetch" in said for _, said in ends) == 2
    assert sum("GET" in one and "00001-of" in one for one in hub.asked) == 1
