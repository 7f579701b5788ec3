"""Plan → the JSON object of `modelstacks plan --json`, the contract that scripts and reviews rely on."""

from __future__ import annotations

import math
from typing import Any

from modelstacks import economics
from modelstacks.plan import Alternative, Choice, Plan
from modelstacks.plan.rollout import rollout
from modelstacks.price import Cost


def answer(plan: Plan) -> dict[str, Any]:
    """The plan as plain data. Sizes in GiB of the fullest GPU, money in USD, tokens per replica."""
    choice, memory, topology, load = plan.choice, plan.memory, plan.choice.topology, plan.choice.load
    times = plan.timeouts
    return {
        "stack": plan.stack,
        "model": choice.model.id,
        "engine": choice.engine,
        "engine_version": choice.form.version if choice.form is not None else None,
        "tier": choice.tier,
        "launcher": plan.tier_form.launcher,
        "fits": plan.fits,
        "gpu": choice.gpu.id,
        "gpus_per_replica": topology.gpus,
        "nodes_per_replica": plan.nodes_per_replica,
        "tensor_parallel": topology.tensor_parallel,
        "pipeline_parallel": topology.pipeline_parallel,
        "replicas": plan.spec.replicas,
        "replicas_at_most": plan.spec.replicas_at_most,
        "clusters": list(plan.spec.clusters),
        "quantization": choice.quantization,
        "checkpoint": plan.checkpoint.repo if plan.checkpoint is not None else None,
        "revision": plan.checkpoint.revision if plan.checkpoint is not None else None,
        "context": load.context,
        "concurrency": load.concurrency,
        "kv_cache_dtype": load.kv_cache_dtype,
        "gpu_memory_utilization": load.gpu_memory_utilization,
        "max_num_seqs": load.max_num_seqs,
        "max_num_batched_tokens": load.max_num_batched_tokens,
        "memory": {
            "gpu_gib": _gib(memory.gpu_gib),
            "budget_gib": _gib(memory.budget_gib),
            "weights_gib": _gib(memory.weights_gib),
            "overhead_gib": _gib(memory.overhead_gib),
            "uncertainty_gib": _gib(memory.uncertainty_gib),
            "overhead_parts_gib": {name: _gib(size) for name, size in memory.overhead_parts},
            "kv_cache_gib": _gib(memory.kv_cache_gib),
            "kv_cache_gib_at_least": _gib(memory.kv_cache_low_gib),
            "kv_needed_gib": _gib(memory.kv_needed_gib),
            "kv_bytes_per_token": memory.kv_bytes_per_token,
            "kv_cache_tokens": memory.kv_cache_tokens,
            "max_concurrency": round(memory.max_concurrency, 2),
            "max_concurrency_at_least": round(memory.max_concurrency_low, 2),
            "state_blocks": memory.state_blocks,
            "loading_peak_gib": _gib(memory.loading_peak_gib),
        },
        "cost": whole_cost(plan),
        "pool": _pool(plan),
        "throughput": None
        if plan.throughput is None
        else {
            "output_tokens_per_s": round(plan.throughput.output_tokens_per_s, 1),
            "concurrency": plan.throughput.concurrency,
            "input_tokens": plan.throughput.input_tokens,
            "output_tokens": plan.throughput.output_tokens,
            "method": plan.throughput.method,
            "basis": plan.throughput.basis,
            "assumptions": list(plan.throughput.assumptions),
        },
        "timeouts": {
            "download_s": times.download_s,
            "load_s": times.load_s,
            "startup_s": times.startup_s,
            "ready_s": times.ready_s,
            "before_s": times.before_s,
            "again_s": times.again_s,
            "cold_start_s": times.cold_start_s,
        },
        "weights": {
            "place": plan.weights.place,
            "source": plan.weights.source,
            "fetched_by": plan.weights.fetched_by,
        },
        "rollout": _rollout(plan),
        "leaving": {
            "pre_stop_s": plan.leaving.pre_stop_s,
            "drain_s": plan.leaving.drain_s,
            "grace_s": plan.leaving.grace_s,
            "token_s": plan.leaving.token_s,
            "tokens_finished": plan.leaving.tokens,
            "spot_notice_s": plan.leaving.notice_s,
            "spot_tokens_finished": plan.leaving.notice_tokens,
        },
        "refusals": [
            {"code": r.code, "message": r.message, "need": r.need, "have": r.have, "unit": r.unit}
            for r in plan.refusals
        ],
        "alternatives": [_alternative(alternative, plan) for alternative in plan.alternatives],
        "reasons": list(plan.reasons),
        "warnings": list(plan.warnings),
    }


def _rollout(plan: Plan) -> dict[str, Any]:
    """What a change of the servers' pods does, in GPUs and seconds."""
    change = rollout(plan)
    return {
        "way": change.way,
        "pods": change.pods,
        "steps": change.steps,
        "spare_gpus_needed": change.needed_gpus if change.comes_first else 0,
        "spare_gpus": change.spare_gpus,
        "duration_s": change.duration_s,
        "downtime_s": change.out_s,
        "words": change.words,
        "reason": change.reason,
    }


