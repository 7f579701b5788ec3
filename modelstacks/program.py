"""The Pulumi program: registers exactly the manifests that were rendered, as typed resources inside components.

With the programs of pools/ the only code that imports pulumi. Nothing is decided here: plan and render did that.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
import pulumi_kubernetes as kubernetes
from pulumi.runtime import config as runtime_config

from modelstacks import cloudspec, pools, project, render, review, sharing, spec, stackfile, watch
from modelstacks.catalog import Catalog
from modelstacks.cluster import access, doctor, operators
from modelstacks.cluster.connection import Cluster, UnreachableError
from modelstacks.errors import BadInput, ModelstacksError, Problem, Refused
from modelstacks.fields import NAMESPACE
from modelstacks.plan import Plan, plan
from modelstacks.render.templates import Manifest
from modelstacks.spec import StackSpec

Resources = list[pulumi.Resource]

# Set, the program asks no cluster anything: previews where there is none.
OFFLINE = "MODELSTACKS_OFFLINE"
# Admitted with their account, network rules, quota and claims in place, pods are never in a half-made namespace.
_BEFORE_PODS = (
    "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "ResourceQuota", "PriorityClass", "ResourceClaimTemplate",
)  # fmt: skip
_OPERATOR_READY_S = 900


@dataclass(frozen=True, slots=True)
class Question:
    """What the running stack asks for: its spec, and whether it was overlaid for the embedded cluster."""

    stack: str
    spec: StackSpec
    overlaid: bool


def deploy() -> None:
    """Read the stack's configuration, refuse or register, and export the facts a user needs next."""
    try:
        catalog = Catalog()
        question = read_question(pulumi.get_stack(), catalog)
        decided = plan(question.spec, catalog, stack=question.stack)
        refuse(decided)
        if not question.overlaid:
            sharing.check(decided, project.root(), catalog)
        manifests = render.render(decided, catalog)
        if not question.overlaid:
            compare_with_reviewed(decided, catalog)
        for warning in decided.warnings:
            pulumi.log.warn(warning)
        live = preflight(decided, manifests, catalog)
        register(decided, manifests, catalog, live)
        if live is not None and not pulumi.runtime.is_dry_run():
            watch.start(decided, manifests, catalog, pulumi.log.warn)
    except ModelstacksError as error:
        # RunError ends the program with its message alone, without a stack trace.
        raise pulumi.RunError(str(error)) from None


def read_question(stack: str, catalog: Catalog) -> Question:
    """The spec of the running stack.

    `modelstacks:stackFile` names the stack file to read when the engine's own config is an overlay for the embedded
    cluster; every other key then goes on top of that file.
    """
    stackfile.check_stack_name(stack)
    config: Mapping[str, Any] = {**runtime_config.get_config_env(), **runtime_config.CONFIG.get()}
    values = stackfile.config_values(config)
    source = values.pop("stackFile", None)
    values.pop("hubToken", None)
    if source is None:
        return Question(stack, spec.parse(values, catalog, source=f"Pulumi.{stack}.yaml"), overlaid=False)
    path = Path(source)
    if stackfile.stack_name(path) != stack:
        problem = Problem("modelstacks:stackFile", f"is {path.name}, the stack is {stack}", source)
        raise BadInput([problem], source=f"Pulumi.{stack}.yaml", next_step=f"make up STACK={stack}")
    return Question(stack, stackfile.parse_file(path, catalog, overlay=values), overlaid=True)


def refuse(decided: Plan) -> None:
    """Raise Refused with every reason and the nearest plans that fit."""
    if decided.runs:
        return
    lines = [f"{decided.stack}: this plan is refused", *decided.refusal_lines]
    raise Refused("\n".join(lines), next_step=f"modelstacks plan {decided.stack}")


def compare_with_reviewed(decided: Plan, catalog: Catalog) -> None:
    """Say which objects differ from rendered/<stack>; stop there when the stack requires a review."""
    stack = decided.stack or decided.name
    folder = project.rendered_dir(project.root(), stack)
    changed = review.differences(review.files(decided, catalog, stack), folder)
    if not changed:
        return
    names = ", ".join(f"{difference.file} ({difference.change})" for difference in changed)
    message = f"rendered/{stack} is not what would be applied: {names}"
    if decided.spec.require_reviewed:
        raise Refused(f"{message}; requireReviewed is set", next_step="make render, and have the change reviewed")
    pulumi.log.warn(f"{message}; run `make render` so that the next review shows it")


