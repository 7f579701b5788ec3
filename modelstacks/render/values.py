"""Everything that templates may name, worked out from the plan: numbers as text where Kubernetes wants text."""

from __future__ import annotations

import json
import math
from typing import Any

from modelstacks.catalog import Catalog, EngineForm
from modelstacks.errors import BadInput, Problem
from modelstacks.images import mirrored
from modelstacks.plan import Plan
from modelstacks.plan.rollout import rollout
from modelstacks.podsize import OBJECT_STORE_GIB, pod_size
from modelstacks.render import cloud, monitoring, weights
from modelstacks.spec import StackSpec

_STARTUP_PERIOD_S = 10


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
        # OpenCost joins the cost of pods with the tokens of vLLM's metrics by this one (INFERENCE_MODEL_LABEL).
        "llm-d.ai/model": choice.model.id,
    }
    quantize = form.quantize_at_load.get(choice.quantization)
    at_load = choice.quantization in choice.model.quantize_at_load
    checkpoint = plan.checkpoint
    flags = choice.model.engine_flags.get(choice.engine, ())
    change, going = rollout(plan), plan.leaving
    preempts = spec.cloud is not None and spec.cloud.warm_spares > 0
    # An old pod leaves, at worst twice its grace with the quota's slow retry, then the next one comes.
    one_pod_s = 2 * going.grace_s + times.ready_s
    again_s = 2 * going.grace_s + times.startup_s + (times.before_s if plan.weights.in_pod else 0)
    simulated = plan.cloud is not None and plan.cloud.simulated
    state = spec.head_recovery
    operator = plan.tier_form.operator
    return (
        {
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
            "awaits_service": bool(spec.replicas) and not (spec.autoscale is not None and spec.autoscale.min == 0),
            "autoscale": _autoscale(plan),
            "several_nodes": plan.nodes_per_replica > 1,
            "workers": nodes,
            # Ray keeps its sockets and logs in the image's own /tmp.
            "own_tmp": plan.tier_form.form != "ray",
            "waits_for": None if simulated else plan.tier_form.waits_for,
            "ray_operator_namespace": spec.ray_operator_namespace or catalog.operators[operator].namespace
            if operator == "kuberay"
            else None,
            "state_port": int(state.redis.rpartition(":")[2])
            if state is not None and state.redis is not None
            else None,
            "checkpoint": checkpoint,
            "image": mirrored(form.image, spec.registry),
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
            "load_format": "runai_streamer" if plan.weights.place == "object-store" else "safetensors",
            "startup_period_s": _STARTUP_PERIOD_S,
            "startup_failures": math.ceil(times.startup_s / _STARTUP_PERIOD_S),
            "progress_s": one_pod_s,
            "strategy": _strategy(change.way),
            "spread": _spread(plan, selector),
            "together": _together(selector) if spec.weights.on_one_node else None,
            # A policy cannot be changed, so another has another name; names in system- are Kubernetes' own.
            "priority_class": spec.priority_class or f"modelstacks-{plan.name}{'-preempting' if preempts else ''}",
            "preemption_policy": "PreemptLowerPriority" if preempts else "Never",
            "pre_stop_s": going.pre_stop_s,
            # Several nodes end together, so each stays until requests are done.
            "leave_s": going.pre_stop_s + going.drain_s,
            "drain_s": going.drain_s,
            "shm_gib": size.shm_gib,
            "grace_s": going.grace_s,
            "api_key_env": form.api_key_env,
            "api_key_secret": api_key_secret(plan),
            "monitoring_namespace": spec.monitoring_namespace,
            "hub_token_secret": spec.hub_token_secret,
            "hub_token_optional": not choice.model.licence.gated,
            "weights_storage_class": None if spec.weights.shared else spec.weights.storage_class,
            "pod_security_level": security_level(plan),
            "pod_security": _pod_security(form),
            "container_security": dict(cloud.UNPRIVILEGED),
            "read_only_security": cloud.READ_ONLY,
            "server_security": dict(cloud.READ_ONLY if spec.read_only_root else cloud.UNPRIVILEGED),
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
                "drain_s": str(going.drain_s),
                "hf_overrides": json.dumps(plan.hf_overrides, separators=(",", ":")) if plan.hf_overrides else "",
                "startup_s": str(times.startup_s),
                # One pod after the other, where several are changed.
                "one_await_s": str(one_pod_s),
                "await_s": str(one_pod_s + max(0, change.steps - 1) * again_s),
                "cpu": str(size.cpu),
                "memory": f"{size.memory_gib}Gi",
                "shm_size": f"{size.shm_gib}Gi",
                "scratch_size": f"{size.scratch_gib}Gi",
                "ephemeral_storage": f"{size.ephemeral_gib}Gi",
                "gpus_per_node": str(plan.gpus_per_node),
                "object_store_bytes": str(OBJECT_STORE_GIB * 2**30),
            },
        }
        | cloud.values(plan, labels, size, catalog.versions.placeholder_image)
        | weights.values(plan, labels, size)
        | monitoring.values(plan, form, labels)
    )


