"""What one stack's checks need to know of a cluster, read once and side by side; nothing is judged here."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from modelstacks.cluster import access
from modelstacks.cluster.connection import ApiError, Cluster, Kind, KindNotFoundError, Manifest, UnreachableError

# Collections by the name that checks call them: apiVersion, kind, and whether only the stack's namespace is asked.
_COLLECTIONS: dict[str, tuple[str, str, bool]] = {
    "nodes": ("v1", "Node", False),
    "namespaces": ("v1", "Namespace", False),
    "pods": ("v1", "Pod", False),
    "events": ("v1", "Event", True),
    "secrets": ("v1", "Secret", True),
    "quotas": ("v1", "ResourceQuota", True),
    "limits": ("v1", "LimitRange", True),
    "claims": ("v1", "PersistentVolumeClaim", True),
    "deployments": ("apps/v1", "Deployment", False),
    "replicasets": ("apps/v1", "ReplicaSet", True),
    "daemonsets": ("apps/v1", "DaemonSet", False),
    "storageclasses": ("storage.k8s.io/v1", "StorageClass", False),
    "priorityclasses": ("scheduling.k8s.io/v1", "PriorityClass", False),
    "validating_webhooks": ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", False),
    "mutating_webhooks": ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", False),
    "nodepools": ("karpenter.sh/v1", "NodePool", False),
    "nodeclaims": ("karpenter.sh/v1", "NodeClaim", False),
    "scaledobjects": ("keda.sh/v1alpha1", "ScaledObject", True),
    "autoscalers": ("autoscaling/v2", "HorizontalPodAutoscaler", True),
    "jobs": ("batch/v1", "Job", True),
    "rayservices": ("ray.io/v1", "RayService", True),
    "rayclusters": ("ray.io/v1", "RayCluster", True),
    "deviceclasses": ("resource.k8s.io/v1", "DeviceClass", False),
    "resourceslices": ("resource.k8s.io/v1", "ResourceSlice", False),
    "endpointslices": ("discovery.k8s.io/v1", "EndpointSlice", False),
    "definitions": ("apiextensions.k8s.io/v1", "CustomResourceDefinition", False),
    "helm_releases": ("v1", "Secret", False),
    "operator_claims": ("v1", "ConfigMap", False),
}
# Asked of the whole cluster, and of the stack's namespace alone where that is forbidden.
_ALSO_HERE = ("pods", "deployments", "daemonsets", "endpointslices")
_NAMES_ONLY = ("definitions", "helm_releases")
# Of some, only those with a label are wanted: the rest is large, or none of our business.
_SELECTED = {"helm_releases": "owner=helm,status=deployed", "operator_claims": "modelstacks.dev/claims=operators"}
# Groups that every cluster serves.
_BUILT_IN = {
    "apps", "batch", "policy", "networking.k8s.io", "scheduling.k8s.io", "storage.k8s.io",
    "rbac.authorization.k8s.io", "autoscaling",
}  # fmt: skip
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One reading. `objects` holds every collection that could be read, `unreadable` why the others could not.

    `own` holds the live form of the stack's own manifests by kind and name, `versions` what API groups are served.
    """

    version: str
    host: str
    namespace: str
    objects: Mapping[str, tuple[Manifest, ...]] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[tuple[str, str], Manifest] = field(default_factory=dict)
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    denied: tuple[access.Denied, ...] = ()
    # Of the stack's own objects those that may not be seen.
    hidden: frozenset[tuple[str, str]] = frozenset()
    # apiVersion and kind of the stack's objects that the cluster does not serve.
    missing_kinds: frozenset[tuple[str, str]] = frozenset()

    def of(self, name: str) -> tuple[Manifest, ...]:
        """A collection; empty where it could not be read."""
        return self.objects.get(name, ())

    def here(self, name: str) -> tuple[Manifest, ...]:
        """Those of a collection that live in the stack's namespace."""
        return tuple(o for o in self.of(name) if o["metadata"].get("namespace") == self.namespace)

    def named(self, name: str, wanted: str) -> Manifest | None:
        """The object of that name in a collection; of namespaced ones, in the stack's namespace."""
        for found in self.of(name):
            if found["metadata"]["name"] == wanted and found["metadata"].get("namespace") in (None, self.namespace):
                return found
        return None

    def can_read(self, name: str) -> bool:
        """The collection was read whole, so that what is not in it does not exist."""
        return name in self.objects and name not in self.unreadable


