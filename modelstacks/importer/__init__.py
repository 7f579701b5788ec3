"""Own models: a Hugging Face config.json becomes a model of the catalogue, for one question or as a template."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from modelstacks.catalog import Architecture, Checkpoint, Licence, Model, Profile
from modelstacks.errors import BadInput, Problem
from modelstacks.importer.fields import read_json
from modelstacks.importer.reader import HubModel, read

__all__ = ["HubModel", "own_model", "read_config"]

_MOST_GIB = 100_000.0
_MXFP4_PADDING = 1.085
_ID = re.compile(r"[^a-z0-9]+")


def read_config(path: Path) -> HubModel:
    """What a config.json says. Raises BadInput with every reason why it cannot be read."""
    return read(read_json(path), str(path))


def own_model(
    config: Path,
    *,
    weights_gib: float | None = None,
    repo: str | None = None,
    revision: str | None = None,
    name: str | None = None,
    quantization: str | None = None,
    source: str | None = None,
) -> tuple[Model, HubModel]:
    """A model as good as a template's, from its config.json and the size of its checkpoint, GiB.

    Without a size it is computed from the parameters. Raises BadInput for a config that cannot be read, an impossible
    size, or a name that is none.
    """
    hub = read_config(config)
    if quantization is None and not hub.weights.known:
        text = f"{hub.weights.method!r} is not known here"
        problem = Problem("quantization_config.quant_method", text, hub.weights.method)
        raise BadInput([problem], source=str(config), next_step="say how weights are stored: --quantization int4")
    asked = quantization or hub.weights.quantization
    stored = asked
    if asked == "fp8" and hub.weights.quantization == "bf16" and _is_wide(weights_gib, hub):
        # Sixteen-bit files that shall be served in eight: made while loading.
        stored = "bf16"
    size = _size_gib(weights_gib, hub, stored)
    if repo is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*", repo):
        raise BadInput([Problem("--repo", f"{repo!r} is no repository", repo, "organisation/name")], source="model")
    if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        allowed = "40 hexadecimal digits of a commit"
        raise BadInput([Problem("--revision", f"{revision!r} is no commit", revision, allowed)], source="model")
    model_id = name if name is not None else _id(repo.split("/")[1] if repo else _folder_name(config))
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", model_id) or len(model_id) > 63:
        allowed = "at most 63 lower case letters and digits, joined by '-' or '.'"
        raise BadInput([Problem("--name", f"{model_id!r} is no usable id", model_id, allowed)], source="model")
    today = datetime.date.today()
    kind: Literal["computed", "given"] = "computed" if weights_gib is None else "given"
    where = source or (f"config.json of {repo}" if repo else "a config.json given on the command line")
    architecture = hub.architecture.model_copy(update={"source": where})
    # Thirty-two-bit files are served in sixteen.
    wide = stored == "bf16" and hub.weights.bytes_per_weight == 4.0
    loaded = size / 2 if wide and weights_gib is not None else None
    if hub.weights.method == "mxfp4":
        # Kernels pad these experts: 12.82 GiB became 13.72, 60.77 became 61.3 to 66.0 (vLLM 0.11-0.25).
        loaded = size * _MXFP4_PADDING
    try:
        checkpoint = Checkpoint(
            repo=repo, revision=revision, size_gib=size, size_kind=kind, source=where, date=today, loaded_gib=loaded,
            kv_cache_dtype="fp8" if hub.weights.kv_cache_dtype else None,
        )  # fmt: skip
        context = min(32768, architecture.max_context)
        profile = Profile(gpu="h100-sxm", gpus=1, quantization=asked, context=context)
        model = Model(
            id=model_id, name=repo or model_id,
            licence=Licence(id="unknown", name="a licence that was not read", must_accept=False, source=where),
            architecture=architecture, checkpoints={stored: checkpoint},
            quantize_at_load={"fp8": "bf16"} if stored == "bf16" else {}, profiles=(profile,),
            engine_refusals={} if hub.tgi_serves else {"tgi": f"does not implement {hub.model_type or 'this type'}"},
        )  # fmt: skip
    except ValidationError as error:
        problems = [
            Problem(".".join(map(str, detail["loc"])) or "model", detail["msg"].removeprefix("Value error, "))
            for detail in error.errors(include_url=False)
        ]
        raise BadInput(problems, source=str(config), next_step="check --weights-gib and --quantization") from None
    return model, hub


# Bytes per weight of quantized layers, their scales included.
_WIDTHS = {"fp8": 1.004, "int8": 1.004, "awq": 0.52, "gptq": 0.52, "int4": 0.52, "nvfp4": 0.5625, "mxfp4": 0.532}


def computed_gib(architecture: Architecture, quantization: str) -> float:
    """The size of a checkpoint that nobody published: ends and towers in 16 bits; of experts, only they are narrow."""
    wide = architecture.end_parameters + (architecture.encoder.parameters if architecture.encoder is not None else 0)
    body = architecture.parameters - wide
    width = _WIDTHS.get(quantization, 2.0)
    narrow = body
    if width < 1 and architecture.moe is not None:
        narrow = min(body, architecture.moe.expert_parameters)
    return (narrow * width + (body - narrow + wide) * 2) / 2**30


def _is_wide(given: float | None, hub: HubModel) -> bool:
    """The size, if one is given, is that of 16-bit weights."""
    return given is None or given > 1.4 * hub.architecture.parameters / 2**30


def _size_gib(given: float | None, hub: HubModel, quantization: str) -> float:
    if given is None:
        return round(computed_gib(hub.architecture, quantization), 3)
    if not math.isfinite(given) or not 0 < given <= _MOST_GIB:
        problem = Problem("--weights-gib", f"is {given:g}", given, f"above 0, at most {_MOST_GIB:,.0f} GiB")
        raise BadInput([problem], source="model")
    return given


def _folder_name(config: Path) -> str:
    stem = config.resolve().parent.name if config.name == "config.json" else config.stem
    return stem or "own-model"


def _id(text: str) -> str:
    return _ID.sub("-", text.lower().replace(".", "-dot-")).replace("-dot-", ".").strip("-.") or "own-model"
