"""Manifests → Pulumi resources: components, providers, one resource a manifest, typed where Kubernetes has the kind.

Nothing is decided here but the order: what others need comes first, and replicas that run are changed one by one.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import secrets
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes

from modelstacks import cloudspec, pools, render
from modelstacks.catalog import Catalog
from modelstacks.cluster import operators
from modelstacks.cluster.connection import Cluster, Kind
from modelstacks.cluster.findings import quantity
from modelstacks.errors import ClusterError
from modelstacks.fields import NAMESPACE, resource_name
from modelstacks.plan import Plan
from modelstacks.plan.rollout import rollout
from modelstacks.render.templates import Manifest
from modelstacks.render.values import api_key_secret

Resources = list[pulumi.Resource]

# Admitted with their account, network rules, quota, files and claims in place, pods are never in a half-made namespace.
_BEFORE_PODS = (
    "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "ResourceQuota", "PriorityClass", "ResourceClaimTemplate",
    "ConfigMap", "PersistentVolumeClaim",
)  # fmt: skip
_OPERATOR_READY_S = 900


class Foundation(pulumi.ComponentResource):
    """The namespace, the Secrets of the stack, and operators that the stack installs."""

    def __init__(
        self,
        name: str,
        manifests: list[Manifest],
        decided: Plan,
        decisions: list[operators.Decision],
        opts: pulumi.ResourceOptions,
        places: Places,
    ) -> None:
        names = places.names
        super().__init__("modelstacks:index:Foundation", names(name), None, names.options(name, opts))
        self.resources = register_all(manifests, self, names, options=places.namespace)
        self.resources += _hub_token(decided, self, names, self.resources)
        self.resources += _api_key(decided, self, names, self.resources)
        if decisions:
            # Said before it is done: an `up` that is cut short knows its own at the next one.
            labels = {"app.kubernetes.io/managed-by": "modelstacks"}
            claim = operators.claim(decided.name, decided.namespace, decisions, labels)
            claims = register_all([claim], self, names, self.resources)
            self.resources += claims + _releases(decided, decisions, self, names, claims)
        self.register_outputs({"objects": len(self.resources)})


class NodePool(pulumi.ComponentResource):
    """What provisions GPU nodes, manifests or resources of a cloud's own package; none for nodes that exist already."""

    def __init__(
        self,
        name: str,
        manifests: list[Manifest],
        managed: tuple[pools.NodeGroup, str] | None,
        opts: pulumi.ResourceOptions,
        places: Places,
    ) -> None:
        names = places.names
        super().__init__("modelstacks:index:NodePool", names(name), None, names.options(name, opts))
        self.resources = register_all(manifests, self, names, options=places.pool)
        if managed is not None:
            self.resources += pools.create(*managed, pulumi.ResourceOptions(parent=self))
        self.register_outputs({"objects": len(self.resources)})


class ModelServer(pulumi.ComponentResource):
    """The workload and what surrounds it, after the namespace and the pool."""

    def __init__(
        self,
        name: str,
        manifests: list[Manifest],
        after: Resources,
        changes: Changes,
        opts: pulumi.ResourceOptions,
        names: Names,
    ) -> None:
        super().__init__("modelstacks:index:ModelServer", names(name), None, names.options(name, opts))
        # A pod is admitted with its account and its network rules in place, a head with its state, not before.
        early = [m for m in manifests if m["kind"] in _BEFORE_PODS or render.comes_before_servers(m)]
        # What servers that go still use is taken away when they are gone.
        last = [m for m in early if render.identity(m) in changes.shrinking]
        early = [m for m in early if m not in last]
        jobs = [m for m in early if m["kind"] == "Job"]
        first = register_all([m for m in early if m not in jobs], self, names, after)
        # No machine is bought for servers before their weights are there.
        first += register_all(jobs, self, names, [*after, *first])
        late = [m for m in manifests if m not in early and m not in last]
        servers: Resources = []
        # A replica that runs is changed when the one before it serves again, so the others answer meanwhile.
        before: Resources = []
        for manifest in [m for m in late if m["kind"] != "Service"]:
            running = render.identity(manifest) in changes.running
            waits_for = [*after, *first, *(before if running else [])]
            made = register_all([manifest], self, names, waits_for, changes.options(manifest))
            before = made if running else before
            servers += made
        # A Service is awaited until an endpoint answers, so it comes after the servers.
        services = register_all([m for m in late if m["kind"] == "Service"], self, names, [*after, *servers])
        services += register_all(last, self, names, [*after, *servers])
        self.resources = [*first, *servers, *services]
        self.register_outputs({"objects": len(self.resources)})


