"""A server's life by its rendered pod: start, traffic, death and leave-taking, under a kubelet that follows it.

Clocks run a hundred times faster, for probes, hooks and server alike.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelstacks import project, render, stackfile
from modelstacks.catalog import Catalog
from modelstacks.cluster import live
from modelstacks.plan import Plan, plan
from modelstacks.render.values import form_of
from tests.kubelet import Kubelet
from tests.waiting import eventually

CATALOG = Catalog()
FASTER = 100.0
SLOWER = 20.0  # where requests have to come in, or a process to end, meanwhile
KEY = {
    "quickstart-api-key-1": "secret",
    "llama-3-3-70b-api-key-1": "secret",
    "gemma-2-27b-api-key-1": "secret",
    "hub-token": "hf_x",
}


def decided(stack: str = "quickstart", **more: Any) -> Plan:
    path = stackfile.stack_file(project.root(), stack)
    return plan(stackfile.parse_file(path, CATALOG, overlay=more), CATALOG, stack=stack)


def pod_of(found: Plan) -> dict[str, Any]:
    """The pod of the plan's Deployment."""
    (workload,) = (m for m in render.render(found, CATALOG) if m["kind"] == "Deployment")
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def start() -> Iterator[Callable[..., Kubelet]]:
    running: list[Kubelet] = []

    def run(spec: dict[str, Any], *server: str, engine: str = "vllm", faster: float = FASTER) -> Kubelet:
        running.append(Kubelet(spec, engine=engine, faster=faster, secrets=KEY, server=server))
        return running[-1]

    yield run
    for one in running:
        one.stop()


def ask(pod: Kubelet, max_tokens: int, model: str = "mistral-nemo-12b") -> list[Any]:
    """The events of a streamed completion. Raises OSError when it breaks off."""
    body = {"model": model, "prompt": "one two three", "max_tokens": max_tokens, "stream": True}
    headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{pod.address}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        lines = [line.decode().strip() for line in answer]
    found = [line.removeprefix("data: ") for line in lines if line]
    if not found or found[-1] != "[DONE]":
        raise OSError("the stream broke off")
    return found


