"""`make bench`: how long the tool itself takes, each figure beside a baseline measured in the same run."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from modelstacks import project, spec, stackfile

ROOT = project.root(Path(__file__))
MODELSTACKS = str(Path(sys.executable).parent / "modelstacks")

_EMPTY_PROGRAM = "import pulumi\n"
_PLAIN_PROGRAM = """
import glob
import pulumi_kubernetes as kubernetes
import yaml
for path in sorted(glob.glob({folder!r} + "/*.yaml")):
    manifest = yaml.safe_load(open(path))
    fields = {{k: v for k, v in manifest.items() if k not in ("apiVersion", "kind")}}
    kinds = {{
        "Namespace": kubernetes.core.v1.Namespace, "ServiceAccount": kubernetes.core.v1.ServiceAccount,
        "Service": kubernetes.core.v1.Service, "Deployment": kubernetes.apps.v1.Deployment,
        "NetworkPolicy": kubernetes.networking.v1.NetworkPolicy,
        "PodDisruptionBudget": kubernetes.policy.v1.PodDisruptionBudget,
        "ResourceQuota": kubernetes.core.v1.ResourceQuota,
    }}
    if "automountServiceAccountToken" in fields:
        fields["automount_service_account_token"] = fields.pop("automountServiceAccountToken")
    if manifest["kind"] in kinds:
        kinds[manifest["kind"]](path, **fields)
    else:
        group = {{"api_version": manifest["apiVersion"], "kind": manifest["kind"]}}
        kubernetes.apiextensions.CustomResource(path, **group, **fields)
"""


def seconds(command: list[str], cwd: Path, environment: Mapping[str, str] | None = None, runs: int = 5) -> float:
    """Median wall time of a whole process."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(command, cwd=cwd, env={**os.environ, **(environment or {})}, capture_output=True, check=True)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def line(what: str, took_s: float, aim: str) -> None:
    print(f"{what:58} {took_s:7.2f} s   {aim}", flush=True)


def many_stacks(folder: Path, count: int) -> None:
    """A project of `count` stacks, made from the project's own."""
    (folder / "stacks").mkdir(parents=True)
    shutil.copy(ROOT / "Pulumi.yaml", folder)
    names = stackfile.stack_names(ROOT)
    for index in range(count):
        source = ROOT / "stacks" / f"Pulumi.{names[index % len(names)]}.yaml"
        shutil.copy(source, folder / "stacks" / f"Pulumi.s{index}.yaml")


def bench_processes() -> None:
    line("python -c pass", seconds([sys.executable, "-c", "pass"], ROOT), "baseline")
    line("modelstacks plan quickstart", seconds([MODELSTACKS, "plan", "quickstart"], ROOT), "aim: below 0.5 s")
    render = [MODELSTACKS, "render", "--all", "--check"]
    line(
        f"modelstacks render --all ({len(stackfile.stack_names(ROOT))} stacks)",
        seconds(render, ROOT),
        "aim: below 1.5 s",
    )
    for count in (250, 500, 1000):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "project"
            many_stacks(folder, count)
            took_s = seconds([MODELSTACKS, "render", "--all"], folder, runs=1)
            aim = "aim: below 15 s" if count == 1000 else "linear?"
            line(
                f"modelstacks render --all ({count} new stacks)",
                took_s,
                f"{aim}  {took_s / count * 1000:.1f} ms a stack",
            )


def bench_catalogue() -> None:
    """Every model on every GPU type, each planned as a question of its own, in one process."""
    from modelstacks.catalog import Catalog
    from modelstacks.plan import plan

    catalog = Catalog()
    questions = [{"model": model, "gpu": gpu} for model in catalog.model_ids for gpu in catalog.gpus]
    for thorough, what in ((False, "plans alone"), (True, "with alternatives and reasons")):
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            for question in questions:
                plan(spec.parse(question, catalog, source="bench"), catalog, thorough=thorough)
            taken.append(time.perf_counter() - began)
        line(f"{len(questions)} plans (catalogue × hardware), {what}", statistics.median(taken), "aim: below 1 s")


def bench_pulumi() -> None:
    from modelstacks.local import journey
    from modelstacks.local.layout import Layout

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MODELSTACKS_STATE_DIR"] = scratch
        layout = Layout.of(ROOT)

        def quiet(_line: str) -> None:
            return

        try:
            pulumi = str(journey.start(ROOT, layout, quiet))
            ours = {**os.environ, **journey.variables(ROOT, layout)}
            theirs = {key: value for key, value in ours.items() if key != "PULUMI_OPTION_CWD"}
            programs: list[tuple[str, str | None]] = [("an empty program", _EMPTY_PROGRAM)]
            programs.append(
                (
                    "a plain program of the same resources",
                    _PLAIN_PROGRAM.format(folder=str(ROOT / "rendered" / "quickstart")),
                )
            )
            programs.append(("modelstacks quickstart", None))
            for name, source in programs:
                folder = ROOT if source is None else _program(Path(scratch) / name.replace(" ", "-"), source)
                environment = ours if source is None else theirs
                stack = "quickstart" if source is None else "plain"
                _time_stack(pulumi, name, stack, folder, environment)
        finally:
            subprocess.run([MODELSTACKS, "local", "down"], cwd=ROOT, check=False, capture_output=True)


def _program(folder: Path, source: str) -> Path:
    folder.mkdir()
    (folder / "Pulumi.yaml").write_text(
        f"name: bench-{folder.name}\nruntime: {{name: python, options: {{toolchain: pip, virtualenv: {sys.prefix}}}}}\n"
    )
    (folder / "__main__.py").write_text(source)
    return folder


def _time_stack(pulumi: str, name: str, stack: str, folder: Path, environment: Mapping[str, str]) -> None:
    def run(*arguments: str) -> Callable[[], float]:
        command = [pulumi, *arguments, "--non-interactive"]
        return lambda: seconds(command, folder, environment, runs=1)

    run("stack", "init", stack)()
    up = run("up", "--yes", "-s", stack)()
    preview = statistics.median(run("preview", "-s", stack)() for _ in range(3))
    run("destroy", "--yes", "-s", stack)()
    line(f"pulumi up: {name}", up, "")
    line(f"pulumi preview, no change: {name}", preview, "")


if __name__ == "__main__":
    bench_processes()
    bench_catalogue()
    bench_pulumi()
