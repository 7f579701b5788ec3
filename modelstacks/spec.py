"""Turns what the user wrote (a stack file, Pulumi config, command line options) into one checked StackSpec.

Defaults live here and nowhere else. Every mistake is reported at once, with its path, value and what is allowed.
"""

from __future__ import annotations

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from modelstacks.catalog import Catalog
from modelstacks.catalog.hardware import WeightFormat
from modelstacks.errors import BadInput, Problem

NAMESPACE = "modelstacks"

_BOUNDED = reprlib.Repr()
_BOUNDED.maxlevel, _BOUNDED.maxdict, _BOUNDED.maxlist, _BOUNDED.maxstring, _BOUNDED.maxother = 2, 4, 4, 60, 60
QUANTIZATIONS: tuple[str, ...] = get_args(WeightFormat)
# The ranks that vLLM has kernels for (config/lora.py).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

_TAKEN_NAMESPACES = ("default",)
_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


def _in_digits(value: str) -> int:
    """What a number with a unit most likely means, as an example: 128k is 131072."""
    units = {"k": 1024, "m": 10**6}
    found = re.fullmatch(r"([0-9]{1,6})\s*([km])", value.strip().lower())
    return int(found[1]) * units[found[2]] if found is not None else 2


def _whole_number(value: object) -> object:
    """Accept 2 and "2" (Pulumi writes config values as text), and nothing that only looks like a number."""
    if isinstance(value, bool | float):
        raise ValueError("must be a whole number")
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,12}", value):
            raise ValueError(f"must be a whole number without unit, such as {_in_digits(value)}")
        return int(value)
    return value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("must be text")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValueError("must not hold control characters")
    return value


Count = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=4096)]
Tokens = Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=100_000_000)]
Usd = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1, allow_inf_nan=False)]
Word = Annotated[str, BeforeValidator(_text), Field(min_length=1, max_length=253)]
DnsLabel = Annotated[str, BeforeValidator(_text), Field(pattern=_DNS_LABEL)]


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


LabelKey = Annotated[
    str, BeforeValidator(_text), Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
]
LabelValue = Annotated[
    str, BeforeValidator(_text), Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$")
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_camel, populate_by_name=True)


class Toleration(_Section):
    """A toleration as Kubernetes has it."""

    key: Word | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: Word | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Annotated[int, BeforeValidator(_whole_number), Field(ge=0)] | None = None


class CloudSpec(_Section):
    """How GPU nodes are had. Which options a kind takes is declared in templates/clouds/<kind>.yaml."""

    kind: Word = "existing"
    region: Word | None = None
    zones: tuple[Word, ...] = ()
    capacity: Literal["on-demand", "spot"] = "on-demand"
    node_selector: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    machines_of: Word | None = None
    node_class: DnsLabel | None = None


class WeightsSpec(_Section):
    """Where a server keeps its weights: node-local scratch by default, a claim, or a volume per pod."""

    claim: DnsLabel | None = None
    storage_class: Annotated[Word, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")] | None = None


class PreferSpec(_Section):
    """What an open choice is made from, in this order of worth: types and formats that are not named are left out."""

    gpus: tuple[Word, ...] = ()
    quantizations: tuple[WeightFormat, ...] = ()
    max_gpus: Count | None = None


class StackSpec(_Section):
    """What one user wants to run. None means: decide for me."""

    model: Word
    gpu: Word | None = None
    gpus: Count | None = None
    tensor_parallel: Count | None = None
    pipeline_parallel: Count | None = None
    quantization: WeightFormat | None = None
    kv_cache_dtype: Word = "auto"
    gpu_memory_utilization: Fraction | None = None
    max_num_batched_tokens: Tokens | None = None
    max_num_seqs: Count | None = None
    context: Annotated[Tokens, Field(ge=2)] | None = None
    concurrency: Count | None = None
    replicas: Annotated[int, BeforeValidator(_whole_number), Field(ge=0, le=1000)] = 1
    engine: Word | None = None
    engine_version: Word | None = None
    text_only: bool = False
    lora_modules: dict[DnsLabel, Word] = Field(default_factory=dict)
    max_loras: Annotated[int, BeforeValidator(_whole_number), Field(ge=1, le=256)] | None = None
    max_lora_rank: Annotated[int, BeforeValidator(_whole_number)] | None = None
    prefer: PreferSpec = PreferSpec()
    cloud: CloudSpec | None = None
    budget_usd_per_month: Usd | None = None
    accepted_license: Word | None = None
    namespace: DnsLabel | None = None
    kube_context: Word | None = None
    kubeconfig: Word | None = None
    require_reviewed: bool = False
    hub_token_secret: DnsLabel = "hub-token"
    weights: WeightsSpec = WeightsSpec()


KEYS = tuple(_camel(name) for name in StackSpec.model_fields)


def parse(values: Mapping[str, Any], catalog: Catalog, *, source: str) -> StackSpec:
    """Check `values` (key without prefix → value) against the catalogue and build the spec.

    Raises BadInput that lists every problem: unknown keys, wrong types, impossible values, unknown ids.
    """
    problems: list[Problem] = []
    spec: StackSpec | None = None
    try:
        spec = StackSpec(**{str(key): value for key, value in values.items()})
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors(include_url=False)]
    problems += _unknown_ids(values, catalog)
    if spec is not None and not problems:
        problems += _contradictions(spec, catalog)
    if problems or spec is None:
        raise BadInput(_unique(problems), source=source, next_step="correct the values named above and run again")
    return spec


