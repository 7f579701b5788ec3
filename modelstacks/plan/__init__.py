"""StackSpec → Plan: the decided deployment with its reasons, or a refusal with the nearest plans that fit."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace

from modelstacks import cloudspec, podsize, pool, price
from modelstacks.catalog import Catalog, CloudKind, EngineForm, Fabric, Model
from modelstacks.catalog.hardware import ANYWHERE
from modelstacks.catalog.versions import NATIVE_FP8, version_key
from modelstacks.cloudspec import DEFAULT_CLUSTER
from modelstacks.errors import BadInput, Problem
from modelstacks.fields import key_path
from modelstacks.plan import choose, servers
from modelstacks.plan.check import Checked, estimate, load_cache
from modelstacks.plan.leaving import leaving
from modelstacks.plan.rollout import refusals as rollout_refusals
from modelstacks.plan.startup import timeouts
from modelstacks.plan.values import Alternative, Choice, Plan, Refusal, Timeouts
from modelstacks.plan.weights import weights_plan
from modelstacks.pool import Pool
from modelstacks.spec import StackSpec, taken_namespace
from modelstacks.stackfile import object_name

__all__ = ["Alternative", "Choice", "Plan", "Refusal", "Timeouts", "plan"]


def plan(
    spec: StackSpec,
    catalog: Catalog,
    *,
    stack: str | None = None,
    today: datetime.date | None = None,
    thorough: bool = True,
) -> Plan:
    """Decide the deployment of a stack, or of a bare model when `stack` is None.

    `thorough` also looks for what would fit instead of a refused plan, and for what fewer bits would save.

    Prices are called old as of `today`; without it the answer does not depend on the day it is asked.

    The answer carries its refusals; only input that cannot be understood raises (BadInput).
    """
    model = catalog.model(spec.model)
    kind = catalog.clouds[spec.cloud.kind] if spec.cloud is not None else None
    market = price.market(spec.cloud, catalog)
    if kind is not None and kind.simulated:
        market = _simulated_market(market, spec, catalog)
    _check_engine_version(spec, catalog)
    checked = list(choose.candidates(spec, catalog, model, market))
    chosen = choose.best(checked)
    decided = chosen or choose.closest(checked, model)
    if not spec.replicas:
        nothing = price.cost(decided.choice.gpu, decided.choice.topology, 0, market)
        decided = replace(decided, cost=nothing)

    plan = _plan(spec, catalog, stack, decided)
    if spec.autoscale is not None and plan.nodes_per_replica > 1:
        text = "is for replicas on one node: over several nodes replicas are added and removed by hand"
        problem = Problem(key_path("autoscale"), text, None, "modelstacks:replicas")
        raise BadInput([problem], source=stack or model.id, next_step="name the replicas")
    _check_launcher(plan, catalog)
    servers.check_keys(plan)
    if stack is not None and (problems := taken_namespace(plan.namespace, spec, catalog)):
        raise BadInput(problems, source=stack, next_step="rename the stack, or set modelstacks:namespace")
    of_weights = (*_disk_refusals(plan), *servers.weights_refusals(plan))
    plan = replace(plan, refusals=(*plan.refusals, *of_weights))
    policy = _policy_refusals(spec, model, plan)
    if stack is not None:
        plan = replace(plan, refusals=(*plan.refusals, *policy))
    else:
        plan = replace(plan, warnings=(*plan.warnings, *(refusal.message for refusal in policy)))
    shipped = catalog.engine_form(decided.choice.engine, decided.choice.tier, launcher=spec.launcher)
    warnings = (*plan.warnings, *_warnings(plan, shipped, today, catalog))
    reasons = _reasons(spec, checked, decided) if chosen else ()
    narrower = choose.cheaper_and_narrower(chosen, spec, catalog, market) if chosen and thorough else None
    if narrower is not None:
        what = (
            f"{narrower.choice.topology.gpus} × {narrower.choice.gpu.id} at ${narrower.cost.usd_per_hour or 0:,.2f}/h"
        )
        name = narrower.choice.quantization
        reasons = (*reasons, f"with weights in {name} {what} would do: modelstacks:quantization: {name}")
    nearest: list[Alternative] = []
    budget = spec.budget_usd_per_month
    # Other hardware is no answer to weights that cannot be read where they are; the refusal names what is.
    if thorough and not plan.fits and not of_weights:
        nearest = choose.alternatives(decided, spec, catalog, market)
    elif thorough and budget is not None and any(refusal.code == "over-budget" for refusal in policy):
        nearest = choose.within_budget(decided, spec, catalog, market, budget)
    return replace(plan, warnings=warnings, reasons=reasons, alternatives=tuple(nearest))


def _plan(spec: StackSpec, catalog: Catalog, stack: str | None, decided: Checked) -> Plan:
    choice = decided.choice
    kind = catalog.clouds[spec.cloud.kind] if spec.cloud is not None else None
    nodes = price.nodes_per_replica(choice.gpu, choice.topology)
    machines = _pool(spec, kind, stack, decided)
    spot = machines is not None and any(way.way == "spot" for step in machines.steps for way in step)
    speed = estimate(decided)
    weights = weights_plan(spec.weights, choice.checkpoint)
    form = catalog.tier_form(choice.tier, spec.launcher)
    return Plan(
        spec=spec,
        stack=stack,
        choice=choice,
        tier_form=form,
        cloud=kind,
        checkpoint=choice.checkpoint,
        weights_gib=decided.weights.total_gib,
        memory=decided.memory,
        cost=decided.cost,
        throughput=speed,
        timeouts=timeouts(catalog, decided, weights, kind, form),
        weights=weights,
        leaving=leaving(spec, choice.load, speed, kind, several_nodes=nodes > 1, spot=spot),
        nodes_per_replica=nodes,
        gpus_per_node=price.gpus_per_node(choice.gpu, choice.topology),
        pool=machines,
        fabric=_fabric(spec, kind, catalog, decided),
        refusals=decided.refusals,
        hf_overrides=_hf_overrides(choice),
    )


def _check_launcher(plan: Plan, catalog: Catalog) -> None:
    """Raise BadInput for a launcher, or a setting of one, that the decided plan has no use for."""
    asked, tier = plan.spec.launcher, plan.choice.tier
    forms = catalog.versions.tiers[tier]
    problems = []
    if asked is not None and asked not in forms:
        where = "replicas of several nodes" if plan.nodes_per_replica == 1 else "replicas on one node"
        text = f"{asked} is for {where}, this plan is {tier} ({plan.nodes_per_replica} × {plan.gpus_per_node} GPUs)"
        problems.append(Problem(key_path("launcher"), text, asked, ", ".join(forms)))
    if plan.spec.head_recovery is not None and plan.tier_form.form != "ray":
        text = f"is for Ray heads, and {plan.tier_form.launcher} has none"
        problems.append(Problem(key_path("headRecovery"), text, None, "leave it out"))
    if problems:
        raise BadInput(problems, source=plan.stack or plan.choice.model.id)


def _pool(spec: StackSpec, kind: CloudKind | None, stack: str | None, decided: Checked) -> Pool | None:
    """The node pool of the decided machines. Raises BadInput when the stack's limit is below what it asks for."""
    machine, choice = decided.cost.machine, decided.choice
    if spec.cloud is None or kind is None or machine is None:
        return None
    if spec.cloud.warm_spares and any(capacity.way == "flex-start" for capacity in spec.cloud.ways(machine)):
        problem = cloudspec.flex_start_spares(spec.cloud, f", and {machine.name} is bought so unless capacity is named")
        raise BadInput([problem], source=stack or choice.model.id)

    def machines(replicas: int) -> int:
        return price.machines_needed(machine, choice.gpu, choice.topology, replicas)

    return pool.pool(
        object_name(stack or choice.model.id), spec.cloud, kind, machine, decided.cost.price,
        machines=machines(spec.replicas), machines_of_one=machines(1), machines_at_most=machines(spec.replicas_at_most),
    )  # fmt: skip


