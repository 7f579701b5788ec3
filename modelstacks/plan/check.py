"""Checks one complete choice: builds its plan with every refusal that hardware, engine or arithmetic gives."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from modelstacks import fit, price, throughput
from modelstacks.catalog import Architecture, Catalog, Checkpoint, EngineForm, Gpu, Model, Profile
from modelstacks.catalog.hardware import OWN
from modelstacks.catalog.versions import NATIVE_FP8
from modelstacks.cloudspec import carrying
from modelstacks.fit import GIB, WIDE_BYTES, Load, Memory, Topology, Weights
from modelstacks.plan.values import Choice, Refusal
from modelstacks.spec import StackSpec

# Key widths that FlashInfer's kernels take (vLLM 0.32 v1/attention/backends/flashinfer.py).
_FLASHINFER_HEADS = (64, 128, 256, 512)
# Served bytes per weight when an engine quantizes while loading; embeddings and output layer stay 16-bit.
_AT_LOAD_BYTES = {"fp8": 1.0, "int8": 1.0}


@dataclass(frozen=True, slots=True)
class Checked:
    """What the arithmetic says of a choice; cheap enough to compute for every candidate."""

    choice: Choice
    weights: Weights
    memory: Memory
    refusals: tuple[Refusal, ...]
    cost: price.Cost

    @property
    def fits(self) -> bool:
        """No refusal at all from hardware or engine."""
        return not self.refusals


def tier_of(gpu: Gpu, topology: Topology) -> str:
    """The tier follows from where the GPUs are: one, several in a node, several nodes."""
    if topology.gpus == 1:
        return "single-gpu"
    return "tensor-parallel" if price.nodes_per_replica(gpu, topology) == 1 else "ray"


def profile_for(model: Model, gpu: str | None, quantization: str | None) -> Profile:
    """The profile that speaks most closely of a GPU and a quantization; the first one when none does."""

    def distance(profile: Profile) -> int:
        off_gpu = gpu is not None and profile.gpu != gpu
        off_quantization = quantization is not None and profile.quantization != quantization
        return 2 * off_gpu + off_quantization

    return min(model.profiles, key=distance)


def choice_for(
    spec: StackSpec, catalog: Catalog, model: Model, gpu: Gpu, quantization: str, topology: Topology
) -> Choice:
    """Fill in everything the user left open for one GPU, quantization and topology."""
    profile = profile_for(model, gpu.id, quantization)
    engine = spec.engine or profile.engine
    tier = tier_of(gpu, topology)
    form = catalog.engine_form(engine, tier, spec.engine_version, spec.launcher)
    numbers = form or catalog.any_form(engine)
    # With the GPU open, every candidate must hold the same load, or the least would win.
    usual = profile if spec.gpu is not None else model.profiles[0]
    context = spec.context or usual.context
    size = _size_class(gpu)
    # Every running request takes a token of each step: sequences never exceed the batch, nor requests the sequences.
    most = min(spec.max_num_seqs or sys.maxsize, spec.max_num_batched_tokens or sys.maxsize)
    concurrency = spec.concurrency or min(usual.concurrency, most)
    # A profile's own limit belongs to its very hardware.
    same = (profile.gpu, profile.gpus, profile.quantization) == (gpu.id, topology.gpus, quantization)
    set_by = spec.max_num_seqs or (profile.max_num_seqs if same else None)
    sequences = max(concurrency, min(set_by or getattr(numbers.max_num_seqs, size), most))
    batch = spec.max_num_batched_tokens or max(_batched_tokens(numbers, size, context), sequences)
    load = Load(
        context=context,
        concurrency=concurrency,
        kv_cache_dtype=spec.kv_cache_dtype,
        gpu_memory_utilization=spec.gpu_memory_utilization or gpu.utilization(numbers.gpu_memory_utilization),
        max_num_seqs=sequences,
        max_num_batched_tokens=batch,
        lora_adapters=spec.max_loras or len(spec.lora_modules),
        lora_rank=spec.max_lora_rank or 16,
        text_only=spec.text_only,
    )
    return Choice(model, gpu, engine, tier, form, quantization, topology, load, numbers, set_by is not None)


def _size_class(gpu: Gpu) -> str:
    """Which of its defaults an engine takes; it treats every A100 as small (vLLM engine/arg_utils.py).

    A GPU that shares the host's memory tells the driver no size of its own; its logs show the small defaults.
    """
    if gpu.memory_gib.value < 70 or gpu.id.startswith("a100") or gpu.host_share_gib is not None:
        return "small"
    return "large" if gpu.memory_gib.value < 160 else "huge"


def _batched_tokens(form: EngineForm, size: str, context: int) -> int:
    tokens: int = getattr(form.batched_tokens, size)
    # An engine that cannot cut a prompt into chunks must profile with the longest one.
    whole = form.prefills_whole_prompt or context <= form.prefills_whole_prompt_below
    return max(tokens, context) if whole else tokens


def with_context(load: Load, context: int, form: EngineForm, gpu: Gpu) -> Load:
    """The same load for another context, and what follows from it in this engine."""
    if not form.batch_follows_context:
        return replace(load, context=context)
    batch = max(_batched_tokens(form, _size_class(gpu), context), load.max_num_seqs)
    return replace(load, context=context, max_num_batched_tokens=batch)


def weights_of(choice: Choice) -> Weights:
    """Served and loading bytes of a choice's quantization; the 16-bit checkpoint when nothing better is known."""
    model, quantization = choice.model, choice.quantization
    architecture = model.architecture
    published = model.checkpoints.get(quantization)
    if published is not None:
        return Weights(loaded_gib(published, architecture), kv_cache_dtype=published.kv_cache_dtype)
    origin = model.checkpoints[model.quantize_at_load.get(quantization, next(iter(model.checkpoints)))]
    ends = architecture.end_parameters
    body = max(architecture.parameters - ends, 0)
    served = (body * _AT_LOAD_BYTES.get(quantization, 1.0) + ends * WIDE_BYTES) / GIB
    how = choice.form.quantize_at_load.get(quantization) if choice.form is not None else None
    whole = loaded_gib(origin, architecture)
    return Weights(served, whole, one_layer_at_a_time=how is not None and how.holds == "one-layer")


