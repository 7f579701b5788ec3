"""The command line as a user meets it: exit codes, JSON, and messages instead of tracebacks."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelstacks import project, stackfile

ROOT = project.root()


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`modelstacks …` as its own process."""
    command = [sys.executable, "-c", "from modelstacks.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A project with the quickstart stack alone, to change at will."""
    (tmp_path / "stacks").mkdir()
    shutil.copy(ROOT / "Pulumi.yaml", tmp_path)
    shutil.copy(ROOT / "stacks" / "Pulumi.quickstart.yaml", tmp_path / "stacks")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan", "quickstart"], 0),
        (["plan", "mistral-nemo-12b", "--gpu", "l4", "--json"], 0),
        (["plan", "--model", "deepseek-r1", "--gpu", "h100-sxm", "--gpus", "8"], 3),
        (["plan", "deepseek-r1", "--gpus", "8", "--tensor-parallel", "3"], 2),
        (["plan", "llama-4-70b"], 2),
        (["plan", "nope"], 2),
        (["plan"], 2),
        (["plan", "quickstart", "--context", "128k"], 2),
        (["plan", "quickstart", "--no-such-option"], 2),
        (["models"], 0),
        (["models", "--json"], 0),
        (["gpus"], 0),
        (["cost", "--all"], 0),
        (["render", "--all", "--check"], 0),
        (["render"], 2),
        (["render", "nope"], 2),
        (["diff", "quickstart"], 0),
        (["nonsense"], 2),
        (["--help"], 0),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    """0 done, 2 bad input, 3 refused; and never a traceback."""
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_stack_file_with_three_mistakes_names_all_three(copy: Path) -> None:
    """One run, three problems, each with its place."""
    path = copy / "stacks" / "Pulumi.quickstart.yaml"
    path.write_text(
        "config:\n  modelstacks:modell: x\n  modelstacks:model: qwen\n  modelstacks:replicas: many\n"
        "  modelstacks:cloud: {kind: moon}\n"
    )
    done = run("plan", "quickstart", cwd=copy)
    assert done.returncode == 2
    for place in ("modelstacks:modell", "modelstacks:model:", "modelstacks:replicas", "modelstacks:cloud.kind"):
        assert place in done.stderr


def test_rendering_after_an_edit_shows_and_stores_the_change(copy: Path) -> None:
    """The review loop: edit, diff, render, current."""
    assert run("render", "quickstart", cwd=copy).returncode == 0
    path = copy / "stacks" / "Pulumi.quickstart.yaml"
    path.write_text(path.read_text().replace("replicas: 1", "replicas: 2"))
    assert "+  replicas: 2" in run("diff", "quickstart", cwd=copy).stdout
    assert run("render", "--all", "--check", cwd=copy).returncode == 1
    assert run("render", "--all", cwd=copy).returncode == 0
    assert run("render", "--all", "--check", cwd=copy).returncode == 0


def test_rendering_removes_what_no_longer_exists(copy: Path) -> None:
    """Stale files would be applied by nobody and believed by everybody."""
    run("render", "--all", cwd=copy)
    (copy / "rendered" / "quickstart" / "service.old.yaml").touch()
    (copy / "rendered" / "gone").mkdir()
    assert run("render", "--all", "--check", cwd=copy).returncode == 1
    run("render", "--all", cwd=copy)
    assert not (copy / "rendered" / "gone").exists()
    assert not (copy / "rendered" / "quickstart" / "service.old.yaml").exists()


def test_a_refused_stack_keeps_its_last_reviewed_render(copy: Path) -> None:
    """Nothing is lost when a plan stops fitting."""
    run("render", "--all", cwd=copy)
    before = (copy / "rendered" / "quickstart" / "plan.md").read_text()
    path = copy / "stacks" / "Pulumi.quickstart.yaml"
    path.write_text(path.read_text().replace("context: 32768", "context: 131072"))
    done = run("render", "--all", cwd=copy)
    assert done.returncode == 0 or "kv-cache-too-small" in done.stderr
    path.write_text(path.read_text() + "  modelstacks:gpus: 1\n")
    done = run("render", "--all", cwd=copy)
    assert done.returncode == 3
    assert (copy / "rendered" / "quickstart" / "plan.md").exists()
    assert before.startswith("# quickstart")


def test_init_writes_a_stack_that_plans(copy: Path) -> None:
    """From a model's name to a stack file, which is never overwritten."""
    assert run("init", "mine", "--model", "mixtral-8x22b", cwd=copy).returncode == 0
    assert stackfile.stack_names(copy) == ("mine", "quickstart")
    assert run("plan", "mine", cwd=copy).returncode == 0
    again = run("init", "mine", "--model", "mixtral-8x22b", cwd=copy)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    assert run("init", "Bad/Name", "--model", "mixtral-8x22b", cwd=copy).returncode == 2


def test_json_of_a_refusal_carries_alternatives() -> None:
    """A script can act on a refusal."""
    done = run("plan", "--model", "deepseek-r1", "--gpu", "h100-sxm", "--gpus", "8", "--json")
    read = json.loads(done.stdout)
    assert read["fits"] is False
    assert read["refusals"][0]["code"] == "weights-too-large"
    assert 16 in [alternative["options"]["gpus"] for alternative in read["alternatives"]]


def test_the_readmes_pictures_show_todays_plans() -> None:
    """`make pictures` refreshes them."""
    pictures = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    for name, text in pictures["draw"]().items():
        assert (ROOT / "docs" / "images" / name).read_text(encoding="utf-8") == text, "run `make pictures`"
