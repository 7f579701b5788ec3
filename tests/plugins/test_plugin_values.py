"""The wire form of properties: secrets, unknowns and whole numbers survive the way in and out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelstacks.local.plugins.kubernetes_values import (
    UNKNOWN,
    Secret,
    from_struct,
    has_unknown,
    mark_secrets,
    plain,
    to_struct,
    with_dashes,
    with_underscores,
)

_LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.just(UNKNOWN)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | inner.map(Secret),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), _VALUES))
def test_reading_what_was_written_is_the_identity(properties: dict[str, Any]) -> None:
    """Secrets and unknowns keep their marks, and integers stay integers although a Struct holds doubles."""
    assert from_struct(to_struct(properties)) == properties


def test_plain_takes_the_marks_off() -> None:
    """The API server gets values; unknowns stay recognizable, so that nobody applies them."""
    marked = {"a": Secret({"b": [Secret("c")]}), "d": UNKNOWN}
    assert plain(marked) == {"a": {"b": ["c"]}, "d": UNKNOWN}
    assert has_unknown(marked)
    assert not has_unknown({"a": Secret([1])})


def test_a_secret_object_never_leaves_in_the_clear() -> None:
    """A Secret's payload is secret in the outputs even where the program did not say so."""
    live = {"kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "dg=="}}
    assert mark_secrets(live, {})["data"] == Secret({"k": "dg=="})


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"spec": {"a": Secret(1), "b": 2}}, {"a": Secret(1), "b": 2}),
        ({"spec": {"a": 1, "list": [{"v": Secret("x")}]}}, {"a": 1, "b": 2, "list": Secret([{"v": "x"}])}),
        ({"spec": Secret({"a": 1})}, Secret({"a": 1, "b": 2})),
    ],
    ids=["field", "list", "whole"],
)
def test_outputs_are_secret_where_inputs_are(inputs: dict[str, Any], expected: Any) -> None:
    """A secret input makes the same output secret; in a list all of it, as the server may reorder it."""
    spec: dict[str, Any] = {"a": 1, "b": 2}
    if "list" in plain(inputs)["spec"]:
        spec["list"] = [{"v": "x"}]
    assert mark_secrets({"kind": "X", "spec": spec}, inputs)["spec"] == expected


def test_secrets_are_not_printed() -> None:
    """A secret in a message or a traceback shows nothing."""
    assert "hush" not in repr({"a": Secret("hush")})


def test_schema_fields_are_spelled_both_ways() -> None:
    """Typed programs write x_kubernetes_…, the API x-kubernetes-…."""
    typed = {"schema": [{"x_kubernetes_preserve_unknown_fields": True, "my_key": 1}]}
    assert with_dashes(typed) == {"schema": [{"x-kubernetes-preserve-unknown-fields": True, "my_key": 1}]}
    assert with_underscores(with_dashes(typed)) == typed