def loaded_gib(checkpoint: Checkpoint, architecture: Architecture) -> float:
    """What an engine keeps of a checkpoint, GiB: layers that only predict ahead are left on disk."""
    if checkpoint.loaded_gib is not None:
        return checkpoint.loaded_gib
    ahead = architecture.unloaded_parameters
    return checkpoint.size_gib * architecture.parameters / (architecture.parameters + ahead)


def check(choice: Choice, market: price.Market, cost: price.Cost) -> Checked:
    """The ledger and every refusal of one choice, beside its cost."""
    weights = weights_of(choice)
    numbers = choice.figures
    memory = fit.memory(choice.model.architecture, choice.gpu, numbers, weights, choice.topology, choice.load)
    refusals = (
        *_engine_refusals(choice),
        *_precision_refusals(choice),
        *_shape_refusals(choice),
        *_memory_refusals(choice, numbers, weights, memory),
    )
    if market.orderable and cost.machine is None:
        refusals = (*refusals, _no_machine(choice, market))
    return Checked(choice, weights, memory, refusals, cost)


def _no_machine(choice: Choice, market: price.Market) -> Refusal:
    """Which machine types do carry the GPU in this cloud, where none goes with the plan."""
    per_node = price.gpus_per_node(choice.gpu, choice.topology)
    where = market.cloud or "any cloud"
    here = [m for m in choice.gpu.machines if m.kubernetes and market.cloud in (None, m.cloud)]
    large = [m for m in here if m.gpus >= per_node]
    unsold = [m for m in large if m.sold_as is not None and not set(market.ways) <= set(m.sold_as)]
    text = f"{where} has no machine type with {per_node} × {choice.gpu.id}"
    if market.machine is not None and large:
        text = f"{market.machine} does not carry {per_node} × {choice.gpu.id}"
    elif unsold:
        sold = "; ".join(f"{m.name} is sold as {', '.join(m.sold_as or ())}" for m in unsold)
        text += f" sold as {' and '.join(market.ways)}: {sold}"
    elif not here:
        clouds = sorted({m.cloud for m in choice.gpu.machines if m.kubernetes and m.cloud != OWN})
        text += f"; {choice.gpu.id} is to be had of {', '.join(clouds) or 'no cloud'}"
    else:
        text += " in this catalogue"
    if here:
        text += f"; machine types with {choice.gpu.id}, and their GPUs: {carrying(here)}"
    most = max((m.gpus for m in here), default=0)
    return Refusal("machine-unavailable", text, per_node, 0 if large else most, "GPUs per machine")


def load_cache(choice: Choice) -> str:
    """The KV cache type that the engine will use: what "auto" means for this checkpoint and engine version."""
    stored = choice.model.checkpoints.get(choice.quantization)
    return fit.cache_dtype(choice.load, stored.kv_cache_dtype if stored is not None else None, choice.figures)


