"""Plan → list of Kubernetes manifests, the same plain data for review, for `pulumi up` and for every report.

Templates hold the shape; `values` and `cloud` hold the values: whatever needs a calculation or a unit is worked out
there and handed over as data. Each part is rendered, parsed and embedded, so no template indents another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelstacks import documents
from modelstacks.catalog import Catalog
from modelstacks.catalog.flags import flags_of
from modelstacks.errors import BadInput, Problem
from modelstacks.plan import Plan
from modelstacks.render import groups, ray, weights
from modelstacks.render.cloud import POOL_COMPONENT
from modelstacks.render.templates import Manifest, many, part
from modelstacks.render.values import api_key_secret, context_of, form_of

# The order in which objects are listed and applied: what others need comes first.
_KIND_ORDER = (
    "Namespace", "EC2NodeClass", "AKSNodeClass", "NodePool", "ComputeClass", "MachineDeployment", "PriorityClass",
    "ResourceQuota", "ServiceAccount", "Secret", "ConfigMap", "NetworkPolicy", "Service", "PodDisruptionBudget",
    "PersistentVolumeClaim", "ResourceClaimTemplate", "Job", "Deployment", "RayService", "LeaderWorkerSet",
    "ScaledObject", "PodMonitor", "PrometheusRule",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unrendered:
    """An object that `pulumi up` creates and that is not in rendered/, with the reason."""

    kind: str
    name: str
    reason: str


def render(plan: Plan, catalog: Catalog) -> list[Manifest]:
    """Every object of the plan, sorted by kind and name.

    Raises BadInput when a template does not give valid, complete, unique objects.
    """
    _check_shipped(plan, catalog)
    try:
        return verified(_objects(plan, catalog))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        # Parts are embedded in one another: one of another form than the next one builds on is a template's mistake.
        text = f"a part has not the form that others build on ({type(error).__name__}: {error})"
        raise BadInput(
            [Problem("templates", text)], source="templates", next_step="compare it with the shipped one"
        ) from error


def _objects(plan: Plan, catalog: Catalog) -> list[Manifest]:
    """Every object of the plan, as the templates give them."""
    context = context_of(plan, catalog)
    placement = part(catalog, "parts/placement.yaml.j2", context)
    context["dns_egress"] = part(catalog, "parts/dns.yaml.j2", context)
    context |= _fetching(plan, catalog, context)
    context["tmp_volume"] = context["own_tmp"] or context["fetch_init"] is not None
    volumes, fabric = part(catalog, "parts/volumes.yaml.j2", context), context["fabric"]
    first = [context["fetch_init"]] if context["fetch_init"] is not None else []
    context |= {
        "placement": placement,
        "volumes": volumes,
        "init_containers": first + ([fabric["sidecar"]] if fabric["sidecar"] is not None else []),
        "worker_annotations": placement["annotations"] | fabric["annotations"],
        "worker_volumes": volumes + fabric["volumes"],
    }
    if plan.tier_form.form == "ray":
        context["ray"] = ray.values(plan, catalog, context)
    manifests = []
    if plan.spec.namespace_owner is None:
        manifests += many(catalog, "parts/namespace.yaml.j2", context)
    for template in _pool_templates(plan, catalog):
        manifests += many(catalog, template, context)
    for name in (*plan.tier_form.parts, *_parts_asked_for(plan, context)):
        manifests += many(catalog, f"parts/{name}.yaml.j2", context)
    return manifests + _workload(plan, catalog, context)


def _fetching(plan: Plan, catalog: Catalog, context: dict[str, Any]) -> dict[str, Any]:
    """What fills a volume from the hub: a program, its environment, and the container that runs it in every pod."""
    if plan.weights.fetched_by not in ("job", "init"):
        return {"fetch_env": None, "fetch_init": None, "prefetch_program": None}
    environment = part(catalog, "parts/fetchenv.yaml.j2", context)
    found = {"prefetch_program": weights.program(catalog), "fetch_env": environment}
    wanted = plan.weights.fetched_by == "init"
    init = part(catalog, "parts/fetchinit.yaml.j2", context | found) if wanted else None
    return found | {"fetch_init": init}


def _pool_templates(plan: Plan, catalog: Catalog) -> list[str]:
    """The templates of the pool's objects; none where a cloud's own Pulumi package or another stack makes it."""
    kind, pool = plan.cloud, plan.pool
    if kind is None or pool is None or pool.owner is not None:
        return []
    own = f"clouds/{kind.id}.yaml.j2"
    # A class of machines that exists already needs no template of ours.
    wanted = (catalog.templates / own).is_file() and not (plan.spec.cloud is not None and plan.spec.cloud.node_class)
    return [f"parts/{name}.yaml.j2" for name in kind.pool_parts] + ([own] if wanted else [])


def is_pool(manifest: Manifest) -> bool:
    """The object provisions nodes."""
    return _component(manifest) == POOL_COMPONENT


def comes_before_servers(manifest: Manifest) -> bool:
    """The object keeps what a Ray head must remember, or brings the weights."""
    return _component(manifest) in (ray.STATE_COMPONENT, weights.WEIGHTS_COMPONENT)


def _component(manifest: Manifest) -> str | None:
    component: str | None = manifest["metadata"].get("labels", {}).get("app.kubernetes.io/component")
    return component


def _parts_asked_for(plan: Plan, context: dict[str, Any]) -> list[str]:
    """Parts that only some stacks have."""
    parts = []
    # A namespace of several stacks is bounded by its owner's own quota, not by one of each.
    if plan.spec.namespace_owner is None and "namespace" not in plan.spec.shared:
        parts.append("resourcequota")
    # Where others live too, who may talk to whom is not this stack's to say.
    if plan.spec.namespace_owner is None and "namespace" not in plan.spec.shared:
        parts.append("defaultdeny")
    if plan.spec.priority_class is None:
        parts.append("priorityclass")
    if plan.spec.monitoring is not None:
        parts += ["podmonitor", "prometheusrule", "dashboard"]
    if context["prefetch_program"] is not None:
        parts.append("prefetch")
    if context["resource_claims"]:
        parts.append("resourceclaimtemplate")
    if context["autoscale"] is not None:
        parts.append("scaledobject")
    if context["spare"] is not None:
        parts.append("warmspare")
    state = plan.spec.head_recovery
    if state is not None and state.storage_class is not None:
        parts.append("headstate")
    return parts


def unrendered(plan: Plan, catalog: Catalog) -> list[Unrendered]:
    """What `pulumi up` creates beside the manifests, or expects to find."""
    found = []
    name = plan.spec.hub_token_secret
    if plan.choice.model.licence.gated:
        need = f"{plan.choice.model.id} is gated, so the hub token is required"
    else:
        need = "optional: the model is public, a token only raises the hub's rate limit"
    reason = f"created from the secret `modelstacks:hubToken` when that is set, else yours to create ({need})"
    if plan.weights.fetched_from == "hub":
        found.append(Unrendered("Secret", name, reason))
    key = api_key_secret(plan)
    if key is not None and plan.spec.api_key_secret is not None:
        found.append(Unrendered("Secret", key, "the API's key under `key`, yours to create"))
    elif key is not None:
        reason = (
            f"the API's key, made by `pulumi up` and kept as a secret; `modelstacks rotate-key {plan.stack}` changes it"
        )
        found.append(Unrendered("Secret", key, reason))
    if plan.spec.weights.credentials_secret is not None:
        reason = "credentials of the bucket under their variables' names (AWS_ACCESS_KEY_ID, …), yours to create"
        found.append(Unrendered("Secret", plan.spec.weights.credentials_secret, reason))
    kind, pool = plan.cloud, plan.pool
    if kind is not None and kind.package is not None and pool is not None and pool.owner is None:
        what = f"{kind.about}, from nothing to {pool.machines_at_most} × {pool.machine.name}"
        found.append(Unrendered("node pool", pool.name, what))
    for name in plan.spec.operators:
        row = catalog.operators[name]
        where = f"chart {row.chart} {row.version} in namespace {row.namespace}"
        found.append(Unrendered("Helm release", row.release, f"{row.about}: {where}, unless the cluster has it"))
    if plan.spec.operators:
        reason = "says which operators this stack installed and which it uses"
        found.append(Unrendered("ConfigMap", f"{plan.name}-operators", reason))
    return found


def write(manifests: list[Manifest], stack: str) -> dict[str, str]:
    """File name → text of every manifest, byte-identical for equal manifests."""
    head = (
        f"# Rendered by modelstacks from stacks/Pulumi.{stack}.yaml. Do not edit: change that file and run "
        "`make render`.\n"
    )
    return {file_name(manifest): head + documents.write(manifest) for manifest in manifests}


def file_name(manifest: Manifest) -> str:
    """<kind>.<name>.yaml in lower case."""
    return f"{manifest['kind'].lower()}.{manifest['metadata']['name']}.yaml"


def identity(manifest: Manifest) -> tuple[str, str, str]:
    """Kind, namespace ("" for cluster-wide objects) and name."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


