"""A real Ray on this machine: where replicas land, what is said when they cannot, and how they die and come back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelstacks import project
from modelstacks.errors import BadInput, ClusterError
from modelstacks.local import locks, processes
from modelstacks.local.layout import STATE_DIR_ENV, Layout
from modelstacks.local.raycluster import command
from modelstacks.local.raycluster.state import Folder, NodeSpec, Wanted
from tests.waiting import eventually

STACK = "deepseek-r1"


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """One after the other: a Ray cluster is 1.8 GiB, and two of them are the most that a test has at once."""
    run = tmp_path_factory.getbasetemp()
    with locks.held((run if worker_id == "master" else run.parent) / "ray.lock", print, "another test has a Ray"):
        yield


@pytest.fixture
def folder(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with one stack over two nodes, whose local Ray is gone afterwards."""
    monkeypatch.setenv(STATE_DIR_ENV, str(tmp_path / "state"))
    shipped = project.root()
    (tmp_path / "stacks").mkdir()
    (tmp_path / "Pulumi.yaml").write_text((shipped / "Pulumi.yaml").read_text())
    stack_file(tmp_path).write_text((shipped / "stacks" / f"Pulumi.{STACK}.yaml").read_text())
    yield tmp_path
    # What a failure leaves nothing of otherwise.
    for replica in sorted((Layout.of(tmp_path).state / "ray").glob("*/*")):
        print(replica.name, json.dumps(Folder(replica).status(), indent=1), processes.tail(Folder(replica).log, 30))
    command.down(tmp_path, None, print)
    assert not processes.running(tmp_path, {Path(sys.executable).name}), "nothing is left running"


def stack_file(folder: Path) -> Path:
    return folder / "stacks" / f"Pulumi.{STACK}.yaml"


def edit(folder: Path, old: str, new: str) -> None:
    """Change the stack file as a user would."""
    text = stack_file(folder).read_text()
    assert old in text
    stack_file(folder).write_text(text.replace(old, new))


def status_of(folder: Path, replica: str) -> dict[str, Any]:
    found = Folder(Layout.of(folder).state / "ray" / STACK / replica).status()
    assert found is not None
    return found


