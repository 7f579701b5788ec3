"""Turns what the user wrote (a stack file, Pulumi config, command line options) into one checked StackSpec.

Defaults live here and nowhere else. Every mistake is reported at once, with its path, value and what is allowed.
"""

from __future__ import annotations

import contextlib
import re
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from modelstacks import cloudspec, weightspec
from modelstacks.catalog import Catalog
from modelstacks.catalog.hardware import WeightFormat
from modelstacks.cloudspec import Capacity, CloudSpec, ObjectRef, Taint, Toleration
from modelstacks.errors import BadInput, Problem
from modelstacks.fields import (
    DNS_LABEL,
    NAMESPACE,
    REGISTRY,
    Count,
    DnsLabel,
    Flag,
    Fraction,
    LabelKey,
    LabelValue,
    ObjectName,
    Section,
    Tokens,
    Usd,
    Word,
    camel,
    key_path,
    nearest,
    resource_name,
    text,
    whole_number,
)
from modelstacks.weightspec import WeightsSpec

_BOUNDED = reprlib.Repr()
_BOUNDED.maxlevel, _BOUNDED.maxdict, _BOUNDED.maxlist, _BOUNDED.maxstring, _BOUNDED.maxother = 2, 4, 4, 60, 60
# What values with a form of their own look like.
_FORMS = {
    "registry": "HOST or HOST/PATH with a dot or a port, such as mirror.example.com/llm",
    "weights.uri": "s3://BUCKET/FOLDER or gs://BUCKET/FOLDER",
    "weights.image": "an image, such as mirror.example.com/llama:1",
    "autoscale.prometheus": "http://HOST:PORT",
}
QUANTIZATIONS: tuple[str, ...] = get_args(WeightFormat)
# The ranks that vLLM has kernels for (config/lora.py).
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def _prometheus_address(value: str) -> str:
    try:
        parts = urlsplit(value)
        host, user = parts.hostname, parts.username
    except ValueError:
        host = user = None
    if not host or not value.startswith(("http://", "https://")):
        raise ValueError("must be http://HOST:PORT, such as http://prometheus-operated.monitoring.svc:9090")
    if user is not None or parts.password is not None:
        raise ValueError("must not hold a password: it would stand in the manifests")
    return value


def _without_variables(value: str) -> str:
    if "$" in value:
        raise ValueError("must not hold $: Kubernetes would put variables of the pod there")
    return value


class AutoscaleSpec(Section):
    """Replicas between two counts, by requests in flight and the KV cache in use as Prometheus has them.

    `min` 0 takes a query that knows of requests while no server runs, and the cold start that users put up with.
    """

    min: Annotated[int, BeforeValidator(whole_number), Field(ge=0, le=1000)] = 1
    max: Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=1000)]
    # The Prometheus operator's own Service, where the stack names none.
    prometheus: Annotated[Word, Field(pattern=r"^\S+$"), AfterValidator(_prometheus_address)] | None = None
    activation_query: Annotated[str, BeforeValidator(text), Field(min_length=1, max_length=2000)] | None = None
    cold_start_seconds: Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=86_400)] | None = None


class MonitoringSpec(Section):
    """Objects for the Prometheus operator and Grafana: where Prometheus runs, and the labels that it selects by."""

    namespace: DnsLabel = "monitoring"
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)


def _redis_address(value: str) -> str:
    found = re.fullmatch(r"(rediss?://)?[a-z0-9.-]+:([0-9]{1,5})", value)
    if found is None:
        raise ValueError("must be HOST:PORT, such as redis.state.svc:6379")
    if not 0 < int(found[2]) < 65536:
        raise ValueError("has no port from 1 to 65535")
    return value


class HeadRecoverySpec(Section):
    """Where a Ray head keeps its state: a Redis that is there, or one of its own on a volume for each replica."""

    redis: Annotated[Word, AfterValidator(_redis_address)] | None = None
    password_secret: ObjectName | None = None
    storage_class: ObjectName | None = None


class PreferSpec(Section):
    """What an open choice is made from, in this order of worth: types and formats that are not named are left out."""

    gpus: tuple[Word, ...] = ()
    quantizations: tuple[WeightFormat, ...] = ()
    max_gpus: Count | None = None