def endpoint(plan: Plan) -> str:
    """The base address of the OpenAI API inside the cluster."""
    return f"http://{plan.name}.{plan.namespace}.svc:{form_of(plan).port}/v1"


def verified(manifests: list[Manifest]) -> list[Manifest]:
    """The manifests in apply order. Raises BadInput for incomplete objects, clashing names or non-text labels."""
    problems = []
    seen: set[tuple[str, str, str]] = set()
    for manifest in manifests:
        if not isinstance(manifest, dict):
            problems.append(Problem("object", f"a template gave {type(manifest).__name__}, not an object"))
            continue
        metadata = manifest.get("metadata")
        named = isinstance(metadata, dict) and isinstance(metadata.get("name"), str) and metadata["name"]
        if not named or not all(isinstance(manifest.get(key), str) for key in ("apiVersion", "kind")):
            problems.append(Problem(str(manifest.get("kind", "object")), "lacks apiVersion, kind or metadata.name"))
            continue
        key = identity(manifest)
        where = "/".join(key)
        if key in seen:
            problems.append(Problem(where, "is rendered twice"))
        seen.add(key)
        for field in ("labels", "annotations"):
            for label, value in manifest["metadata"].get(field, {}).items():
                if not isinstance(value, str):
                    problems.append(Problem(f"{where}.{field}.{label}", f"{value!r} must be text"))
    if problems:
        raise BadInput(problems, source="templates")
    order = {kind: index for index, kind in enumerate(_KIND_ORDER)}
    return sorted(manifests, key=lambda m: (order.get(m["kind"], len(order)), identity(m)))