def _engine_refusals(choice: Choice) -> list[Refusal]:
    model, gpu, form = choice.model, choice.gpu, choice.form
    if choice.engine in model.engine_refusals:
        text = f"{choice.engine}: {model.engine_refusals[choice.engine]}"
        return [Refusal("engine-unsupported", text, 1, 0, "engines that serve the model")]
    if form is None:
        text = f"{choice.engine} has no form for the {choice.tier} tier ({choice.topology.gpus} GPUs)"
        node = gpu.max_gpus_per_node
        return [Refusal("engine-unsupported", text, choice.topology.gpus, node, "GPUs")]
    if choice.load.lora_adapters and not (model.lora and form.loras):
        who = model.id if not model.lora else f"{choice.engine} in the {choice.tier} tier"
        text = f"{who} serves no LoRA adapters"
        return [Refusal("engine-unsupported", text, choice.load.lora_adapters, 0, "LoRA adapters")]
    if choice.load.text_only and model.architecture.encoder is not None and not form.leaves_out_towers:
        text = f"{choice.engine} {form.version} always loads the vision tower of {model.id}: textOnly asks for less"
        return [Refusal("engine-unsupported", text, 1, 0, "engines that leave a tower out")]
    if gpu.compute_capability < form.min_compute_capability:
        text = f"{choice.engine} {form.version} needs compute capability {form.min_compute_capability}, "
        text += f"{gpu.id} has {gpu.compute_capability}"
        need, have = form.min_compute_capability, gpu.compute_capability
        return [Refusal("engine-unsupported", text, need, have, "compute capability")]
    sparse = model.architecture.mla is not None and model.architecture.mla.indexer_bytes > 0
    if sparse and gpu.compute_capability < form.sparse_attention_from:
        need, have = form.sparse_attention_from, gpu.compute_capability
        text = f"the sparse attention of {model.id} has kernels from compute capability {need}, {gpu.id} has {have}"
        return [Refusal("engine-unsupported", text, need, have, "compute capability")]
    if sparse and gpu.compute_capability >= form.sparse_fp8_only_from and load_cache(choice) != "fp8":
        text = f"on {gpu.id} the sparse attention of {model.id} keeps an fp8 cache alone: modelstacks:kvCacheDtype: fp8"
        return [Refusal("precision-unsupported", text, 1, 0, "KV cache types of the kernel")]
    newest = form.max_compute_capability
    if newest is not None and gpu.compute_capability > newest:
        text = f"{choice.engine} {form.version} has kernels up to compute capability {newest}, "
        text += f"{gpu.id} has {gpu.compute_capability}"
        return [Refusal("engine-unsupported", text, gpu.compute_capability, newest, "compute capability")]
    stages = choice.topology.pipeline_parallel
    if stages > 1 and not form.pipelines:
        text = f"{choice.engine} has no pipeline parallel"
        return [Refusal("engine-unsupported", text, stages, 1, "pipeline stages")]
    return []


def _precision_refusals(choice: Choice) -> list[Refusal]:
    model, gpu, form, quantization = choice.model, choice.gpu, choice.form, choice.quantization
    refusals = []
    if quantization not in model.quantizations:
        text = f"no {quantization} checkpoint of {model.id} is known; known: {', '.join(model.quantizations)}"
        refusals.append(Refusal("quantization-unavailable", text, 1, 0, "checkpoints"))
    elif quantization in model.quantize_at_load and form is not None and quantization not in form.quantize_at_load:
        text = f"no {quantization} checkpoint of {model.id} is published, and {choice.engine} cannot make one at load"
        refusals.append(Refusal("quantization-unavailable", text, 1, 0, "checkpoints"))
    if quantization not in gpu.weight_formats:
        text = f"{gpu.id} runs {', '.join(gpu.weight_formats)}, not {quantization}"
        refusals.append(Refusal("precision-unsupported", text, 1, 0, "weight formats of the GPU"))
    dtype = load_cache(choice)
    if form is not None and dtype not in form.kv_cache_dtypes:
        known = ", ".join(form.kv_cache_dtypes)
        text = f"no memory figures for KV cache type {dtype} of {choice.engine} {form.version}; there are for {known}"
        refusals.append(Refusal("precision-unsupported", text, 1, 0, "KV cache types of the engine"))
    elif dtype.startswith("fp8") and gpu.compute_capability < (least := _fp8_cache_from(choice)):
        what = f"{choice.engine} {choice.figures.version} keeps an fp8 cache of {model.id}"
        text = f"{what} from compute capability {least} on, {gpu.id} has {gpu.compute_capability}"
        if choice.load.kv_cache_dtype == "auto":
            text += "; the checkpoint asks for it: modelstacks:kvCacheDtype: bfloat16"
        refusals.append(Refusal("precision-unsupported", text, least, gpu.compute_capability, "compute capability"))
    elif dtype.removesuffix("fn") not in gpu.kv_cache_dtypes:
        text = f"{gpu.id} keeps a KV cache in {', '.join(gpu.kv_cache_dtypes)}, not {dtype}"
        if choice.load.kv_cache_dtype == "auto":
            text += ", which the checkpoint asks for: modelstacks:kvCacheDtype: bfloat16"
        refusals.append(Refusal("precision-unsupported", text, 1, 0, "KV cache types of the GPU"))
    if dtype == "nvfp4" and model.architecture.mla is not None:
        text = "an NVFP4 KV cache has no kernel for latent attention; fp8 has"
        refusals.append(Refusal("precision-unsupported", text, 1, 0, "KV cache types of the architecture"))
    if quantization == "fp8" and dtype == "fp8_e5m2":
        text = "an FP8 checkpoint takes an fp8 (e4m3) KV cache, vLLM refuses fp8_e5m2 beside it"
        refusals.append(Refusal("precision-unsupported", text, 1, 0, "KV cache types of the checkpoint"))
    return refusals


