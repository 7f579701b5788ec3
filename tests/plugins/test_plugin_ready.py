"""When an object is ready, and what is said when it is not."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from modelstacks.cluster.connection import Kind
from modelstacks.errors import BadInput, ClusterError
from modelstacks.local.plugins.kubernetes_await import Wait, timeout_s
from modelstacks.local.plugins.kubernetes_blockers import blockers, pod_problems
from modelstacks.local.plugins.kubernetes_ready import verdict, wait_conditions

Obj = dict[str, Any]


class Objects:
    """A cluster that is a list of objects: `get` by name, `items` by kind."""

    def __init__(self, *objects: Obj) -> None:
        self.objects = list(objects)

    def get(self, kind: Kind, namespace: str | None, name: str) -> Obj | None:
        return next((obj for obj in self.items(kind, namespace) if obj["metadata"]["name"] == name), None)

    def items(self, kind: Kind, namespace: str | None, **query: str) -> list[Obj]:
        return [obj for obj in self.objects if Kind.of(obj) == kind]


def _obj(api_version: str, kind: str, spec: Obj | None = None, status: Obj | None = None, **annotations: str) -> Obj:
    metadata = {"name": "x", "namespace": "n", "generation": 2, "uid": "u", "annotations": annotations}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec or {}, "status": status or {}}


def _condition(kind: str, status: str, **rest: Any) -> Obj:
    return {"conditions": [{"type": kind, "status": status, **rest}]}


_SEEN = {"observedGeneration": 2}
_TWO = {"replicas": 2}
_ROLLED_OUT = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
_PLACED = _SEEN | {"desiredNumberScheduled": 1, "numberAvailable": 1, "updatedNumberScheduled": 1}
_SELECTS = {"selector": {"app": "x"}}
_SLICE = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "s"},
    "endpoints": [{"conditions": {"ready": True}}],
}


def _deployment(replicas: int) -> Obj:
    spec = {"replicas": replicas, "template": {"metadata": {"labels": {"app": "x", "v": "1"}}}}
    return _obj("apps/v1", "Deployment", spec)


@pytest.mark.parametrize(
    ("obj", "around", "ready"),
    [
        (_obj("apps/v1", "Deployment", _TWO, _SEEN | _ROLLED_OUT), (), True),
        (_obj("apps/v1", "Deployment", _TWO, _SEEN | _ROLLED_OUT | {"replicas": 3}), (), False),
        (_obj("apps/v1", "Deployment", _TWO, _ROLLED_OUT | {"observedGeneration": 1}), (), False),
        (_obj("apps/v1", "Deployment", {"replicas": 0}, _SEEN), (), True),
        (_obj("apps/v1", "StatefulSet", _TWO, _SEEN | {"readyReplicas": 2, "updatedReplicas": 2}), (), True),
        (_obj("apps/v1", "StatefulSet", _TWO, _SEEN | {"readyReplicas": 2, "updatedReplicas": 1}), (), False),
        (_obj("apps/v1", "DaemonSet", {}, _PLACED), (), True),
        (_obj("batch/v1", "Job", {}, _condition("Complete", "True")), (), True),
        (_obj("batch/v1", "Job", {"suspend": True}), (), True),
        (_obj("batch/v1", "Job", {}), (), False),
        (_obj("v1", "Service", _SELECTS), (), False),
        (_obj("v1", "Service", _SELECTS), (_SLICE,), True),
        (_obj("v1", "Service", _SELECTS), (_deployment(0),), True),
        (_obj("v1", "Service", _SELECTS), (_deployment(1),), False),
        (_obj("v1", "Service", _SELECTS | {"clusterIP": "None"}), (), True),
        (_obj("v1", "Service", {"type": "ExternalName"}), (), True),
        (_obj("v1", "Service", {}), (), True),
        (_obj("v1", "Service", _SELECTS | {"type": "LoadBalancer"}), (_SLICE,), False),
        (_obj("v1", "PersistentVolumeClaim", {}, {"phase": "Bound"}), (), True),
        (_obj("v1", "PersistentVolumeClaim", {"storageClassName": "c"}, {"phase": "Pending"}), (), False),
        (
            _obj("v1", "PersistentVolumeClaim", {"storageClassName": "x"}),
            (_obj("storage.k8s.io/v1", "StorageClass") | {"volumeBindingMode": "WaitForFirstConsumer"},),
            True,
        ),
        (_obj("v1", "Pod", {}, _condition("Ready", "True")), (), True),
        (_obj("v1", "Pod", {}, {"phase": "Pending"}), (), False),
        (_obj("ray.io/v1", "RayService"), (), True),
        (_obj("apps/v1", "Deployment", {"replicas": 2}, **{"pulumi.com/skipAwait": "true"}), (), True),
        (_obj("ray.io/v1", "RayService", **{"pulumi.com/waitFor": "condition=Ready"}), (), False),
    ],
)  # fmt: skip
def test_verdicts(obj: Obj, around: tuple[Obj, ...], ready: bool) -> None:
    """Each kind is ready when its controller has done what the manifest asks for."""
    found = verdict(obj, Objects(*around))
    assert found.ready is ready
    assert not found.failed
    assert found.ready or found.message


def test_a_failure_is_not_waited_out() -> None:
    """A job without retries left will not become ready; a rollout past its deadline still may."""
    job = _obj("batch/v1", "Job", {}, _condition("Failed", "True", message="BackoffLimitExceeded"))
    late = _condition("Progressing", "False", reason="ProgressDeadlineExceeded", message="timed out progressing")
    assert verdict(job, Objects()).failed
    assert not verdict(_obj("apps/v1", "Deployment", {}, _SEEN | late), Objects()).failed


_RAY = _obj("ray.io/v1", "RayService", {}, {
    "serviceStatus": "Running",
    "ok": True,
    "clusters": [{"name": "a", "state": "ready"}],
    "conditions": [{"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 1}],
})  # fmt: skip


@pytest.mark.parametrize(
    ("test", "holds"),
    [
        ("condition=Ready", True),
        ("condition=Ready=True", True),
        ("condition=Ready=False", False),
        ("condition=Old", False),
        ("condition=Missing", False),
        ("jsonpath={.status.serviceStatus}=Running", True),
        ("jsonpath={.status.serviceStatus}=Failed", False),
        ("jsonpath={.status.serviceStatus}", True),
        ("jsonpath={.status.nothing}", False),
        ("jsonpath={.status.ok}=true", True),
        ("jsonpath={.status.clusters[0].state}=ready", True),
        ("jsonpath={.status.clusters[1].state}=ready", False),
        ("jsonpath={.status['serviceStatus']}=Running", True),
        ('jsonpath={.status.conditions[?(@.type=="Ready")].status}=True', True),
        ('["condition=Ready", "jsonpath={.status.serviceStatus}=Running"]', True),
        ('["condition=Ready", "condition=Missing"]', False),
    ],
)
def test_wait_for(test: str, holds: bool) -> None:
    """`pulumi.com/waitFor` is one test or several, all of which must hold."""
    assert all(one(_RAY) for _, one in wait_conditions(test)) is holds


@pytest.mark.parametrize(
    "test", ["Ready", "condition", "jsonpath={status}", "jsonpath={.a[*]}=1", '["condition=A", "b"]']
)
def test_a_wait_for_that_is_none_is_refused(test: str) -> None:
    """A misspelt test is named before anything is applied, instead of being waited for in vain."""
    with pytest.raises(BadInput, match=r"pulumi\.com/waitFor"):
        wait_conditions(test)


def test_time_outs() -> None:
    """The resource option wins over the annotation, and that over ten minutes."""
    annotated = _obj("v1", "Pod", **{"pulumi.com/timeoutSeconds": "30"})
    assert timeout_s(annotated, 5.0) == 5.0
    assert timeout_s(annotated, 0.0) == 30.0
    assert timeout_s(_obj("v1", "Pod"), 0.0) == 600.0


_UNSCHEDULED = {
    "status": "False",
    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    "type": "PodScheduled",
}


def _pod(name: str, status: Obj) -> Obj:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "n"}, "status": status}


def test_blockers_name_pods_and_the_scheduler() -> None:
    """Pods with the same problem are told once, with the scheduler's own words."""
    pods = [_pod(f"p{number}", {"conditions": [_UNSCHEDULED]}) for number in range(5)]
    found = blockers(_obj("apps/v1", "Deployment", {"selector": {"matchLabels": {"a": "b"}}}), Objects(*pods))
    assert found == ["5 pods p0, p1, p2, …: Pending: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."]


