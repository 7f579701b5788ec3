"""Lists the configurations that a question leaves open, and the neighbours of one that was refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from modelstacks import price
from modelstacks.catalog import Catalog, Gpu, Model
from modelstacks.fit import Topology
from modelstacks.plan.check import Checked, check, choice_for, longest_context, profile_for, tier_of, with_context
from modelstacks.plan.values import Alternative, Choice
from modelstacks.spec import StackSpec

# Counts worth renting: powers of two in a node (heads divide by them), then up to four whole nodes.
_IN_NODE = (1, 2, 4, 8, 16)
_NODES = (2, 3, 4)
_MOST_ALTERNATIVES = 6


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
    """The nearest plans that pass the same check, the cheapest kind of change first."""
    found: dict[tuple[object, ...], Alternative] = {}
    for change, choice in _neighbours(refused, spec, catalog, market):
        key = (choice.gpu.id, choice.engine, choice.quantization, choice.topology, choice.load)
        passed = check(choice, spec.replicas, market, catalog)
        if passed.fits and key not in found:
            found[key] = Alternative(change, choice, passed.cost, passed.memory.max_concurrency)
        if len(found) == _MOST_ALTERNATIVES:
            break
    return list(found.values())


def _neighbours(
    refused: Checked, spec: StackSpec, catalog: Catalog, market: price.Market
) -> Iterator[tuple[str, Choice]]:
    choice, model = refused.choice, refused.choice.model
    form = choice.form

    def at(gpu: Gpu, quantization: str, topology: Topology, kv_cache_dtype: str | None = None) -> Choice:
        new = choice_for(spec, catalog, model, gpu, quantization, topology)
        load = replace(new.load, context=choice.load.context, concurrency=choice.load.concurrency)
        return replace(new, load=replace(load, kv_cache_dtype=kv_cache_dtype or load.kv_cache_dtype))

    if form is not None:
        longest = longest_context(choice, form, refused.weights)
        if longest is not None and longest < choice.load.context:
            less = replace(choice, load=with_context(choice.load, longest, form, choice.gpu))
            yield f"modelstacks:context: {longest}", less
        fewer = int(refused.memory.max_concurrency)
        if 1 <= fewer < choice.load.concurrency:
            yield f"modelstacks:concurrency: {fewer}", replace(choice, load=replace(choice.load, concurrency=fewer))
        for dtype in ("auto", "fp8"):
            if dtype in form.kv_cache_dtypes and dtype in choice.gpu.kv_cache_dtypes and dtype != spec.kv_cache_dtype:
                smaller = replace(choice, load=replace(choice.load, kv_cache_dtype=dtype))
                yield f"modelstacks:kvCacheDtype: {dtype}", smaller
                both = longest_context(smaller, form, refused.weights)
                if both is not None and both < choice.load.context and (longest is None or both > longest):
                    load = with_context(smaller.load, both, form, choice.gpu)
                    yield f"modelstacks:kvCacheDtype: {dtype}, modelstacks:context: {both}", replace(smaller, load=load)
    for engine in catalog.versions.engines:
        if engine != choice.engine and form is None:
            other = choice_for(
                spec.model_copy(update={"engine": engine}), catalog, model, choice.gpu, choice.quantization,
                choice.topology,
            )  # fmt: skip
            yield f"modelstacks:engine: {engine}", other
    for quantization in model.quantizations:
        if quantization != choice.quantization:
            yield f"modelstacks:quantization: {quantization}", at(choice.gpu, quantization, choice.topology)
    open_counts = spec.model_copy(update={"gpus": None, "tensor_parallel": None, "pipeline_parallel": None})
    for topology in _topologies(open_counts, choice.gpu):
        if topology.gpus > choice.topology.gpus or topology.tensor_parallel < choice.topology.tensor_parallel:
            yield f"modelstacks:gpus: {topology.gpus}", at(choice.gpu, choice.quantization, topology)
    others = []
    for gpu in _gpus(spec.model_copy(update={"gpu": None}), catalog, model, market):
        if gpu.id == choice.gpu.id:
            continue
        same = [t for t in _topologies(open_counts, gpu) if t.gpus == choice.topology.gpus]
        for topology in same:
            other = at(gpu, choice.quantization, topology)
            dollars = price.cost(gpu, topology, spec.replicas, market).usd_per_hour
            others.append((math.inf if dollars is None else dollars, gpu.id, other))
    for _, gpu_id, other in sorted(others, key=lambda entry: entry[:2]):
        yield f"modelstacks:gpu: {gpu_id}", other


def _gpus(spec: StackSpec, catalog: Catalog, model: Model, market: price.Market) -> list[Gpu]:
    if spec.gpu is not None:
        return [catalog.gpus[spec.gpu]]
    named = [profile.gpu for profile in model.profiles]
    gpus = sorted(catalog.gpus.values(), key=lambda gpu: (gpu.id not in named, named.index(gpu.id) if gpu.id in named else 0))
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
        return [Topology(tensor, gpus // tensor)]
    counts = [count for count in _IN_NODE if count <= node] + [node * nodes for nodes in _NODES]
    return [Topology(min(count, node), max(1, count // node)) for count in counts]


__all__ = ["alternatives", "best", "candidates", "closest", "tier_of"]
