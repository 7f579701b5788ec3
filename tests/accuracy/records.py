"""Start-ups of real servers as records, each with the question that asks modelstacks for the same server."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modelstacks import documents
from modelstacks.catalog import Architecture, Catalog, Checkpoint, Licence, Model, Profile
from modelstacks.errors import ModelstacksError
from modelstacks.plan import Plan, plan
from modelstacks.plan.check import loaded_gib
from modelstacks.spec import parse

DATA = Path(__file__).parent.parent / "data"
FILES = ("measured-examples.json", "public-logs.json")
GIB = 2**30

# How sources name a card → the type here; what no type stands for is reported apart.
_GPUS = (
    ("H200", "h200"), ("B200", "b200"), ("H100 NVL", "h100-nvl"), ("H100 PCIe", "h100-pcie"), ("H100", "h100-sxm"),
    ("A100-40", "a100-40"), ("A100-80", "a100-80"), ("L40S", "l40s"), ("RTX PRO 6000", "rtx-pro-6000"),
    ("RTX 5090", "rtx-5090"), ("RTX 4090", "rtx-4090"), ("RTX 3090", "rtx-3090"), ("GB10", "gb10"),
    ("A10G", "a10g"), ("L4 ", "l4"), ("B300", "b300"),
)  # fmt: skip
_STRANGE = re.compile(r"class|Jetson|Arc|AMD|\+|not named|capped")
_QUANTIZATIONS = {
    None: "bf16", "fp8": "fp8", "compressed-tensors": None, "mxfp4": "mxfp4", "nvfp4": "nvfp4", "awq": "awq",
    "gptq_marlin": "gptq", "gptq": "gptq", "bitsandbytes": "int4", "4-bit": "int4", "w8a8 (int8)": "int8",
    "awq_marlin": "awq", "modelopt": "fp8", "modelopt_fp4": "nvfp4", "w4a16": "int4", "int4": "int4",
}  # fmt: skip


@dataclass(frozen=True)
class Record:
    """One start-up: what was asked, what was measured (GiB per GPU), and where it is written."""

    id: str
    model: str
    repo: str | None
    gpu: str | None
    tensor_parallel: int
    pipeline_parallel: int
    quantization: str
    kv_cache_dtype: str
    utilization: float | None
    context: int | None
    version: str | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    text_only: bool
    weights_gib: float | None
    kv_gib: float | None
    kv_tokens: int | None
    concurrency: float | None
    outcome: str
    source: str
    odd: str | None

    @property
    def complete(self) -> bool:
        """Model, card, utilization, version and context are all stated."""
        stated = (self.gpu, self.utilization, self.version, self.context)
        return all(value is not None for value in stated) and self.odd is None


def load() -> list[Record]:
    """Every record of the data files."""
    return [_record(row) for name in FILES for row in json.loads((DATA / name).read_text(encoding="utf-8"))["records"]]


def _record(row: dict[str, Any]) -> Record:
    extra, measured = row.get("extra") or {}, row["measured"]
    card = row["gpu"] or ""
    gpu = None if _STRANGE.search(card) else next((ours for theirs, ours in _GPUS if theirs in f"{card} "), None)
    odd = next(
        (key for key in ("expert_parallel", "speculative", "lora", "enforce_eager", "block_size") if extra.get(key)),
        None,
    )
    other = extra.get("other_args") or {}
    if (extra.get("data_parallel_size") or 1) > 1:
        odd = "data parallel"
    story = f"{row['model']} {row['note'] or ''} {row['source']} {extra.get('free_at_start_gib')}".lower()
    for word in ("lora", "offload", "another process", "other processes", "held", "synthetic", "luck"):
        if word in story:
            odd = odd or word
    if str(extra.get("dtype", "")).endswith("float32"):
        odd = odd or "served in 32 bits"
    if extra.get("version_from"):
        # The version is that of another part of the same document.
        odd = odd or "version not of this run"
    return Record(
        id=row["id"], model=row["model"], repo=row["hf_id"], gpu=gpu, tensor_parallel=row["tp"] or 1,
        pipeline_parallel=row["pp"] or 1, quantization=_quantization(row), kv_cache_dtype=row["kv_dtype"] or "auto",
        utilization=row["gpu_memory_utilization"], context=row["max_model_len"], version=_version(row["vllm_version"]),
        max_num_seqs=extra.get("max_num_seqs"), max_num_batched_tokens=extra.get("max_num_batched_tokens"),
        text_only=other.get("language-model-only") == "True", weights_gib=measured["weights_gib_per_gpu"],
        kv_gib=measured["kv_available_gib_per_gpu"], kv_tokens=measured["kv_tokens"],
        concurrency=measured["max_concurrency"], outcome=measured["outcome"], source=row["source"], odd=odd,
    )  # fmt: skip


def _version(stated: str | None) -> str | None:
    return stated if stated and re.match(r"v?\d+\.\d+", stated) else None


def _quantization(row: dict[str, Any]) -> str:
    said = row["quant"]
    found = _QUANTIZATIONS.get(said)
    name = (row["hf_id"] or row["model"]).lower()
    if said is None and any(word in name for word in ("w8a8", "w4a16", "nvfp4", "fp8", "awq", "4bit")):
        found = None
    if "gpt-oss" in name:
        return "mxfp4"
    if found is None:
        words = (
            ("w8a8", "int8"),
            ("w4a16", "int4"),
            ("nvfp4", "nvfp4"),
            ("fp8", "fp8"),
            ("awq", "awq"),
            ("4bit", "int4"),
        )
        found = next((ours for word, ours in words if word in name), "int4")
    return found or "bf16"


@cache
def architectures() -> dict[str, tuple[str, Architecture]]:
    """Repository, lower case → name and architecture, of every model that records speak of."""
    rows = documents.read_file(DATA / "architectures.yaml")
    known = {}
    for name, row in rows.items():
        architecture = Architecture.model_validate(row["architecture"])
        known |= {repo.lower(): (name, architecture) for repo in row["repos"]}
    return known


def checkpoint_gib(record: Record, catalog: Catalog) -> float | None:
    """The size of the record's checkpoint where it is known: from the catalogue, or two bytes a parameter."""
    repo = (record.repo or "").lower()
    for model_id in catalog.model_ids:
        for quantization, checkpoint in catalog.model(model_id).checkpoints.items():
            same = (checkpoint.repo or "").lower() == repo and quantization == record.quantization
            if same and checkpoint.size_kind != "computed":
                return loaded_gib(checkpoint, catalog.model(model_id).architecture)
    if record.quantization == "bf16" and repo in architectures():
        return architectures()[repo][1].parameters * 2 / GIB
    return None