def api_key_secret(plan: Plan) -> str | None:
    """The Secret with the key of the API: the stack's own name for it, or one for each serial; None without a key."""
    spec: StackSpec = plan.spec
    if not spec.api_key:
        return None
    return spec.api_key_secret or f"{plan.name}-api-key-{spec.api_key_serial}"


def security_level(plan: Plan) -> str:
    """The Pod Security level of the namespace: as strict as engine, fabric and volumes allow."""
    level = "baseline" if form_of(plan).user_id == 0 else "restricted"
    return cloud.strictest(plan, "privileged" if plan.spec.weights.host_path is not None else level)


def _strategy(way: str) -> dict[str, Any]:
    """How a Deployment is changed."""
    if way == "recreate":
        return {"type": "Recreate"}
    surge = int(way == "surge")
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1 - surge}}


def _spread(plan: Plan, selector: dict[str, str]) -> list[dict[str, Any]]:
    """Replicas over zones, and over nodes that are there anyway. A wish: no pod waits for it.

    A pool's machines hold one replica each, where there is nothing to spread, or several, which cost less together.

    The same for any number of replicas, one included: it is part of the pod template, and a change of that restarts the
    servers that run.
    """
    spec = plan.spec
    if plan.nodes_per_replica > 1 or spec.weights.on_one_node:
        return []
    keys = []
    if spec.cloud is None or len(spec.cloud.zones) != 1:
        keys.append("topology.kubernetes.io/zone")
    if plan.pool is None:
        keys.append("kubernetes.io/hostname")
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": selector},
            # Counted are the pods of one roll-out: those that go must not push the next ones together.
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in keys
    ]


def _together(selector: dict[str, str]) -> dict[str, Any]:
    """All pods on one node; the first one chooses it."""
    term = {"labelSelector": {"matchLabels": selector}, "topologyKey": "kubernetes.io/hostname"}
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


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
    """What scales a Deployment: the requests that a replica is good for, its cache, and the time it takes to load."""
    scale = plan.spec.autoscale
    # Simulated servers have no metrics, and nothing there would read them.
    if scale is None or (plan.cloud is not None and plan.cloud.simulated):
        return None
    metrics = form_of(plan).metrics
    own = monitoring.own(plan)
    # With no replica there is nobody to ask, and nothing in flight.
    none = f" or {monitoring.asked_for(plan)} == 0" if scale.min == 0 else ""
    good_for = plan.throughput.concurrency if plan.throughput is not None else int(plan.memory.max_concurrency_low)
    # Another replica is on its way before the ones that serve are full.
    enough = str(max(1, int(0.8 * good_for)))
    in_flight = " + ".join(monitoring.in_all(plan, metrics, gauge) for gauge in metrics.in_flight) + none
    triggers = [{"name": "requests-in-flight", "kind": "AverageValue", "query": in_flight, "threshold": enough}]
    if metrics.kv_cache is not None:
        triggers.append(
            {"name": "kv-cache", "kind": "Value", "query": f"avg({metrics.kv_cache}{own}){none}", "threshold": "0.8"}
        )
    if scale.activation_query is not None:
        triggers.append(
            {"name": "waiting-outside", "kind": "AverageValue", "query": scale.activation_query, "threshold": enough}
        )
    # A replica that comes may need a node, and fetch there what others have.
    again_s, fresh_s = plan.timeouts.again_s, max(plan.timeouts.ready_s, plan.timeouts.cold_start_s)
    calm_s = max(600, 2 * again_s, fresh_s)
    return {
        "to_zero": scale.min == 0,
        "min": max(1, scale.min),
        "max": scale.max,
        "prometheus": plan.spec.prometheus,
        "triggers": triggers,
        # The HPA looks back half an hour at most in its policies, and an hour for calm.
        "load_s": min(again_s, 1800),
        "calm_s": min(calm_s, 3600),
        "cooldown_s": calm_s,
        "first_s": fresh_s,
    }


def _container_security(plan: Plan) -> dict[str, Any]:
    """A worker of several nodes: a fabric that pins memory gives root, and only root, the capability for it."""
    root = form_of(plan).user_id == 0
    added = plan.fabric.capabilities_of_root if plan.fabric is not None and root else ()
    capabilities: dict[str, Any] = {"drop": ["ALL"]} | ({"add": list(added)} if added else {})
    security = dict(cloud.READ_ONLY if plan.spec.read_only_root else cloud.UNPRIVILEGED)
    return security | {"capabilities": capabilities}


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