def plural(name: str) -> str:
    """A collection as kubectl calls it."""
    kind = _COLLECTIONS[name][1].lower()
    return kind + ("es" if kind.endswith(("s", "x", "ch")) else "s")


def read(cluster: Cluster, namespace: str, manifests: list[Manifest]) -> Snapshot:
    """Read everything. Raises ClusterError when the cluster stops answering; what is forbidden is only noted."""
    objects: dict[str, tuple[Manifest, ...]] = {}
    unreadable: dict[str, str] = {}
    groups = sorted({m["apiVersion"].partition("/")[0] for m in manifests if "/" in m["apiVersion"]} - _BUILT_IN)

    def collection(name: str) -> None:
        api_version, kind, only_here = _COLLECTIONS[name]
        try:
            wanted = Kind(api_version, kind)
            query = {"labelSelector": _SELECTED[name]} if name in _SELECTED else {}
            if only_here:
                objects[name] = tuple(cluster.items(wanted, namespace, **query))
            else:
                objects[name] = tuple(cluster.everywhere(wanted, names_only=name in _NAMES_ONLY, **query))
        except KindNotFoundError:
            unreadable[name] = "not served"
        except ApiError as error:
            if error.status == 404:
                objects[name] = ()
            else:
                unreadable[name] = "forbidden" if error.status in (401, 403) else error.message
                # A user of one namespace sees at least what is there.
                if not only_here and name in _ALSO_HERE:
                    with contextlib.suppress(ApiError):
                        objects[name] = tuple(cluster.items(Kind(api_version, kind), namespace))

    with ThreadPoolExecutor(_AT_ONCE) as at_once:
        list(at_once.map(collection, _COLLECTIONS))
        own = dict(at_once.map(lambda m: (_key(m), _live(cluster, m)), manifests))
        hidden = frozenset(key for key, live in own.items() if live is _UNKNOWN)
        versions = dict(at_once.map(lambda g: (g, tuple(access.served_versions(cluster, g))), groups))
        denied = access.denied(cluster, manifests)
        # Events of nodes and node claims have no namespace of their own and are kept in "default".
        objects["cluster_events"] = tuple(_events(cluster))
    return Snapshot(
        version=access.server_version(cluster),
        host=cluster.host,
        namespace=namespace,
        objects=objects,
        unreadable=unreadable,
        own={key: live for key, live in own.items() if live is not None and live is not _UNKNOWN},
        hidden=hidden,
        versions=versions,
        denied=tuple(denied),
        missing_kinds=frozenset(access.missing_kinds(cluster, manifests)),
    )


# Stands for an object that this user may not see.
_UNKNOWN: Manifest = {}


def _key(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def _live(cluster: Cluster, manifest: Manifest) -> Manifest | None:
    metadata = manifest["metadata"]
    try:
        return cluster.get(Kind.of(manifest), metadata.get("namespace"), metadata["name"])
    except KindNotFoundError:
        return None
    except ApiError:
        return _UNKNOWN


def _events(cluster: Cluster) -> list[Manifest]:
    try:
        return cluster.items(Kind("v1", "Event"), "default")
    except (ApiError, UnreachableError):
        return []


def labels_of(found: Manifest) -> dict[str, Any]:
    """The labels of an object."""
    return found["metadata"].get("labels") or {}


def condition(found: Manifest, kind: str) -> dict[str, Any]:
    """One condition of an object's status; empty where it has none of that type."""
    entries = (found.get("status") or {}).get("conditions") or []
    return next((entry for entry in entries if entry.get("type") == kind), {})