def _disk_refusals(plan: Plan) -> list[Refusal]:
    """Weights that no disk of the pool's nodes holds."""
    cloud = plan.spec.cloud
    if plan.pool is None or plan.cloud is None or cloud is None or plan.cloud.simulated:
        return []
    disk = podsize.node_disk(plan, plan.pool, plan.cloud, cloud.boot_disk_gib)
    if disk.holds:
        return []
    text = f"weights and caches need {disk.need_gib:,} GiB of a node's disk, {_machine(plan)} has "
    text += f"{disk.have_gib:,.0f}; modelstacks:weights: {{storageClass: NAME}} takes a volume for each pod"
    return [Refusal("disk-too-small", text, disk.need_gib, round(disk.have_gib), "GiB of node disk")]


def _fabric(spec: StackSpec, kind: CloudKind | None, catalog: Catalog, decided: Checked) -> Fabric | None:
    """The network that a replica of several nodes uses: the named one, or the machine type's where a pool makes it."""
    if spec.cloud is None or kind is None or price.nodes_per_replica(decided.choice.gpu, decided.choice.topology) == 1:
        return None
    if spec.cloud.fabric != "auto":
        return catalog.fabrics[spec.cloud.fabric]
    machine = decided.cost.machine
    # Only where the machine type is certain: what exists already may be anything, and simulated nodes have no network.
    if kind.simulated or kind.prices_of is None or machine is None or machine.fabric is None:
        return None
    return catalog.fabrics[machine.fabric]