class StackSpec(Section):
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
    replicas: Annotated[int, BeforeValidator(whole_number), Field(ge=0, le=1000)] = 1
    autoscale: AutoscaleSpec | None = None
    engine: Word | None = None
    # What starts a replica of several nodes; each tier has a default.
    launcher: Word | None = None
    head_recovery: HeadRecoverySpec | None = None
    engine_version: Word | None = None
    text_only: Flag = False
    lora_modules: dict[DnsLabel, Annotated[Word, AfterValidator(_without_variables)]] = Field(default_factory=dict)
    max_loras: Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=256)] | None = None
    max_lora_rank: Annotated[int, BeforeValidator(whole_number)] | None = None
    prefer: PreferSpec = PreferSpec()
    cloud: CloudSpec | None = None
    budget_usd_per_month: Usd | None = None
    accepted_license: Word | None = None
    # The model's own code, from its repository, may run in the servers.
    accept_remote_code: Flag = False
    # How running pods are changed, and how long answers that have begun may take; the plan decides both.
    rollout: Literal["surge", "in-place", "recreate"] | None = None
    drain_seconds: Annotated[int, BeforeValidator(whole_number), Field(ge=0, le=86_400)] | None = None
    namespace: DnsLabel | None = None
    kube_context: Word | None = None
    # Contexts of several clusters that each get the whole stack.
    clusters: tuple[Word, ...] = ()
    kubeconfig: Word | None = None
    require_reviewed: Flag = False
    hub_token_secret: ObjectName = "hub-token"
    image_pull_secret: ObjectName | None = None
    # The key that clients of the API show: made by the program and kept as a secret, one of your own, or none.
    api_key: Flag = True
    api_key_secret: ObjectName | None = None
    api_key_serial: Count = 1
    # A mirror that every image is taken from.
    registry: Annotated[Word, Field(pattern=REGISTRY)] | None = None
    priority_class: ObjectName | None = None
    # Of containers with GPUs: hooks of NVIDIA's container runtime may need to write there.
    read_only_root: Flag = False
    monitoring: MonitoringSpec | None = None
    operators: tuple[Word, ...] = ()
    # Where KubeRay runs: no other namespace reaches a Ray head.
    ray_operator_namespace: DnsLabel | None = None
    # What other stacks use too, so that destroying this one leaves it; and whose namespace this stack lives in.
    shared: tuple[Literal["namespace", "pool"], ...] = ()
    namespace_owner: Word | None = None
    weights: WeightsSpec = WeightsSpec()

    @property
    def replicas_at_most(self) -> int:
        """Replicas that may run at once; roll-outs take the old pod away before the new one comes, so none on top."""
        return self.replicas if self.autoscale is None else self.autoscale.max

    @property
    def prometheus(self) -> str:
        """The address of the Prometheus that an autoscaler asks."""
        named = self.autoscale.prometheus if self.autoscale is not None else None
        return named or f"http://prometheus-operated.{self.monitoring_namespace}.svc:9090"

    @property
    def monitoring_namespace(self) -> str:
        """Where the Prometheus runs that scrapes the servers: named, or read from its address."""
        if self.monitoring is not None:
            return self.monitoring.namespace
        named = self.autoscale.prometheus if self.autoscale is not None else None
        words = (urlsplit(named).hostname or "").split(".") if named is not None else []
        of_service = len(words) == 2 or words[2:3] == ["svc"]
        return words[1] if of_service else MonitoringSpec().namespace

    @property
    def copies(self) -> int:
        """Clusters that the stack is deployed to: what is bought is bought in each."""
        return max(1, len(self.clusters))


_Part = TypeVar("_Part", bound=Section)
KEYS = tuple(camel(name) for name in StackSpec.model_fields)


