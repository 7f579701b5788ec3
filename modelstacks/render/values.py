"""Everything that templates may name, worked out from the plan: numbers as text where Kubernetes wants text."""

from __future__ import annotations

import json
import math
from typing import Any

from modelstacks.catalog import Catalog, EngineForm
from modelstacks.errors import BadInput, Problem
from modelstacks.plan import Plan
from modelstacks.podsize import OBJECT_STORE_GIB, pod_size
from modelstacks.render import cloud

# Time for load balancers and routers to stop sending before the engine is told to stop.
PRE_STOP_S = 15


def form_of(plan: Plan) -> EngineForm:
    if plan.choice.form is None:
        raise BadInput([Problem("plan", f"{plan.choice.engine} has no form for {plan.choice.tier}")], source="render")
    return plan.choice.form


def context_of(plan: Plan, catalog: Catalog) -> dict[str, Any]:
    """Everything that templates may name. `text` holds numbers as Kubernetes and command lines want them."""
    form, choice, spec = form_of(plan), plan.choice, plan.spec
    load, topology, times = choice.load, choice.topology, plan.timeouts
    nodes = plan.nodes_per_replica * spec.replicas
    size = pod_size(plan)
    selector = {"app.kubernetes.io/instance": plan.name}
    labels = selector | {
        "app.kubernetes.io/managed-by": "modelstacks",
        "app.kubernetes.io/part-of": "modelstacks",
        "modelstacks.dev/model": choice.model.id,
    }
    quantize = form.quantize_at_load.get(choice.quantization)
    at_load = choice.quantization in choice.model.quantize_at_load
    checkpoint = plan.checkpoint
    flags = choice.model.engine_flags.get(choice.engine, ())
    root = form.user_id == 0
    simulated = plan.cloud is not None and plan.cloud.simulated
    state = spec.head_recovery
    operator = plan.tier_form.operator
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
        "autoscale": _autoscale(plan),
        "several_nodes": plan.nodes_per_replica > 1,
        "workers": nodes,
        # Ray keeps its sockets and logs in the image's own /tmp.
        "own_tmp": plan.tier_form.form != "ray",
        "waits_for": None if simulated else plan.tier_form.waits_for,
        "ray_operator_namespace": spec.ray_operator_namespace or catalog.operators[operator].namespace
        if operator == "kuberay"
        else None,
        "state_port": int(state.redis.rpartition(":")[2]) if state is not None and state.redis is not None else None,
        "checkpoint": checkpoint,
        "image": form.image,
        "port": form.port,
        "health_path": form.health_path,
        "tensor_parallel": topology.tensor_parallel,
        "pipeline_parallel": topology.pipeline_parallel,
        "context": load.context,
        "max_num_seqs": load.max_num_seqs,
        "max_num_batched_tokens": load.max_num_batched_tokens,
        "gpu_memory_utilization": load.gpu_memory_utilization,
        "hf_overrides": plan.hf_overrides,
        "quantize_flag": quantize.flag if quantize is not None and at_load else None,
        "kv_cache_flag": None if load.kv_cache_dtype == "auto" else load.kv_cache_dtype,
        "model_flags": (*flags, *_asked_flags(plan)),
        "model_kwargs": flags_as_arguments((*flags, *_asked_flags(plan))),
        "startup_failures": math.ceil(times.startup_s / 10),
        "ready_s": times.ready_s,
        "pre_stop_s": PRE_STOP_S,
        # Several nodes end together, so each stays until requests are done.
        "leave_s": PRE_STOP_S + form.drain_s,
        "leave_grace_s": PRE_STOP_S + form.drain_s + 15,
        "shm_gib": size.shm_gib,
        "grace_s": PRE_STOP_S + form.drain_s + 15,
        "hub_token_secret": spec.hub_token_secret,
        "hub_token_optional": not choice.model.licence.gated,
        "weights_claim": spec.weights.claim,
        "weights_storage_class": spec.weights.storage_class,
        "pod_security_level": cloud.strictest(plan, "baseline" if root else "restricted"),
        "pod_security": _pod_security(form),
        "container_security": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "worker_security": _container_security(plan),
        "paths": {
            "home": form.home,
            "cache": f"{form.home}/.cache",
            "hub_cache": f"{form.home}/.cache/huggingface",
            "compile_cache": f"{form.home}/.cache/vllm",
        },
        "image_pull_secret": spec.image_pull_secret,
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
            "cpu": str(size.cpu),
            "memory": f"{size.memory_gib}Gi",
            "shm_size": f"{size.shm_gib}Gi",
            "scratch_size": f"{size.scratch_gib}Gi",
            "ephemeral_storage": f"{size.ephemeral_gib}Gi",
            "gpus_per_node": str(plan.gpus_per_node),
            "object_store_bytes": str(OBJECT_STORE_GIB * 2**30),
        },
    } | cloud.values(plan, labels, size)


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


def _autoscale(plan: Plan) -> dict[str, Any] | None:
    """What scales a Deployment: the requests that a replica is good for, and the time that one takes to load."""
    scale = plan.spec.autoscale
    # Simulated servers have no metrics, and nothing there would read them.
    if scale is None or (plan.cloud is not None and plan.cloud.simulated):
        return None
    selector = f'{{namespace="{plan.namespace}", pod=~"{plan.name}-.*"}}'
    good_for = plan.throughput.concurrency if plan.throughput is not None else int(plan.memory.max_concurrency_low)
    load_s = plan.timeouts.download_s + plan.timeouts.load_s
    return {
        "min": scale.min,
        "max": scale.max,
        "prometheus": scale.prometheus,
        "query": " + ".join(f"sum({gauge}{selector})" for gauge in form_of(plan).in_flight),
        # Another replica is on its way before the ones that serve are full.
        "threshold": str(max(1, int(0.8 * good_for))),
        # The longest that the HPA's policies may look back is half an hour.
        "load_s": min(load_s, 1800),
        "calm_s": min(max(600, 2 * load_s), 3600),
    }


def _container_security(plan: Plan) -> dict[str, Any]:
    """A worker of several nodes: a fabric that pins memory gives root, and only root, the capability for it."""
    root = form_of(plan).user_id == 0
    added = plan.fabric.capabilities_of_root if plan.fabric is not None and root else ()
    capabilities: dict[str, Any] = {"drop": ["ALL"]} | ({"add": list(added)} if added else {})
    return {"allowPrivilegeEscalation": False, "capabilities": capabilities}


def _pod_security(form: EngineForm) -> dict[str, Any]:
    security: dict[str, Any] = {"runAsUser": form.user_id, "runAsGroup": form.group_id, "fsGroup": form.group_id}
    if form.user_id:
        security = {"runAsNonRoot": True} | security
    return security | {"seccompProfile": {"type": "RuntimeDefault"}}


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