def test_pod_problems_name_waiting_containers() -> None:
    """Reasons of the kubelet are named; starting up is none."""
    containers = [
        {"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}},
        {"name": "b", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}},
        {
            "name": "c",
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        },
    ]
    assert pod_problems(_pod("p", {"containerStatuses": containers})) == [
        "container b: ImagePullBackOff no such image",
        "container c: CrashLoopBackOff",
        "container c: exit code 137 (OOMKilled)",
    ]


def test_a_wait_ends_with_what_is_missing() -> None:
    """When time is up, the message has the state, the pods, and what to do."""
    obj = _obj("apps/v1", "Deployment", {"replicas": 1, "selector": {"matchLabels": {"a": "b"}}})
    cluster = Objects(obj, _pod("p", {"conditions": [_UNSCHEDULED]}))
    wait = Wait(cluster, 0.2, threading.Event(), lambda line: None)
    with pytest.raises(ClusterError, match=r"(?s)0 of 1 pods available.*pod p: Pending.*nvidia.com/gpu.*next:"):
        wait.until_ready(obj)


def test_cancel_ends_a_wait() -> None:
    """Ctrl-C does not wait for the time-out."""
    obj = _obj("apps/v1", "Deployment", {"replicas": 1})
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(ClusterError, match="cancelled"):
        Wait(Objects(obj), 60.0, cancelled, lambda line: None).until_ready(obj)


def test_a_stuck_deletion_names_its_finalizers() -> None:
    """Nothing is forced; the finalizers say whose controller has to act."""
    obj = _obj("example.com/v1", "Widget")
    obj["metadata"]["finalizers"] = ["example.com/hold"]
    with pytest.raises(ClusterError, match=r"example\.com/hold"):
        Wait(Objects(obj), 0.1, threading.Event(), lambda line: None).until_gone(obj)
    Wait(Objects(), 0.1, threading.Event(), lambda line: None).until_gone(obj)
