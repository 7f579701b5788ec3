"""Lists the configurations that a question leaves open, and the neighbours of one that was refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from modelstacks import price
from modelstacks.catalog import Catalog, Gpu, Model
from modelstacks.fit import Topology
from modelstacks.plan.check import (
    Checked,
    check,
    choice_for,
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


def candidates(spec: StackSpec, catalog: Catalog, model: Model, market: price.Market) -> Iterator[Checked]:
    """Every configuration the question allows, checked, the profile's own first."""
    for gpu in _gpus(spec, catalog, model, market):
        for quantization in _quantizations(spec, model, gpu):
            for topology in _topologies(spec, gpu):
                choice = choice_for(spec, catalog, model, gpu, quantization, topology)
                yield check(choice, spec.replicas, market, catalog)


def best(checked: list[Checked]) -> Checked | None:
    """The cheapest that fits; at one price fewer GPUs, then less quantization (the order they were listed in)."""
    fitting = [candidate for candidate in checked if candidate.fits]

    def rank(candidate: Checked) -> tuple[float, int]:
        dollars = candidate.cost.usd_per_hour
        return math.inf if dollars is None else dollars, candidate.choice.topology.gpus

    return min(fitting, key=rank, default=None)


def closest(checked: list[Checked], model: Model) -> Checked:
    """Of configurations that all fail, the one to explain: the profile's size if listed, else the first."""
    profile = profile_for(model, checked[0].choice.gpu.id, checked[0].choice.quantization)

    def distance(candidate: Checked) -> tuple[bool, bool, int]:
        choice = candidate.choice
        off = abs(choice.topology.gpus - profile.gpus)
        return choice.gpu.id != checked[0].choice.gpu.id, choice.quantization != checked[0].choice.quantization, off

    return min(checked, key=distance)


def alternatives(refused: Checked, spec: StackSpec, catalog: Catalog, market: price.Market) -> list[Alternative]:
    """The nearest plans that pass the same check, the cheapest kind of change first, at most two of a kind.

    When no neighbour fits, the cheapest plan of the model for the same load, whatever it takes.
    """
    found: dict[tuple[object, ...], Alternative] = {}
    kinds: Counter[str] = Counter()
    for kind, choice in _neighbours(refused, spec, catalog, market):
        key = (choice.gpu.id, choice.engine, choice.quantization, choice.topology, choice.load)
        if key in found or kinds[kind] == _MOST_OF_A_KIND:
            continue
        passed = check(choice, spec.replicas, market, catalog)
        if passed.fits:
            found[key] = _alternative(passed, refused, spec)
            kinds[kind] += 1
    if not found:
        free = ("gpu", "gpus", "tensor_parallel", "pipeline_parallel", "quantization", "engine")
        anything = spec.model_copy(update=dict.fromkeys(free))
        cheapest = best(list(candidates(anything, catalog, refused.choice.model, market)))
        return [_alternative(cheapest, refused, spec)] if cheapest is not None else []
    return list(found.values())


def _alternative(passed: Checked, refused: Checked, spec: StackSpec) -> Alternative:
    return Alternative(
        _change(passed.choice, refused.choice, spec), passed.choice, passed.cost, passed.memory.max_concurrency
    )


def _change(choice: Choice, refused: Choice, spec: StackSpec) -> str:
    """The stack keys to set so that the question leads to `choice`: what differs, and what was left open."""
    topology, load = choice.topology, choice.load
    open_counts = spec.gpus is None and spec.tensor_parallel is None and spec.pipeline_parallel is None
    keys: list[tuple[str, object, object, object]] = [
        ("engine", spec.engine, refused.engine, choice.engine),
        ("gpu", spec.gpu, None, choice.gpu.id),
        ("quantization", spec.quantization, refused.quantization, choice.quantization),
        ("kvCacheDtype", spec.kv_cache_dtype, refused.load.kv_cache_dtype, load.kv_cache_dtype),
        ("gpus", spec.gpus, refused.topology.gpus if spec.gpu else None, topology.gpus),
        ("tensorParallel", spec.tensor_parallel, topology.tensor_parallel, topology.tensor_parallel),
        ("pipelineParallel", spec.pipeline_parallel, topology.pipeline_parallel, topology.pipeline_parallel),
        ("context", spec.context, refused.load.context, load.context),
        ("concurrency", spec.concurrency, refused.load.concurrency, load.concurrency),
    ]
    changed = []
    for key, asked, before, after in keys:
        if key == "gpus" and asked is None and not open_counts:
            continue
        # What was set must be set anew when it differs; what was left open is named when it would be decided otherwise.
        if (asked is not None and asked != after) or (asked is None and before != after):
            changed.append(f"modelstacks:{key}: {after}")
    return ", ".join(changed)