class ModelStack(pulumi.ComponentResource):
    """One stack: foundation, node pool and server, on explicit providers."""

    def __init__(
        self,
        decided: Plan,
        manifests: list[Manifest],
        managed: tuple[pools.NodeGroup, str] | None,
        decisions: list[operators.Decision],
        changes: Changes,
        opts: pulumi.ResourceOptions,
        places: Places,
    ) -> None:
        name, names = decided.name, places.names
        super().__init__("modelstacks:index:ModelStack", names(name), None, names.options(name, opts))
        child = pulumi.ResourceOptions(parent=self)
        base = [m for m in manifests if m["kind"] == "Namespace"]
        pool = [m for m in manifests if render.is_pool(m)]
        rest = [m for m in manifests if m not in base and m not in pool]
        foundation = Foundation(f"{name}-foundation", base, decided, decisions, child, places)
        node_pool = NodePool(f"{name}-nodes", pool, managed, child, places)
        made = [*foundation.resources, *node_pool.resources]
        ModelServer(f"{name}-server", rest, made, changes, child, names)
        self.register_outputs({"endpoint": render.endpoint(decided)})


@dataclass(frozen=True, slots=True)
class Names:
    """How resources are called: `prefix` and their own name; `before` and it, before the stack's clusters changed."""

    prefix: str = ""
    before: str | None = None

    def __call__(self, name: str) -> str:
        return self.prefix + name

    def options(self, name: str, options: pulumi.ResourceOptions | None) -> pulumi.ResourceOptions:
        """`options`, under which the resource is found by the name that it had."""
        known = [] if self.before is None else [pulumi.Alias(name=self.before + name)]
        return pulumi.ResourceOptions.merge(options, pulumi.ResourceOptions(aliases=known))


@dataclass(frozen=True, slots=True)
class Places:
    """Options of the objects that other stacks use too, or that live in another cluster; None: as all the others."""

    namespace: pulumi.ResourceOptions | None
    pool: pulumi.ResourceOptions | None
    names: Names


@dataclass(frozen=True, slots=True)
class Changes:
    """How workloads are changed. `running` are those that the cluster has already and that wait for one another,
    `shrinking` quotas that are larger there than they will be.

    KubeRay leaves a running cluster as it is unless it may put a second one beside it. Where it may not, a change of
    the cluster itself is a new RayService in place of the old one, which gives its GPUs back first.
    """

    replaced: bool
    running: frozenset[tuple[str, str, str]]
    shrinking: frozenset[tuple[str, str, str]] = frozenset()

    def options(self, manifest: Manifest) -> pulumi.ResourceOptions | None:
        """Options of one workload; None: none of its own."""
        if not self.replaced or manifest["kind"] != "RayService":
            return None
        return pulumi.ResourceOptions(replace_on_changes=["spec.rayClusterConfig"], delete_before_replace=True)


def changes_of(decided: Plan, manifests: list[Manifest], live: Cluster | None) -> Changes:
    """What the plan's launcher asks for, and which of its workloads run."""
    together = decided.tier_form.changed_together
    own = [m for m in manifests if m["kind"] == decided.tier_form.kind] if together else []
    running = frozenset(render.identity(m) for m in own if live is not None and _there(live, m) is not None)
    quotas = [m for m in manifests if m["kind"] == "ResourceQuota"]
    shrinking = frozenset(render.identity(m) for m in quotas if live is not None and _shrinks(live, m))
    return Changes(together and not rollout(decided).comes_first, running, shrinking)


def _shrinks(live: Cluster, quota: Manifest) -> bool:
    before = ((_there(live, quota) or {}).get("spec") or {}).get("hard") or {}
    return any(quantity(before.get(key, "0")) > quantity(most) for key, most in quota["spec"]["hard"].items())


def _there(live: Cluster, manifest: Manifest) -> Manifest | None:
    """The object as the cluster has it; None also where that could not be found out."""
    kind, space, name = render.identity(manifest)
    try:
        return live.get(Kind(manifest["apiVersion"], kind), space, name)
    except ClusterError:
        return None