def preflight(decided: Plan, manifests: list[Manifest], catalog: Catalog) -> Cluster | None:
    """The live cluster, after it was seen to serve every kind and to allow every change.

    None without any kubeconfig, with MODELSTACKS_OFFLINE set, and in a preview of a cluster that does not answer: then
    nothing was checked. Raises ClusterError before anything is made.
    """
    where = decided.spec
    if os.environ.get(OFFLINE) or not access.has_kubeconfig(where.kubeconfig):
        return None
    management = where.cloud.management_context if where.cloud is not None else None
    try:
        cluster = access.connect(where.kubeconfig, where.kube_context)
        here = [m for m in manifests if not (management and render.is_pool(m))]
        doctor.preflight(cluster, decided, here, catalog)
        if management is not None:
            pools = [m for m in manifests if render.is_pool(m)]
            doctor.preflight(access.connect(where.kubeconfig, management), decided, pools, catalog)
    except UnreachableError as error:
        if not pulumi.runtime.is_dry_run():
            raise
        pulumi.log.warn(f"{error}; nothing was checked against the cluster")
        return None
    return cluster


class Foundation(pulumi.ComponentResource):
    """The namespace, the hub token's Secret when the stack carries the token, and operators that the stack installs."""

    def __init__(
        self,
        name: str,
        manifests: list[Manifest],
        decided: Plan,
        decisions: list[operators.Decision],
        opts: pulumi.ResourceOptions,
        shared: pulumi.ResourceOptions | None,
    ) -> None:
        super().__init__("modelstacks:index:Foundation", name, None, opts)
        self.resources = register_all(manifests, self, options=shared)
        self.resources += _hub_token(decided, self, self.resources)
        if decisions:
            # Said before it is done: an `up` that is cut short knows its own at the next one.
            labels = {"app.kubernetes.io/managed-by": "modelstacks"}
            claim = operators.claim(decided.name, decided.namespace, decisions, labels)
            claims = register_all([claim], self, self.resources)
            self.resources += claims + _releases(decided, decisions, self, claims)
        self.register_outputs({"objects": len(self.resources)})


class NodePool(pulumi.ComponentResource):
    """What provisions GPU nodes, manifests or resources of a cloud's own package; none for nodes that exist already."""

    def __init__(
        self,
        name: str,
        manifests: list[Manifest],
        managed: tuple[pools.NodeGroup, str] | None,
        opts: pulumi.ResourceOptions,
        shared: pulumi.ResourceOptions | None,
    ) -> None:
        super().__init__("modelstacks:index:NodePool", name, None, opts)
        self.resources = register_all(manifests, self, options=shared)
        if managed is not None:
            self.resources += pools.create(*managed, pulumi.ResourceOptions(parent=self))
        self.register_outputs({"objects": len(self.resources)})