def _simulated_market(market: price.Market, spec: StackSpec, catalog: Catalog) -> price.Market:
    """Simulated nodes imitate one cloud's machines, or any cloud's for a GPU that this cloud does not rent out."""
    gpus = [catalog.gpus[spec.gpu]] if spec.gpu else list(catalog.gpus.values())
    carried = any(machine.cloud == market.cloud for gpu in gpus for machine in gpu.machines)
    return market if carried else replace(market, cloud=None, orderable=False)


def _hf_overrides(choice: Choice) -> dict[str, object]:
    """The config override that stretches the context; empty when the config's own context is enough.

    Since vllm#56446 the stretched length is no longer derived from the factor, so it is stated too.
    """
    architecture = choice.model.architecture
    scaling = architecture.rope_scaling
    if scaling is None or choice.load.context <= architecture.max_context:
        return {}
    factor = float(math.ceil(choice.load.context / scaling.original))
    return {
        "max_position_embeddings": choice.load.context,
        "rope_parameters": {
            "rope_type": scaling.kind,
            "factor": factor,
            "original_max_position_embeddings": scaling.original,
            "rope_theta": scaling.rope_theta,
        },
    }


def _check_engine_version(spec: StackSpec, catalog: Catalog) -> None:
    asked = spec.engine_version
    for engine in [spec.engine] if spec.engine else catalog.versions.engines:
        forms = catalog.versions.engines[engine].values()
        if asked is None or any(form.at(asked) is not None for form in forms):
            return
    engine = spec.engine or "vllm"
    form = catalog.any_form(engine)
    allowed = f"{form.oldest} and newer" if form.oldest else form.version
    problem = Problem("modelstacks:engineVersion", f"no memory figures for {engine} {asked}", asked, allowed)
    raise BadInput([problem], source="engineVersion", next_step=f"leave it out to plan for {form.version}")


def _policy_refusals(spec: StackSpec, model: Model, plan: Plan) -> list[Refusal]:
    refusals = []
    licence = model.licence
    accepted = spec.accepted_license
    if (licence.must_accept and accepted is None) or (accepted is not None and accepted.lower() != licence.id.lower()):
        said = f"acceptedLicense is {accepted}" if accepted else "acceptedLicense is missing"
        terms = f" It asks: {'; '.join(licence.terms)}." if licence.terms else ""
        text = f"{said}; {model.name} is under {licence.name}: set modelstacks:acceptedLicense: {licence.id}.{terms}"
        refusals.append(Refusal("license-not-accepted", text, 1, 0, "accepted licences"))
    if _runs_own_code(plan) and not spec.accept_remote_code:
        text = f"{model.id} needs code from its own repository (--trust-remote-code), which would run in the servers "
        text += "with their key and network: modelstacks:acceptRemoteCode: true accepts it"
        refusals.append(Refusal("remote-code-not-accepted", text, 1, 0, "accepted repositories of code"))
    refusals += rollout_refusals(plan)
    scale = spec.autoscale
    if scale is not None and scale.cold_start_seconds is not None:
        need, have = plan.timeouts.cold_start_s, scale.cold_start_seconds
        if need > have:
            text = (
                f"a server that was scaled to zero answers after {need} s, autoscale.coldStartSeconds allows {have}: "
            )
            text += "keep one (min: 1), or bring the weights nearer (modelstacks:weights)"
            refusals.append(Refusal("cold-start-too-slow", text, need, have, "seconds"))
    month, budget = plan.usd_per_month_at_most, spec.budget_usd_per_month
    if budget is not None and month is not None and month > budget:
        what = f"{spec.replicas} × {plan.choice.topology.gpus} {plan.choice.gpu.id}"
        if spec.copies > 1:
            what = f"{what} in each of {spec.copies} clusters"
        if plan.pool is not None and plan.pool.all_machines_at_most > plan.pool.machines:
            bought = f"up to {plan.pool.all_machines_at_most} × {plan.pool.machine.name}"
            what = f"{what} may buy {bought}, which"
        text = f"{what} cost ${month:,.0f} a month, the budget is ${budget:,.0f}"
        refusals.append(Refusal("over-budget", text, round(month, 2), budget, "USD per month"))
    return refusals