def _fp8_cache_from(choice: Choice) -> float:
    """The first compute capability with a kernel for it: FlashInfer's takes no latents, no sinks and no odd heads."""
    architecture = choice.model.architecture
    plain = architecture.mla is None and not architecture.attention_sinks
    if plain and architecture.head_dim in _FLASHINFER_HEADS and architecture.value_dim == architecture.head_dim:
        return choice.figures.fp8_cache_from
    return NATIVE_FP8


def _shape_refusals(choice: Choice) -> list[Refusal]:
    architecture, gpu, topology = choice.model.architecture, choice.gpu, choice.topology
    tensor, pipeline = topology.tensor_parallel, topology.pipeline_parallel
    refusals = []
    if tensor > gpu.max_gpus_per_node:
        text = f"tensor parallel {tensor} leaves the node: a {gpu.id} machine has {gpu.max_gpus_per_node} GPUs"
        have = gpu.max_gpus_per_node
        refusals.append(Refusal("tensor-parallel-beyond-node", text, tensor, have, "GPUs in a node"))
    for name, count in (("attention heads", architecture.heads), ("KV heads", architecture.kv_heads)):
        shared = name == "KV heads" and (architecture.mla is not None or tensor % count == 0)
        if count % tensor and not shared:
            divisors = ", ".join(str(n) for n in range(1, gpu.max_gpus_per_node + 1) if count % n == 0)
            text = f"{count} {name} cannot be cut into {tensor} equal parts; tensor parallel {divisors} can"
            possible = max(n for n in range(1, tensor + 1) if count % n == 0)
            refusals.append(Refusal("heads-not-divisible", text, tensor, possible, "ranks that divide the heads"))
            break
    checkpoint = choice.model.checkpoints.get(choice.quantization)
    widest = checkpoint.max_tensor_parallel if checkpoint is not None else None
    if checkpoint is not None and widest is not None and tensor > widest:
        text = f"{checkpoint.repo} takes tensor parallel up to {widest}: {checkpoint.max_tensor_parallel_reason}"
        refusals.append(Refusal("checkpoint-not-divisible", text, tensor, widest, "tensor parallel ranks"))
    if pipeline > architecture.layers:
        text = f"{pipeline} pipeline stages, but the model has {architecture.layers} layers"
        refusals.append(Refusal("layers-too-few", text, pipeline, architecture.layers, "layers"))
    context, batch = choice.load.context, choice.load.max_num_batched_tokens
    if choice.form is not None and choice.form.prefills_whole_prompt and batch < context:
        text = f"{choice.engine} reads a prompt in one step, so maxNumBatchedTokens {batch} is below context {context}"
        refusals.append(Refusal("batch-too-small", text, context, batch, "tokens"))
    stretched = choice.form is None or choice.form.stretches_rope
    limit = context_limit(choice)
    if context > limit:
        text = f"context {context} is beyond the model's {architecture.max_context}"
        if architecture.context_limit > architecture.max_context:
            text += f" (up to {architecture.context_limit} with documented rope scaling"
            text += ")" if stretched else f", which {choice.engine} has no option for)"
        refusals.append(Refusal("context-beyond-model", text, context, limit, "tokens"))
    return refusals