def ask(record: Record, catalog: Catalog) -> tuple[Plan, bool] | None:
    """The plan for a record's server, and whether its weights were known beforehand; None when it cannot be asked."""
    known = architectures().get((record.repo or "").lower())
    if known is None or record.gpu is None or record.gpu not in catalog.gpus:
        return None
    name, architecture = known
    size = checkpoint_gib(record, catalog)
    weights = size
    if weights is None and record.weights_gib is not None:
        weights = record.weights_gib * record.tensor_parallel * record.pipeline_parallel
    if weights is None:
        return None
    architecture = architecture.model_copy(update={"unloaded_parameters": 0})
    model = _model(name, architecture, record, weights)
    asked: dict[str, Any] = {
        "model": model.id, "gpu": record.gpu, "tensorParallel": record.tensor_parallel,
        "pipelineParallel": record.pipeline_parallel, "quantization": record.quantization,
        "kvCacheDtype": record.kv_cache_dtype, "engine": "vllm", "textOnly": record.text_only,
        "gpuMemoryUtilization": record.utilization, "context": record.context, "engineVersion": record.version,
        "maxNumSeqs": record.max_num_seqs, "maxNumBatchedTokens": record.max_num_batched_tokens,
    }  # fmt: skip
    own = catalog.with_model(model)
    try:
        spec = parse({key: value for key, value in asked.items() if value is not None}, own, source=record.id)
        return plan(spec, own), size is not None
    except ModelstacksError:
        return None


def _model(name: str, architecture: Architecture, record: Record, weights_gib: float) -> Model:
    checkpoint = Checkpoint(size_gib=weights_gib, size_kind="measured", source=record.source)
    fp8_cache = record.quantization == "nvfp4"
    if fp8_cache:
        # Checkpoints of this format carry scales for an 8-bit cache.
        checkpoint = checkpoint.model_copy(update={"kv_cache_dtype": "fp8"})
    context = record.context or min(32768, architecture.max_context)
    if context > architecture.max_context:
        architecture = architecture.model_copy(update={"max_context": context})
    return Model.model_construct(
        id=f"record-{record.id}", name=name, architecture=architecture,
        licence=Licence(id="none", name="none", gated=None, must_accept=False, source="record"),
        checkpoints={record.quantization: checkpoint},
        profiles=(Profile(gpu=record.gpu or "h100-sxm", gpus=1, quantization=record.quantization, context=context),),
        quantize_at_load={}, engine_flags={}, engine_refusals={},
    )  # fmt: skip
