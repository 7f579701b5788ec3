"""Which input changes are seen, which need a new object, and what counts as drift."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from modelstacks.local.plugins.kubernetes_diff import (
    changes,
    drifted,
    drifted_string_data,
    importable,
    touches,
)
from modelstacks.local.plugins.kubernetes_values import UNKNOWN


def _obj(api_version: str, kind: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "namespace": "n"}} | rest


def test_changes_are_named_by_their_path() -> None:
    """Paths are Pulumi's: dots for identifiers, brackets for indexes and for keys with dots."""
    old = _obj("v1", "ConfigMap", data={"a.b": "1", "c": "1"}, spec=[{"v": 1}, {"v": 2}])
    new = _obj("v1", "ConfigMap", data={"a.b": "2", "d": "1"}, spec=[{"v": 3}])
    found = {change.property_path: change.kind for change in changes(old, new)}
    assert found == {
        'data["a.b"]': "UPDATE",
        "data.c": "DELETE",
        "data.d": "ADD",
        "spec[0].v": "UPDATE",
        "spec[1]": "DELETE",
    }


def test_equal_inputs_have_no_changes() -> None:
    """No change is no update; a bool is not a number, though Python takes them for equal."""
    old = _obj("v1", "X", spec={"a": [1, {"b": None}]})
    assert changes(old, _obj("v1", "X", spec={"a": [1, {"b": None}]})) == []
    assert len(changes({"a": 1}, {"a": True})) == 1
    assert len(changes({"a": 1}, {"a": UNKNOWN})) == 1


@pytest.mark.parametrize(
    ("api_version", "kind", "old", "new", "replaces"),
    [
        ("apps/v1", "Deployment", {"replicas": 2}, {"replicas": 3}, False),
        ("apps/v1", "Deployment", {"selector": {"matchLabels": {}}}, {"selector": {"matchLabels": {"a": "b"}}}, True),
        ("apps/v1", "StatefulSet", {"serviceName": "a"}, {"serviceName": "b"}, True),
        ("apps/v1", "StatefulSet", {"replicas": 1}, {"replicas": 2}, False),
        ("batch/v1", "Job", {"template": {"spec": {"a": 1}}}, {"template": {"spec": {"a": 2}}}, True),
        ("v1", "Service", {"clusterIP": "1"}, {"clusterIP": "2"}, True),
        ("v1", "Service", {"selector": {"a": "1"}}, {"selector": {"a": "2"}}, False),
        ("v1", "PersistentVolumeClaim", {"resources": {"a": 1}}, {"resources": {"a": 2}}, False),
        ("v1", "PersistentVolumeClaim", {"storageClassName": "a"}, {"storageClassName": "b"}, True),
        (
            "karpenter.sh/v1",
            "NodePool",
            {"template": {"spec": {"nodeClassRef": {"kind": "A", "name": "n"}}}},
            {"template": {"spec": {"nodeClassRef": {"kind": "B", "name": "n"}}}},
            True,
        ),
        (
            "karpenter.sh/v1",
            "NodePool",
            {"template": {"spec": {"nodeClassRef": {"kind": "A", "name": "n"}}}},
            {"template": {"spec": {"nodeClassRef": {"kind": "A", "name": "m"}}}},
            False,
        ),
    ],
)  # fmt: skip
def test_immutable_fields_replace(
    api_version: str, kind: str, old: dict[str, Any], new: dict[str, Any], replaces: bool
) -> None:
    """What the API server refuses to change needs a new object, and nothing else does."""
    found = changes(_obj(api_version, kind, spec=old), _obj(api_version, kind, spec=new))
    assert [change.replaces for change in found] == [replaces]


@pytest.mark.parametrize("immutable", [True, False])
@pytest.mark.parametrize("kind", ["Secret", "ConfigMap"])
def test_payload_replaces_only_where_it_is_immutable(kind: str, immutable: bool) -> None:
    """Changed data updates in place unless the object says `immutable: true`."""
    old = _obj("v1", kind, data={"a": "1"}, immutable=immutable)
    new = _obj("v1", kind, data={"a": "2"}, immutable=immutable)
    assert [change.replaces for change in changes(old, new)] == [immutable]


def test_another_name_is_another_object() -> None:
    """Name, namespace, kind and API group are what an object is; its API version is not."""
    old = _obj("ray.io/v1alpha1", "RayService")
    moved = old | {"metadata": {"name": "y", "namespace": "n"}}
    assert [change.replaces for change in changes(old, moved)] == [True]
    assert [change.replaces for change in changes(old, old | {"apiVersion": "ray.io/v1"})] == [False]
    assert [change.replaces for change in changes(old, old | {"apiVersion": "other.io/v1"})] == [True]


def test_conflicting_fields_are_matched_with_changes() -> None:
    """The API names list elements by key, Pulumi by index; both mean the same field."""
    old = {"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "a"}]}}}}
    new = {"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "c", "image": "b"}]}}}}
    found = changes(old, new)
    assert touches('.spec.template.spec.containers[name="c"].image', found)
    assert not touches(".spec.replicas", found)


def test_drift_ignores_what_the_server_writes_otherwise() -> None:
    """Only fields that differ from the server's own form of the inputs are drift."""
    inputs = {"spec": {"replicas": 3, "cpu": "1000m", "empty": {}, "list": [{"name": "c", "image": "a"}]}}
    intended = {"spec": {"replicas": 3, "cpu": "1", "list": [{"name": "c", "image": "a", "pull": "x"}]}}
    live = {"spec": {"replicas": 5, "cpu": "1", "list": [{"name": "c", "image": "b", "pull": "x"}]}, "status": {}}
    assert drifted(inputs, intended, live) == {
        "spec": {"replicas": 5, "cpu": "1000m", "empty": {}, "list": [{"name": "c", "image": "b"}]}
    }
    assert drifted(inputs, intended, intended) is inputs


def test_a_removed_field_is_drift() -> None:
    """A label that somebody took away is missing from the inputs, so the next update sets it again."""
    inputs = {"labels": {"a": "1", "b": "2"}}
    assert drifted(inputs, inputs, {"labels": {"a": "1"}}) == {"labels": {"a": "1"}}


def test_string_data_drifts_through_data() -> None:
    """The server turns `stringData` into `data`; a changed value comes back as text."""
    inputs = {"kind": "Secret", "stringData": {"k": "mine", "gone": "x"}}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in inputs["stringData"].items()}  # type: ignore[attr-defined]
    live = {"kind": "Secret", "data": {"k": base64.b64encode(b"theirs").decode()}}
    assert drifted_string_data(inputs, {"kind": "Secret", "data": encoded}, live)["stringData"] == {"k": "theirs"}
    assert drifted_string_data(inputs, live, live) == inputs


def test_imported_inputs_hold_nothing_of_the_server() -> None:
    """Status, ownership and counters are left out; what a person could have written stays."""
    live = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "x",
            "uid": "1",
            "resourceVersion": "2",
            "generation": 3,
            "creationTimestamp": "now",
            "managedFields": [],
            "labels": {"a": "b"},
            "annotations": {"deployment.kubernetes.io/revision": "1"},
        },
        "data": {"a": "b"},
        "status": {},
    }
    assert importable(live) == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "x", "labels": {"a": "b"}},
        "data": {"a": "b"},
    }
