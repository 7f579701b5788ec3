"""Lists the configurations that a question leaves open, and the neighbours of one that was refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from modelstacks import price
from modelstacks.catalog import Catalog, Gpu, Model
from modelstacks.fit import Topology
from modelstacks.plan.check import (
    Checked,
    check,
    choice_for,
    context_limit,
    load_cache,
    longest_context,
    profile_for,
    weights_of,
    with_context,
)
from modelstacks.plan.values import Alternative, Choice
from modelstacks.spec import StackSpec

# Counts worth renting: powers of two in a node (heads divide by them), then up to four whole nodes.
_IN_NODE = (1, 2, 4, 8, 16)
_NODES = (2, 3, 4)
_MOST_OF_A_KIND = 2
_MOST = {"fewer": 1}
# The share of a card that servers of public start-up logs were given when weights left little beside them.
_TIGHT = 0.95
# What a question must leave open for its answer to be any hardware at all.
_HARDWARE = ("gpu", "gpus", "tensor_parallel", "pipeline_parallel", "quantization", "engine")


def candidates(spec: StackSpec, catalog: Catalog, model: Model, market: price.Market) -> Iterator[Checked]:
    """Every configuration the question allows, checked, the profile's own first."""
    # Scaled to zero, the hardware is the one that the first replica would take.
    replicas = max(spec.replicas, 1)
    cheapest = math.inf
    for gpu in _gpus(spec, catalog, model, market):
        topologies = [
            (topology, price.cost(gpu, topology, replicas, market, spec.copies)) for topology in _topologies(spec, gpu)
        ]
        for quantization in _quantizations(spec, model):
            for topology, cost in topologies:
                dollars = cost.rank
                # What costs more than a plan that fits is never chosen, so it need not be computed.
                if cheapest < math.inf and dollars > cheapest:
                    continue
                choice = choice_for(spec, catalog, model, gpu, quantization, topology)
                checked = check(choice, market, cost)
                if checked.fits and dollars < cheapest:
                    cheapest = dollars
                yield checked


def configurations(spec: StackSpec, catalog: Catalog, model: Model, market: price.Market) -> Iterator[Checked]:
    """Every configuration that the question leaves open, checked, dear ones too."""
    for gpu in _gpus(spec, catalog, model, market):
        for topology in _topologies(spec, gpu):
            for quantization in _quantizations(spec, model):
                yield _checked(choice_for(spec, catalog, model, gpu, quantization, topology), spec, market)


def _checked(choice: Choice, spec: StackSpec, market: price.Market) -> Checked:
    return check(choice, market, price.cost(choice.gpu, choice.topology, max(spec.replicas, 1), market, spec.copies))


def best(checked: list[Checked]) -> Checked | None:
    """The cheapest that fits; at one price fewer GPUs, then less quantization (the order they were listed in)."""
    fitting = [candidate for candidate in checked if candidate.fits]

    def rank(candidate: Checked) -> tuple[float, int]:
        return candidate.cost.rank, candidate.choice.topology.gpus

    return min(fitting, key=rank, default=None)


def closest(checked: list[Checked], model: Model) -> Checked:
    """Of configurations that all fail, the one to explain: the nearest to what the first GPU's profile proposes."""
    gpu = checked[0].choice.gpu.id
    listed = {candidate.choice.quantization for candidate in checked}
    profile = profile_for(model, gpu, next(iter(listed)) if len(listed) == 1 else None)

    def distance(candidate: Checked) -> tuple[bool, bool, int]:
        choice = candidate.choice
        off = abs(choice.topology.gpus - profile.gpus)
        return choice.gpu.id != gpu, choice.quantization != profile.quantization, off

    return min(checked, key=distance)


