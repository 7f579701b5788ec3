"""Monitors, alerts and dashboards: valid queries over metrics that the engine has, with the plan's numbers."""

from __future__ import annotations

import json
import re
from typing import Any

import promql_parser
import pytest

from modelstacks.catalog import Catalog
from modelstacks.cluster import live
from modelstacks.errors import ClusterError
from modelstacks.local.imitation import Imitation, Settings
from modelstacks.local.modelserver.measures import Measures
from modelstacks.render.values import form_of
from tests.unit.test_server_plans import AWS, decide, manifests, one

CATALOG = Catalog()
ENGINES: dict[str, dict[str, Any]] = {
    "vllm": {},
    "tgi": {"engine": "tgi"},
    "ray": {"model": "deepseek-r1", "gpu": "h100-sxm", "acceptedLicense": "MIT", "quantization": "fp8"},
    "groups": {"model": "deepseek-r1", "gpu": "h100-sxm", "acceptedLicense": "MIT", "quantization": "fp8",
               "launcher": "leader-worker-set"},
}  # fmt: skip
KUBE = (
    "kube_pod_status_ready", "kube_pod_start_time", "kube_pod_container_status_restarts_total",
    "kube_pod_deletion_timestamp", "kube_deployment_spec_replicas", "up",
)  # fmt: skip


def queries(found: list[dict[str, Any]]) -> list[str]:
    """Every PromQL text of the stack's objects."""
    rules = one(found, "PrometheusRule")["spec"]["groups"][0]["rules"]
    (text,) = next(m for m in found if m["metadata"]["name"] == "test-dashboard")["data"].values()
    panels = json.loads(text)["panels"]
    return [rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_query_is_promql_over_metrics_that_there_are(engine: str) -> None:
    """By a real parser; names are those of the imitated server, which are the engine's, or kube-state-metrics'."""
    found = manifests(**ENGINES[engine], monitoring={"labels": {"release": "prom"}})
    core = Imitation(Settings("m", 100, 1))
    measures = Measures("tgi" if engine == "tgi" else "vllm", core)
    # An engine that has answered nothing yet may show nothing.
    measures.begin(1)
    text = measures.text().decode()
    known = set(re.findall(r"^([a-z_:0-9]+)[ {]", text, re.MULTILINE)) | set(KUBE)
    for query in queries(found):
        promql_parser.parse(query)
        names = set(re.findall(r"([a-z_:0-9]+)\{", query))
        assert "sum(up" not in query or engine in ("tgi", "ray")
        assert names, query
        assert names <= known, names - known
    monitor = one(found, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["podMetricsEndpoints"][0]["path"] == "/metrics"


def test_pods_of_a_stack_whose_name_begins_alike_are_not_counted() -> None:
    """The pods of `test-2` are not those of `test`."""
    for pattern in re.findall(r'pod=~"([^"]+)"', " ".join(queries(manifests(monitoring={})))):
        assert re.fullmatch(pattern, "test-5479965577-b5s72")
        assert not re.fullmatch(pattern, "test-2-5479965577-b5s72")
        assert not re.fullmatch(pattern, "test-spare-5479965577-b5s72")


@pytest.mark.parametrize(
    ("engine", "ready", "not_asked", "wanted"),
    [
        ("ray", "test-0-abc-gpu-worker-x1z2", "test-0-abc-head-9k2l1", "2"),
        ("groups", "test-0", "test-0-1", "1"),
    ],
)
def test_readiness_is_asked_of_pods_that_know(engine: str, ready: str, not_asked: str, wanted: str) -> None:
    """A Ray head and the workers of a group are Ready while nothing answers."""
    rules = one(manifests(**ENGINES[engine], monitoring={}), "PrometheusRule")["spec"]["groups"][0]["rules"]
    for alert in ("ModelServerDown", "ModelServersMissing"):
        (expr,) = [rule["expr"] for rule in rules if rule["alert"] == alert]
        pattern = re.search(r'kube_pod_status_ready\{[^}]*pod=~"([^"]+)"', expr)
        assert pattern is not None
        assert re.fullmatch(pattern[1], ready)
        assert not re.fullmatch(pattern[1], not_asked)
    assert expr.endswith(f" < {wanted}")


def test_alerts_hear_of_what_costs_money() -> None:
    """Down, too few, queue, cache, restarts, slow loads and idle GPUs; scaled to zero, being down is meant."""
    rules = one(manifests(monitoring={}), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert {rule["alert"].removeprefix("ModelServer") for rule in rules} == {
        "Down", "sMissing", "QueueGrows", "CacheFull", "Restarts", "LoadsTooLong", "Idle",
    }  # fmt: skip
    assert any(str(decide().timeouts.ready_s) in rule["expr"] for rule in rules)
    zero = {"min": 0, "max": 3, "activationQuery": "sum(q)", "coldStartSeconds": 3600}
    scaled = one(manifests(monitoring={}, autoscale=zero, cloud=AWS), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert "ModelServerDown" not in {rule["alert"] for rule in scaled}


def test_without_being_asked_for_nothing_needs_prometheus() -> None:
    """Its definitions may not be in the cluster."""
    kinds = {m["kind"] for m in manifests()}
    assert not kinds & {"PodMonitor", "PrometheusRule"}


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
def test_a_servers_own_numbers_are_read(engine: str) -> None:
    """Under each engine's names, the size of the cache among them."""
    core = Imitation(Settings("m", 100, 4, kv_tokens=3200), running=2, waiting=1, kept=800)
    measures = Measures(engine, core)
    answer = measures.begin(7)
    answer.token()
    answer.token()
    answer.done()
    form = form_of(decide(engine=engine))
    reading = live.read(measures.text().decode(), "pod", form)
    assert (reading.running, reading.waiting, reading.prompt_tokens, reading.output_tokens) == (2, 1, 7, 2)
    assert reading.kv_cache == (0.25 if engine == "vllm" else None)
    assert reading.cache_tokens == (3200 if engine == "vllm" else None)


@pytest.mark.parametrize("engine", ["tgi", "ray"])
def test_an_idle_engine_that_says_nothing_has_nothing_to_do(engine: str) -> None:
    """TGI before its first request, and vLLM under Ray between requests, leave their gauges out."""
    form = form_of(decide(**ENGINES[engine]))
    for text in ("", "# HELP x\n", f"{form.metrics.output_tokens} 7\n"):
        reading = live.read(text, "pod", form)
        assert (reading.running, reading.waiting) == (0, 0)
    with pytest.raises(ClusterError):
        live.read("other_metric 1\n", "pod", form)


def test_metrics_of_something_else_are_not_read_as_zero() -> None:
    """An empty answer is an error, not an idle server."""
    for text in ("", "other_metric 1\n", "no metrics at all {"):
        with pytest.raises(ClusterError):
            live.read(text, "pod", form_of(decide()))
