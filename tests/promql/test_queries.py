"""What alerts say of a fleet that is well, idle, loading or gone, by Prometheus' own engine."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelstacks import project
from modelstacks.local import golang
from modelstacks.local.layout import Layout
from modelstacks.render.values import form_of
from tests.unit.test_monitoring import ENGINES
from tests.unit.test_server_plans import AWS, decide, manifests, one

# The engine is built on first use, as the embedded cluster is.
pytestmark = pytest.mark.embedded

MINUTES = 600
PODS = {
    "vllm": ["test-5479965577-b5s72", "test-5479965577-x9k2l"],
    "tgi": ["test-5479965577-b5s72", "test-5479965577-x9k2l"],
    "ray": ["test-0-abcde-gpu-worker-b5s72", "test-0-abcde-gpu-worker-x9k2l"],
    "groups": ["test-0", "test-1"],
}
# Pods that serve nobody and are Ready all the same, and the servers of another stack.
OTHERS = ["test-0-abcde-head-9z9z9", "test-0-1", "test-2-5479965577-b5s72"]


@dataclass
class Fleet:
    """Series of a stack's pods, one value a minute; nothing of an engine unless it is said."""

    engine: str
    series: list[str] = field(default_factory=list)

    def add(self, name: str, pod: str, values: str, **labels: str) -> None:
        """One series. `values` as Prometheus' tests have them: 1x600, 0+1x60, _x30."""
        told = {"namespace": "test", "pod": pod, **labels}
        self.series.append(f"{name}{{{','.join(f'{key}={value!r}' for key, value in told.items())}}} {values}")

    def pods(self, *, ready: str = f"1x{MINUTES}", up: str = f"1x{MINUTES}", start: str = f"0x{MINUTES}") -> None:
        """Every pod of the stack in one state, and the others, which are always well."""
        for pod in PODS[self.engine]:
            self.pod(pod, ready, up, start)
        for pod in OTHERS:
            self.pod(pod, f"1x{MINUTES}", f"1x{MINUTES}", f"0x{MINUTES}")

    def pod(self, pod: str, ready: str, up: str, start: str) -> None:
        """One pod as kube-state-metrics and the scraper see it."""
        self.add("kube_pod_status_ready", pod, ready, condition="true", uid=f"uid-{pod}")
        self.add("kube_pod_start_time", pod, start, uid=f"uid-{pod}")
        self.add("up", pod, up)

    def asked(self, replicas: int) -> None:
        """What the Deployment asks for."""
        self.series.append(f'kube_deployment_spec_replicas{{namespace="test",deployment="test"}} {replicas}x{MINUTES}')

    def gauge(self, which: str, values: str) -> None:
        """One of the engine's gauges, by what it means, on the first server."""
        self.add(str(getattr(form_of(decide(**ENGINES[self.engine])).metrics, which)), PODS[self.engine][0], values)


def idle(engine: str) -> Fleet:
    """Two servers that nobody asks anything; those that say nothing then do not."""
    fleet = Fleet(engine)
    fleet.pods()
    fleet.asked(2)
    if not form_of(decide(**ENGINES[engine])).metrics.silent_when_idle:
        fleet.gauge("running", f"0x{MINUTES}")
        fleet.gauge("waiting", f"0x{MINUTES}")
    return fleet


def busy(engine: str) -> Fleet:
    """Two servers with work."""
    fleet = Fleet(engine)
    fleet.pods()
    fleet.asked(2)
    fleet.gauge("running", f"3x{MINUTES}")
    fleet.gauge("waiting", f"0x{MINUTES}")
    return fleet


def gone(engine: str) -> Fleet:
    """Pods that have not been ready for hours; nothing can be scraped."""
    fleet = Fleet(engine)
    fleet.pods(ready=f"0x{MINUTES}", up=f"0x{MINUTES}")
    fleet.asked(2)
    return fleet


def one_pending(engine: str) -> Fleet:
    """One serves, the other has found no node: kube-state-metrics knows no start of it."""
    fleet = busy(engine)
    pending = PODS[engine][1]
    fleet.series = [line for line in fleet.series if f"pod={pending!r}" not in line]
    fleet.add("kube_pod_status_ready", pending, f"0x{MINUTES}", condition="true", uid="uid-pending")
    return fleet


def one_loads(engine: str, minutes: int) -> Fleet:
    """One serves, the other began so many minutes ago."""
    fleet = busy(engine)
    loading, began = PODS[engine][1], MINUTES - minutes
    fleet.series = [line for line in fleet.series if f"pod={loading!r}" not in line]
    fleet.pod(loading, f"_x{began} 0x{minutes}", f"_x{began} 0x{minutes}", f"_x{began} {began * 60}x{minutes}")
    return fleet