_Neighbour = tuple[str, Choice]


def _neighbours(refused: Checked, spec: StackSpec, catalog: Catalog, market: price.Market) -> Iterator[_Neighbour]:
    """Kind of change and the choice it leads to; whether it fits is not known yet."""
    yield from _smaller_loads(refused)
    choice, model = refused.choice, refused.choice.model

    def at(gpu: Gpu, quantization: str, topology: Topology, engine: str | None = None) -> Choice:
        asked = spec.model_copy(update={"engine": engine or choice.engine})
        new = choice_for(asked, catalog, model, gpu, quantization, topology)
        if new.form is None:
            return new
        load = with_context(new.load, choice.load.context, new.form, gpu)
        return replace(new, load=replace(load, concurrency=choice.load.concurrency))

    for engine in catalog.versions.engines:
        if engine != choice.engine:
            other = at(choice.gpu, choice.quantization, choice.topology, engine)
            yield "engine", other
    for quantization in model.quantizations:
        if quantization != choice.quantization:
            other = at(choice.gpu, quantization, choice.topology)
            yield "quantization", other
            yield from _with_less_context("quantization", other)
    open_counts = spec.model_copy(update={"gpus": None, "tensor_parallel": None, "pipeline_parallel": None})
    for topology in _topologies(open_counts, choice.gpu):
        if topology != choice.topology:
            yield "gpus", at(choice.gpu, choice.quantization, topology)
    others = []
    for gpu in _gpus(spec.model_copy(update={"gpu": None}), catalog, model, market):
        for topology in _topologies(open_counts, gpu):
            if gpu.id != choice.gpu.id and topology.gpus == choice.topology.gpus:
                dollars = price.cost(gpu, topology, spec.replicas, market).usd_per_hour
                others.append((math.inf if dollars is None else dollars, gpu.id, topology))
    for _, gpu_id, topology in sorted(others, key=lambda entry: entry[:2]):
        yield "gpu", at(catalog.gpus[gpu_id], choice.quantization, topology)


def _smaller_loads(refused: Checked) -> Iterator[_Neighbour]:
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
                yield "load", replace(choice, load=replace(choice.load, concurrency=count))
    for dtype in ("fp8", "fp8_e4m3fn", "auto"):
        if dtype in form.kv_cache_dtypes and dtype != choice.load.kv_cache_dtype:
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
    named = [profile.gpu for profile in model.profiles]
    gpus = sorted(
        catalog.gpus.values(), key=lambda gpu: (gpu.id not in named, named.index(gpu.id) if gpu.id in named else 0)
    )
    return [gpu for gpu in gpus if not market.orderable or any(m.cloud == market.cloud for m in gpu.machines)] or gpus


def _quantizations(spec: StackSpec, model: Model, gpu: Gpu) -> tuple[str, ...]:
    """The asked one, or those the model's profiles use: a plan never quantizes further than its template proposes."""
    if spec.quantization is not None:
        return (spec.quantization,)
    own = tuple(dict.fromkeys(profile.quantization for profile in model.profiles if profile.gpu == gpu.id))
    return own or tuple(dict.fromkeys(profile.quantization for profile in model.profiles))


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
    counts = [count for count in _IN_NODE if count <= node] + [node * nodes for nodes in _NODES]
    return [Topology(min(count, node), max(1, count // node)) for count in counts]
