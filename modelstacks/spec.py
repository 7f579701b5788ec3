"""Turns what the user wrote (a stack file, Pulumi config, command line options) into one checked StackSpec.

Defaults live here and nowhere else. Every mistake is reported at once, with its path, value and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from modelstacks import documents, project
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput, Problem, listed

NAMESPACE = "modelstacks"

_BOUNDED = reprlib.Repr()
_BOUNDED.maxlevel, _BOUNDED.maxdict, _BOUNDED.maxlist, _BOUNDED.maxstring, _BOUNDED.maxother = 2, 4, 4, 60, 60
Quantization = Literal["bf16", "fp8", "int8", "int4", "awq", "gptq", "mxfp4", "nvfp4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
# The ranks that vLLM has kernels for (config/lora.py).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)

# A stack's name becomes part of object names: RayService allows 47 characters (KubeRay MaxRayServiceNameLength).
_STACK_NAME = re.compile(r"[a-z]([a-z0-9.-]*[a-z0-9])?")
_STACK_NAME_MAX = 40
_TAKEN_NAMESPACES = ("default",)
_DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


def _whole_number(value: object) -> object:
    """Accept 2 and "2" (Pulumi writes config values as text), and nothing that only looks like a number."""
    if isinstance(value, bool | float):
        raise ValueError("must be a whole number")
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,12}", value):
            raise ValueError("must be a whole number without unit, such as 131072")
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
    quantizations: tuple[Quantization, ...] = ()
    max_gpus: Count | None = None


class StackSpec(_Section):
    """What one user wants to run. None means: decide for me."""

    model: Word
    gpu: Word | None = None
    gpus: Count | None = None
    tensor_parallel: Count | None = None
    pipeline_parallel: Count | None = None
    quantization: Quantization | None = None
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

# Keys that the Pulumi program reads beside the spec: a secret must never pass through plan or render.
PROGRAM_KEYS = ("hubToken", "stackFile")


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


def parse_file(path: Path, catalog: Catalog, *, overlay: Mapping[str, Any] | None = None) -> StackSpec:
    """Read a stack file and parse it. Keys of other Pulumi packages are left alone."""
    found, bare = _config_of(path)
    values = {**found, **(overlay or {})}
    try:
        parsed = parse({k: v for k, v in values.items() if k not in PROGRAM_KEYS}, catalog, source=str(path))
    except BadInput as error:
        raise BadInput([*bare, *error.problems], source=str(path), next_step=error.next_step) from None
    if bare:
        raise BadInput(bare, source=str(path), next_step="add the namespace and run again")
    return parsed


def stack_values(path: Path) -> dict[str, Any]:
    """The modelstacks keys of a stack file, prefix removed. Raises BadInput for a file that is not one."""
    return _config_of(path)[0]


def _config_of(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The modelstacks keys of a stack file, and a problem for each key that no package could own."""
    next_step = "see docs/stack-file.md, or write one with modelstacks init"
    data = documents.read_file(path)
    if data is None:
        raise BadInput([Problem("file", "is empty", allowed="config: {modelstacks:model: …}")],
            source=str(path), next_step=next_step,
        )  # fmt: skip
    config = data.get("config") if isinstance(data, dict) else None
    if not isinstance(config, dict):
        problem = Problem("config", "must be a mapping of modelstacks:… keys")
        raise BadInput([problem], source=str(path), next_step=next_step)
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for key, value in config.items():
        if not isinstance(key, str) or ":" not in key:
            near = _nearest(str(key), KEYS)
            hint = f"{NAMESPACE}:{near or key}"
            problems.append(Problem(f"config.{key}", "has no namespace", key, suggestion=hint))
        elif key.startswith(f"{NAMESPACE}:"):
            values[key.removeprefix(f"{NAMESPACE}:")] = value
    return values, problems


def config_values(config: Mapping[str, str]) -> dict[str, Any]:
    """The modelstacks keys of a running Pulumi program, where objects arrive as JSON text."""
    values: dict[str, Any] = {}
    for key, text in config.items():
        namespace, _, name = key.partition(":")
        if namespace != NAMESPACE:
            continue
        value: Any = text
        if isinstance(text, str) and (text[:1] in ("{", "[") or text in ("true", "false")):
            try:
                value = json.loads(text)
            except ValueError:
                value = text
        elif name in ("gpuMemoryUtilization", "budgetUsdPerMonth"):
            value = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else text
        values[name] = value
    return values