def parse(values: Mapping[str, Any], catalog: Catalog, *, source: str) -> StackSpec:
    """Check `values` (key without prefix → value) against the catalogue and build the spec.

    Raises BadInput that lists every problem: unknown keys, wrong types, impossible values, unknown ids.
    """
    problems: list[Problem] = []
    spec: StackSpec | None = None
    try:
        spec = _read(StackSpec, {str(key): value for key, value in values.items()})
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors(include_url=False)]
    problems += _unknown_ids(values, catalog) + _same_clusters(values.get("clusters"))
    if spec is not None and not problems:
        problems += _contradictions(spec, catalog)
    elif spec is None:
        problems += _contradictions_within(values)
    if problems or spec is None:
        raise BadInput(_unique(problems), source=source)
    # Everything that is planned for now is planned for the least there may be: of scale to zero the one that comes.
    return spec if spec.autoscale is None else spec.model_copy(update={"replicas": max(1, spec.autoscale.min)})


def _unknown_ids(values: Mapping[str, Any], catalog: Catalog) -> list[Problem]:
    cloud = values.get("cloud")
    kind = cloud.get("kind") if isinstance(cloud, Mapping) else None
    known: list[tuple[str, Any, tuple[str, ...]]] = [
        ("gpu", values.get("gpu"), catalog.gpu_ids),
        ("engine", values.get("engine"), tuple(catalog.versions.engines)),
        ("launcher", values.get("launcher"), catalog.launchers),
        ("cloud.kind", kind, tuple(catalog.clouds)),
        ("cloud.fabric", cloud.get("fabric") if isinstance(cloud, Mapping) else None, ("auto", *catalog.fabrics)),
    ]
    prefer = values.get("prefer")
    named = prefer.get("gpus") if isinstance(prefer, Mapping) else None
    known += [("prefer.gpus", gpu, catalog.gpu_ids) for gpu in (named if isinstance(named, list | tuple) else ())]
    problems = [
        Problem(key_path(path), f"{_shown(value)} is not known", value, ", ".join(allowed), nearest(value, allowed))
        for path, value, allowed in known
        if isinstance(value, str) and value not in allowed
    ]
    model = values.get("model")
    if isinstance(model, str) and model not in catalog.model_ids:
        unknown = catalog.unknown_model(model)
        problems.append(Problem(key_path("model"), unknown.message, model, unknown.allowed, unknown.suggestion))
    return problems


def _same_clusters(contexts: object) -> list[Problem]:
    """Contexts that are named twice, or that cannot be told apart in the names of resources."""
    if not isinstance(contexts, list | tuple):
        return []
    given = [context for context in contexts if isinstance(context, str)]
    named = [resource_name(context) for context in given]
    twice = sorted({context for context in given if named.count(resource_name(context)) > 1})
    if not twice:
        return []
    return [Problem(key_path("clusters"), f"{' and '.join(twice)} name one cluster", twice[0])]


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
        asked = gpus or (tensor * (pipeline or 1) if tensor is not None else None)
        problems += cloudspec.problems(spec.cloud, catalog, gpu=spec.gpu, gpus=asked)
    problems += _operators(spec, catalog)
    scale = spec.autoscale
    problems += _scaling(scale)
    if scale is not None and "replicas" in spec.model_fields_set:
        text = "is set, and autoscale decides the replicas"
        problems.append(Problem(key_path("replicas"), text, spec.replicas, "one of the two"))
    if not spec.api_key and spec.api_key_secret is not None:
        text = f"names {spec.api_key_secret}, and apiKey is false"
        problems.append(Problem(key_path("apiKeySecret"), text, spec.api_key_secret, "one of the two"))
    if spec.registry is not None and spec.operators:
        text = (
            f"{', '.join(spec.operators)} come from charts that name images of their own, which registry does not reach"
        )
        problems.append(Problem(key_path("operators"), text, None, "installed from your mirror by yourself"))
    if spec.namespace_owner is not None and spec.namespace is None:
        text = f"{spec.namespace_owner} owns a namespace, and namespace does not say which"
        problems.append(Problem(key_path("namespace"), text))
    if spec.namespace_owner is not None and "namespace" in spec.shared:
        problems.append(Problem(key_path("shared"), f"the namespace is shared by its owner, {spec.namespace_owner}"))
    if spec.namespace is not None:
        problems += taken_namespace(spec.namespace, spec, catalog)
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
    return problems + weightspec.problems(spec.weights, spec.lora_modules) + _places(spec, catalog)