def _warnings(plan: Plan, shipped: EngineForm | None, today: datetime.date | None, catalog: Catalog) -> list[str]:
    choice, cost = plan.choice, plan.cost
    form, gpu = choice.form, choice.gpu
    warnings = []
    if form is not None and form.warning:
        warnings.append(form.warning)
    if choice.topology.tensor_parallel > 1 and gpu.interconnect.kind == "pcie":
        note = gpu.interconnect.note or "the machine has no NVLink"
        warnings.append(
            f"tensor parallel over PCIe ({gpu.interconnect.gb_per_s:.0f} GB/s): {note}; expect slower steps"
        )
    if plan.fits and load_cache(choice).startswith("fp8") and gpu.compute_capability < NATIVE_FP8:
        warnings.append(f"{gpu.id} stores an fp8 KV cache and computes in 16 bits: it holds twice as much, no faster")
    if plan.spec.budget_usd_per_month is not None and cost.usd_per_month is None:
        warnings.append("no price is known, so the budget cannot be checked")
    if cost.price is not None:
        if cost.price.date is None:
            warnings.append(f"the price of {_machine(plan)} is undated ({cost.price.source})")
        elif today is not None and cost.is_old(today):
            warnings.append(f"the price of {_machine(plan)} is of {cost.price.date}, more than 90 days old")
    elif choice.gpu.machines:
        warnings.append("no price is known for this machine, region or cloud")
    held = cost.machine.gpus * cost.machines if cost.machine is not None else plan.gpus
    if held > plan.gpus and plan.spec.replicas:
        warnings.append(f"{held - plan.gpus} of {held} GPUs paid for stay idle: {_machine(plan)} is rented whole")
    warnings += _pool_warnings(plan) + servers.warnings(plan)
    if plan.spec.autoscale is not None and plan.cloud is not None and plan.cloud.simulated:
        warnings.append(f"simulated servers have no metrics, so nothing scales them: {plan.spec.replicas} run")
    elif plan.spec.autoscale is not None:
        warnings.append(
            f"autoscaling needs KEDA (operators: [keda]) and a Prometheus at {plan.spec.prometheus} that "
            f"reads the servers' /metrics; the price above is that of {plan.spec.replicas}, the budget that of "
            f"{plan.spec.replicas_at_most} replicas"
        )
    region = cloudspec.region_of(plan.spec.cloud, plan.cloud, catalog) if plan.spec.cloud and plan.cloud else None
    if region is not None and cost.price is not None and cost.price.region not in (region, ANYWHERE):
        warnings.append(f"no price of {_machine(plan)} in {region} is known: that of {cost.price.region} is taken")
    if choice.quantization in choice.model.quantize_at_load:
        origin = choice.model.quantize_at_load[choice.quantization]
        warnings.append(f"no {choice.quantization} checkpoint is published: made from {origin} while loading")
    stored = plan.checkpoint
    if stored is not None and stored.repo is not None and stored.revision is None:
        warnings.append(f"the revision of {stored.repo} is not pinned: none was seen in a public source")
    if stored is not None and stored.size_kind == "computed":
        warnings.append(f"the size of {stored.repo or 'the own model'} is computed, not published")
    since = choice.model.engine_since.get(choice.engine)
    if form is not None and since is not None and (version_key(form.version) or ()) < (version_key(since) or ()):
        warnings.append(
            f"public recipes for {choice.model.id} begin with {choice.engine} {since}, this is {form.version}"
        )
    asked = plan.spec.engine_version
    if asked is not None and form is not None and shipped is not None and form.version != shipped.version:
        newer = (version_key(form.version) or ()) > (version_key(shipped.version) or ())
        what = f"there are no figures newer than {shipped.version}'s" if newer else "these are its memory figures"
        warnings.append(f"{choice.engine} {form.version}: {what}; whether it serves the model is not known here")
    if choice.model.licence.id == "unknown":
        warnings.append("the licence of an own model is not read: its terms are yours to check")
    if _runs_own_code(plan):
        warnings.append(f"{choice.model.id} runs code from its own repository (--trust-remote-code)")
    if choice.load.lora_adapters and plan.spec.max_lora_rank is None:
        warnings.append(f"LoRA slots are planned for rank {choice.load.lora_rank}; set maxLoraRank for higher ones")
    if plan.hf_overrides:
        original = choice.model.architecture.max_context
        warnings.append(f"context beyond {original} stretches RoPE, which can cost quality on short prompts")
    return warnings