def alternatives(refused: Checked, spec: StackSpec, catalog: Catalog, market: price.Market) -> list[Alternative]:
    """The nearest plans that pass the same check, the cheapest kind of change first, at most two of a kind.

    Those above the budget are left out unless there are no others. When no neighbour fits, the cheapest plan of the
    model for the same load, whatever it takes.
    """
    found: dict[tuple[object, ...], Alternative] = {}
    dear: dict[tuple[object, ...], Alternative] = {}
    kinds: Counter[tuple[str, bool]] = Counter()
    budget = spec.budget_usd_per_month
    for kind, choice in _in_reach(refused, spec, catalog, market):
        key, most = _identity(choice), _MOST.get(kind, _MOST_OF_A_KIND)
        if key in found or key in dear or kinds[kind, False] == most:
            continue
        passed = _checked(choice, spec, market)
        above = budget is not None and (passed.cost.usd_per_month or 0) > budget
        if passed.fits and kinds[kind, above] < most:
            (dear if above else found)[key] = _alternative(passed, refused, spec, catalog, market)
            kinds[kind, above] += 1
    found = found or dear
    if not found:
        anything = spec.model_copy(update=dict.fromkeys(_HARDWARE))
        cheapest = best(list(candidates(anything, catalog, refused.choice.model, market)))
        return [_alternative(cheapest, refused, spec, catalog, market)] if cheapest is not None else []
    return list(found.values())


def within_budget(
    dear: Checked, spec: StackSpec, catalog: Catalog, market: price.Market, usd: float
) -> list[Alternative]:
    """For a plan that fits and costs too much: the cheapest other hardware within `usd` a month, a format each."""
    free = spec.model_copy(update=dict.fromkeys(_HARDWARE))
    found: list[Alternative] = []
    for quantization in spec.prefer.quantizations or dear.choice.model.quantizations:
        asked = free.model_copy(update={"quantization": quantization})
        cheapest = best(list(candidates(asked, catalog, dear.choice.model, market)))
        month = cheapest.cost.usd_per_month if cheapest is not None else None
        if cheapest is not None and month is not None and month <= usd:
            found.append(_alternative(cheapest, dear, spec, catalog, market))
    return sorted(found, key=lambda alternative: alternative.cost.rank)[:_MOST_OF_A_KIND]


def _alternative(
    passed: Checked, refused: Checked, spec: StackSpec, catalog: Catalog, market: price.Market
) -> Alternative:
    choice, cost = passed.choice, passed.cost
    if not spec.replicas:
        # Scaled to zero it costs nothing, though its hardware was chosen by its price.
        cost = price.cost(choice.gpu, choice.topology, 0, market)
    change = _change(choice, refused.choice, spec, catalog, market)
    return Alternative(change, choice, cost, passed.memory.max_concurrency)


def _change(choice: Choice, refused: Choice, spec: StackSpec, catalog: Catalog, market: price.Market) -> str:
    """The stack keys to set so that the question leads to `choice`, as few as will do it."""
    counts = (spec.gpus, spec.tensor_parallel, spec.pipeline_parallel)
    if spec.gpu is not None and any(count is not None for count in counts):
        # Hardware was named: what differs from the refused plan is enough, unless it leads elsewhere.
        few = _differing(choice, refused, spec)
        if _leads_to(choice, few, spec, catalog, market):
            return _lines(few)
    return _lines(_everything(choice, spec, catalog))


_FIELDS = {
    "engine": "engine", "gpu": "gpu", "gpus": "gpus", "quantization": "quantization", "kvCacheDtype": "kv_cache_dtype",
    "tensorParallel": "tensor_parallel", "pipelineParallel": "pipeline_parallel", "context": "context",
    "concurrency": "concurrency", "maxNumSeqs": "max_num_seqs", "gpuMemoryUtilization": "gpu_memory_utilization",
}  # fmt: skip


def _leads_to(choice: Choice, keys: dict[str, Any], spec: StackSpec, catalog: Catalog, market: price.Market) -> bool:
    """The question with these keys set is answered with exactly this choice."""
    asked = spec.model_copy(update={_FIELDS[key]: value for key, value in keys.items()})
    tensor, pipeline = asked.tensor_parallel, asked.pipeline_parallel
    if asked.gpus is not None and (tensor or 1) * (pipeline or 1) not in (asked.gpus, 1):
        return False
    led = best(list(candidates(asked, catalog, choice.model, market)))
    return led is not None and _identity(led.choice) == _identity(choice)