def status_of(pod: Kubelet, path: str) -> int:
    try:
        with urllib.request.urlopen(f"{pod.address}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_loading_server_is_not_killed_and_gets_no_traffic(share: float, start: Callable[..., Kubelet]) -> None:
    """Pains 8, 9 and 10: for most of the budget it loads, unready; then it serves, without a restart."""
    found = decided("llama-3.3-70b")
    load_s = found.timeouts.startup_s * share
    pod = start(pod_of(found), "--load-s", str(load_s))
    seen = []
    deadline = time.monotonic() + found.timeouts.startup_s / FASTER + 60
    while not pod.ready:
        assert time.monotonic() < deadline
        seen.append((pod.ready, status_of(pod, "/health")))
        time.sleep(0.05)
    assert pod.restarts == 0
    assert all(not ready for ready, _ in seen)
    assert ask(pod, 3, "llama-3.3-70b")[-1] == "[DONE]"


def test_without_a_start_up_probe_the_same_server_dies(start: Callable[..., Kubelet]) -> None:
    """What other charts do: liveness alone, and a load of minutes becomes a crash loop."""
    spec = pod_of(decided())
    (server,) = spec["containers"]
    del server["startupProbe"]
    server["livenessProbe"] = {
        "httpGet": {"path": "/health"},
        "periodSeconds": 10,
        "timeoutSeconds": 1,
        "failureThreshold": 3,
    }
    pod = start(spec, "--load-s", "600")
    eventually("it is killed while it loads", lambda: pod.restarts > 0)
    assert "Liveness probe failed: killed" in pod.log
    assert not pod.ready


def test_a_server_that_never_comes_is_given_up_at_the_budget(start: Callable[..., Kubelet]) -> None:
    """The start-up probe ends it, not before its failures are spent."""
    found = decided()
    began = time.monotonic()
    pod = start(pod_of(found), "--load-s", "100000")
    eventually("it is given up", lambda: pod.restarts > 0)
    assert time.monotonic() - began >= found.timeouts.startup_s / FASTER * 0.9
    assert "Startup probe failed: killed" in pod.log


def test_a_dead_engine_loses_its_traffic_at_once_and_is_restarted(start: Callable[..., Kubelet]) -> None:
    """Health turns 503: unready within three readiness periods, killed by liveness later."""
    pod = start(pod_of(decided()), "--load-s", "1", "--dies-after", "1")
    eventually("it serves", lambda: pod.ready)
    ask(pod, 2)
    eventually("it is out of the Service", lambda: not pod.ready)
    eventually("it is started anew", lambda: pod.restarts == 1)
    eventually("and serves again", lambda: pod.ready)
    assert pod.log[-1] == "Liveness probe failed: killed"


def test_a_full_server_is_neither_killed_nor_unready(start: Callable[..., Kubelet]) -> None:
    """Requests queue in the engine; its health says nothing of them, and its metrics do."""
    found = decided(maxNumSeqs=2, concurrency=1)
    pod = start(pod_of(found), "--load-s", "1", "--token-s", "0.02")
    eventually("it serves", lambda: pod.ready)
    beside = [threading.Thread(target=ask, args=(pod, 60)) for _ in range(6)]
    for one in beside:
        one.start()

    def reading() -> live.Reading:
        with urllib.request.urlopen(f"{pod.address}/metrics", timeout=5) as answer:
            return live.read(answer.read().decode(), "pod", form_of(found))

    eventually("two run and four wait", lambda: (reading().running, reading().waiting) == (2, 4))
    assert pod.ready
    for one in beside:
        one.join()
    assert (pod.restarts, pod.ready) == (0, True)
    assert reading().output_tokens == 6 * 60


def test_requests_that_fit_in_the_grace_are_finished(start: Callable[..., Kubelet]) -> None:
    """Pain 22: deleted in the middle of answers. Routers still send for a while, and what has begun is finished."""
    found = decided()
    going = found.leaving
    pod = start(pod_of(found), "--load-s", "1", "--token-s", "0.02", faster=SLOWER)
    eventually("it serves", lambda: pod.ready)
    answers: list[list[Any]] = []
    lost: list[BaseException] = []

    def client(tokens: int, after_s: float) -> None:
        time.sleep(after_s)
        try:
            answers.append(ask(pod, tokens))
        except OSError as error:
            lost.append(error)

    # The longest takes four of the 28 s that a twentieth of the drain is; one comes during the preStop pause.
    plans = [(10, 0.0), (100, 0.0), (200, 0.0), (20, going.pre_stop_s / SLOWER / 2)]
    beside = [threading.Thread(target=client, args=one) for one in plans]
    for one in beside:
        one.start()
    time.sleep(0.05)
    took = pod.delete()
    for one in beside:
        one.join()
    assert not lost
    assert sorted(len(found) for found in answers) == [12, 22, 102, 202]
    assert took < going.grace_s / SLOWER
    assert "grace is over: killed" not in pod.log, "it ended by itself"
    assert status_of(pod, "/health") == 0


def test_an_answer_longer_than_the_drain_is_cut_and_the_pod_still_goes(start: Callable[..., Kubelet]) -> None:
    """The kubelet's patience is longer than the engine's: nobody is killed, and nothing hangs."""
    pod = start(pod_of(decided(drainSeconds=40)), "--load-s", "1", "--token-s", "0.02", faster=SLOWER)
    eventually("it serves", lambda: pod.ready)
    lost: list[BaseException] = []

    def client() -> None:
        try:
            ask(pod, 5000)
        except Exception as error:
            lost.append(error)

    beside = threading.Thread(target=client)
    beside.start()
    time.sleep(0.3)
    took = pod.delete()
    beside.join()
    assert len(lost) == 1
    assert took < pod.grace_s + 0.5
    assert "grace is over: killed" not in pod.log


def test_an_abort_is_what_a_drain_of_nothing_does(start: Callable[..., Kubelet]) -> None:
    """drainSeconds: 0 is vLLM's own default, and loses what runs: the test of the grace can fail."""
    pod = start(pod_of(decided(drainSeconds=0)), "--load-s", "1", "--token-s", "0.02")
    eventually("it serves", lambda: pod.ready)
    lost: list[BaseException] = []

    def client() -> None:
        try:
            ask(pod, 200)
        except Exception as error:
            lost.append(error)

    beside = threading.Thread(target=client)
    beside.start()
    time.sleep(0.3)
    pod.delete()
    beside.join()
    assert len(lost) == 1


def test_the_key_guards_the_api_and_not_the_probes(start: Callable[..., Kubelet]) -> None:
    """Probes and Prometheus have no key; everybody else needs it."""
    pod = start(pod_of(decided()), "--load-s", "1")
    eventually("it serves", lambda: pod.ready)
    assert [status_of(pod, path) for path in ("/health", "/metrics", "/v1/models")] == [200, 200, 401]


def test_tgi_lives_by_the_same_pod(start: Callable[..., Kubelet]) -> None:
    """Its own flags, paths and metrics; more than its concurrent requests is 429."""
    found = decided("gemma-2-27b", maxNumSeqs=1, concurrency=1)
    pod = start(pod_of(found), "--load-s", "1", engine="tgi")
    eventually("it serves", lambda: pod.ready)
    assert status_of(pod, "/info") == 200
    body = json.dumps({"inputs": "one two", "parameters": {"max_new_tokens": 40}}).encode()

    def generate() -> int:
        headers = {"Authorization": "Bearer secret", "Content-Type": "application/json"}
        try:
            request = urllib.request.Request(f"{pod.address}/generate", body, headers)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    codes: list[int] = []
    beside = [threading.Thread(target=lambda: codes.append(generate())) for _ in range(2)]
    for one in beside:
        one.start()
        time.sleep(0.2)
    for one in beside:
        one.join()
    assert sorted(codes) == [200, 429]
    with urllib.request.urlopen(f"{pod.address}/metrics", timeout=5) as answer:
        reading = live.read(answer.read().decode(), "pod", form_of(found))
    assert (reading.running, reading.waiting, reading.output_tokens) == (0, 0, 40)


def test_a_flag_that_the_image_does_not_know_ends_the_server(start: Callable[..., Kubelet]) -> None:
    """Pain 18, as it is elsewhere: a crash loop. Here `modelstacks render` refuses it before."""
    spec = pod_of(decided())
    spec["containers"][0]["args"] += ["--swap-space", "4"]
    pod = start(spec, "--load-s", "1")
    eventually("it ends again and again", lambda: pod.restarts > 1)
    assert pod.log[0] == "ended with code 2"
