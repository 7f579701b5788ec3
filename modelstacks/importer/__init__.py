"""Own models: a Hugging Face config.json becomes a model of the catalogue, for one question or as a template."""

from __future__ import annotations

import datetime
import math
import re
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from modelstacks.catalog import Checkpoint, Licence, Model, Profile
from modelstacks.catalog.models import QUANTIZED_BITS
from modelstacks.errors import BadInput, Problem
from modelstacks.importer.fields import read_json
from modelstacks.importer.reader import HubModel, read

__all__ = ["HubModel", "own_model", "read_config"]

_MOST_GIB = 100_000.0
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
    asked = quantization or hub.weights.quantization
    size = _size_gib(weights_gib, hub, asked)
    if repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise BadInput([Problem("--repo", f"{repo!r} is no repository", repo, "organisation/name")], source="model")
    model_id = name or _id(repo.split("/")[1] if repo else _folder_name(config))
    if not re.fullmatch(r"[a-z0-9]+([.-][a-z0-9]+)*", model_id):
        allowed = "lower case letters and digits, joined by '-' or '.'"
        raise BadInput([Problem("--name", f"{model_id!r} is no usable id", model_id, allowed)], source="model")
    today = datetime.date.today()
    kind: Literal["computed", "published"] = "computed" if weights_gib is None else "published"
    where = source or (f"config.json of {repo}" if repo else "a config.json given on the command line")
    architecture = hub.architecture.model_copy(update={"source": where})
    # Thirty-two-bit files are served in sixteen.
    loaded = size / 2 if asked == "bf16" and hub.weights.bytes_per_weight == 4.0 else None
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
            architecture=architecture, checkpoints={asked: checkpoint},
            quantize_at_load={"fp8": "bf16"} if asked == "bf16" else {}, profiles=(profile,),
        )  # fmt: skip
    except ValidationError as error:
        problems = [
            Problem(".".join(map(str, detail["loc"])) or "model", detail["msg"].removeprefix("Value error, "))
            for detail in error.errors(include_url=False)
        ]
        raise BadInput(problems, source=str(config), next_step="check --weights-gib and --quantization") from None
    return model, hub


def _size_gib(given: float | None, hub: HubModel, quantization: str) -> float:
    parameters = hub.architecture.parameters + hub.architecture.unloaded_parameters
    if given is None:
        width = hub.weights.bytes_per_weight
        if quantization != hub.weights.quantization:
            width = QUANTIZED_BITS[quantization][0] / 8
        return round(parameters * width / 2**30, 3)
    if not math.isfinite(given) or not 0 < given <= _MOST_GIB:
        problem = Problem("--weights-gib", f"is {given:g}", given, f"above 0, at most {_MOST_GIB:,.0f} GiB")
        raise BadInput([problem], source="model")
    return given


def _folder_name(config: Path) -> str:
    stem = config.resolve().parent.name if config.name == "config.json" else config.stem
    return stem or "own-model"


def _id(text: str) -> str:
    return _ID.sub("-", text.lower().replace(".", "-dot-")).replace("-dot-", ".").strip("-.") or "own-model"