def taken_namespace(namespace: str, spec: StackSpec, catalog: Catalog) -> list[Problem]:
    """A namespace of the cluster's own, of an operator or of Prometheus: a stack closes, limits and deletes its own."""
    owner = None
    if namespace == "default" or namespace.startswith("kube-"):
        owner = "the cluster"
    elif spec.ray_operator_namespace == namespace:
        owner = "KubeRay"
    elif spec.monitoring_namespace == namespace:
        owner = "Prometheus"
    else:
        owner = next((name for name, row in catalog.operators.items() if row.namespace == namespace), None)
    if owner is None:
        return []
    text = f"{namespace!r} belongs to {owner}; a stack closes and owns its namespace"
    return [Problem(key_path("namespace"), text, namespace, "a namespace of its own")]


def _contradictions_within(values: Mapping[str, Any]) -> list[Problem]:
    """Those of sections that can be read by themselves, where a mistake elsewhere keeps the whole from being read."""
    problems: list[Problem] = []
    with contextlib.suppress(ValidationError):
        asked = values.get("autoscale")
        problems += _scaling(None if asked is None else _read(AutoscaleSpec, asked))
    with contextlib.suppress(ValidationError):
        problems += weightspec.problems(_read(WeightsSpec, values.get("weights", {})), {})
    return problems


def _read(section: type[_Part], values: object) -> _Part:
    """By the keys of stack files alone, not by the names that they have in here."""
    return section.model_validate(values, by_alias=True, by_name=False)


def _scaling(scale: AutoscaleSpec | None) -> list[Problem]:
    """Counts the wrong way round, and a scale to zero that nothing would wake or that nobody agreed to."""
    if scale is None:
        return []
    problems = []
    if scale.max < max(scale.min, 1):
        least = max(scale.min, 1)
        text = f"max {scale.max} is below {f'min {scale.min}' if scale.min else 'one replica'}"
        problems.append(Problem(key_path("autoscale"), text, scale.max, f"{least} or more"))
    zero = {"activationQuery": scale.activation_query, "coldStartSeconds": scale.cold_start_seconds}
    why = {
        "activationQuery": "with no server there is no metric of one: name a query that counts requests waiting before "
        "the servers, such as a router's",
        "coldStartSeconds": "say how long a first request may wait for a server to load",
    }
    for key, value in zero.items():
        path = key_path(f"autoscale.{key}")
        if scale.min == 0 and value is None:
            problems.append(Problem(path, f"is missing for min 0: {why[key]}"))
        elif scale.min and value is not None:
            problems.append(Problem(path, f"is for min 0, and min is {scale.min}", value, "autoscale.min: 0"))
    return problems


def _places(spec: StackSpec, catalog: Catalog) -> list[Problem]:
    """Clusters named in two ways, and a head's state kept nowhere or in two places."""
    problems = []
    if spec.clusters and spec.kube_context is not None:
        text = f"is {spec.kube_context}, and clusters names contexts too"
        problems.append(Problem(key_path("kubeContext"), text, spec.kube_context, "one of the two"))
    if len(spec.clusters) > 1 and spec.cloud is not None and spec.cloud.management_context is not None:
        text = "several clusters cannot have their pools in one management cluster: a pool belongs to one of them"
        problems.append(Problem(key_path("clusters"), text, None, "a stack for each cluster"))
    kind = catalog.clouds[spec.cloud.kind] if spec.cloud is not None else None
    if len(spec.clusters) > 1 and kind is not None and kind.package is not None:
        text = f"kind {kind.id} makes the nodes of one cluster, cloud.cluster, and {len(spec.clusters)} are named"
        problems.append(Problem(key_path("clusters"), text, None, "a stack for each cluster"))
    state = spec.head_recovery
    if state is not None and (state.redis is None) == (state.storage_class is None):
        text = "takes redis (host:port) or storageClass, one of the two"
        problems.append(Problem(key_path("headRecovery"), text))
    elif state is not None and state.password_secret is not None and state.redis is None:
        problems.append(Problem(key_path("headRecovery.passwordSecret"), "is for a redis of yours, and none is named"))
    return problems


