"""Operators of a cluster: which are there however they came, which a stack owns, and what of them is missing.

A stack that installs an operator says so in a ConfigMap of its namespace; a stack that finds one there only says that
it uses it. So there is one owner, and with its namespace the claim goes too. Destroying a stack never removes an
operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from modelstacks.catalog import Operator
from modelstacks.cluster.connection import ApiError, Cluster, Kind, KindNotFoundError, Manifest

CLAIM_LABEL = "modelstacks.dev/claims"
INSTALLED, USED = "installed", "used"


@dataclass(frozen=True, slots=True)
class Installation:
    """An operator as it was found: by its Helm release, its workload or its definitions."""

    operator: Operator
    version: str | None
    namespace: str | None
    ready: bool | None
    by: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What `up` does about one operator: install (or keep) it, or use the one that is there."""

    operator: Operator
    installs: bool
    found: Installation | None

    @property
    def claim(self) -> str:
        return INSTALLED if self.installs else USED


def decide(
    asked: Iterable[Operator], found: Mapping[str, Installation], own_claims: Mapping[str, str]
) -> list[Decision]:
    """Install what is not there and what this stack installed before; use everything else as it is."""
    return [
        Decision(
            operator,
            operator.id not in found or own_claims.get(operator.id) == INSTALLED,
            found.get(operator.id),
        )
        for operator in asked
    ]


def find(
    operators: Iterable[Operator],
    *,
    deployments: Iterable[Manifest],
    daemonsets: Iterable[Manifest],
    releases: Iterable[Manifest],
    definitions: Iterable[str],
) -> dict[str, Installation]:
    """Which of `operators` are there. `releases` are Helm's Secrets, `definitions` names of custom resources."""
    workloads = {"Deployment": list(deployments), "DaemonSet": list(daemonsets)}
    helm = {(secret["metadata"].get("labels") or {}).get("name"): secret for secret in releases}
    names = set(definitions)
    found = {}
    for operator in operators:
        workload = next((w for row in operator.workloads for w in workloads[row.kind] if carries(w, row.labels)), None)
        if workload is not None:
            version = _image_version(workload)
            place = workload["metadata"].get("namespace")
            found[operator.id] = Installation(operator, version, place, _is_ready(workload), "workload")
        elif operator.release in helm:
            place = helm[operator.release]["metadata"].get("namespace")
            found[operator.id] = Installation(operator, None, place, None, "Helm release")
        elif operator.crds and names.issuperset(operator.crds[:1]):
            # A cloud's add-on runs where nobody sees it, and leaves only its definitions.
            found[operator.id] = Installation(operator, None, None, None, "definitions")
    return found


def find_in(cluster: Cluster, operators: Iterable[Operator]) -> dict[str, Installation]:
    """`find` on a live cluster; what may not be read counts as not there."""

    def read(api_version: str, kind: str, *, names_only: bool = False, **query: str) -> list[Manifest]:
        try:
            return cluster.everywhere(Kind(api_version, kind), names_only=names_only, **query)
        except (ApiError, KindNotFoundError):
            return []

    return find(
        operators,
        deployments=read("apps/v1", "Deployment"),
        daemonsets=read("apps/v1", "DaemonSet"),
        releases=read("v1", "Secret", names_only=True, labelSelector="owner=helm,status=deployed"),
        definitions=[
            d["metadata"]["name"] for d in read("apiextensions.k8s.io/v1", "CustomResourceDefinition", names_only=True)
        ],
    )


def own_claims(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    """What a stack said about operators in an earlier `up`."""
    try:
        found = cluster.get(Kind("v1", "ConfigMap"), namespace, claim_name(name))
    except ApiError:
        return {}
    return dict((found or {}).get("data") or {})


def claim_name(stack: str) -> str:
    """The ConfigMap in which a stack says what it installed and what it uses."""
    return f"{stack}-operators"


def claim(stack: str, namespace: str, decisions: Iterable[Decision], labels: Mapping[str, str]) -> Manifest:
    """That ConfigMap."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": claim_name(stack),
            "namespace": namespace,
            "labels": {**labels, CLAIM_LABEL: "operators"},
        },
        "data": {decision.operator.id: decision.claim for decision in decisions},
    }


def claims(config_maps: Iterable[Manifest]) -> dict[str, list[str]]:
    """Operator → the namespaces/stacks that installed or use it."""
    found: dict[str, list[str]] = {}
    for config_map in config_maps:
        where = f"{config_map['metadata']['namespace']}/{config_map['metadata']['name'].removesuffix('-operators')}"
        for operator, how in (config_map.get("data") or {}).items():
            found.setdefault(operator, []).append(f"{where} ({how})")
    return found


def carries(workload: Manifest, labels: Mapping[str, str]) -> bool:
    """The workload, or its pods, have those labels."""
    spec = (workload.get("spec") or {}).get("template") or {}
    own = workload["metadata"].get("labels") or {}
    pods = (spec.get("metadata") or {}).get("labels") or {}
    return labels.items() <= own.items() or labels.items() <= pods.items()


def _is_ready(workload: Manifest) -> bool:
    status = workload.get("status") or {}
    if "desiredNumberScheduled" in status or workload.get("kind") == "DaemonSet":
        # With no node to run on there is nothing to wait for.
        return bool(status.get("numberReady", 0) >= status.get("desiredNumberScheduled", 0))
    # Scaled to nothing, it looks after nothing.
    return bool(status.get("availableReplicas", 0) >= max(1, (workload.get("spec") or {}).get("replicas", 1)))


def _image_version(workload: Manifest) -> str | None:
    containers: list[dict[str, Any]] = workload["spec"]["template"]["spec"].get("containers") or []
    for container in containers:
        tag = re.search(r":v?(\d+\.\d+\.\d+)", container.get("image", "").rpartition("/")[2])
        if tag is not None:
            return tag[1]
    return None