def _identity(choice: Choice) -> tuple[object, ...]:
    return choice.gpu.id, choice.engine, choice.quantization, choice.topology, choice.load


def _lines(keys: dict[str, Any]) -> str:
    return ", ".join(f"modelstacks:{key}: {value}" for key, value in keys.items())


def _values(choice: Choice) -> dict[str, Any]:
    topology, load = choice.topology, choice.load
    return {
        "engine": choice.engine, "gpu": choice.gpu.id, "quantization": choice.quantization,
        "kvCacheDtype": load.kv_cache_dtype, "gpus": topology.gpus, "tensorParallel": topology.tensor_parallel,
        "pipelineParallel": topology.pipeline_parallel, "context": load.context, "concurrency": load.concurrency,
        "maxNumSeqs": load.max_num_seqs if choice.sequences_set else None,
        "gpuMemoryUtilization": load.gpu_memory_utilization,
    }  # fmt: skip


def _differing(choice: Choice, refused: Choice, spec: StackSpec) -> dict[str, Any]:
    """What is another value than in the refused plan; counts that were not asked stay open."""
    before, after = _values(refused), _values(choice)
    left_open = {key for key in ("gpus", "tensorParallel", "pipelineParallel") if getattr(spec, _FIELDS[key]) is None}
    return {
        key: value
        for key, value in after.items()
        if value is not None and value != before[key] and key not in left_open
    }


