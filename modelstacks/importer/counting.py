"""Counts the parameters of each part of a model from the numbers of its config.json.

Counts follow the weight matrices of the public modelling code; vectors (norms, biases) are left out, they stay below
0.1 % of any model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelstacks.catalog.models import Encoder, Mla, Recurrent
from modelstacks.importer.fields import Fields

MOST_WIDTH = 10_000_000

_WITHOUT_GATE = ("gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "opt", "falcon", "bloom", "mpt", "phi",
    "starcoder2", "nemotron", "nemotron_h",
)  # fmt: skip

RecurrentKind = Literal["mamba1", "mamba2", "gated-delta-net", "kda", "linear-attention", "short-conv"]


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention of one kind of layer."""

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int


def attention(text: Fields, hidden: int, heads: Heads) -> int:
    """Grouped-query attention of one layer; some models gate its output, some use one matrix for keys and values."""
    query = hidden * heads.heads * heads.head_dim * (2 if text.flag("attn_output_gate") else 1)
    keys, values = hidden * heads.kv_heads * heads.head_dim, hidden * heads.kv_heads * heads.v_head_dim
    return query + keys + values + heads.heads * heads.v_head_dim * hidden


def latent_attention(text: Fields, hidden: int, heads: int, mla: Mla) -> int:
    """Multi-head latent attention of one layer, with the indexer of sparse variants."""
    wide = text.whole("qk_nope_head_dim", most=MOST_WIDTH) or 128
    value = text.whole("v_head_dim", most=MOST_WIDTH) or 128
    query_width = heads * (wide + mla.qk_rope_head_dim)
    rank = mla.q_lora_rank
    query = hidden * query_width if rank is None else hidden * rank + rank * query_width
    down = hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim)
    up = mla.kv_lora_rank * heads * (wide + value)
    return query + down + up + heads * value * hidden + mla.indexer_parameters


def indexer(text: Fields, query_rank: int | None) -> int:
    """The part of sparse attention that chooses tokens, in one layer; 0 where there is none."""
    hidden = text.whole("hidden_size", most=MOST_WIDTH) or 0
    heads = text.whole("index_n_heads", most=MOST_WIDTH, least=0) or 0
    width = text.whole("index_head_dim", most=MOST_WIDTH, least=0) or 0
    return (query_rank or hidden) * heads * width + hidden * (width + heads) if width else 0


def feed_forward(text: Fields, hidden: int, intermediate: int) -> int:
    """A dense feed-forward part: three matrices, two where the activation has no gate."""
    return (3 if gated(text) else 2) * hidden * intermediate


def gated(text: Fields) -> bool:
    """The activation multiplies two projections, as in all newer families but those named here."""
    family = text.word("model_type") or ""
    activation = text.word("mlp_hidden_act", "hidden_act", "hidden_activation", "activation_function") or "silu"
    return not (activation == "relu2" or family in _WITHOUT_GATE)


def recurrent_kind(text: Fields) -> RecurrentKind | None:
    """Which kind of fixed state the model's recurrent layers keep."""
    if text.has("linear_attn_config"):
        return "kda"
    if text.has("linear_num_value_heads"):
        return "gated-delta-net"
    if text.has("mamba_num_heads", "mamba_n_heads"):
        return "mamba2"
    if text.has("mamba_d_state", "mamba_expand", "state_size"):
        return "mamba1"
    if text.has("conv_L_cache"):
        return "short-conv"
    if text.has("attn_type_list"):
        return "linear-attention"
    return None