def register(
    places: list[tuple[Plan, Cluster | None]], manifests: list[Manifest], catalog: Catalog, *, several: bool
) -> None:
    """Create the stack's resources in each of its clusters, and export its outputs.

    `places` are the plan in each cluster, with the live cluster where it was looked at; `several` says that the stack
    lists its clusters, be it one.
    """
    for index, (decided, live) in enumerate(places):
        context = decided.spec.kube_context
        prefix = f"{resource_name(context)}-" if several and context else ""
        # A stack of one cluster that gets a second one keeps what it has: the first of the list is that one.
        before = None if index or not context else ("" if prefix else f"{resource_name(context)}-")
        _register_in(decided, manifests, catalog, live, Names(prefix, before))
    decided = places[0][0]
    endpoint = render.endpoint(decided)
    pulumi.export("endpoint", endpoint)
    pulumi.export("endpoints", {place.spec.kube_context or "default": endpoint for place, _ in places})
    pulumi.export("model", decided.choice.model.id)
    pulumi.export("tier", decided.choice.tier)
    pulumi.export("gpu", decided.choice.gpu.id)
    pulumi.export("gpus", sum(place.gpus for place, _ in places))
    pulumi.export("replicas", decided.spec.replicas)
    month = decided.cost.usd_per_month
    pulumi.export("usdPerMonth", None if month is None else round(month, 2))


def _register_in(
    decided: Plan, manifests: list[Manifest], catalog: Catalog, live: Cluster | None, names: Names
) -> None:
    """Create the providers and the resources of one cluster."""
    spec, cloud = decided.spec, decided.spec.cloud
    provider = _provider("cluster", decided, spec.kube_context, names)
    shared = _provider("shared", decided, spec.kube_context, names, adopt=True) if spec.shared else None
    management = None
    if cloud is not None and cloud.management_context is not None:
        management = _provider("management", decided, cloud.management_context, Names())
    # What others use stays when this stack goes, and is taken over as it is when this stack comes back.
    kept = pulumi.ResourceOptions(retain_on_delete=True, provider=shared)
    pool_options = kept if "pool" in spec.shared else None
    if management is not None:
        pool_options = pulumi.ResourceOptions(provider=management, retain_on_delete="pool" in spec.shared)
    places = Places(kept if "namespace" in spec.shared else None, pool_options, names)
    kind = decided.cloud
    region = None if kind is None or cloud is None else cloudspec.region_of(cloud, kind, catalog)
    group = pools.node_group(decided, region)
    managed = None if group is None or kind is None or kind.package is None else (group, kind.package)
    ModelStack(
        decided, manifests, managed, decide_operators(decided, catalog, live), changes_of(decided, manifests, live),
        pulumi.ResourceOptions(providers=[provider]), places,
    )  # fmt: skip


def _provider(
    name: str, decided: Plan, context: str | None, names: Names, *, adopt: bool = False
) -> kubernetes.Provider:
    return kubernetes.Provider(
        names(name),
        opts=names.options(name, None),
        kubeconfig=decided.spec.kubeconfig or os.environ.get("KUBECONFIG"),
        context=context,
        # Without an identity, another kubeconfig path would look like another cluster and replace everything.
        cluster_identifier=context or "default",
        enable_server_side_apply=True,
        upsert_existing_objects=True if adopt else None,
    )


def decide_operators(decided: Plan, catalog: Catalog, live: Cluster | None) -> list[operators.Decision]:
    """Which of the stack's operators it installs, and which are there already by another's hand."""
    asked = [catalog.operators[name] for name in decided.spec.operators]
    if not asked:
        return []
    if decided.cloud is not None and decided.cloud.simulated:
        pulumi.log.info(f"simulated nodes need no {', '.join(decided.spec.operators)}: nothing is installed")
        return []
    if live is None:
        pulumi.log.warn(f"the cluster was not asked which of {', '.join(decided.spec.operators)} it has")
        return operators.decide(asked, {}, {})
    found = operators.find_in(live, asked)
    decisions = operators.decide(asked, found, operators.own_claims(live, decided.namespace, decided.name))
    for decision in decisions:
        there = decision.found
        if not decision.installs and there is not None:
            version = f" {there.version}" if there.version else ""
            pulumi.log.info(f"{decision.operator.id}{version} is there already ({there.by}): used as it is")
    return decisions