def _operators(spec: StackSpec, catalog: Catalog) -> list[Problem]:
    """Operators that nobody knows, that the cloud brings itself, or that get in one another's way."""
    problems = []
    path = key_path("operators")
    known = tuple(catalog.operators) if spec.operators else ()
    kind = spec.cloud.kind if spec.cloud is not None else "existing"
    for name in spec.operators:
        if name not in known:
            problems.append(Problem(path, f"{name!r} is not known", name, ", ".join(known), nearest(name, known)))
            continue
        row = catalog.operators[name]
        if kind in row.never_with:
            problems.append(Problem(path, f"{name} does not go with kind {kind}: {row.never_with[kind]}", name))
        elif row.only_with is not None and kind not in row.only_with:
            problems.append(Problem(path, f"{name} is not for kind {kind}", name, ", ".join(row.only_with)))
        beside = [other for other in spec.operators if other in row.not_beside and other > name]
        problems += [Problem(path, f"{name} and {other} do the same: keep one", name) for other in beside]
    twice = sorted({name for name in spec.operators if spec.operators.count(name) > 1})
    problems += [Problem(path, f"names {name} twice", name) for name in twice]
    return problems


def _problem(detail: Any) -> Problem:
    """One pydantic error in the words of the stack file."""
    steps = [str(step) for step in detail["loc"]]
    path = key_path(".".join(camel(step) for step in steps))
    value = detail.get("input")
    if detail["type"] == "extra_forbidden":
        section = _section(steps[:-1])
        names = tuple(camel(name) for name in section.model_fields)
        # As it is written: a name with underscores is no key, though it looks like one.
        path = key_path(".".join([*(camel(step) for step in steps[:-1]), steps[-1]]))
        return Problem(path, "is not a known key", value, ", ".join(names), nearest(steps[-1], names))
    if detail["type"] == "missing":
        hint = "; name a model, see `modelstacks models`" if path == key_path("model") else ""
        return Problem(path, f"is missing{hint}")
    if detail["type"] == "literal_error":
        allowed = detail["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
        near = nearest(value, tuple(allowed.split(", "))) if isinstance(value, str) else None
        return Problem(path, f"{_shown(value)} is not known", value, allowed, near)
    if detail["type"] in ("model_type", "dict_type", "tuple_type", "string_type"):
        wanted = {
            "model": "a mapping",
            "dict": "a mapping",
            "tuple": "a list",
            "string": "text",
        }
        return Problem(path, f"{_shown(value)} must be {wanted[detail['type'].split('_')[0]]}", value)
    if detail["type"] == "string_pattern_mismatch":
        form = (
            "lower case letters, digits and '-', at most 63"
            if detail["ctx"]["pattern"] == DNS_LABEL
            else "a Kubernetes name"
        )
        key = path.removeprefix(f"{NAMESPACE}:")
        what = "is no usable name" if key not in _FORMS else "has not the form that is meant"
        return Problem(path, f"{_shown(value)} {what}", value, _FORMS.get(key, form))
    if detail["type"] in ("string_too_short", "too_short") and value == "":
        return Problem(path, "is empty", value)
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return Problem(path, f"{_shown(value)} {message[0].lower()}{message[1:]}", value)


def _section(steps: list[str]) -> type[Section]:
    """The part of the stack file that a key stands in."""
    sections: dict[str, type[Section]] = {
        "": StackSpec, "autoscale": AutoscaleSpec, "cloud": CloudSpec, "weights": WeightsSpec, "prefer": PreferSpec,
        "headRecovery": HeadRecoverySpec, "monitoring": MonitoringSpec,
        "cloud.capacity": Capacity, "cloud.tolerations": Toleration, "cloud.startupTaints": Taint,
        "cloud.infrastructure": ObjectRef, "cloud.bootstrap": ObjectRef,
    }  # fmt: skip
    path = ".".join(camel(step) for step in steps if not step.isdigit())
    return sections.get(path, StackSpec)


def _shown(value: object) -> str:
    # Bounded before it is written out: aliases can make a small file hold an astronomically large value.
    try:
        return _BOUNDED.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _unique(problems: list[Problem]) -> list[Problem]:
    kept: dict[str, Problem] = {}
    for problem in problems:
        kept.setdefault(problem.path, problem)
    return sorted(kept.values(), key=lambda problem: problem.path)