def restarted(engine: str, times: int) -> Fleet:
    """A server whose container ended so many times in the last half hour; of groups, whose pod was made anew."""
    fleet = busy(engine)
    steps = [f"{count}x4" for count in range(times)]
    if engine == "groups":
        fleet.series = [line for line in fleet.series if "kube_pod_start_time" not in line]
        values = " ".join([f"0x{MINUTES - 20}", *(f"{(MINUTES - 20 + 5 * n) * 60}x4" for n in range(times))])
        fleet.add("kube_pod_start_time", PODS[engine][0], f"{values} {values.split()[-1].split('x')[0]}x20")
        return fleet
    values = f"0x{MINUTES - 20} {' '.join(steps)} {times}x30"
    container = "ray-worker" if engine == "ray" else "server"
    fleet.add("kube_pod_container_status_restarts_total", PODS[engine][0], values, container=container)
    return fleet


def queue(engine: str) -> Fleet:
    """Waiting requests, each minute more of them."""
    fleet = busy(engine)
    fleet.series = [line for line in fleet.series if not line.endswith(f" 0x{MINUTES}") or "kube_" in line]
    fleet.gauge("waiting", f"1+1x{MINUTES}")
    return fleet


def full(engine: str) -> Fleet:
    """A cache with no room left."""
    fleet = busy(engine)
    fleet.gauge("kv_cache", f"0.99x{MINUTES}")
    return fleet


def unseen(engine: str) -> Fleet:
    """A cluster without kube-state-metrics, whose servers work."""
    fleet = busy(engine)
    fleet.series = [line for line in fleet.series if not line.startswith("kube_")]
    return fleet


CASES: dict[str, tuple[Any, set[str]]] = {
    "idle": (idle, {"Idle"}),
    "busy": (busy, set()),
    "gone": (gone, {"Down", "sMissing", "LoadsTooLong"}),
    "one is pending": (one_pending, {"sMissing"}),
    "one loads": (lambda engine: one_loads(engine, 5), {"sMissing"}),
    "one loads too long": (lambda engine: one_loads(engine, 590), {"sMissing", "LoadsTooLong"}),
    "restarted once": (lambda engine: restarted(engine, 1), set()),
    "restarts and restarts": (lambda engine: restarted(engine, 4), {"Restarts"}),
    "a queue that grows": (queue, {"QueueGrows"}),
    "a full cache": (full, {"CacheFull"}),
    "nobody counts pods": (unseen, set()),
}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prometheus' engine as a program that runs scripts."""
    program = tmp_path_factory.mktemp("promql") / "promql.test"
    go = golang.find(Layout.of(project.root()).cache / "toolchain", print)
    go.run(["test", "-c", "-o", str(program), "."], Path(__file__).parent)
    return program


def run(program: Path, folder: Path, scripts: dict[str, str]) -> None:
    """Fail with the engine's own words unless every script holds."""
    for name, text in scripts.items():
        (folder / f"{name}.test").write_text(text)
    environment = os.environ | {"SCRIPTS": str(folder)}
    done = subprocess.run([str(program)], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:]


def script(fleet: Fleet, answers: dict[str, str | None]) -> str:
    """Series, then queries at the end of them: query → its one value, None where it has none."""
    lines = ["load 1m", *(f"  {line}" for line in fleet.series), ""]
    for query, value in answers.items():
        lines += [f"eval instant at {MINUTES}m {query}", *([f"  {{}} {value}"] if value is not None else []), ""]
    return "\n".join(lines)


@pytest.mark.parametrize("engine", ENGINES)
def test_alerts_fire_for_what_they_are_there_for_alone(engine: str, prometheus: Path, tmp_path: Path) -> None:
    """Two replicas (of Ray one, over two nodes) in every state; firing or not, each alert, each time."""
    replicas = {} if engine == "ray" else {"replicas": 2}
    rules = one(manifests(**ENGINES[engine], **replicas, monitoring={}), "PrometheusRule")
    alerts = {r["alert"].removeprefix("ModelServer"): r["expr"] for r in rules["spec"]["groups"][0]["rules"]}
    scripts = {}
    for name, (make, fires) in CASES.items():
        if not fires <= alerts.keys():
            continue
        answers = {f"count({expr}) > bool 0": "1" if alert in fires else None for alert, expr in alerts.items()}
        scripts[name.replace(" ", "-")] = script(make(engine), answers)
    assert len(scripts) >= len(CASES) - 1
    run(prometheus, tmp_path, scripts)


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
def test_an_autoscaler_has_an_answer_whenever_somebody_can_give_one(
    engine: str, prometheus: Path, tmp_path: Path
) -> None:
    """0 of an idle engine and of none at all; nothing, which is an error, of one that cannot be read."""
    zero = {"min": 0, "max": 3, "activationQuery": "vector(0)", "coldStartSeconds": 3600}
    found = one(manifests(**ENGINES[engine], autoscale=zero, cloud=AWS), "ScaledObject")
    (query, *_) = [trigger["metadata"]["query"] for trigger in found["spec"]["triggers"]]
    asleep, unread = Fleet(engine), Fleet(engine)
    asleep.asked(0)
    unread.asked(1)
    unread.add("up", PODS[engine][0], f"0x{MINUTES}")
    scripts = {
        "idle": script(idle(engine), {query: "0"}),
        "busy": script(busy(engine), {query: "3"}),
        "asleep": script(asleep, {query: "0"}),
        "unread": script(unread, {query: None}),
    }
    run(prometheus, tmp_path, scripts)
