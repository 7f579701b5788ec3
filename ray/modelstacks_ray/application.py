"""Plan → Serve application: the engine behind an OpenAI API, on nodes that were looked at first."""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelstacks_ray import placement, serving_plan
from modelstacks_ray.errors import PlanError
from modelstacks_ray.serving_plan import ServingPlan

if TYPE_CHECKING:
    from ray.serve import Application

HEALTH_PERIOD_S = 5
HEALTH_TIMEOUT_S = 15
# Requests queue in vLLM, where its metrics show them: a limit before it would hold up the probes of health as well.
_NO_LIMIT = 100_000
# A rehearsal, where nodes come at once, waits for them this many seconds whatever the plan says.
NODES_WITHIN = "MODELSTACKS_NODES_WITHIN_S"


def read(path: Path) -> ServingPlan:
    """The plan at `path`. Raises PlanError when it is not there or not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} cannot be read ({error}): mount the plan's ConfigMap there") from None
    return serving_plan.parse(text, str(path))


def check_versions(plan: ServingPlan, ray: str, engine: str) -> None:
    """Raise PlanError unless the image holds the versions that the memory plan was made for."""
    for name, have, want in (("Ray", ray, plan.ray_version), ("vLLM", engine, plan.engine_version)):
        if have.split("+")[0] != want:
            text = f"the image holds {name} {have}, {plan.name} was planned for {want}"
            raise PlanError(f"{text}: use the image of the render, or plan for this version")


def llm_config(plan: ServingPlan) -> dict[str, Any]:
    """The arguments of Ray's LLMConfig. What is set beside the plan's own numbers replaces defaults that hurt."""
    deployment: dict[str, Any] = {
        "autoscaling_config": {
            "min_replicas": plan.replicas,
            "max_replicas": plan.replicas,
            # The default of a billion would never scale.
            "target_ongoing_requests": plan.max_num_seqs,
        },
        "max_ongoing_requests": _NO_LIMIT * plan.nodes,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "graceful_shutdown_wait_loop_s": 1,
        "graceful_shutdown_timeout_s": plan.drain_s,
    }
    if plan.replicas > 1:
        deployment["request_router_config"] = {
            "request_router_class": "ray.serve.llm.request_router:PrefixCacheAffinityRouter",
            # By default load never outweighs a cached prefix, and the tree of prefixes grows without end.
            "request_router_kwargs": {"imbalanced_threshold": 10, "do_eviction": True},
        }
    return {
        "model_loading_config": {"model_id": plan.model, "model_source": plan.source},
        "accelerator_type": plan.accelerator_type,
        "engine_kwargs": {
            **plan.engine_kwargs,
            "tensor_parallel_size": plan.tensor_parallel,
            "pipeline_parallel_size": plan.pipeline_parallel,
        },
        "placement_group_config": {
            "bundle_per_worker": {"GPU": 1, "CPU": 1},
            # One node holds all or nothing of it; several are packed onto whole nodes, which `placement` has chosen.
            "strategy": "STRICT_PACK" if plan.nodes_per_replica == 1 else "PACK",
        },
        "deployment_config": deployment,
        # Ray would hold every first token back for 50 ms.
        "experimental_configs": {"stream_batching_interval_ms": 0},
        "log_engine_metrics": True,
    }


def ingress_options(plan: ServingPlan) -> dict[str, Any]:
    """One ingress on every node, so that every node has a Serve proxy and every worker pod can be Ready."""
    return {
        "num_replicas": plan.nodes,
        "max_replicas_per_node": 1,
        "max_ongoing_requests": _NO_LIMIT,
        "ray_actor_options": {"num_cpus": 1},
        "graceful_shutdown_wait_loop_s": 1,
        "graceful_shutdown_timeout_s": plan.drain_s,
    }


def build(plan: ServingPlan) -> Application:
    """The application. Raises PlanError when the cluster is not what the plan was made for."""
    import ray

    check_versions(plan, ray.__version__, _engine_version())
    unfit = placement.await_nodes(_patience(plan))

    from ray import cloudpickle, serve
    from ray.serve.llm import LLMConfig, build_llm_deployment
    from ray.serve.llm.ingress import make_fastapi_ingress

    import modelstacks_ray
    from modelstacks_ray.ingress import ENDPOINTS, Ingress, guarded_app
    from modelstacks_ray.server import PlannedServer

    # Each node has its own mount, which may be older for a minute: what was read here goes to all of them.
    cloudpickle.register_pickle_by_value(modelstacks_ray)  # type: ignore[no-untyped-call]
    config = LLMConfig(**llm_config(plan))
    keep_out = placement.selector(unfit)
    engine = build_llm_deployment(
        config,
        deployment_cls=PlannedServer,
        bind_kwargs={"plan": plan},
        override_serve_options={} if keep_out is None else {"placement_group_bundle_label_selector": keep_out},
    )
    card: dict[str, Any] = {"id": plan.model, "object": "model", "owned_by": "modelstacks"}
    card["max_model_len"] = plan.engine_kwargs.get("max_model_len")
    ingress: Any = serve.deployment(
        make_fastapi_ingress(Ingress, endpoint_map=ENDPOINTS, app=guarded_app()), **ingress_options(plan)
    )
    application: Application = ingress.bind(llm_deployments={plan.model: engine}, model_cards={plan.model: card})
    return application


def _patience(plan: ServingPlan) -> ServingPlan:
    """The plan with the time that a rehearsal has."""
    asked = os.environ.get(NODES_WITHIN)
    if asked is None:
        return plan
    return replace(plan, nodes_within_s=float(asked), settle_s=min(plan.settle_s, float(asked)))


def _engine_version() -> str:
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        import vllm  # type: ignore[import-not-found]

        return str(vllm.__version__)
