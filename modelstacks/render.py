"""Plan → list of Kubernetes manifests, the same plain data for review, for `pulumi up` and for every report.

Templates hold the shape, this module holds the values: whatever needs a calculation or a unit is worked out here and
handed over as data. Each part is rendered, parsed and embedded, so no template indents another.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from modelstacks import documents
from modelstacks.catalog import Catalog, EngineForm
from modelstacks.errors import BadInput, Problem
from modelstacks.plan import Plan
from modelstacks.spec import CloudSpec

Manifest = dict[str, Any]

# The order in which objects are listed and applied: what others need comes first.
_KIND_ORDER = (
    "Namespace", "EC2NodeClass", "NodePool", "ServiceAccount", "Secret", "ConfigMap", "NetworkPolicy", "Service",
    "PodDisruptionBudget", "Deployment", "RayService",
)  # fmt: skip

# Time for load balancers and routers to stop sending before the engine is told to stop.
PRE_STOP_S = 15


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
    context = _context(plan, catalog)
    cloud = plan.cloud.id if plan.cloud is not None else "existing"
    placement = _part(catalog, f"clouds/{cloud}.placement.yaml.j2", context)
    context |= {"placement": placement, "volumes": _part(catalog, "parts/volumes.yaml.j2", context)}
    manifests = _many(catalog, "parts/namespace.yaml.j2", context)
    if (catalog.templates / "clouds" / f"{cloud}.yaml.j2").is_file():
        manifests += _many(catalog, f"clouds/{cloud}.yaml.j2", context)
    for part in plan.tier_form.parts:
        manifests += _many(catalog, f"parts/{part}.yaml.j2", context)
    manifests += _workload(plan, catalog, context)
    return verified(manifests)


def unrendered(plan: Plan) -> list[Unrendered]:
    """What `pulumi up` creates beside the manifests, or expects to find."""
    name = plan.spec.hub_token_secret
    if plan.choice.model.licence.gated:
        need = f"{plan.choice.model.id} is gated, so the hub token is required"
    else:
        need = "optional: the model is public, a token only raises the hub's rate limit"
    reason = f"created from the secret `modelstacks:hubToken` when that is set, else yours to create ({need})"
    return [Unrendered("Secret", name, reason)]


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
    return f"http://{plan.name}.{plan.namespace}.svc:{_form(plan).port}/v1"


def verified(manifests: list[Manifest]) -> list[Manifest]:
    """The manifests in apply order. Raises BadInput for incomplete objects, clashing names or non-text labels."""
    problems = []
    seen: set[tuple[str, str, str]] = set()
    for manifest in manifests:
        if not isinstance(manifest, dict):
            problems.append(Problem("object", f"a template gave {type(manifest).__name__}, not an object"))
            continue
        missing = [key for key in ("apiVersion", "kind", "metadata") if key not in manifest]
        if missing or "name" not in manifest.get("metadata", {}):
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


def _workload(plan: Plan, catalog: Catalog, context: dict[str, Any]) -> list[Manifest]:
    form = _form(plan)
    shipped = catalog.engine_form(plan.choice.engine, plan.choice.tier)
    if shipped is not None and shipped.version != form.version:
        text = f"is {form.version}, and the image holds {plan.choice.engine} {shipped.version}"
        problem = Problem("modelstacks:engineVersion", text, form.version, shipped.version)
        raise BadInput([problem], source="render", next_step="leave it out; `modelstacks plan --engine-version` asks")
    engine = _part(catalog, f"engines/{form.template}.yaml.j2", context)
    template = f"tiers/{plan.tier_form.template}.yaml.j2"
    if plan.tier_form.form == "ray":
        env = _part(catalog, "parts/ray-env.yaml.j2", context)
        simulated = plan.cloud is not None and plan.cloud.simulated
        ray = {
            "env": env,
            "serve_config": documents.write(engine),
            "ray_version": form.companions["ray"],
            "waits_for": None if simulated else plan.tier_form.waits_for,
        }
        return _many(catalog, template, context | ray)
    container = _part(catalog, "parts/container.yaml.j2", context | {"engine": engine})
    return _many(catalog, template, context | {"container": container})


def _form(plan: Plan) -> EngineForm:
    if plan.choice.form is None:
        raise BadInput([Problem("plan", f"{plan.choice.engine} has no form for {plan.choice.tier}")], source="render")
    return plan.choice.form


def _context(plan: Plan, catalog: Catalog) -> dict[str, Any]:
    """Everything that templates may name. `text` holds numbers as Kubernetes and command lines want them."""
    form, choice, spec = _form(plan), plan.choice, plan.spec
    load, topology, times = choice.load, choice.topology, plan.timeouts
    nodes = plan.nodes_per_replica * spec.replicas
    selector = {"app.kubernetes.io/instance": plan.name}
    labels = selector | {
        "app.kubernetes.io/managed-by": "modelstacks",
        "app.kubernetes.io/part-of": "modelstacks",
        "modelstacks.dev/model": choice.model.id,
    }
    # Whole gibibytes on disk: weights, a fifth for partial downloads, and compile caches.
    scratch_gib = math.ceil(plan.weights_gib * 1.2) + 10
    wide_gib = max((c.size_gib for q, c in choice.model.checkpoints.items() if c == plan.checkpoint), default=0.0)
    scratch_gib = max(scratch_gib, math.ceil(wide_gib * 1.2) + 10)
    shm_gib = _shm_gib(plan)
    quantize = form.quantize_at_load.get(choice.quantization)
    at_load = choice.quantization in choice.model.quantize_at_load
    checkpoint = plan.checkpoint
    cloud = spec.cloud or CloudSpec()
    flags = choice.model.engine_flags.get(choice.engine, ())
    root = form.user_id == 0
    object_store_gib = 8
    memory_gib = 10 + 12 * (plan.gpus_per_node - 1) + (object_store_gib + shm_gib if plan.nodes_per_replica > 1 else 0)
    machine = plan.cost.machine
    return {
        "name": plan.name,
        "namespace": plan.namespace,
        "model": choice.model.id,
        "labels": labels,
        "selector": selector,
        "service_selector": selector | plan.tier_form.service_labels,
        "replica_names": [f"{plan.name}-{index}" for index in range(spec.replicas)],
        "nodes_per_replica": plan.nodes_per_replica,
        "pod_labels": selector,
        "worker_labels": selector | plan.tier_form.worker_labels,
        "replicas": spec.replicas,
        "several_nodes": plan.nodes_per_replica > 1,
        "workers": nodes,
        "checkpoint": checkpoint,
        "image": form.image,
        "port": form.port,
        "health_path": form.health_path,
        "tensor_parallel": topology.tensor_parallel,
        "pipeline_parallel": topology.pipeline_parallel,
        "context": load.context,
        "max_num_seqs": load.max_num_seqs,
        "max_num_batched_tokens": load.max_num_batched_tokens,
        "max_ongoing_requests": 2 * load.max_num_seqs,
        "gpu_memory_utilization": load.gpu_memory_utilization,
        "accelerator_type": choice.gpu.ray_accelerator_type,
        "hf_overrides": plan.hf_overrides,
        "quantize_flag": quantize.flag if quantize is not None and at_load else None,
        "kv_cache_flag": None if load.kv_cache_dtype == "auto" else load.kv_cache_dtype,
        "model_flags": (*flags, *_asked_flags(plan)),
        "model_kwargs": flags_as_arguments((*flags, *_asked_flags(plan))),
        "startup_failures": math.ceil(times.startup_s / 10),
        "ready_s": times.ready_s,
        "pre_stop_s": PRE_STOP_S,
        "grace_s": PRE_STOP_S + form.drain_s + 15,
        "hub_token_secret": spec.hub_token_secret,
        "hub_token_optional": not choice.model.licence.gated,
        "weights_claim": spec.weights.claim,
        "weights_storage_class": spec.weights.storage_class,
        "pod_security_level": "baseline" if root else "restricted",
        "pod_security": _pod_security(form),
        "container_security": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "paths": {
            "home": form.home,
            "cache": f"{form.home}/.cache",
            "hub_cache": f"{form.home}/.cache/huggingface",
            "compile_cache": f"{form.home}/.cache/vllm",
        },
        "machine": machine.name if machine is not None else None,
        "zones": list(cloud.zones),
        "capacity": cloud.capacity,
        "node_selector": cloud.node_selector or {"nvidia.com/gpu.product": choice.gpu.product_label},
        "tolerations": [toleration.model_dump(by_alias=True, exclude_none=True) for toleration in cloud.tolerations],
        "text": {
            "port": str(form.port),
            "tensor_parallel": str(topology.tensor_parallel),
            "pipeline_parallel": str(topology.pipeline_parallel),
            "context": str(load.context),
            # TGI needs room for at least one token of answer.
            "max_input_tokens": str(load.context - 1),
            "max_num_seqs": str(load.max_num_seqs),
            "max_num_batched_tokens": str(load.max_num_batched_tokens),
            "gpu_memory_utilization": str(load.gpu_memory_utilization),
            "kv_cache_dtype": load.kv_cache_dtype,
            "drain_s": str(form.drain_s),
            "hf_overrides": json.dumps(plan.hf_overrides, separators=(",", ":")) if plan.hf_overrides else "",
            "startup_s": str(times.startup_s),
            "ready_s": str(times.ready_s),
            "cpu": str(2 + plan.gpus_per_node if plan.gpus_per_node == 1 else 4 + 2 * plan.gpus_per_node),
            "memory": f"{memory_gib}Gi",
            "shm_size": f"{shm_gib}Gi",
            "scratch_size": f"{scratch_gib}Gi",
            # A claim or a volume per pod takes no space of the node.
            "ephemeral_storage": "10Gi" if spec.weights.claim or spec.weights.storage_class else f"{scratch_gib + 8}Gi",
            "gpus_per_node": str(plan.gpus_per_node),
            "gpu_limit": str(_gpu_limit(plan)),
            "object_store_bytes": str(object_store_gib * 2**30),
        },
    }


def _asked_flags(plan: Plan) -> tuple[str, ...]:
    """vLLM flags for what a stack asks beside its model: no vision tower, LoRA adapters."""
    if plan.choice.engine != "vllm":
        return ()
    load, spec = plan.choice.load, plan.spec
    flags = ["--language-model-only"] if load.text_only and plan.choice.model.architecture.encoder is not None else []
    if load.lora_adapters:
        flags += ["--enable-lora", "--max-loras", str(load.lora_adapters), "--max-lora-rank", str(load.lora_rank)]
    if spec.lora_modules:
        flags += ["--lora-modules", *(f"{name}={source}" for name, source in spec.lora_modules.items())]
    return tuple(flags)


def _shm_gib(plan: Plan) -> int:
    """Shared memory of one node's ranks: NCCL and message queues take about 1 GiB a rank; Ray's store comes on top."""
    return 8 + 8 + plan.gpus_per_node if plan.nodes_per_replica > 1 else 1 + plan.gpus_per_node


def _pod_security(form: EngineForm) -> dict[str, Any]:
    security: dict[str, Any] = {"runAsUser": form.user_id, "runAsGroup": form.group_id, "fsGroup": form.group_id}
    if form.user_id:
        security = {"runAsNonRoot": True} | security
    return security | {"seccompProfile": {"type": "RuntimeDefault"}}


def _gpu_limit(plan: Plan) -> int:
    """GPUs the node pool may hold: whole machines for all replicas, and not one more."""
    machine = plan.cost.machine
    return plan.cost.machines * machine.gpus if machine is not None else plan.gpus


def flags_as_arguments(flags: tuple[str, ...]) -> list[tuple[str, Any]]:
    """Command line flags as keyword arguments: --tool-call-parser x → tool_call_parser: x, a bare flag → true.

    The Ray tier serves no adapters, so no flag here has several values.
    """
    arguments: list[tuple[str, Any]] = []
    for flag in flags:
        if flag.startswith("--"):
            arguments.append((flag.removeprefix("--").replace("-", "_"), True))
        else:
            arguments[-1] = (arguments[-1][0], flag)
    return arguments


@cache
def environment(templates: Path) -> jinja2.Environment:
    """The one Jinja environment: strict, no extensions, JSON for every value."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    # Without this, `tojson` writes surrogate pairs that YAML parsers read differently.
    env.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    return env


def _many(catalog: Catalog, template: str, context: dict[str, Any]) -> list[Manifest]:
    try:
        text = environment(catalog.templates).get_template(template).render(context)
    except (jinja2.TemplateError, TypeError) as error:
        # A name that does not exist reaches `tojson` and is a TypeError there.
        line = f" line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise BadInput([Problem(f"{template}{line}", str(error))], source="templates") from None
    return documents.read(text, source=template)


def _part(catalog: Catalog, template: str, context: dict[str, Any]) -> Any:
    parts = _many(catalog, template, context)
    if len(parts) != 1:
        raise BadInput([Problem(template, f"gives {len(parts)} documents, one is expected")], source="templates")
    return parts[0]
