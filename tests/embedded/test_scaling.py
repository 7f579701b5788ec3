"""KEDA's own operator and metrics adapter scale a rendered stack by the metrics of a server: `make test-all`.

Real are KEDA, the API server, the autoscaler and the server's HTTP metrics; Prometheus is played by a few lines that
scrape the server and answer the rendered queries.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelstacks import documents, render
from modelstacks.catalog import Catalog
from modelstacks.cluster import scaling, snapshot
from modelstacks.cluster.connection import Cluster
from modelstacks.local import ports, toolchain
from modelstacks.plan import Plan, plan
from modelstacks.spec import parse
from tests.embedded.conftest import Checkout
from tests.waiting import eventually

pytestmark = [pytest.mark.embedded, pytest.mark.thorough]
CATALOG = Catalog()
STACK = "scaled"


class Prometheus:
    """Answers the queries of a rendered ScaledObject from one server's metrics; without a server, with nothing."""

    def __init__(self) -> None:
        self.server: int | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                return

            def do_GET(self) -> None:
                query = parse_qs(urlparse(self.path).query).get("query", [""])[0]
                value = outer.value(query)
                result = [] if value is None else [{"metric": {}, "value": [0, str(value)]}]
                body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def value(self, query: str) -> float | None:
        """sum(a{…}) + sum(b{…}), or avg(a{…}), of the one server."""
        # Selectors hold patterns with braces of their own.
        names = re.findall(r"(?:sum|avg)\(([a-z_:]+)\{", query)
        assert names, query
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.server}/metrics", timeout=2) as answer:
                text = answer.read().decode()
        except OSError:
            return None
        found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
        return sum(found[name] for name in names)

    def close(self) -> None:
        self._http.shutdown()


