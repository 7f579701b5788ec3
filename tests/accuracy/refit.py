"""Fits the constants of vLLM's overhead anew from records, so that a source can be left out and then predicted.

Only what the start-up logs decide is fitted: how many copies of the logits sampling keeps, before and since 0.17, and
what communication takes over NVLink. The rest is read in vLLM's code or in the logs' own breakdown.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from records import Record

from modelstacks.catalog import Catalog
from modelstacks.catalog.versions import version_key
from modelstacks.plan import Plan

GIB = 2**30
# The sampler was rewritten, and communication buffers grew, in 0.17.
NEW_SAMPLER, NEW_LINK = (0, 17), (0, 17)


@dataclass(frozen=True)
class Constants:
    """Copies of the logits, and GiB of communication buffers, in old and in newer versions."""

    copies_old: float
    copies_new: float
    link_old: float
    link_new: float


def refit(asked: Iterable[tuple[Record, Plan]], now: Constants) -> Constants:
    """Medians over the records that decide each constant; `now` where none does."""
    plain = [(record, plan) for record, plan in asked if _decides(record, plan)]
    copies = {True: [], False: []}  # type: dict[bool, list[float]]
    for record, plan in plain:
        if record.tensor_parallel == 1 and _samples(plan):
            copies[_since(record, NEW_SAMPLER)].append(_copies(record, plan))
    old, new = (statistics.median(copies[key]) if copies[key] else was
        for key, was in ((False, now.copies_old), (True, now.copies_new))
    )  # fmt: skip
    links = {True: [], False: []}  # type: dict[bool, list[float]]
    for record, plan in plain:
        if record.tensor_parallel > 1 and plan.choice.gpu.interconnect.kind == "nvlink":
            own = new if _since(record, NEW_SAMPLER) else old
            links[_since(record, NEW_LINK)].append(_link(record, plan, own))
    link_old, link_new = (statistics.median(links[key]) if links[key] else was
        for key, was in ((False, now.link_old), (True, now.link_new))
    )  # fmt: skip
    return Constants(old, new, link_old, link_new)


def with_constants(catalog: Catalog, constants: Constants) -> Catalog:
    """A catalogue whose vLLM has these constants."""
    versions = catalog.versions
    server = versions.engines["vllm"]["server"]
    history = tuple(
        era.model_copy(update={"overhead": _era(era.overhead, era.before, constants)}) for era in server.history
    )
    overhead = server.overhead.model_copy(
        update={
            "sampler_copies": constants.copies_new,
            "link_gib": server.overhead.link_gib | {"nvlink": constants.link_new},
        }
    )
    changed = server.model_copy(update={"overhead": overhead, "history": history})
    engines = versions.engines | {"vllm": versions.engines["vllm"] | {"server": changed}}
    other = Catalog(catalog.root)
    other.__dict__["versions"] = versions.model_copy(update={"engines": engines})
    return other


def _era(overhead: dict[str, object], before: str, constants: Constants) -> dict[str, object]:
    changed = dict(overhead)
    if "sampler_copies" in changed:
        changed["sampler_copies"] = constants.copies_old
    link = changed.get("link_gib")
    if isinstance(link, dict):
        changed["link_gib"] = link | {"nvlink": constants.link_old}
    return changed


def _decides(record: Record, plan: Plan) -> bool:
    architecture = plan.choice.model.architecture
    plain = architecture.moe is None and architecture.mla is None and architecture.encoder is None
    return (
        record.complete
        and plain
        and record.kv_gib is not None
        and record.weights_gib is not None
        and (record.pipeline_parallel == 1)
    )


def _samples(plan: Plan) -> bool:
    """Sampling, not the forward pass, is the peak: wide vocabularies."""
    return plan.choice.model.architecture.vocab > 90_000


def _overhead(record: Record, plan: Plan) -> float:
    return plan.memory.budget_gib - (record.weights_gib or 0.0) - (record.kv_gib or 0.0)


def _logits(plan: Plan) -> float:
    return plan.choice.load.max_num_seqs * plan.choice.model.architecture.vocab * 4 / GIB


def _rest(plan: Plan, *, without: str) -> float:
    """Everything the plan counts but the activations and one named part, and what sampling keeps beside logits."""
    parts = dict(plan.memory.overhead_parts)
    copies = plan.choice.figures.overhead.sampler_copies
    kept = parts["activations"] - copies * _logits(plan)
    return sum(size for name, size in parts.items() if name not in ("activations", without)) + kept


def _copies(record: Record, plan: Plan) -> float:
    return (_overhead(record, plan) - _rest(plan, without="")) / _logits(plan)


def _link(record: Record, plan: Plan, copies: float) -> float:
    return _overhead(record, plan) - _rest(plan, without="communication buffers") - copies * _logits(plan)


def _since(record: Record, version: tuple[int, int]) -> bool:
    return (version_key(record.version or "") or (99,))[:2] >= version