def _memory_refusals(choice: Choice, form: EngineForm, weights: Weights, memory: Memory) -> list[Refusal]:
    part, part_gib = memory.largest_part
    largest = f"largest part: {part} {part_gib:.1f} GiB"
    per_gpu = f"per {choice.gpu.id}"
    if choice.quantization not in choice.model.quantizations:
        # Without a checkpoint there are no bytes to speak of.
        return []
    free_gib = memory.gpu_gib - memory.outside_gib
    if memory.budget_gib > free_gib:
        used = f"utilization {choice.load.gpu_memory_utilization} asks for {memory.budget_gib:.1f} GiB {per_gpu}, "
        taken = "CUDA contexts" if form.overhead.graphs_in_budget else "CUDA contexts and graphs"
        text = f"{used}{free_gib:.1f} of {memory.gpu_gib:.1f} are free: {taken} take {memory.outside_gib:.1f} beside it"
        need, have = memory.budget_gib, free_gib
        return [Refusal("utilization-too-high", text, round(need, 2), round(have, 2), "GiB per GPU")]
    unsure = memory.uncertainty_gib
    if not memory.holds_weights:
        if memory.kv_cache_low_gib > 0:
            need, have = memory.loading_peak_gib, memory.gpu_gib
            text = f"loading needs {need:.1f} GiB {per_gpu} before quantization, {have:.1f} are there; {largest}"
        else:
            need, have = memory.weights_gib + memory.overhead_gib + unsure, memory.budget_gib
            text = (
                f"weights {memory.weights_gib:.1f} + overhead {memory.overhead_gib:.1f} (± {unsure:.1f}) = up to "
                f"{need:.1f} GiB {per_gpu}, the budget is {have:.1f} GiB; {largest}; no context fits"
            )
        return [Refusal("weights-too-large", text, round(need, 2), round(have, 2), "GiB per GPU")]
    refusals = []
    sequences = choice.load.max_num_seqs
    if memory.state_blocks_low is not None and memory.state_blocks_low < sequences and form.refuses_few_states:
        text = (
            f"{sequences} sequences need a recurrent state each, the cache keeps {memory.state_blocks_low} {per_gpu}; "
            f"maxNumSeqs {memory.state_blocks_low} or less fits"
        )
        refusals.append(Refusal("state-cache-too-small", text, sequences, memory.state_blocks_low, "sequences"))
    if memory.holds_load:
        return refusals
    longest = longest_context(choice, form, weights)
    verdict = f"the longest context that fits is {longest}" if longest else "no context fits"
    text = (
        f"{choice.load.concurrency} × {choice.load.context} tokens need {memory.kv_needed_gib:.1f} GiB of KV cache "
        f"{per_gpu}, {memory.kv_cache_gib:.1f} ± {unsure:.1f} GiB are left; {largest}; {verdict}"
    )
    need, have = memory.kv_needed_gib, memory.kv_cache_low_gib
    return [Refusal("kv-cache-too-small", text, round(need, 2), round(have, 2), "GiB per GPU"), *refusals]


def context_limit(choice: Choice) -> int:
    """The longest context of the model that the engine can be asked for, tokens; with no engine, of the model."""
    architecture = choice.model.architecture
    stretched = choice.form is None or choice.form.stretches_rope
    return architecture.context_limit if stretched else architecture.max_context


def longest_context(choice: Choice, form: EngineForm, weights: Weights, *, most: int | None = None) -> int | None:
    """The longest context up to `most` (by default the asked one) that fits at the asked concurrency.

    It is a multiple of 1024 tokens or, below that, of 16.

    None when not even 16 tokens fit. A context is tried as the engine would be told it, so everything that follows from
    it follows here too.
    """
    architecture = choice.model.architecture
    topology = choice.topology
    if topology.pipeline_parallel > architecture.layers:
        return None
    same_batch = fit.holds_context(architecture, choice.gpu, form, weights, topology, choice.load)

    def holds(context: int) -> bool:
        if not form.batch_follows_context:
            return same_batch(context)
        load = with_context(choice.load, context, form, choice.gpu)
        return fit.memory(architecture, choice.gpu, form, weights, topology, load).holds_load

    longest = min(context_limit(choice), most or choice.load.context)
    for step, most_here in ((1024, longest), (16, min(longest, 1023))):
        low, high = 0, most_here // step
        while low < high:
            middle = (low + high + 1) // 2
            if holds(middle * step):
                low = middle
            else:
                high = middle - 1
        if low:
            return low * step
    return None


def estimate(checked: Checked) -> throughput.Throughput | None:
    """Decode speed of one replica."""
    choice = checked.choice
    return throughput.estimate(
        choice.model.architecture, choice.gpu, choice.quantization, checked.weights.total_gib, choice.topology,
        checked.memory, model=choice.model.id, engine=choice.engine,
        max_concurrency=min(throughput.MAX_CONCURRENCY, choice.load.max_num_seqs),
    )  # fmt: skip
