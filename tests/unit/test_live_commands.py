"""The commands that look at servers and change keys: status, try and rotate-key, beside a cluster that is played."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from modelstacks import project, render, stackfile
from modelstacks.cluster import change, forward, live, scaling, status, trial
from modelstacks.cluster.connection import ApiError
from modelstacks.cluster.snapshot import Snapshot
from modelstacks.errors import BadInput, ClusterError, Refused
from modelstacks.local.imitation import Imitation, Settings
from modelstacks.local.modelserver.app import Server
from modelstacks.local.modelserver.measures import Measures
from modelstacks.registration import changes_of
from modelstacks.render.values import form_of
from tests.unit.test_server_plans import CATALOG, GROUPS, SIMULATED, decide


@contextmanager
def serving(server: Server) -> Iterator[int]:
    """The port of a served imitation."""
    config = uvicorn.Config(server.app(), host="127.0.0.1", port=0, log_level="error", lifespan="off")
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, daemon=True)
    thread.start()
    while not runner.started:
        thread.join(0.01)
    yield runner.servers[0].sockets[0].getsockname()[1]
    runner.should_exit = True
    thread.join(10)


class Played:
    """A cluster whose pods' ports are ports of loopback."""

    def __init__(self, objects: dict[tuple[str, str], dict[str, Any]], log: str = "") -> None:
        self.objects, self.log = objects, log

    def get(self, kind: Any, namespace: str | None, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind.kind, name))

    def items(self, kind: Any, namespace: str | None, **query: str) -> list[dict[str, Any]]:
        return [found for (one, _), found in self.objects.items() if one == kind.kind]

    def path(self, kind: Any, namespace: str | None = None, name: str | None = None) -> str:
        return f"/{namespace}/{name}"

    def text(self, method: str, path: str, query: Any = None) -> str:
        if not self.log:
            raise ApiError("no log", status=404, causes=[], next_step=None)
        return self.log

    def apply(self, manifest: dict[str, Any], manager: str, **more: Any) -> dict[str, Any]:
        assert more == {"dry_run": True, "force": True}, "nothing is changed by looking"
        assert manager == "pulumi-kubernetes-1", "as another one, what is left out would stay"
        if manifest["kind"] == "Deployment":
            manifest = {**manifest, "spec": {"replicas": 1, **manifest["spec"]}}
        return manifest