class ModelServer(pulumi.ComponentResource):
    """The workload and what surrounds it, after the namespace and the pool."""

    def __init__(self, name: str, manifests: list[Manifest], after: Resources, opts: pulumi.ResourceOptions) -> None:
        super().__init__("modelstacks:index:ModelServer", name, None, opts)
        # A pod is admitted with its account and its network rules in place, not before.
        early = [m for m in manifests if m["kind"] in _BEFORE_PODS]
        first = register_all(early, self, after)
        workload = [m for m in manifests if m not in early and m["kind"] != "Service"]
        servers = register_all(workload, self, [*after, *first])
        # A Service is awaited until an endpoint answers, so it comes after the servers.
        services = register_all([m for m in manifests if m["kind"] == "Service"], self, [*after, *servers])
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
        opts: pulumi.ResourceOptions,
        places: Places,
    ) -> None:
        name = decided.name
        super().__init__("modelstacks:index:ModelStack", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        base = [m for m in manifests if m["kind"] == "Namespace"]
        pool = [m for m in manifests if render.is_pool(m)]
        rest = [m for m in manifests if m not in base and m not in pool]
        foundation = Foundation(f"{name}-foundation", base, decided, decisions, child, places.namespace)
        node_pool = NodePool(f"{name}-nodes", pool, managed, child, places.pool)
        ModelServer(f"{name}-server", rest, [*foundation.resources, *node_pool.resources], child)
        self.register_outputs({"endpoint": render.endpoint(decided)})


@dataclass(frozen=True, slots=True)
class Places:
    """Options of the objects that other stacks use too, or that live in another cluster; None: as all the others."""

    namespace: pulumi.ResourceOptions | None
    pool: pulumi.ResourceOptions | None


def register(decided: Plan, manifests: list[Manifest], catalog: Catalog, live: Cluster | None) -> None:
    """Create the providers and the stack's resources, and export its outputs."""
    spec, cloud = decided.spec, decided.spec.cloud
    provider = _provider("cluster", decided, spec.kube_context)
    shared = _provider("shared", decided, spec.kube_context, adopt=True) if spec.shared else None
    management = None
    if cloud is not None and cloud.management_context is not None:
        management = _provider("management", decided, cloud.management_context)
    # What others use stays when this stack goes, and is taken over as it is when this stack comes back.
    kept = pulumi.ResourceOptions(retain_on_delete=True, provider=shared)
    pool_options = kept if "pool" in spec.shared else None
    if management is not None:
        pool_options = pulumi.ResourceOptions(provider=management, retain_on_delete="pool" in spec.shared)
    places = Places(kept if "namespace" in spec.shared else None, pool_options)
    kind = decided.cloud
    region = None if kind is None or cloud is None else cloudspec.region_of(cloud, kind, catalog)
    group = pools.node_group(decided, region)
    managed = None if group is None or kind is None or kind.package is None else (group, kind.package)
    ModelStack(
        decided, manifests, managed, decide_operators(decided, catalog, live),
        pulumi.ResourceOptions(providers=[provider]), places,
    )  # fmt: skip
    pulumi.export("endpoint", render.endpoint(decided))
    pulumi.export("model", decided.choice.model.id)
    pulumi.export("tier", decided.choice.tier)
    pulumi.export("gpu", decided.choice.gpu.id)
    pulumi.export("gpus", decided.gpus)
    pulumi.export("replicas", decided.spec.replicas)
    month = decided.cost.usd_per_month
    pulumi.export("usdPerMonth", None if month is None else round(month, 2))


def _provider(name: str, decided: Plan, context: str | None, *, adopt: bool = False) -> kubernetes.Provider:
    return kubernetes.Provider(
        name,
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
    decided: Plan, decisions: list[operators.Decision], parent: pulumi.Resource, after: Resources
) -> Resources:
    """A Helm release for every operator that this stack installs. It stays when the stack goes: others may use it."""
    kind = decided.cloud.id if decided.cloud is not None else None
    options = pulumi.ResourceOptions(parent=parent, depends_on=after, retain_on_delete=True)
    return [
        kubernetes.helm.v3.Release(
            f"operator-{one.operator.id}",
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
            opts=options,
        )
        for one in decisions
        if one.installs
    ]


def register_all(
    manifests: list[Manifest],
    parent: pulumi.Resource,
    depends_on: Resources | None = None,
    options: pulumi.ResourceOptions | None = None,
) -> Resources:
    """One resource per manifest, children of `parent`."""
    base = pulumi.ResourceOptions(parent=parent, depends_on=list(depends_on or []))
    merged = base if options is None else pulumi.ResourceOptions.merge(base, options)
    return [register_manifest(manifest, merged) for manifest in manifests]


def register_manifest(manifest: Manifest, options: pulumi.ResourceOptions) -> pulumi.Resource:
    """The typed resource of a built-in kind, CustomResource for everything else; inputs equal the manifest."""
    api_version, kind = manifest["apiVersion"], manifest["kind"]
    _, namespace, name = render.identity(manifest)
    resource_name = "-".join(part for part in (kind.lower(), namespace, name) if part)
    fields = {_snake(key): value for key, value in manifest.items() if key not in ("apiVersion", "kind")}
    typed = typed_class(api_version, kind)
    if typed is not None:
        resource: pulumi.Resource = typed(resource_name, opts=options, **fields)
        return resource
    return kubernetes.apiextensions.CustomResource(
        resource_name, api_version=api_version, kind=kind, opts=options, **fields
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


def _hub_token(decided: Plan, parent: pulumi.Resource, after: Resources) -> Resources:
    token = pulumi.Config(NAMESPACE).get_secret("hubToken")
    if token is None:
        return []
    name, namespace = decided.spec.hub_token_secret, decided.namespace
    secret = kubernetes.core.v1.Secret(
        f"secret-{namespace}-{name}",
        metadata={"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "modelstacks"}},
        string_data={"token": token},
        opts=pulumi.ResourceOptions(parent=parent, depends_on=after),
    )
    return [secret]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
