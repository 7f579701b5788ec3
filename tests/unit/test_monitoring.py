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
    "kube_pod_status_ready_time", "kube_pod_deletion_timestamp",
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
    text = Measures("tgi" if engine == "tgi" else "vllm", core).text().decode()
    known = set(re.findall(r"^([a-z_:0-9]+)[ {]", text, re.MULTILINE)) | set(KUBE)
    for query in queries(found):
        promql_parser.parse(query)
        names = set(re.findall(r"([a-z_:0-9]+)\{", query))
        assert names, query
        assert names <= known, names - known
    monitor = one(found, "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["podMetricsEndpoints"][0]["path"] == "/metrics"


def test_pods_of_a_stack_whose_name_begins_alike_are_not_counted() -> None:
    """The pods of `test-2` are not those of `test`."""
    (query,) = [q for q in queries(manifests(monitoring={})) if q.startswith("absent")]
    pattern = re.search(r'pod=~"([^"]+)"', query)
    assert pattern is not None
    assert re.fullmatch(pattern[1], "test-5479965577-b5s72")
    assert not re.fullmatch(pattern[1], "test-2-5479965577-b5s72")
    assert not re.fullmatch(pattern[1], "test-spare-5479965577-b5s72")


def test_alerts_hear_of_what_costs_money() -> None:
    """Down, queue, cache, restarts, slow loads and idle GPUs; scaled to zero, being down is meant."""
    rules = one(manifests(monitoring={}), "PrometheusRule")["spec"]["groups"][0]["rules"]
    assert {rule["alert"].removeprefix("ModelServer") for rule in rules} == {
        "Down", "QueueGrows", "CacheFull", "Restarts", "LoadsTooLong", "Idle",
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


def test_metrics_of_something_else_are_not_read_as_zero() -> None:
    """An empty answer is an error, not an idle server."""
    for text in ("", "other_metric 1\n", "no metrics at all {"):
        with pytest.raises(ClusterError):
            live.read(text, "pod", form_of(decide()))