def pod(name: str, *, ready: bool = True) -> dict[str, Any]:
    """A pod of the stack `test`."""
    return {
        "metadata": {"name": name, "namespace": "test", "labels": {"app.kubernetes.io/instance": "test"}},
        "spec": {"nodeName": "gpu-1", "containers": [{"name": "server"}]},
        "status": {
            "phase": "Running",
            "conditions": [
                {"type": "Ready", "status": str(ready), "lastTransitionTime": "2026-11-28T10:05:30Z"},
            ],
            "containerStatuses": [
                {"name": "server", "restartCount": 0, "state": {"running": {"startedAt": "2026-11-28T10:00:00Z"}}}
            ],
        },
    }


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pod → port of loopback; a pod without one does not answer."""
    places: dict[str, int] = {}

    def connect(cluster: Any, namespace: str, name: str, port: int) -> socket.socket:
        if name not in places:
            raise ClusterError(f"port {port} of pod {name} cannot be forwarded: refused")
        return socket.create_connection(("127.0.0.1", places[name]))

    monkeypatch.setattr(forward, "connect", connect)
    return places


def test_status_puts_the_servers_numbers_beside_the_plan(reached: dict[str, int]) -> None:
    """Requests, rates, cache, the time to be ready; what does not answer is named, what loads says how far it is."""
    decided = decide(replicas=3)
    core = Imitation(Settings("llama-3.1-8b", 1000, 4, kv_tokens=160_000), running=2, waiting=1, kept=40_000)
    measures = Measures("vllm", core)
    server = Server("vllm", core, measures, None)
    pods = [pod("test-1"), pod("test-2"), pod("test-3", ready=False)]
    cluster: Any = Played({}, "INFO x\nLoading safetensors checkpoint shards:  40% Completed | 2/5\n")
    snapshot = Snapshot("v1.34.1", "https://cluster", "test", objects={"pods": tuple(pods)})
    found = status.status(snapshot, decided, render.render(decided, CATALOG), [])

    def work(seconds: float) -> None:
        answer = measures.begin(3)
        for _ in range(20):
            answer.token()

    with serving(server) as port:
        reached["test-1"] = port
        traffic = live.traffic(cluster, decided, ["test-1", "test-2"], form_of(decided), 0.0, work)
        full = status.with_servers(found, cluster, snapshot, decided, 0.0)
    assert traffic is not None
    assert (traffic.servers, traffic.running, traffic.waiting, traffic.kv_cache) == (1, 2, 1, 0.25)
    assert traffic.output_tokens_per_s is not None
    assert traffic.output_tokens_per_s > 0
    assert traffic.cache_tokens == 160_000
    assert traffic.silent == ("test-2: port 8000 of pod test-2 cannot be forwarded: refused",)
    lines = {line.name: line for line in full.pods}
    assert lines["test-1"].ready_after_s == 330
    assert lines["test-3"].loaded_percent == 40
    shown = status.answer("test", full, decided)
    assert shown["plan"]["kv_cache_tokens"] == decided.memory.kv_cache_tokens
    assert shown["traffic"]["requests_running"] == 2


def test_try_streams_a_first_answer_with_the_stacks_key(reached: dict[str, int]) -> None:
    """Through a port of loopback; the key comes from the Secret and is shown nowhere."""
    import base64

    decided = decide()
    secret = {"metadata": {"name": "test-api-key-1"}, "data": {"key": base64.b64encode(b"opensesame").decode()}}
    cluster: Any = Played({("Pod", "test-1"): pod("test-1"), ("Secret", "test-api-key-1"): secret})
    target = trial.target(cluster, decided)
    assert "opensesame" not in repr(target)
    core = Imitation(Settings("llama-3.1-8b", 1000, 4, token_s=0.001))
    said: list[str] = []
    with serving(Server("vllm", core, Measures("vllm", core), "opensesame")) as port:
        reached["test-1"] = port
        listener = forward.Listener(cluster, "test", "test-1", 8000)
        found = trial.ask(target, listener.port, "hello there", 5, said.append)
        wrong = trial.Target("test-1", 8000, "llama-3.1-8b", "/health", "test-api-key-1", "guess")
        with pytest.raises(ClusterError, match="was rotated"):
            trial.ask(wrong, listener.port, "hello", 5, None)
        with pytest.raises(ClusterError, match="maximum context length"):
            trial.ask(target, listener.port, "hello", 5000, None)
        listener.close()
    assert found.text == "".join(said) == "the plan fits because weights "
    assert (found.tokens, found.first_token_s > 0) == (5, True)


def test_try_says_what_is_missing() -> None:
    """No ready server, no key yet, or one that HTTP does not carry, which is not shown."""
    import base64

    broken = {"metadata": {"name": "test-api-key-1"}, "data": {"key": base64.b64encode(b"opensesame\n").decode()}}
    with pytest.raises(ClusterError, match="a line break") as caught:
        trial.target(Played({("Pod", "test-1"): pod("test-1"), ("Secret", "test-api-key-1"): broken}), decide())  # type: ignore[arg-type]
    assert "opensesame" not in str(caught.value)
    with pytest.raises(ClusterError, match="no server of test is ready"):
        trial.target(Played({("Pod", "test-1"): pod("test-1", ready=False)}), decide())  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="has no key"):
        trial.target(Played({("Pod", "test-1"): pod("test-1")}), decide())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({}, {}, "restarts no pod"),
        ({"replicas": 2}, {"replicas": 2, "maxNumSeqs": 64}, "restarts 2 pods, needs 0 spare GPUs, about "),
        ({}, {"replicas": 3}, "adds 2 replicas, 2 GPUs more"),
        ({"replicas": 3}, {"replicas": 1}, "takes 2 replicas away, 2 GPUs less"),
        ({}, {"apiKeySerial": 2}, "restarts 1 pod"),
        ({}, {"apiKey": False}, "restarts 1 pod"),
        ({"replicas": 3}, {"autoscale": {"min": 2, "max": 4}}, "restarts no pod"),
        ({"replicas": 3}, {"autoscale": {"max": 2}}, "takes 1 replica away, 1 GPU less"),
        ({}, {"autoscale": {"min": 2, "max": 4}}, "adds 1 replica, 1 GPU more"),
        ({"replicas": 2}, {"replicas": 3, "maxNumSeqs": 64}, "restarts 2 pods, needs 0 spare GPUs, about "),
    ],
)
def test_a_preview_says_what_it_does_to_running_pods(before: dict[str, Any], after: dict[str, Any], says: str) -> None:
    """From a dry run of what would be applied."""
    (there,) = (m for m in render.render(decide(**before), CATALOG) if m["kind"] == "Deployment")
    there["metadata"]["managedFields"] = [{"manager": "pulumi-kubernetes-1", "operation": "Apply"}]
    live_ = {("Deployment", "test"): there}
    wanted = decide(**after)
    said = change.words(wanted, change.changes(Played(live_), wanted, render.render(wanted, CATALOG)))  # type: ignore[arg-type]
    assert said is not None
    assert says in said
    assert change.words(wanted, change.changes(Played({}), wanted, render.render(wanted, CATALOG))) is None  # type: ignore[arg-type]


def test_another_launcher_waits_for_no_gpus_that_the_old_one_holds() -> None:
    """Pulumi takes the old servers away last: without room for both the change is refused, with the way round."""
    old = render.render(decide(**{**GROUPS, "launcher": "ray-serve"}), CATALOG)
    there = {(m["kind"], m["metadata"]["name"]): m for m in old if m["kind"] == "RayService"}
    for bare in there.values():
        del bare["kind"]
    wanted = decide(**GROUPS)
    with pytest.raises(Refused, match="holds 16 GPUs until the new servers are ready, which need 16 more") as caught:
        change.check_room(Played(there), wanted, render.render(wanted, CATALOG))  # type: ignore[arg-type]
    assert "modelstacks:replicas: 0" in str(caught.value)
    room = decide(**GROUPS, cloud={"kind": "existing", "limitGpus": 32})
    change.check_room(Played(there), room, render.render(room, CATALOG))  # type: ignore[arg-type]
    change.check_room(Played({}), wanted, render.render(wanted, CATALOG))  # type: ignore[arg-type]
    none = decide(**GROUPS, replicas=0)
    change.check_room(Played(there), none, render.render(none, CATALOG))  # type: ignore[arg-type]


class Patched(Played):
    """One that takes what is applied, as it is."""

    def apply(self, manifest: dict[str, Any], manager: str, **more: Any) -> dict[str, Any]:
        self.objects[manifest["kind"], manifest["metadata"]["name"]]["metadata"] |= manifest["metadata"]
        return manifest


def test_an_autoscaler_that_goes_does_not_fight_for_its_replicas() -> None:
    """Paused before they are set, as Pulumi deletes it last; awake again where the stack has it again."""
    (scaled,) = (m for m in render.render(decide(autoscale={"max": 3}), CATALOG) if m["kind"] == "ScaledObject")
    there = Patched({("ScaledObject", "test"): scaled})
    for asked, paused in (({}, "true"), ({}, "true"), ({"autoscale": {"max": 2}}, None)):
        scaling.hand_over(there, decide(**asked), [])  # type: ignore[arg-type]
        assert scaled["metadata"].get("annotations", {}).get("autoscaling.keda.sh/paused") == paused
    scaling.hand_over(Patched({}), decide(), [])  # type: ignore[arg-type]


def test_a_quota_shrinks_when_those_who_used_it_are_gone() -> None:
    """Before that, the pod that replaces another one would be refused while a spare still counts."""
    spared, plain = decide(cloud={**SIMULATED, "warmSpares": 1}), decide(cloud=SIMULATED)
    for before, after, shrinks in ((spared, plain, 1), (plain, spared, 0), (plain, plain, 0)):
        there = {("ResourceQuota", m["metadata"]["name"]): m
                 for m in render.render(before, CATALOG) if m["kind"] == "ResourceQuota"}  # fmt: skip
        found = changes_of(after, render.render(after, CATALOG), Played(there))  # type: ignore[arg-type]
        assert len(found.shrinking) == shrinks


@pytest.mark.parametrize(
    "text",
    [
        "# mine\nconfig:\n  modelstacks:model: phi-4   # small\n  modelstacks:gpu: l40s\n",
        "config:\n    modelstacks:apiKeySerial: '1'\n    modelstacks:model: phi-4\n",
        "config:\n    modelstacks:apiKeySerial: 1 # first\n    modelstacks:model: phi-4\n",
        'config:\n  "modelstacks:model": phi-4\n  pulumi:tags: {a: b}\n',
    ],
)
def test_a_serial_is_raised_and_nothing_else_is_touched(text: str, tmp_path: Path) -> None:
    """Comments, order and other packages' keys stay."""
    path = tmp_path / "Pulumi.a.yaml"
    path.write_text(text)
    for serial in (2, 3):
        stackfile.set_value(path, "apiKeySerial", serial)
        assert stackfile.parse_file(path, CATALOG).api_key_serial == serial
    left = [line for line in path.read_text().splitlines() if "apiKeySerial" not in line]
    assert left == [line for line in text.splitlines() if "apiKeySerial" not in line]


