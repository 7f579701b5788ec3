"""Compares a resource's old and new inputs, and an object's live state with what its inputs say."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from modelstacks.cluster.connection import Manifest, group_of
from modelstacks.local.plugins.kubernetes_values import Unknown, with_dashes

Path = tuple[str | int, ...]
Keys = tuple[str, ...]

# Fields that the API server refuses to change; where several kinds share a rule, they share the entry.
_SELECTOR: Final[tuple[Keys, ...]] = (("spec", "selector"),)
_ROLE_REF: Final[tuple[Keys, ...]] = (("roleRef",),)
_IMMUTABLE: Final[dict[tuple[str, str], tuple[Keys, ...]]] = {
    ("apps", "Deployment"): _SELECTOR,
    ("apps", "DaemonSet"): _SELECTOR,
    ("apps", "StatefulSet"): (
        *_SELECTOR,
        ("spec", "serviceName"),
        ("spec", "volumeClaimTemplates"),
        ("spec", "podManagementPolicy"),
    ),
    ("batch", "Job"): (
        *_SELECTOR,
        ("spec", "template"),
        ("spec", "completions"),
        ("spec", "completionMode"),
    ),
    ("", "Service"): (("spec", "clusterIP"),),
    ("", "Pod"): (("spec",),),
    ("", "Secret"): (("type",),),
    ("", "PersistentVolumeClaim"): (
        ("spec", "accessModes"),
        ("spec", "selector"),
        ("spec", "storageClassName"),
        ("spec", "volumeMode"),
        ("spec", "volumeName"),
        ("spec", "dataSource"),
        ("spec", "dataSourceRef"),
    ),
    ("storage.k8s.io", "StorageClass"): (
        ("provisioner",),
        ("parameters",),
        ("reclaimPolicy",),
        ("volumeBindingMode",),
    ),
    ("rbac.authorization.k8s.io", "RoleBinding"): _ROLE_REF,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _ROLE_REF,
    ("scheduling.k8s.io", "PriorityClass"): (("value",), ("preemptionPolicy",)),
    ("karpenter.sh", "NodePool"): (
        ("spec", "template", "spec", "nodeClassRef", "group"),
        ("spec", "template", "spec", "nodeClassRef", "kind"),
    ),
}
_IDENTITY: Final[tuple[Keys, ...]] = (("kind",), ("metadata", "name"), ("metadata", "namespace"))
_PAYLOAD: Final[tuple[Keys, ...]] = (("data",), ("stringData",), ("binaryData",), ("immutable",))


@dataclass(frozen=True, slots=True)
class Change:
    """One changed property of a resource's inputs."""

    path: Path
    kind: Literal["ADD", "DELETE", "UPDATE"]
    replaces: bool = False

    @property
    def property_path(self) -> str:
        """The path in Pulumi's notation: `metadata.labels["app.kubernetes.io/name"]`."""
        text = ""
        for step in self.path:
            if isinstance(step, int):
                text += f"[{step}]"
            elif re.fullmatch(r"[A-Za-z_$][\w$]*", step):
                text += f".{step}" if text else step
            else:
                text += '["' + step.replace('"', '\\"') + '"]'
        return text


def changes(old: Manifest, new: Manifest) -> list[Change]:
    """What differs between two sets of plain inputs, and which differences need a new object."""
    immutable = [*_IDENTITY, *_IMMUTABLE.get((group_of(new.get("apiVersion", "")), new.get("kind", "")), ())]
    if group_of(old.get("apiVersion", "")) != group_of(new.get("apiVersion", "")):
        immutable.append(("apiVersion",))
    if old.get("immutable") is True:
        immutable.extend(_PAYLOAD)
    return [Change(path, kind, any(_covers(rule, path) for rule in immutable)) for path, kind in _walk((), old, new)]


def _covers(rule: Keys, path: Path) -> bool:
    keys = tuple(step for step in path if isinstance(step, str))
    shared = min(len(rule), len(keys))
    return rule[:shared] == keys[:shared]


def _walk(path: Path, old: Any, new: Any) -> Iterator[tuple[Path, Literal["ADD", "DELETE", "UPDATE"]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in new:
                yield (*path, key), "DELETE"
            elif key not in old:
                yield (*path, key), "ADD"
            else:
                yield from _walk((*path, key), old[key], new[key])
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            if index >= len(new):
                yield (*path, index), "DELETE"
            elif index >= len(old):
                yield (*path, index), "ADD"
            else:
                yield from _walk((*path, index), old[index], new[index])
    elif isinstance(new, Unknown) or type(old) is not type(new) or old != new:
        yield path, "UPDATE"


def touches(field: str, changed: list[Change]) -> bool:
    """Whether `field`, in the API's notation (`.spec.containers[name="c"].image`), in or above a change."""
    keys = tuple(re.sub(r"\[[^\]]*\]", "", field).strip(".").split("."))
    return any(_covers(keys, change.path) for change in changed)


def drifted(inputs: Any, intended: Any, live: Any) -> Any:
    """`inputs` with the values of `live` where those differ from `intended`, the server's form of `inputs`.

    Comparing with `intended` leaves out what the server merely writes otherwise, such as `1000m` for `1`.
    """
    if intended == live:
        return inputs
    if isinstance(inputs, dict) and isinstance(live, dict):
        known = intended if isinstance(intended, dict) else {}
        result = {}
        for key, item in inputs.items():
            name = with_dashes({key: None}).popitem()[0]
            if name in live:
                result[key] = drifted(item, known.get(name), live[name])
            elif name not in known:  # else the server knows the field, and it is gone: drift
                result[key] = item
        return result
    if isinstance(inputs, list) and isinstance(intended, list) and isinstance(live, list):
        if len(inputs) == len(intended) == len(live):
            return [drifted(*items) for items in zip(inputs, intended, live, strict=True)]
        return live
    return live


def drifted_string_data(inputs: Manifest, intended: Manifest, live: Manifest) -> Manifest:
    """`drifted` for a Secret, whose `stringData` lives on as base64 in `data`."""
    result: Manifest = drifted(inputs, intended, live)
    if "stringData" not in inputs or intended.get("data") == live.get("data"):
        return result
    data = live.get("data") or {}
    text = {key: base64.b64decode(data[key]).decode(errors="replace") for key in inputs["stringData"] if key in data}
    return {**result, "stringData": text}


_SERVER_METADATA: Final = frozenset(
    {
        "creationTimestamp",
        "deletionTimestamp",
        "generation",
        "managedFields",
        "resourceVersion",
        "selfLink",
        "uid",
    }
)
_SERVER_ANNOTATIONS: Final = frozenset(
    {"deployment.kubernetes.io/revision", "kubectl.kubernetes.io/last-applied-configuration"}
)


def importable(live: Manifest) -> Manifest:
    """The inputs that would make `live`: the object without what only the server writes."""
    metadata = {key: item for key, item in live["metadata"].items() if key not in _SERVER_METADATA}
    annotations = metadata.pop("annotations", {})
    kept = {key: item for key, item in annotations.items() if key not in _SERVER_ANNOTATIONS}
    if kept:
        metadata["annotations"] = kept
    return {key: item for key, item in live.items() if key not in ("status", "metadata")} | {"metadata": metadata}