def _check_shipped(plan: Plan, catalog: Catalog) -> None:
    """Raise BadInput when the plan is for another engine version than the image holds."""
    form = form_of(plan)
    shipped = catalog.engine_form(plan.choice.engine, plan.choice.tier, launcher=plan.tier_form.launcher)
    if shipped is not None and shipped.version != form.version:
        text = f"is {form.version}, and the image holds {plan.choice.engine} {shipped.version}"
        problem = Problem("modelstacks:engineVersion", text, form.version, shipped.version)
        raise BadInput([problem], source="render", next_step="leave it out; `modelstacks plan --engine-version` asks")


def _check_flags(plan: Plan, catalog: Catalog, args: list[str]) -> None:
    """Raise BadInput for a flag that the image's engine would refuse, which is a crash loop on a paid machine."""
    form = form_of(plan)
    known = flags_of(catalog.templates, plan.choice.engine, form.version)
    if known is None:
        return
    try:
        known.read(args)
    except ValueError as error:
        problem = Problem(f"engine_flags.{plan.choice.engine}", str(error))
        source = f"templates/models/{plan.choice.model.id}.yaml"
        raise BadInput([problem], source=source, next_step=f"correct it for {form.image}") from None


def _workload(plan: Plan, catalog: Catalog, context: dict[str, Any]) -> list[Manifest]:
    template = f"tiers/{plan.tier_form.template}.yaml.j2"
    if plan.tier_form.form == "ray":
        return many(catalog, template, context)
    engine = part(catalog, f"engines/{form_of(plan).template}.yaml.j2", context)
    within = context | {"engine": engine}
    within["server_env"] = part(catalog, "parts/serverenv.yaml.j2", within)
    within["server_mounts"] = part(catalog, "parts/servermounts.yaml.j2", within)
    container = part(catalog, "parts/container.yaml.j2", within)
    _check_flags(plan, catalog, container["args"])
    if plan.nodes_per_replica > 1:
        context = context | {"group": groups.values(plan, catalog, container, context)}
    return many(catalog, template, context | {"container": container})
