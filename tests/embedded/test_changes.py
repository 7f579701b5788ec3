"""What a change does to servers, in the field managers of a real API server: who made them, and who counts them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from modelstacks import render, spec
from modelstacks.catalog import Catalog
from modelstacks.cluster import change, scaling
from modelstacks.cluster.connection import Cluster, Manifest
from modelstacks.plan import Plan, plan
from tests.embedded.conftest import Checkout

pytestmark = pytest.mark.embedded

CATALOG = Catalog()
STACK = "created"


def decide(**values: Any) -> Plan:
    """Two replicas without room for a surge."""
    asked = {
        "model": "llama-3.1-8b",
        "gpu": "l4",
        "acceptedLicense": "llama3.1",
        **({} if "autoscale" in values else {"replicas": 2}),
        **values,
    }
    return plan(spec.parse(asked, CATALOG, source=STACK), CATALOG, stack=STACK)


def deployment(decided: Plan) -> Manifest:
    (found,) = (m for m in render.render(decided, CATALOG) if m["kind"] == "Deployment")
    return found


@pytest.fixture
def space(running: Checkout) -> Iterator[Cluster]:
    """The cluster with a namespace of that name."""
    cluster = Cluster.connect(running.exports["KUBECONFIG"], None, STACK)
    made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STACK}}
    cluster.request("POST", "/api/v1/namespaces", None, made)
    yield cluster
    running.kubectl("delete", "namespace", STACK)


@pytest.fixture
def created(space: Cluster) -> Cluster:
    """The Deployment of two replicas, made as the provider makes it."""
    path = f"/apis/apps/v1/namespaces/{STACK}/deployments"
    space.request("POST", path, {"fieldManager": "pulumi-kubernetes"}, deployment(decide()))
    return space


@pytest.mark.parametrize(
    ("after", "says", "refused"),
    [
        ({}, "restarts no pod", None),
        ({"replicas": 3}, "adds 1 replica, 1 GPU more", None),
        ({"maxNumSeqs": 64}, "restarts 2 pods", None),
        # What is left out is taken away by the change, though not by a dry run.
        ({"apiKey": False}, "restarts 2 pods", None),
        ({"replicas": 1}, "takes 1 replica away, 1 GPU less", "strategy.rollingUpdate"),
        ({"weights": {"hostPath": "/models"}}, "restarts 2 pods", None),
    ],
)
def test_the_first_change_of_a_stack(created: Cluster, after: dict[str, Any], says: str, refused: str | None) -> None:
    """What really restarts is said, and a preview that alone will be refused."""
    decided = decide(**after)
    found = change.changes(created, decided, render.render(decided, CATALOG))
    words = change.words(decided, found)
    assert words is not None
    assert words.startswith(says)
    said = change.refused_preview(created, decided, found)
    assert (said is None) == (refused is None), said
    if refused is not None:
        assert said is not None
        assert refused in said
        assert f"pulumi up --skip-preview -s {STACK}" in said


def test_servers_stay_when_an_autoscaler_takes_over(space: Cluster) -> None:
    """Replicas that the stack leaves to KEDA are those that run, and the stack's again when it names them."""
    scaled = decide(autoscale={"min": 1, "max": 4, "prometheus": "http://prometheus:9090"})
    manifests = render.render(scaled, CATALOG)

    def apply(decided: Plan) -> int:
        made = space.apply(deployment(decided), "pulumi-kubernetes-1", force=True)
        return int(made["spec"]["replicas"])

    assert apply(decide(replicas=3)) == 3
    for _ in range(2):
        scaling.hand_over(space, scaled, manifests)
        assert apply(scaled) == 3, "without an owner it would be 1"
    assert apply(decide(replicas=2)) == 2
    scaling.hand_over(space, scaled, manifests)
    assert apply(scaled) == 2