def _pool(plan: Plan) -> dict[str, Any] | None:
    """What a cloud may be asked for; None where nodes exist already."""
    pool = plan.pool
    if pool is None or plan.cloud is None:
        return None
    return {
        "name": pool.name,
        "owner": pool.owner,
        "kind": plan.cloud.id,
        "machine": pool.machine.name,
        "gpus_per_machine": pool.machine.gpus,
        "machines": pool.machines,
        "spares": pool.spares,
        "machines_at_most": pool.all_machines_at_most * plan.spec.copies,
        "gpus_at_most": pool.all_machines_at_most * pool.machine.gpus * plan.spec.copies,
        "capacity": [[capacity.model_dump() for capacity in step] for step in pool.steps],
        "usd_per_month_at_most": _usd(plan.usd_per_month_at_most),
        "fabric": plan.fabric.id if plan.fabric is not None else None,
    }


def whole_cost(plan: Plan) -> dict[str, Any]:
    """The cost of a plan, output tokens included."""
    million = usd_per_million(plan)
    return cost(plan.cost) | {"usd_per_million_output_tokens": None if million is None else round(million, 3)}


def cost(cost: Cost) -> dict[str, Any]:
    """Whole machines for all replicas, with the price's region, source and date."""
    price = cost.price
    return {
        "usd_per_hour": _usd(cost.usd_per_hour),
        "usd_per_month": _usd(cost.usd_per_month),
        "machine": cost.machine.name if cost.machine is not None else None,
        "machines": cost.machines,
        "cloud": cost.machine.cloud if cost.machine is not None else None,
        "region": price.region if price is not None else None,
        "price_source": price.source if price is not None else None,
        "price_date": price.date.isoformat() if price is not None and price.date is not None else None,
    }


def usd_per_million(plan: Plan) -> float | None:
    """USD for a million output tokens at the stated concurrency; None without price, replicas or throughput."""
    if plan.throughput is None or plan.cost.usd_per_hour is None or plan.spec.replicas == 0:
        return None
    rate = plan.throughput.output_tokens_per_s * plan.spec.replicas * plan.spec.copies
    return economics.usd_per_million_tokens(plan.cost.usd_per_hour, rate)


def options(choice: Choice, plan: Plan) -> dict[str, Any]:
    """The stack keys that ask for exactly this configuration, those that the question set itself among them."""
    spec = plan.spec
    utilization = choice.load.gpu_memory_utilization
    usual = choice.gpu.utilization(choice.figures.gpu_memory_utilization)
    asked = {
        "gpuMemoryUtilization": utilization if spec.gpu_memory_utilization or utilization != usual else None,
        "maxNumSeqs": choice.load.max_num_seqs if choice.sequences_set else None,
        # Every running request takes a token of each step, which TGI's whole prompts may have raised already.
        "maxNumBatchedTokens": choice.load.max_num_batched_tokens if spec.max_num_batched_tokens else None,
        "textOnly": spec.text_only or None,
        "maxLoras": spec.max_loras,
        "maxLoraRank": spec.max_lora_rank,
        "loraModules": dict(spec.lora_modules) or None,
        "engineVersion": spec.engine_version,
        "cloud": spec.cloud.model_dump(mode="json", by_alias=True, exclude_unset=True) if spec.cloud else None,
        "autoscale": spec.autoscale.model_dump(by_alias=True, exclude_unset=True) if spec.autoscale else None,
        "replicas": spec.replicas if spec.autoscale is None else None,
        "launcher": spec.launcher,
        "weights": spec.weights.model_dump(by_alias=True, exclude_unset=True) or None,
        "rollout": spec.rollout,
        "headRecovery": spec.head_recovery.model_dump(by_alias=True, exclude_unset=True)
        if spec.head_recovery
        else None,
        "clusters": list(spec.clusters) or None,
    }
    return {key: value for key, value in asked.items() if value is not None} | {
        "model": choice.model.id,
        "gpu": choice.gpu.id,
        "gpus": choice.topology.gpus,
        "tensorParallel": choice.topology.tensor_parallel,
        "pipelineParallel": choice.topology.pipeline_parallel,
        "quantization": choice.quantization,
        "kvCacheDtype": choice.load.kv_cache_dtype,
        "context": choice.load.context,
        "concurrency": choice.load.concurrency,
        "engine": choice.engine,
    }


def _alternative(alternative: Alternative, plan: Plan) -> dict[str, Any]:
    return {
        "change": alternative.change,
        "options": options(alternative.choice, plan),
        "tier": alternative.choice.tier,
        "max_concurrency": round(alternative.max_concurrency, 2),
        "cost": cost(alternative.cost),
    }


def _gib(size: float) -> float:
    return round(size, 3)


def _usd(dollars: float | None) -> float | None:
    return None if dollars is None or math.isinf(dollars) else round(dollars, 4)