def _unknown_ids(values: Mapping[str, Any], catalog: Catalog) -> list[Problem]:
    cloud = values.get("cloud")
    kind = cloud.get("kind") if isinstance(cloud, Mapping) else None
    known: list[tuple[str, Any, tuple[str, ...]]] = [
        ("gpu", values.get("gpu"), catalog.gpu_ids),
        ("engine", values.get("engine"), tuple(catalog.versions.engines)),
        ("cloud.kind", kind, tuple(catalog.clouds)),
    ]
    prefer = values.get("prefer")
    named = prefer.get("gpus") if isinstance(prefer, Mapping) else None
    known += [("prefer.gpus", gpu, catalog.gpu_ids) for gpu in (named if isinstance(named, list | tuple) else ())]
    problems = [
        Problem(key_path(path), f"{value!r} is not known", value, ", ".join(allowed), nearest(value, allowed))
        for path, value, allowed in known
        if isinstance(value, str) and value not in allowed
    ]
    model = values.get("model")
    if isinstance(model, str) and model not in catalog.model_ids:
        unknown = catalog.unknown_model(model)
        problems.append(Problem(key_path("model"), unknown.message, model, unknown.allowed, unknown.suggestion))
    return problems


def _contradictions(spec: StackSpec, catalog: Catalog) -> list[Problem]:
    problems = []
    tensor, pipeline, gpus = spec.tensor_parallel, spec.pipeline_parallel, spec.gpus
    if gpus is not None and tensor is not None and pipeline is not None and tensor * pipeline != gpus:
        product = f"tensorParallel {tensor} × pipelineParallel {pipeline} = {tensor * pipeline}"
        problems.append(Problem(key_path("gpus"), f"is {gpus}, but {product}", gpus, f"{tensor * pipeline}"))
    elif gpus is not None:
        for key, part in (("tensorParallel", tensor), ("pipelineParallel", pipeline)):
            if part is not None and gpus % part:
                divisors = ", ".join(str(n) for n in range(1, gpus + 1) if gpus % n == 0)
                problems.append(Problem(key_path(key), f"{part} does not divide gpus {gpus}", part, divisors))
    total = gpus or (tensor or 1) * (pipeline or 1)
    nodes = (
        {catalog.gpus[spec.gpu].max_gpus_per_node}
        if spec.gpu
        else {g.max_gpus_per_node for g in catalog.gpus.values() if g.is_to_be_had}
    )
    if not problems and all(total > node and total % node for node in nodes):
        node = max(nodes)
        key = "gpus" if gpus is not None else "tensorParallel" if tensor is not None else "pipelineParallel"
        text = f"{total} GPUs per replica are no whole number of nodes of {node}"
        problems.append(Problem(key_path(key), text, total, f"1 to {node} GPUs, or a multiple of {node}"))
    if spec.cloud is not None:
        kind = catalog.clouds[spec.cloud.kind]
        given = spec.cloud.model_dump(by_alias=True, exclude_unset=True, exclude={"kind"})
        for option in given:
            if option not in kind.options:
                allowed = ", ".join(kind.options) or "no options"
                text = f"is not an option of kind {kind.id}"
                problems.append(Problem(key_path(f"cloud.{option}"), text, given[option], allowed))
        zones = kind.options.get("zones", {}).get("allowed")
        for zone in spec.cloud.zones:
            if zones is not None and zone not in zones:
                problems.append(Problem(key_path("cloud.zones"), f"{zone!r} is not known", zone, ", ".join(zones)))
        of = spec.cloud.machines_of
        clouds = tuple(sorted({machine.cloud for machine in catalog.machines}))
        if of is not None and of not in clouds:
            problems.append(Problem(key_path("cloud.machinesOf"), f"{of!r} is not known", of, ", ".join(clouds)))
    if spec.namespace in _TAKEN_NAMESPACES or (spec.namespace or "").startswith("kube-"):
        text = f"{spec.namespace!r} belongs to the cluster; a stack labels and owns its namespace"
        problems.append(Problem(key_path("namespace"), text, spec.namespace, "a namespace of its own"))
    sequences, batch = spec.max_num_seqs, spec.max_num_batched_tokens
    if sequences is not None and batch is not None and batch < sequences:
        text = f"{batch} is below maxNumSeqs {sequences}: every running request takes a token of each step"
        problems.append(Problem(key_path("maxNumBatchedTokens"), text, batch, f"{sequences} or more"))
    if sequences is not None and spec.concurrency is not None and sequences < spec.concurrency:
        text = f"{sequences} is below concurrency {spec.concurrency}"
        problems.append(Problem(key_path("maxNumSeqs"), text, sequences, f"{spec.concurrency} or more"))
    if batch is not None and spec.concurrency is not None and batch < spec.concurrency:
        text = f"{batch} is below concurrency {spec.concurrency}: every running request takes a token of each step"
        problems.append(Problem(key_path("maxNumBatchedTokens"), text, batch, f"{spec.concurrency} or more"))
    if spec.prefer.max_gpus is not None and (spec.gpus or tensor or 0) > spec.prefer.max_gpus:
        text = f"{spec.gpus or tensor} is more than prefer.maxGpus {spec.prefer.max_gpus}"
        problems.append(Problem(key_path("gpus"), text, spec.gpus or tensor, f"at most {spec.prefer.max_gpus}"))
    if spec.max_lora_rank is not None and spec.max_lora_rank not in LORA_RANKS:
        ranks = ", ".join(map(str, LORA_RANKS))
        problems.append(
            Problem(key_path("maxLoraRank"), f"{spec.max_lora_rank} has no kernel", spec.max_lora_rank, ranks)
        )
    if spec.max_lora_rank is not None and not (spec.max_loras or spec.lora_modules):
        problems.append(Problem(key_path("maxLoraRank"), "is set, but no adapter is: add loraModules or maxLoras"))
    outside = spec.gpu is not None and spec.prefer.gpus and spec.gpu not in spec.prefer.gpus
    if outside:
        allowed = ", ".join(spec.prefer.gpus)
        problems.append(Problem(key_path("gpu"), f"is {spec.gpu}, which prefer.gpus leaves out", spec.gpu, allowed))
    if spec.quantization and spec.prefer.quantizations and spec.quantization not in spec.prefer.quantizations:
        allowed = ", ".join(spec.prefer.quantizations)
        text = f"is {spec.quantization}, which prefer.quantizations leaves out"
        problems.append(Problem(key_path("quantization"), text, spec.quantization, allowed))
    if spec.weights.claim is not None and spec.weights.storage_class is not None:
        problems.append(Problem(key_path("weights"), "takes claim or storageClass, not both"))
    return problems