def _releases(
    decided: Plan, decisions: list[operators.Decision], parent: pulumi.Resource, names: Names, after: Resources
) -> Resources:
    """A Helm release for every operator that this stack installs. It stays when the stack goes: others may use it."""
    kind = decided.cloud.id if decided.cloud is not None else None
    options = pulumi.ResourceOptions(parent=parent, depends_on=after, retain_on_delete=True)
    return [
        kubernetes.helm.v3.Release(
            names(f"operator-{one.operator.id}"),
            kubernetes.helm.v3.ReleaseArgs(
                name=one.operator.release,
                namespace=one.operator.namespace,
                create_namespace=True,
                chart=one.operator.chart,
                version=one.operator.version,
                repository_opts=kubernetes.helm.v3.RepositoryOptsArgs(repo=one.operator.repo)
                if one.operator.repo is not None
                else None,
                values=one.operator.values_for(kind),
                timeout=_OPERATOR_READY_S,
            ),
            opts=names.options(f"operator-{one.operator.id}", options),
        )
        for one in decisions
        if one.installs
    ]


def register_all(
    manifests: list[Manifest],
    parent: pulumi.Resource,
    names: Names,
    depends_on: Resources | None = None,
    options: pulumi.ResourceOptions | None = None,
) -> Resources:
    """One resource per manifest, children of `parent`."""
    base = pulumi.ResourceOptions(parent=parent, depends_on=list(depends_on or []))
    merged = base if options is None else pulumi.ResourceOptions.merge(base, options)
    return [register_manifest(manifest, merged, names) for manifest in manifests]


def register_manifest(manifest: Manifest, options: pulumi.ResourceOptions, names: Names) -> pulumi.Resource:
    """The typed resource of a built-in kind, CustomResource for everything else; inputs equal the manifest."""
    api_version, kind = manifest["apiVersion"], manifest["kind"]
    _, namespace, name = render.identity(manifest)
    own = "-".join(part for part in (kind.lower(), namespace, name) if part)
    options = names.options(own, options)
    fields = {_snake(key): value for key, value in manifest.items() if key not in ("apiVersion", "kind")}
    typed = typed_class(api_version, kind)
    if typed is not None:
        resource: pulumi.Resource = typed(names(own), opts=options, **fields)
        return resource
    return kubernetes.apiextensions.CustomResource(
        names(own), api_version=api_version, kind=kind, opts=options, **fields
    )


def typed_class(api_version: str, kind: str) -> Any | None:
    """The pulumi_kubernetes class of a group, version and kind; None for custom resources.

    A CRD group such as apps.example.com must not be taken for apps, so only Kubernetes' own groups are looked up.
    """
    group, _, version = api_version.rpartition("/")
    if group and "." in group and not group.endswith(".k8s.io"):
        return None
    try:
        module = importlib.import_module(f"pulumi_kubernetes.{group.split('.')[0] or 'core'}.{version}")
    except ModuleNotFoundError:
        return None
    return getattr(module, kind, None)


def _hub_token(decided: Plan, parent: pulumi.Resource, names: Names, after: Resources) -> Resources:
    token = pulumi.Config(NAMESPACE).get_secret("hubToken")
    if token is None:
        return []
    name, namespace = decided.spec.hub_token_secret, decided.namespace
    secret = kubernetes.core.v1.Secret(
        names(f"secret-{namespace}-{name}"),
        metadata={"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "modelstacks"}},
        string_data={"token": token},
        opts=names.options(f"secret-{namespace}-{name}", pulumi.ResourceOptions(parent=parent, depends_on=after)),
    )
    return [secret]


@functools.cache
def _new_key(_name: str) -> str:
    """A key for one run: the clusters of a stack that are made together have the same."""
    return secrets.token_urlsafe(32)


def _api_key(decided: Plan, parent: pulumi.Resource, names: Names, after: Resources) -> Resources:
    """The key of the API: made when its Secret is made, kept in the state as a secret, never changed after that."""
    name, namespace = api_key_secret(decided), decided.namespace
    if name is None or decided.spec.api_key_secret is not None:
        return []
    options = pulumi.ResourceOptions(parent=parent, depends_on=after, ignore_changes=["stringData"])
    secret = kubernetes.core.v1.Secret(
        names(f"secret-{namespace}-{name}"),
        metadata={"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "modelstacks"}},
        string_data={"key": pulumi.Output.secret(_new_key(name))},
        opts=names.options(f"secret-{namespace}-{name}", options),
    )
    return [secret]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