def _everything(choice: Choice, spec: StackSpec, catalog: Catalog) -> dict[str, Any]:
    """Hardware and format in full, and what would then still be decided otherwise."""
    values, topology, node = _values(choice), choice.topology, choice.gpu.max_gpus_per_node
    keys = ["gpu", "gpus", "quantization"]
    usual = Topology(min(topology.gpus, node), max(1, topology.gpus // node))
    if topology != usual or (spec.tensor_parallel, spec.pipeline_parallel) != (None, None):
        keys += ["tensorParallel", "pipelineParallel"]
    fixed = spec.model_copy(update={_FIELDS[key]: values[key] for key in keys})
    then = _values(choice_for(fixed, catalog, choice.model, choice.gpu, choice.quantization, topology))
    keys += [key for key in values if key not in keys and values[key] != then[key]]
    named = {key: values[key] for key in keys if values[key] is not None}
    return {key: value for key, value in named.items() if getattr(spec, _FIELDS[key]) != value}


_Neighbour = tuple[str, Choice]


def _in_reach(refused: Checked, spec: StackSpec, catalog: Catalog, market: price.Market) -> Iterator[_Neighbour]:
    """The neighbours; of a context beyond the model, those of its longest one."""
    yield from _neighbours(refused, spec, catalog, market)
    choice, form = refused.choice, refused.choice.form
    if form is None:
        return
    longest = context_limit(choice)
    if choice.load.context > longest:
        possible = replace(choice, load=with_context(choice.load, longest, form, choice.gpu))
        yield "load", possible
        yield from _neighbours(_checked(possible, spec, market), spec, catalog, market)


def _neighbours(refused: Checked, spec: StackSpec, catalog: Catalog, market: price.Market) -> Iterator[_Neighbour]:
    """Kind of change and the choice it leads to; whether it fits is not known yet."""
    yield from _smaller_loads(refused, spec, catalog)
    choice, model = refused.choice, refused.choice.model

    def at(gpu: Gpu, quantization: str, topology: Topology, engine: str | None = None) -> Choice:
        asked = spec.model_copy(update={"engine": engine or choice.engine})
        new = choice_for(asked, catalog, model, gpu, quantization, topology)
        if new.form is None:
            return new
        load = with_context(new.load, choice.load.context, new.form, gpu)
        load = replace(
            load, concurrency=choice.load.concurrency, max_num_seqs=max(load.max_num_seqs, choice.load.concurrency)
        )
        return replace(new, load=load)

    for quantization in spec.prefer.quantizations or model.quantizations:
        if quantization != choice.quantization:
            other = at(choice.gpu, quantization, choice.topology)
            yield "quantization", other
            yield from _with_less_context("quantization", other)
    for engine in catalog.versions.engines:
        if engine != choice.engine:
            yield "engine", at(choice.gpu, choice.quantization, choice.topology, engine)
    open_counts = spec.model_copy(update={"gpus": None, "tensor_parallel": None, "pipeline_parallel": None})
    topologies = [topology for topology in _topologies(open_counts, choice.gpu) if topology != choice.topology]
    for topology in topologies:
        if topology.pipeline_parallel == 1:
            yield "gpus", at(choice.gpu, choice.quantization, topology)
    others = []
    for gpu in _gpus(spec.model_copy(update={"gpu": None}), catalog, model, market):
        for topology in _topologies(open_counts, gpu):
            if gpu.id != choice.gpu.id and topology.gpus == choice.topology.gpus:
                others.append((price.cost(gpu, topology, spec.replicas, market, spec.copies).rank, gpu.id, topology))
    for _, gpu_id, topology in sorted(others, key=lambda entry: entry[:2]):
        yield "gpu", at(catalog.gpus[gpu_id], choice.quantization, topology)
    for topology in topologies:
        if topology.pipeline_parallel > 1:
            yield "nodes", at(choice.gpu, choice.quantization, topology)


def _smaller_loads(refused: Checked, spec: StackSpec, catalog: Catalog) -> Iterator[_Neighbour]:
    """The same hardware asked for less: a shorter context, fewer requests at once, a narrower KV cache."""
    choice, form = refused.choice, refused.choice.form
    if form is None:
        return
    yield from _with_less_context("load", choice)
    fewer = int(refused.memory.max_concurrency)
    if 1 <= fewer < choice.load.concurrency:
        # The null block may take the last place, so one fewer is tried as well.
        for count in (fewer, fewer - 1):
            if count:
                # What follows from the number of requests (sequences, batch) follows again.
                asked = spec.model_copy(update={"concurrency": count, "engine": choice.engine})
                new = choice_for(asked, catalog, choice.model, choice.gpu, choice.quantization, choice.topology)
                yield "fewer", replace(new, load=with_context(new.load, choice.load.context, form, choice.gpu))
    for sequences in (256, 64):
        if choice.load.concurrency <= sequences < choice.load.max_num_seqs:
            fewer_at_once = replace(choice.load, max_num_seqs=sequences)
            fewer_states = replace(choice, load=fewer_at_once, sequences_set=True)
            yield "sequences", fewer_states
            if refused.memory.max_concurrency_low <= 0:
                # Nothing was left for the cache: fewer sequences make room for a shorter context at least.
                yield from _with_less_context("sequences", fewer_states)
    if refused.memory.max_concurrency_low <= 0 and choice.load.gpu_memory_utilization < _TIGHT:
        few = min(choice.load.max_num_seqs, max(choice.load.concurrency, 64))
        load = replace(choice.load, max_num_seqs=few, gpu_memory_utilization=_TIGHT)
        tight = replace(choice, load=load, sequences_set=True)
        yield "tight", tight
        yield from _with_less_context("tight", tight)
    usual = choice.gpu.utilization(form.gpu_memory_utilization)
    if choice.load.gpu_memory_utilization != usual:
        yield "utilization", replace(choice, load=replace(choice.load, gpu_memory_utilization=usual))
    current = form.kv_cache_dtypes.get(load_cache(choice))
    for dtype in ("fp8", "fp8_e4m3fn", "bfloat16"):
        if dtype in form.kv_cache_dtypes and form.kv_cache_dtypes[dtype] != current:
            narrow = replace(choice, load=replace(choice.load, kv_cache_dtype=dtype))
            yield "cache", narrow
            yield from _with_less_context("cache", narrow)


def _with_less_context(kind: str, choice: Choice) -> Iterator[_Neighbour]:
    if choice.form is None:
        return
    longest = longest_context(choice, choice.form, weights_of(choice))
    if longest is not None and longest < choice.load.context:
        load = with_context(choice.load, longest, choice.form, choice.gpu)
        yield kind, replace(choice, load=load)


def _gpus(spec: StackSpec, catalog: Catalog, model: Model, market: price.Market) -> list[Gpu]:
    if spec.gpu is not None:
        return [catalog.gpus[spec.gpu]]
    if spec.prefer.gpus:
        return [catalog.gpus[gpu_id] for gpu_id in spec.prefer.gpus]
    named = [profile.gpu for profile in model.profiles]
    gpus = sorted(
        (gpu for gpu in catalog.gpus.values() if gpu.is_to_be_had),
        key=lambda gpu: (gpu.id not in named, named.index(gpu.id) if gpu.id in named else 0),
    )
    if market.machine is not None:
        gpus = [gpu for gpu in gpus if any(machine.name == market.machine for machine in gpu.machines)] or gpus
    return [gpu for gpu in gpus if not market.orderable or any(m.cloud == market.cloud for m in gpu.machines)] or gpus


# Below this a format loses quality that a user should have asked for.
_WIDE = ("bf16", "fp8", "int8")


def _quantizations(spec: StackSpec, model: Model) -> tuple[str, ...]:
    """The asked one, or those that are preferred, or all of 8 bits and more and what the template itself proposes.

    A plan never takes fewer bits than that by itself: narrower formats are named as alternatives.
    """
    if spec.quantization is not None:
        return (spec.quantization,)
    if spec.prefer.quantizations:
        return tuple(name for name in spec.prefer.quantizations if name in model.quantizations) or (
            spec.prefer.quantizations
        )
    proposed = {profile.quantization for profile in model.profiles}
    return tuple(name for name in model.quantizations if name in _WIDE or name in proposed)


def cheaper_and_narrower(chosen: Checked, spec: StackSpec, catalog: Catalog, market: price.Market) -> Checked | None:
    """What a format of fewer bits would save, where the user left the format open and one does save."""
    model, dollars = chosen.choice.model, chosen.cost.usd_per_hour
    if spec.quantization is not None or spec.prefer.quantizations or dollars is None:
        return None
    offered = set(_quantizations(spec, model))
    narrower = [name for name in model.checkpoints if name not in offered]
    found = best(
        [
            checked
            for name in narrower
            for checked in candidates(spec.model_copy(update={"quantization": name}), catalog, model, market)
        ]
    )
    if found is None or found.cost.usd_per_hour is None or found.cost.usd_per_hour >= dollars:
        return None
    return found


def _topologies(spec: StackSpec, gpu: Gpu) -> list[Topology]:
    """The asked one, or every count worth renting, smallest first."""
    node = gpu.max_gpus_per_node
    tensor, pipeline, gpus = spec.tensor_parallel, spec.pipeline_parallel, spec.gpus
    if gpus is not None or tensor is not None or pipeline is not None:
        if gpus is None:
            gpus = (tensor or 1) * (pipeline or 1)
        tensor = tensor or (gpus // pipeline if pipeline else min(gpus, node))
        # A count that is no whole number of this GPU's nodes is another plan, not this one.
        return [] if gpus > node and gpus % node else [Topology(tensor, gpus // tensor)]
    counts = [count for count in _IN_NODE if count <= node]
    # Several nodes are proposed of machines that are built for it: cards without NVLink come without a fabric too.
    if gpu.interconnect.kind == "nvlink" and node > 1:
        counts += [node * nodes for nodes in _NODES]
    most = spec.prefer.max_gpus
    counts = [count for count in counts if most is None or count <= most] or counts[:1]
    return [Topology(min(count, node), max(1, count // node)) for count in counts]