def recurrent(text: Fields, hidden: int, layers: int, kind: RecurrentKind) -> tuple[Recurrent, int]:
    """The state that one recurrent layer keeps per request, and the layer's parameters."""

    def whole(*names: str, default: int = 1) -> int:
        return text.whole(*names, most=MOST_WIDTH, default=default) or default

    said = text.word("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
    # vLLM keeps the states of Nemotron-H in 32 bits unless told otherwise.
    wide = said == "float32" or (said is None and text.word("model_type") == "nemotron_h")
    state_bytes: Literal[2, 4] = 4 if wide else 2
    if kind == "gated-delta-net":
        key_heads, key = whole("linear_num_key_heads"), whole("linear_key_head_dim", default=128)
        value_heads, value = whole("linear_num_value_heads"), whole("linear_value_head_dim", default=128)
        kernel = whole("linear_conv_kernel_dim", default=4)
        channels = 2 * key_heads * key + value_heads * value
        matrices = hidden * (2 * key_heads * key + 2 * value_heads * value + 2 * value_heads)
        size = matrices + channels * kernel + value_heads * value * hidden
        state = value_heads * key * value
    elif kind == "kda":
        inner = text.inner("linear_attn_config")
        heads = (inner.whole("num_heads", most=MOST_WIDTH) if inner else None) or 1
        width = (inner.whole("head_dim", most=MOST_WIDTH) if inner else None) or 128
        kernel = (inner.whole("short_conv_kernel_size", most=1000) if inner else None) or 4
        full_gate = inner is not None and inner.flag("use_full_rank_gate")
        channels = 3 * heads * width
        low_rank = hidden * width + width * heads * width
        gate = hidden * heads * width if full_gate else low_rank
        size = hidden * channels + low_rank + gate + hidden * heads + channels * kernel + heads * width * hidden
        state, state_bytes = heads * width * width, 4
    elif kind == "mamba2":
        heads, width = whole("mamba_num_heads", "mamba_n_heads"), whole("mamba_head_dim", "mamba_d_head", default=64)
        groups, depth = whole("n_groups", "mamba_n_groups"), whole("ssm_state_size", "mamba_d_state", default=128)
        kernel = whole("conv_kernel", "mamba_d_conv", default=4)
        inner_width = heads * width
        channels = inner_width + 2 * groups * depth
        size = hidden * (inner_width + channels + heads) + channels * kernel + inner_width * hidden
        state = heads * width * depth
    elif kind == "mamba1":
        inner_width = whole("intermediate_size", default=0) if text.word("model_type") == "mamba" else 0
        inner_width = inner_width or whole("mamba_expand", "expand", default=2) * hidden
        depth, kernel = (
            whole("mamba_d_state", "state_size", default=16),
            whole("mamba_d_conv", "conv_kernel", default=4),
        )
        rank = text.raw("mamba_dt_rank", "time_step_rank")
        steps = rank if isinstance(rank, int) and 0 < rank < MOST_WIDTH else -(-hidden // 16)
        channels = inner_width
        size = inner_width * (3 * hidden + 2 * steps + 3 * depth + kernel)
        state = inner_width * depth
    elif kind == "short-conv":
        kernel, channels, state = whole("conv_L_cache", default=3), hidden, 0
        size = 4 * hidden * hidden
    else:
        heads, width = whole("num_attention_heads"), whole("head_dim", default=128)
        kernel, channels, state, state_bytes = 1, 0, heads * width * width, 4
        size = 5 * hidden * heads * width
    conv = channels * (kernel - 1)
    row = Recurrent(kind=kind, layers=layers, conv_elements=conv, state_elements=state, state_bytes=state_bytes)
    return row, size


# Weights of servers with several ranks say that each keeps the whole tower (vLLM 0.13-0.19).
_WHOLE_TOWERS = ("mistral3", "pixtral", "llama4")
_WIDTH = ("hidden_size", "width", "embed_dim", "vt_hidden_size")


def encoder(config: Fields, hidden: int) -> Encoder | None:
    """The vision tower beside the language model; None for a text model or one whose tower is empty."""
    vision = config.inner("vision_config", "vision_encoder", "visual")
    if vision is None or not vision.has(*_WIDTH):
        return None
    width = vision.whole(*_WIDTH, most=MOST_WIDTH) or 1
    depth = vision.whole("num_hidden_layers", "depth", "layers", "num_layers", "vt_num_hidden_layers", most=10_000) or 1
    ratio = vision.factor("mlp_ratio", default=4.0)
    inner = vision.whole("intermediate_size", "mlp_dim", "vt_intermediate_size", most=MOST_WIDTH) or int(width * ratio)
    patch = vision.whole("patch_size", "spatial_patch_size", most=10_000) or 14
    merge = vision.whole("spatial_merge_size", most=100, default=1) or 1
    matrices = 3 if (vision.word("hidden_act", "hidden_activation") or "").startswith("silu") else 2
    attending = depth * 4 * width * width
    body = attending + depth * matrices * width * inner
    merged = width * merge * merge
    out = vision.whole("out_hidden_size", "projector_dim", most=MOST_WIDTH) or hidden
    projector = merged * merged + merged * out if merge > 1 else merged * out
    deep = vision.items("deepstack_visual_indexes") or []
    projector *= 1 + len(deep)
    side = vision.raw("image_size")
    pixels = side if isinstance(side, int) and 0 < side <= 10_000 else 1024
    tokens = config.whole("mm_tokens_per_image", "vision_soft_tokens_per_image", most=1_000_000) or max(
        1, (pixels // (patch * merge)) ** 2
    )
    heads = vision.whole("num_attention_heads", "num_heads", "vt_num_attention_heads", most=MOST_WIDTH)
    return Encoder(
        parameters=body + projector + width * patch * patch * 3,
        hidden=width,
        intermediate=inner,
        tokens_per_item=tokens,
        split_over_ranks=(config.word("model_type") or "") not in _WHOLE_TOWERS,
        heads=heads,
        attention_parameters=attending,
    )