def stack_file(project_dir: Path, stack: str) -> Path:
    """The file of a stack. Raises BadInput for a bad name, an unknown stack, or two files with one name."""
    check_stack_name(stack)
    folder = project.stacks_dir(project_dir)
    found = [path for path in (*_stack_files(folder), *_stack_files(project_dir)) if stack_name(path) == stack]
    clash = [name for name in stack_names(project_dir) if name != stack and object_name(name) == object_name(stack)]
    if clash:
        text = f"{stack} and {clash[0]} would name the same objects: {object_name(stack)}"
        raise BadInput([Problem("stack", text, stack)], source="stacks", next_step="rename one of the files")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(project_dir)) for path in sorted(found))
        raise BadInput(
            [Problem("stack", f"two files have the name {stack}: {names}", stack)],
            source="stacks", next_step="keep one of them in stacks/",
        )  # fmt: skip
    if not found:
        names_known = stack_names(project_dir)
        near = _nearest(stack, names_known)
        raise BadInput(
            [Problem("stack", f"there is no stacks/Pulumi.{stack}.yaml", stack, listed(names_known), near)],
            source="stacks", next_step=f"modelstacks init {stack} --model <model>",
        )  # fmt: skip
    return found[0]


def stack_names(project_dir: Path) -> tuple[str, ...]:
    """Every stack of the project, sorted."""
    return tuple(sorted({stack_name(path) for path in _stack_files(project.stacks_dir(project_dir))}))


def _stack_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("Pulumi.*.*") if path.suffix in (".yaml", ".yml")]


def stack_name(path: Path) -> str:
    """The stack that a file Pulumi.<stack>.yaml belongs to."""
    return path.name.removeprefix("Pulumi.").removesuffix(".yaml").removesuffix(".yml")


def object_name(stack: str) -> str:
    """The base of a stack's object names: dots are not allowed in all of them."""
    return stack.replace(".", "-")


def check_namespaces(specs: Mapping[str, StackSpec]) -> None:
    """Raise BadInput when two stacks would own one namespace: deleting one would delete the other's objects."""
    owners: dict[str, str] = {}
    for stack, spec in specs.items():
        namespace = spec.namespace or object_name(stack)
        if namespace in owners:
            text = f"{namespace!r} is the namespace of {owners[namespace]} too"
            problem = Problem(f"{stack}: {_path('namespace')}", text, namespace, "one namespace a stack")
            raise BadInput([problem], source="stacks", next_step="give one of them another namespace")
        owners[namespace] = stack


def check_stack_name(stack: str) -> None:
    """Raise BadInput unless the name can be part of Kubernetes object names."""
    if not _STACK_NAME.fullmatch(stack) or len(stack) > _STACK_NAME_MAX:
        allowed = f"lower case letters, digits, '-' and '.', a letter first, at most {_STACK_NAME_MAX} characters"
        raise BadInput([Problem("stack", f"{stack!r} is no usable stack name", stack, allowed)], source="stack")


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
        Problem(_path(path), f"{value!r} is not known", value, ", ".join(allowed), _nearest(value, allowed))
        for path, value, allowed in known
        if isinstance(value, str) and value not in allowed
    ]
    model = values.get("model")
    if isinstance(model, str) and model not in catalog.model_ids:
        unknown = catalog.unknown_model(model)
        problems.append(Problem(_path("model"), unknown.message, model, unknown.allowed, unknown.suggestion))
    return problems