def _problem(detail: Any) -> Problem:
    """One pydantic error in the words of the stack file."""
    steps = [str(step) for step in detail["loc"]]
    path = key_path(".".join(_camel(step) for step in steps))
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        sections: dict[str, type[_Section]] = {"cloud": CloudSpec, "weights": WeightsSpec, "prefer": PreferSpec}
        section = sections.get(steps[0] if len(steps) > 1 else "", StackSpec)
        names = tuple(_camel(name) for name in section.model_fields)
        return Problem(path, "is not a known key", value, ", ".join(names), nearest(steps[-1], names))
    if detail["type"] == "missing":
        return Problem(path, "is missing; name a model, see `modelstacks models`")
    if detail["type"] == "literal_error":
        allowed = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        near = nearest(value, tuple(allowed.split(", "))) if isinstance(value, str) else None
        return Problem(path, f"{value!r} is not known", value, allowed, near)
    if detail["type"] in ("model_type", "dict_type", "tuple_type", "string_type", "bool_type", "bool_parsing"):
        wanted = {
            "model": "a mapping",
            "dict": "a mapping",
            "tuple": "a list",
            "string": "text",
            "bool": "true or false",
        }
        return Problem(path, f"{_shown(value)} must be {wanted[detail['type'].split('_')[0]]}", value)
    if detail["type"] == "string_pattern_mismatch":
        form = "lower case letters, digits and '-'" if detail["ctx"]["pattern"] == _DNS_LABEL else "a Kubernetes name"
        return Problem(path, f"{_shown(value)} is no usable name", value, form)
    if detail["type"] == "string_too_short":
        return Problem(path, "is empty", value)
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return Problem(path, f"{_shown(value)} {message[0].lower()}{message[1:]}", value)


def _shown(value: object) -> str:
    # Bounded before it is written out: aliases can make a small file hold an astronomically large value.
    try:
        return _BOUNDED.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def key_path(key: str) -> str:
    return f"{NAMESPACE}:{key}"


def nearest(word: str, words: tuple[str, ...]) -> str | None:
    folded = {candidate.lower(): candidate for candidate in words}
    longer = [candidate for low, candidate in folded.items() if low.startswith(f"{word.lower()}-")]
    if longer:
        return " or ".join(longer)
    near = difflib.get_close_matches(word.lower(), list(folded), n=1, cutoff=0.6)
    return folded[near[0]] if near else None


def _unique(problems: list[Problem]) -> list[Problem]:
    kept: dict[str, Problem] = {}
    for problem in problems:
        kept.setdefault(problem.path, problem)
    return sorted(kept.values(), key=lambda problem: problem.path)
