"""What a resource's inputs and state mean for its object: the manifest, the outputs, the field manager."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

from modelstacks.cluster.connection import ApiError, Manifest, identifier
from modelstacks.errors import ClusterError
from modelstacks.local.plugins.kubernetes_diff import Change, touches
from modelstacks.local.plugins.kubernetes_ready import annotation
from modelstacks.local.plugins.kubernetes_values import (
    mark_secrets,
    plain,
    with_dashes,
    with_underscores,
)

MANAGER: Final = "__fieldManager"  # the official provider keeps both under these names in the state
_INITIAL_VERSION: Final = "__initialApiVersion"


def object_of(inputs: Manifest) -> Manifest:
    """The manifest to apply for `inputs`: no secret marks, no bookkeeping."""
    obj: Manifest = with_dashes(plain(inputs))
    return {key: item for key, item in obj.items() if not key.startswith("__")}


def outputs_of(live: Manifest, inputs: Manifest, manager: str) -> Manifest:
    """The resource's outputs: the live object without field ownership, secret where `inputs` are secret."""
    metadata = {key: item for key, item in live["metadata"].items() if key != "managedFields"}
    outputs = with_underscores(live | {"metadata": metadata})
    outputs |= {MANAGER: manager, _INITIAL_VERSION: live["apiVersion"]}
    return mark_secrets(outputs, inputs)


def manager_of(urn: str) -> str:
    """The field manager of one resource: stable, so that an interrupted `up` finds what it has created."""
    return f"pulumi-kubernetes-{hashlib.sha256(urn.encode()).hexdigest()[:8]}"


def refuse_foreign(live: Manifest | None, manager: str) -> None:
    """Raises ClusterError where the object to create exists and `manager` did not create it."""
    if live is None or any(entry.get("manager") == manager for entry in live["metadata"].get("managedFields", [])):
        return
    raise ClusterError(
        f"{live['kind']} {identifier(live)} already exists and was not created by this resource",
        next_step=f"adopt it (`pulumi import kubernetes:{_token(live)} RESOURCE {identifier(live)}"
        " --generate-code=false`) or delete it",
    )


def _token(obj: Mapping[str, Any]) -> str:
    version_part = obj["apiVersion"] if "/" in obj["apiVersion"] else f"core/{obj['apiVersion']}"
    return f"{version_part}:{obj['kind']}"


def forced(obj: Manifest) -> bool:
    """Whether the manifest itself asks to take fields from other managers."""
    return annotation(obj, "pulumi.com/patchForce") == "true"


def is_drift(error: ApiError, changed: list[Change]) -> bool:
    """Whether a conflict is about fields that this update changes anyway, set by hand, by no controller.

    The preview has shown those changes, so taking the fields back is what the user asked for.
    """
    conflicts = [cause for cause in error.causes if cause.get("reason") == "FieldManagerConflict"]
    return bool(conflicts) and all(
        touches(cause["field"], changed) and "controller" not in cause["message"] and "using" in cause["message"]
        for cause in conflicts
    )