def _contradictions(spec: StackSpec, catalog: Catalog) -> list[Problem]:
    problems = []
    tensor, pipeline, gpus = spec.tensor_parallel, spec.pipeline_parallel, spec.gpus
    if gpus is not None and tensor is not None and pipeline is not None and tensor * pipeline != gpus:
        product = f"tensorParallel {tensor} × pipelineParallel {pipeline} = {tensor * pipeline}"
        problems.append(Problem(_path("gpus"), f"is {gpus}, but {product}", gpus, f"{tensor * pipeline}"))
    elif gpus is not None:
        for key, part in (("tensorParallel", tensor), ("pipelineParallel", pipeline)):
            if part is not None and gpus % part:
                divisors = ", ".join(str(n) for n in range(1, gpus + 1) if gpus % n == 0)
                problems.append(Problem(_path(key), f"{part} does not divide gpus {gpus}", part, divisors))
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
        problems.append(Problem(_path(key), text, total, f"1 to {node} GPUs, or a multiple of {node}"))
    if spec.cloud is not None:
        kind = catalog.clouds[spec.cloud.kind]
        given = spec.cloud.model_dump(by_alias=True, exclude_unset=True, exclude={"kind"})
        for option in given:
            if option not in kind.options:
                allowed = ", ".join(kind.options) or "no options"
                text = f"is not an option of kind {kind.id}"
                problems.append(Problem(_path(f"cloud.{option}"), text, given[option], allowed))
        zones = kind.options.get("zones", {}).get("allowed")
        for zone in spec.cloud.zones:
            if zones is not None and zone not in zones:
                problems.append(Problem(_path("cloud.zones"), f"{zone!r} is not known", zone, ", ".join(zones)))
        of = spec.cloud.machines_of
        clouds = tuple(sorted({machine.cloud for machine in catalog.machines}))
        if of is not None and of not in clouds:
            problems.append(Problem(_path("cloud.machinesOf"), f"{of!r} is not known", of, ", ".join(clouds)))
    if spec.namespace in _TAKEN_NAMESPACES or (spec.namespace or "").startswith("kube-"):
        text = f"{spec.namespace!r} belongs to the cluster; a stack labels and owns its namespace"
        problems.append(Problem(_path("namespace"), text, spec.namespace, "a namespace of its own"))
    sequences, batch = spec.max_num_seqs, spec.max_num_batched_tokens
    if sequences is not None and batch is not None and batch < sequences:
        text = f"{batch} is below maxNumSeqs {sequences}: every running request takes a token of each step"
        problems.append(Problem(_path("maxNumBatchedTokens"), text, batch, f"{sequences} or more"))
    if sequences is not None and spec.concurrency is not None and sequences < spec.concurrency:
        text = f"{sequences} is below concurrency {spec.concurrency}"
        problems.append(Problem(_path("maxNumSeqs"), text, sequences, f"{spec.concurrency} or more"))
    if batch is not None and spec.concurrency is not None and batch < spec.concurrency:
        text = f"{batch} is below concurrency {spec.concurrency}: every running request takes a token of each step"
        problems.append(Problem(_path("maxNumBatchedTokens"), text, batch, f"{spec.concurrency} or more"))
    if spec.prefer.max_gpus is not None and (spec.gpus or tensor or 0) > spec.prefer.max_gpus:
        text = f"{spec.gpus or tensor} is more than prefer.maxGpus {spec.prefer.max_gpus}"
        problems.append(Problem(_path("gpus"), text, spec.gpus or tensor, f"at most {spec.prefer.max_gpus}"))
    if spec.max_lora_rank is not None and spec.max_lora_rank not in LORA_RANKS:
        ranks = ", ".join(map(str, LORA_RANKS))
        problems.append(Problem(_path("maxLoraRank"), f"{spec.max_lora_rank} has no kernel", spec.max_lora_rank, ranks))
    if spec.max_lora_rank is not None and not (spec.max_loras or spec.lora_modules):
        problems.append(Problem(_path("maxLoraRank"), "is set, but no adapter is: add loraModules or maxLoras"))
    outside = spec.gpu is not None and spec.prefer.gpus and spec.gpu not in spec.prefer.gpus
    if outside:
        allowed = ", ".join(spec.prefer.gpus)
        problems.append(Problem(_path("gpu"), f"is {spec.gpu}, which prefer.gpus leaves out", spec.gpu, allowed))
    if spec.quantization and spec.prefer.quantizations and spec.quantization not in spec.prefer.quantizations:
        allowed = ", ".join(spec.prefer.quantizations)
        text = f"is {spec.quantization}, which prefer.quantizations leaves out"
        problems.append(Problem(_path("quantization"), text, spec.quantization, allowed))
    if spec.weights.claim is not None and spec.weights.storage_class is not None:
        problems.append(Problem(_path("weights"), "takes claim or storageClass, not both"))
    return problems


def _problem(detail: Any) -> Problem:
    """One pydantic error in the words of the stack file."""
    steps = [str(step) for step in detail["loc"]]
    path = _path(".".join(_camel(step) for step in steps))
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        sections: dict[str, type[_Section]] = {"cloud": CloudSpec, "weights": WeightsSpec, "prefer": PreferSpec}
        section = sections.get(steps[0] if len(steps) > 1 else "", StackSpec)
        names = tuple(_camel(name) for name in section.model_fields)
        return Problem(path, "is not a known key", value, ", ".join(names), _nearest(steps[-1], names))
    if detail["type"] == "missing":
        return Problem(path, "is missing; name a model, see `modelstacks models`")
    if detail["type"] == "literal_error":
        allowed = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        near = _nearest(value, tuple(allowed.split(", "))) if isinstance(value, str) else None
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


def _path(key: str) -> str:
    return f"{NAMESPACE}:{key}"


def _nearest(word: str, words: tuple[str, ...]) -> str | None:
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