def _runs_own_code(plan: Plan) -> bool:
    return "--trust-remote-code" in plan.choice.model.engine_flags.get(plan.choice.engine, ())


def _pool_warnings(plan: Plan) -> list[str]:
    """What a reviewer must know of how the machines are bought."""
    cloud, pool = plan.spec.cloud, plan.pool
    warnings = []
    if cloud is None or plan.cloud is None:
        return []
    if pool is not None:
        ways = [capacity.way for step in pool.steps for capacity in step]
        if not cloud.capacity and ways != ["on-demand"]:
            warnings.append(f"{_machine(plan)} is not sold on demand: it is bought as {ways[0]}")
        if "spot" in ways:
            warnings.append("spot machines can be taken back at short notice; the price is that of on-demand machines")
        if "flex-start" in ways:
            warnings.append("flex-start machines leave after seven days: a replica then loads again on another one")
        if len(pool.steps) > 1:
            warnings.append(
                f"{len(pool.steps)} pools, one for each step of buying, may hold {pool.machines_at_most} machines "
                f"each: {pool.all_machines_at_most} together, which is what the budget is checked against"
            )
        unnamed = "cluster" in plan.cloud.options and cloud.cluster is None and cloud.node_class is None
        if unnamed and pool.owner is None:
            warnings.append(f"cloud.cluster is not set: {plan.cloud.id} takes {DEFAULT_CLUSTER} for its name")
        if (cloud.image or "").endswith("@latest"):
            warnings.append(f"cloud.image {cloud.image} moves: each release of it is drift of every node; pin one")
        if pool.spares:
            warnings.append(f"{pool.spares} × {_machine(plan)} stand ready and are paid for without serving")
    if plan.nodes_per_replica > 1 and plan.cloud.makes_nodes and not plan.cloud.simulated:
        if len(cloud.zones) != 1 and "zones" in plan.cloud.options:
            warnings.append("nodes of one replica may land in different zones: name one in cloud.zones")
        if plan.fabric is None and cloud.fabric == "auto":
            warnings.append("no fabric is known for these machines: NCCL takes what it finds, TCP at worst")
    if plan.fabric is not None:
        image = f"; the image needs {plan.fabric.image_needs}" if plan.fabric.image_needs else ""
        warnings.append(f"nodes talk through {plan.fabric.id} when NCCL's log says “{plan.fabric.verify}”{image}")
    return warnings


def _machine(plan: Plan) -> str:
    machine = plan.cost.machine
    return f"{machine.cloud} {machine.name}" if machine is not None else plan.choice.gpu.id


def _reasons(spec: StackSpec, checked: list[Checked], decided: Checked) -> tuple[str, ...]:
    choice, cost = decided.choice, decided.cost
    memory = decided.memory
    reasons = [
        f"{memory.weights_gib:.1f} GiB weights + {memory.overhead_gib:.1f} GiB overhead leave "
        f"{memory.kv_cache_gib:.1f} ± {memory.uncertainty_gib:.1f} of {memory.budget_gib:.1f} GiB per GPU for the KV "
        f"cache; {choice.load.concurrency} × {choice.load.context} tokens need {memory.kv_needed_gib:.1f} GiB"
    ]
    fitting = sum(candidate.fits for candidate in checked)
    if len(checked) > 1:
        price_text = "" if cost.usd_per_hour is None else f" at ${cost.usd_per_hour:,.2f}/h"
        reasons.append(f"cheapest of {fitting} that fit{price_text}, of {len(checked)} looked at")
        same = [c for c in checked if c.choice.gpu.id == choice.gpu.id and c.choice.quantization == choice.quantization]
        smaller = [c for c in same if c.choice.topology.gpus < choice.topology.gpus and c.refusals]
        if smaller:
            last = smaller[-1]
            reasons.append(f"{last.choice.topology.gpus} × {choice.gpu.id} is too small: {last.refusals[0].message}")
    if spec.gpus is not None:
        reasons.append(f"{spec.gpus} GPUs per replica were asked for")
    return tuple(reasons)
