"""Turns the engine's property structs into plain data and back, with secrets and unknowns marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format, struct_pb2  # type: ignore[import-untyped]  # protobuf ships no types
from pulumi.runtime import rpc

from modelstacks.cluster.connection import Manifest

_SIGNATURE_KEY: Final = rpc._special_sig_key
_SECRET_SIGNATURE: Final = rpc._special_secret_sig


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that the engine encrypts in the state and never prints."""

    value: Any

    def __repr__(self) -> str:
        return "Secret(…)"


class Unknown:
    """A value that a preview cannot know yet."""

    def __repr__(self) -> str:
        return "Unknown"


UNKNOWN: Final = Unknown()


def from_struct(struct: struct_pb2.Struct) -> dict[str, Any]:
    """The properties in `struct`, with `Secret` and `UNKNOWN` in place and whole numbers as int."""
    properties: dict[str, Any] = _decode(json_format.MessageToDict(struct))
    return properties


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get(_SIGNATURE_KEY) == _SECRET_SIGNATURE:
            return Secret(_decode(value.get("value")))
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # a Struct knows doubles only; the API server wants `replicas: 3`
    return UNKNOWN if value == rpc.UNKNOWN else value


def to_struct(properties: Mapping[str, Any]) -> struct_pb2.Struct:
    """The wire form of `properties`, which may hold `Secret` and `UNKNOWN`."""
    return json_format.ParseDict(_encode(properties), struct_pb2.Struct())


def _encode(value: Any) -> Any:
    if isinstance(value, Secret):
        return {_SIGNATURE_KEY: _SECRET_SIGNATURE, "value": _encode(value.value)}
    if isinstance(value, Unknown):
        return rpc.UNKNOWN
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    return value


def plain(value: Any) -> Any:
    """`value` without its secret marks; `UNKNOWN` stays."""
    if isinstance(value, Secret):
        return plain(value.value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def has_unknown(value: Any) -> bool:
    """Whether a preview knows all of `value`."""
    if isinstance(value, Secret):
        return has_unknown(value.value)
    if isinstance(value, dict):
        return any(has_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(has_unknown(item) for item in value)
    return isinstance(value, Unknown)


def has_secret(value: Any) -> bool:
    """Whether a part of `value` is secret."""
    if isinstance(value, dict):
        return any(has_secret(item) for item in value.values())
    if isinstance(value, list):
        return any(has_secret(item) for item in value)
    return isinstance(value, Secret)


def mark_secrets(properties: Manifest, inputs: Mapping[str, Any]) -> Manifest:
    """`properties` with everything secret that is secret in `inputs`, and a Secret's payload in any case."""
    if properties.get("kind") == "Secret":
        payload: Manifest = {key: Secret(properties[key]) for key in ("data", "stringData") if key in properties}
        return {**properties, **payload}
    return {key: _mark(item, inputs.get(key)) for key, item in properties.items()}


def _mark(value: Any, pattern: Any) -> Any:
    if isinstance(value, dict) and isinstance(pattern, dict):
        return {key: _mark(item, pattern.get(key)) for key, item in value.items()}
    # Lists may be reordered by the server, so one secret element makes the whole list secret.
    return Secret(value) if has_secret(pattern) else value


def with_dashes(value: Any) -> Any:
    """The API's spelling of the schema fields that Pulumi writes `x_kubernetes_…`."""
    return _renamed(value, "x_kubernetes_", "_", "-")


def with_underscores(value: Any) -> Any:
    """Pulumi's spelling of the schema fields that the API calls `x-kubernetes-…`."""
    return _renamed(value, "x-kubernetes-", "-", "_")


def _renamed(value: Any, prefix: str, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {
            key.replace(old, new) if key.startswith(prefix) else key: _renamed(item, prefix, old, new)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_renamed(item, prefix, old, new) for item in value]
    return value