@pytest.fixture(scope="module")
def keda(running: Checkout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """KEDA beside the embedded cluster, its adapter behind the API server's aggregation."""
    from modelstacks.local.layout import Layout

    layout = Layout.of(running.folder)
    layout = Layout(cache=layout.cache, state=running.state / layout.state.name)
    programs = toolchain.ensure(toolchain.KEDA, layout.cache, print)
    definitions = toolchain.crds(["keda"], layout.cache, print)
    kubeconfig = running.exports["KUBECONFIG"]
    (pki,) = Path(kubeconfig).parent.rglob("pki")
    certs = tmp_path_factory.mktemp("keda")
    for name, source in (("ca.crt", "ca.crt"), ("tls.crt", "admin.crt"), ("tls.key", "admin.key")):
        (certs / name).symlink_to(pki / source)
    metrics, health, grpc, secure, plain = (ports.a_free_one() for _ in range(5))
    environment = {**os.environ, "WATCH_NAMESPACE": "", "KEDA_CLUSTER_OBJECT_NAMESPACE": "kube-system"}
    for file in definitions:
        running.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
    operator = [
        str(programs["keda-operator"]), f"--kubeconfig={kubeconfig}", "--leader-elect=false",
        f"--metrics-bind-address=127.0.0.1:{metrics}", f"--health-probe-bind-address=127.0.0.1:{health}",
        f"--metrics-service-bind-address=127.0.0.1:{grpc}", "--enable-cert-rotation=false", f"--cert-dir={certs}",
    ]  # fmt: skip
    adapter = [
        str(programs["keda-adapter"]), f"--kubeconfig={kubeconfig}", f"--lister-kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}", f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1", f"--secure-port={secure}", f"--port={plain}",
        f"--metrics-service-address=127.0.0.1:{grpc}", f"--cert-dir={certs}", f"--tls-cert-file={certs}/tls.crt",
        f"--tls-private-key-file={certs}/tls.key", f"--client-ca-file={certs}/ca.crt",
        "--authentication-skip-lookup=true",
    ]  # fmt: skip
    log = (certs / "log").open("w")
    started = [subprocess.Popen(one, env=environment, stdout=log, stderr=log) for one in (operator, adapter)]
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "keda-metrics-apiserver", "namespace": "keda"},
        "spec": {"type": "ExternalName", "externalName": "127.0.0.1"},
    }  # fmt: skip
    api = {
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1beta1.external.metrics.k8s.io"},
        "spec": {
            "group": "external.metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"name": "keda-metrics-apiserver", "namespace": "keda", "port": secure},
        },
    }  # fmt: skip
    running.kubectl("create", "namespace", "keda")
    for manifest in (service, api):
        running.kubectl("apply", "-f", "-", text=documents.write(manifest))
    try:
        yield running
    finally:
        # Without its APIService first, namespaces could not be deleted while the adapter is away.
        running.kubectl("delete", "apiservice", "v1beta1.external.metrics.k8s.io", "--ignore-not-found")
        running.kubectl("delete", "scaledobjects.keda.sh", "--all", "-A", "--wait=true")
        running.kubectl("delete", "namespace", STACK, "keda", "--wait=false", "--ignore-not-found")
        for process in started:
            process.terminate()
            process.wait()
        log.close()


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    made = Prometheus()
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server that behaves like vLLM, with slow tokens, so that requests stay in flight."""
    port = ports.a_free_one()
    command = [
        sys.executable, "-m", "modelstacks.local.modelserver", "--listen", str(port), "--load-s", "0.1",
        "--token-s", "0.2", "--kv-tokens", "100000", "--", "m", "--served-model-name", "m", "--max-num-seqs", "512",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    yield process, port
    process.kill()
    process.wait()


def decide(address: str, **autoscale: Any) -> Plan:
    """A stack on nodes that exist: of simulated ones nothing scales."""
    asked = {
        "model": "mistral-nemo-12b", "gpu": "l4", "quantization": "fp8", "context": 32768,
        "autoscale": {"min": 1, "max": 3, "prometheus": address, **autoscale},
    }  # fmt: skip
    return plan(parse(asked, CATALOG, source="test"), CATALOG, stack=STACK)


def ask(port: int) -> None:
    """A request that stays in flight until its connection is closed."""
    connection = socket.create_connection(("127.0.0.1", port))
    body = json.dumps({"prompt": "one", "max_tokens": 8000, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    OPEN.append(connection)


OPEN: list[socket.socket] = []


def test_replicas_follow_requests_in_flight_and_an_empty_answer_changes_nothing(
    keda: Checkout, prometheus: Prometheus, server: tuple[subprocess.Popen[bytes], int]
) -> None:
    """Pains 24 to 26: up by the plan's own threshold, not down in haste, and lost metrics are an error that is told."""
    process, port = server
    prometheus.server = port
    decided = decide(prometheus.address)
    manifests = render.render(decided, CATALOG)
    for manifest in manifests:
        # As fast as a test wants it; everything else is as rendered.
        if manifest["kind"] == "ScaledObject":
            manifest["spec"]["pollingInterval"] = 2
            behavior = manifest["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleUp"]
            behavior["stabilizationWindowSeconds"] = 0
            behavior["policies"][0]["periodSeconds"] = 1
        if manifest["kind"] not in ("Service", "PodDisruptionBudget"):
            keda.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", text=documents.write(manifest))

    # KEDA reads every variable of the server, those of Secrets too: `pulumi up` makes this one before.
    keda.kubectl("create", "secret", "generic", f"{STACK}-api-key-1", "-n", STACK, "--from-literal=key=x")

    def replicas() -> int:
        found = json.loads(keda.kubectl("get", "deployment", STACK, "-n", STACK, "-o", "json"))
        return int(found["spec"]["replicas"])

    def condition(kind: str) -> str:
        found = json.loads(keda.kubectl("get", "scaledobjects.keda.sh", STACK, "-n", STACK, "-o", "json"))
        entries = (found.get("status") or {}).get("conditions") or []
        return next((str(entry["status"]) for entry in entries if entry["type"] == kind), "")

    eventually("KEDA reads the metrics", lambda: condition("Ready") == "True")
    assert replicas() == 1
    (scaled,) = (m for m in manifests if m["kind"] == "ScaledObject")
    threshold = int(scaled["spec"]["triggers"][0]["metadata"]["threshold"])
    # The autoscaler leaves a tenth above or below its target alone.
    for _ in range(3 * threshold):
        ask(port)
    eventually("three replicas for three thresholds", lambda: replicas() == 3)
    for connection in OPEN:
        connection.close()
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    eventually("nothing is in flight", lambda: prometheus.value(query) == 0)
    process.send_signal(signal.SIGKILL)
    eventually("an empty answer is an error", lambda: condition("Ready") == "False")
    assert replicas() == 3, "nobody leaves in haste, nor for want of metrics"
    cluster = Cluster.connect(keda.exports["KUBECONFIG"], None, STACK)
    read = snapshot.read(cluster, STACK, manifests)
    # Its pods have no GPUs to run on here; of servers that still load nobody expects metrics.
    read.own["Deployment", STACK].setdefault("status", {})["readyReplicas"] = 3
    said = " ".join(finding.message for finding in scaling.examine(read, decided))
    assert "no answer to its query, so replicas stay as they are" in said