def test_line_ends_and_links_stay(tmp_path: Path) -> None:
    """A file of Windows', behind a link."""
    real, path = tmp_path / "real.yaml", tmp_path / "Pulumi.a.yaml"
    real.write_bytes(b"config:\r\n  modelstacks:model: phi-4\r\n  modelstacks:apiKeySerial: 1\r\n")
    path.symlink_to(real)
    stackfile.set_value(path, "apiKeySerial", 2)
    assert path.is_symlink()
    assert real.read_bytes() == b"config:\r\n  modelstacks:model: phi-4\r\n  modelstacks:apiKeySerial: 2\r\n"


@pytest.mark.parametrize("form", ["1_0", "0x2", "&a 2"])
def test_a_number_of_another_form_is_left_to_its_writer(form: str, tmp_path: Path) -> None:
    """The file's own name, and what to write."""
    path = tmp_path / "Pulumi.a.yaml"
    path.write_text(f"config:\n  modelstacks:model: phi-4\n  modelstacks:apiKeySerial: {form}\n")
    with pytest.raises(BadInput) as caught:
        stackfile.set_value(path, "apiKeySerial", 3)
    assert ".part" not in str(caught.value)
    assert form in path.read_text()


def test_a_file_of_another_form_is_left_alone(tmp_path: Path) -> None:
    """With the line to write by hand."""
    path = tmp_path / "Pulumi.a.yaml"
    path.write_text("config: {modelstacks:model: phi-4}\n")
    with pytest.raises(BadInput, match="cannot be written into a file of this form"):
        stackfile.set_value(path, "apiKeySerial", 2)
    assert path.read_text() == "config: {modelstacks:model: phi-4}\n"
    assert [found.name for found in tmp_path.iterdir()] == ["Pulumi.a.yaml"]


def test_no_secret_is_in_what_is_committed() -> None:
    """rendered/ names Secrets and holds none."""
    for path in (project.root() / "rendered").rglob("*.yaml"):
        text = path.read_text()
        assert "\nkind: Secret\n" not in text, path
        assert "hf_" not in text, path
