"""The Pulumi program: registers exactly the manifests that were rendered, as typed resources inside components.

The only module that imports pulumi. Nothing is decided here: plan and render did that.
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

from modelstacks import project, render, review, spec, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput, ModelstacksError, Problem, Refused
from modelstacks.plan import Plan, plan
from modelstacks.spec import StackSpec

Resources = list[pulumi.Resource]


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
        manifests = render.render(decided, catalog)
        if not question.overlaid:
            compare_with_reviewed(decided, catalog)
        for warning in decided.warnings:
            pulumi.log.warn(warning)
        register(decided, manifests)
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


class Foundation(pulumi.ComponentResource):
    """The namespace, and the hub token's Secret when the stack carries the token."""

    def __init__(
        self, name: str, manifests: list[render.Manifest], decided: Plan, opts: pulumi.ResourceOptions
    ) -> None:
        super().__init__("modelstacks:index:Foundation", name, None, opts)
        self.resources = register_all(manifests, self)
        self.resources += _hub_token(decided, self, self.resources)
        self.register_outputs({"objects": len(self.resources)})


class NodePool(pulumi.ComponentResource):
    """The objects that provision GPU nodes; none for nodes that exist already."""

    def __init__(self, name: str, manifests: list[render.Manifest], opts: pulumi.ResourceOptions) -> None:
        super().__init__("modelstacks:index:NodePool", name, None, opts)
        self.resources = register_all(manifests, self)
        self.register_outputs({"objects": len(self.resources)})


class ModelServer(pulumi.ComponentResource):
    """The workload and what surrounds it, after the namespace and the pool."""

    def __init__(
        self, name: str, manifests: list[render.Manifest], after: Resources, opts: pulumi.ResourceOptions
    ) -> None:
        super().__init__("modelstacks:index:ModelServer", name, None, opts)
        # A pod is admitted with its account and its network rules in place, not before.
        early = [m for m in manifests if m["kind"] in ("ServiceAccount", "NetworkPolicy", "PodDisruptionBudget")]
        first = register_all(early, self, after)
        workload = [m for m in manifests if m not in early and m["kind"] != "Service"]
        servers = register_all(workload, self, [*after, *first])
        # A Service is awaited until an endpoint answers, so it comes after the servers.
        services = register_all([m for m in manifests if m["kind"] == "Service"], self, [*after, *servers])
        self.resources = [*first, *servers, *services]
        self.register_outputs({"objects": len(self.resources)})


class ModelStack(pulumi.ComponentResource):
    """One stack: foundation, node pool and server, on one explicit provider."""

    def __init__(self, decided: Plan, manifests: list[render.Manifest], opts: pulumi.ResourceOptions) -> None:
        name = decided.name
        super().__init__("modelstacks:index:ModelStack", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        base = [m for m in manifests if m["kind"] == "Namespace"]
        pool = [m for m in manifests if m["kind"] != "Namespace" and "namespace" not in m["metadata"]]
        rest = [m for m in manifests if m not in base and m not in pool]
        foundation = Foundation(f"{name}-foundation", base, decided, child)
        node_pool = NodePool(f"{name}-nodes", pool, child)
        ModelServer(f"{name}-server", rest, [*foundation.resources, *node_pool.resources], child)
        self.register_outputs({"endpoint": render.endpoint(decided)})


def register(decided: Plan, manifests: list[render.Manifest]) -> None:
    """Create the provider and the stack's resources, and export its outputs."""
    where = decided.spec
    kubeconfig = where.kubeconfig or os.environ.get("KUBECONFIG")
    provider = kubernetes.Provider(
        "cluster",
        kubeconfig=kubeconfig,
        context=where.kube_context,
        # Without an identity, another kubeconfig path would look like another cluster and replace everything.
        cluster_identifier=where.kube_context or "default",
        enable_server_side_apply=True,
    )
    ModelStack(decided, manifests, pulumi.ResourceOptions(providers=[provider]))
    pulumi.export("endpoint", render.endpoint(decided))
    pulumi.export("model", decided.choice.model.id)
    pulumi.export("tier", decided.choice.tier)
    pulumi.export("gpu", decided.choice.gpu.id)
    pulumi.export("gpus", decided.gpus)
    pulumi.export("replicas", decided.spec.replicas)
    month = decided.cost.usd_per_month
    pulumi.export("usdPerMonth", None if month is None else round(month, 2))


def register_all(
    manifests: list[render.Manifest], parent: pulumi.Resource, depends_on: Resources | None = None
) -> Resources:
    """One resource per manifest, children of `parent`."""
    options = pulumi.ResourceOptions(parent=parent, depends_on=list(depends_on or []))
    return [register_manifest(manifest, options) for manifest in manifests]


def register_manifest(manifest: render.Manifest, options: pulumi.ResourceOptions) -> pulumi.Resource:
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
    token = pulumi.Config(spec.NAMESPACE).get_secret("hubToken")
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