def get(replica: command.Replica, path: str) -> tuple[int, str]:
    """Status and text of a GET beside the API."""
    try:
        with urllib.request.urlopen(replica.endpoint.removesuffix("/v1") + path, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def raylet_of(folder: Path, replica: command.Replica, node: str) -> int:
    """The process that is the node."""
    (found,) = [n["raylet"] for n in status_of(folder, replica.name)["nodes"] if n["id"] == node]
    return int(found)


def rank_on(folder: Path, replica: command.Replica, node: str) -> int:
    """The process of the engine's part on a node: a child of the node's own."""
    parent = str(raylet_of(folder, replica, node))
    listing = subprocess.run(["ps", "-axo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listing.splitlines()]
    (found,) = [pid for pid, ppid, name in rows if ppid == parent and name.startswith("ray::Rank")]
    return int(found)


def whole_groups(replica: command.Replica) -> set[str]:
    """The nodes of a replica, after its tensor-parallel groups were seen to be whole."""
    first, second = replica.nodes_of_ranks[:8], replica.nodes_of_ranks[8:]
    assert (len(set(first)), len(set(second)), len(second)) == (1, 1, 8)
    nodes = {first[0], second[0]}
    assert len(nodes) == 2
    return nodes


def events(replica: command.Replica, max_tokens: int) -> Iterator[dict[str, Any] | str]:
    """The events of one streamed answer, parsed, and the final mark."""
    body = {"model": replica.model, "prompt": "why", "max_tokens": max_tokens, "stream": True}
    request = urllib.request.Request(
        f"{replica.endpoint}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            text = line.decode().removeprefix("data: ").strip()
            if text:
                yield text if text == "[DONE]" else json.loads(text)


def test_two_replicas_live_die_and_change_apart(folder: Path) -> None:
    """8 + 8 on two nodes, twice; a lost node is one replica's; an edited line touches what it names alone."""
    (one,) = command.up(folder, STACK, print)
    nodes = whole_groups(one)
    assert command.stream(one).startswith("the plan fits")
    assert get(one, "/health") == (200, '{"status":"ok"}')
    assert json.loads(get(one, "/v1/models")[1])["data"][0]["id"] == "deepseek-r1"
    eventually("the engine's metrics", lambda: "vllm:generation_tokens_total{" in get(one, "/metrics")[1])

    edit(folder, "replicas: 1", "replicas: 2")
    same, two = command.up(folder, STACK, print)
    assert same == one, "the first was neither restarted nor moved"
    assert len(nodes | whole_groups(two)) == 4

    # The engine's part on the second node goes while an answer is streamed.
    stream = events(one, 4000)
    next(stream)
    second = one.nodes_of_ranks[-1]
    os.kill(rank_on(folder, one, second), signal.SIGKILL)
    *_, error, end = stream
    assert isinstance(error, dict)
    assert error["error"]["code"] == 503
    assert "lost before it was complete; send the request again" in error["error"]["message"]
    assert "Traceback" not in json.dumps(error)
    assert end == "[DONE]"
    assert command.stream(two).startswith("the plan fits"), "the other replica serves on"
    eventually("it is back", lambda: get(one, "/health")[0] == 200)

    # Then that whole node, which no answer could outlive that came through its own ingress.
    os.kill(raylet_of(folder, one, second), signal.SIGKILL)
    eventually("it is not called healthy meanwhile", lambda: get(one, "/health")[0] != 200)
    assert command.stream(two).startswith("the plan fits")
    eventually("it is back", lambda: get(one, "/health")[0] == 200)
    # Health answers as soon as an ingress does, be it before Ray has noted the node's end everywhere.
    eventually("on other nodes", lambda: second not in whole_groups(command.up(folder, STACK, print)[0]))
    again, other = command.up(folder, STACK, print)
    assert (again.pid, other) == (one.pid, two)

    edit(folder, "replicas: 2", "replicas: 1")
    assert command.up(folder, STACK, print) == [again]
    assert get(two, "/health")[0] == 0

    # Changed while it answers: what had begun is finished before the old application goes.
    with ThreadPoolExecutor(1) as beside:
        first = threading.Event()

        def collect() -> list[Any]:
            found = []
            for event in events(again, 300):
                first.set()
                found.append(event)
            return found

        begun = beside.submit(collect)
        assert first.wait(30)
        edit(folder, "context: 65536", "context: 32768")
        (changed,) = command.up(folder, STACK, print)
        *tokens, last, end = begun.result()
    assert (len(tokens), last["choices"][0]["finish_reason"], end) == (300, "length", "[DONE]")
    assert (changed.pid, whole_groups(changed)) == (one.pid, whole_groups(again)), "on the very same nodes"
    assert '"max_model_len":32768' in get(changed, "/v1/models")[1]


# Takes GPUs from the cluster as another application would, until it is ended.
_THIEF = """
import sys, time, ray
ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
actor = ray.remote(num_cpus=0, num_gpus=4)(type("Thief", (), {"live": lambda self: 1})).remote()
ray.get(actor.live.remote())
print("taken", flush=True)
time.sleep(600)
"""


def test_nodes_that_are_not_the_plans_are_said_and_never_used(folder: Path) -> None:
    """One sentence for each fault; with two right nodes beside the wrong ones it lands on those."""
    with pytest.raises(ClusterError, match="needs 2 nodes with 8 H100 free each, the cluster has 1"):
        command.up(folder, STACK, print, command.Nodes(nodes=1))
    ray = Folder(Layout.of(folder).state / "ray" / STACK / f"{STACK}-0")
    first = status_of(folder, f"{STACK}-0")
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    thief = subprocess.Popen(
        [sys.executable, "-c", _THIEF, first["address"]], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert thief.stdout is not None
        assert thief.stdout.readline() == "taken\n"
        whole = ray.wanted().nodes[0]
        nodes = [whole]
        for extra, says in (
            (replace(whole, gpus=7), ["has 4 of 8 GPUs free, others are taken", "has 7 GPUs, not 8"]),
            (replace(whole, accelerator_type="A100"), ["has A100 GPUs, not H100"]),
        ):
            nodes.append(extra)
            sentence = _attempt(ray, nodes)
            assert all(words in sentence for words in says), sentence
            assert sentence.endswith("Give the stack such nodes, or plan it for the ones there are")
        nodes += [whole, whole]
        assert _attempt(ray, nodes) == ""
        found = status_of(folder, f"{STACK}-0")
        (placed,) = found["placement"]
        right = {node["id"] for node in found["nodes"][-2:]}
        assert set(placed["gpus_of_nodes"].items()) == {(node, 8) for node in right}
    finally:
        thief.kill()
        thief.wait()
        assert thief.stdout is not None
        thief.stdout.close()


def _attempt(ray: Folder, nodes: list[NodeSpec]) -> str:
    """Deploy once more, with these nodes; the sentence that it stopped with, or nothing when it serves."""
    wanted = ray.wanted()
    config = json.loads(json.dumps(wanted.serve_config))
    (application,) = config["applications"]
    # Serve builds an application again when its arguments differ.
    application["args"]["attempt"] = len(nodes)
    application["name"] = f"attempt-{len(nodes)}"
    ray.want(Wanted(config, tuple(nodes), wanted.port))

    def app() -> dict[str, Any]:
        found: dict[str, Any] = ((ray.status() or {}).get("applications") or {}).get(application["name"], {})
        return found

    eventually("an end", lambda: app().get("status") in ("RUNNING", "DEPLOY_FAILED"))
    return command.sentence(app()) if app()["status"] == "DEPLOY_FAILED" else ""


@pytest.mark.thorough
def test_a_node_whose_shared_memory_is_too_small_is_found_before_loading(folder: Path) -> None:
    """What only the node itself knows is asked of it, on the nodes that the replica got."""
    facts = {"shm_gib": 0.0625, "gpus": None}
    with pytest.raises(ClusterError, match=r"was not loaded: node .*/dev/shm holds 0.1 GiB, the plan has 24"):
        command.up(folder, STACK, print, command.Nodes(facts=facts))


def test_a_stack_on_one_node_has_no_local_ray(folder: Path) -> None:
    """It says what to do instead."""
    edit(folder, "gpu: h100-sxm", "gpu: h200")
    with pytest.raises(BadInput, match="runs without Ray: tier tensor-parallel") as caught:
        command.up(folder, STACK, print)
    assert "make up STACK=deepseek-r1" in str(caught.value)


@pytest.mark.thorough
def test_a_runner_that_was_killed_leaves_nothing_to_the_next(folder: Path) -> None:
    """kill -9 of the process that holds the cluster: the next start sweeps, and serves."""
    (one,) = command.up(folder, STACK, print)
    os.kill(one.pid, signal.SIGKILL)
    (next_one,) = command.up(folder, STACK, print)
    assert next_one.pid != one.pid
    whole_groups(next_one)
