"""What each layer of a config.json is: which cache its attention keeps, and which feed-forward part follows."""

from __future__ import annotations

from typing import Any, Literal

from modelstacks.importer.fields import Fields

Attention = Literal["full", "sliding", "chunked", "recurrent", "none"]
FeedForward = Literal["dense", "moe", "none"]

# The words of transformers' `layer_types` and of older lists like it.
_WORDS: dict[str, Attention] = {
    "full_attention": "full", "attention": "full", "full": "full", "global": "full", "global_attention": "full",
    "self_attention": "full", "sparse_attention": "full", "deepseek_sparse_attention": "full",
    "sliding_attention": "sliding", "sliding_window": "sliding", "sliding": "sliding", "local": "sliding",
    "local_attention": "sliding", "chunked_attention": "chunked",
    "linear_attention": "recurrent", "mamba": "recurrent", "mamba2": "recurrent", "recurrent": "recurrent",
    "gated_delta_net": "recurrent", "conv": "recurrent", "short_conv": "recurrent", "kda": "recurrent",
    "mlp": "none", "moe": "none",
}  # fmt: skip
# One letter a layer, as Nemotron-H writes them.
_LETTERS: dict[str, tuple[Attention, FeedForward]] = {
    "M": ("recurrent", "none"), "*": ("full", "none"), "-": ("none", "dense"), "E": ("none", "moe"),
}  # fmt: skip


def attention_of(text: Fields, layers: int, model_type: str) -> list[Attention]:
    """The cache kind of every layer, first to last."""
    pattern = text.word("hybrid_override_pattern")
    if pattern is not None:
        return [attention for attention, _ in _letters(text, pattern, layers)]
    named = text.items("layer_types", "layers_block_type", "block_types", length=layers)
    if named is not None:
        return _windowless([_named(text, word) for word in named], text)
    if text.has("block_configs"):
        return _searched(text, layers)
    indexed = _by_index(text, layers)
    if indexed is not None:
        return indexed
    return _by_family(text, layers, model_type)


def feed_forward_of(text: Fields, layers: int) -> list[FeedForward]:
    """Dense, mixture of experts or none, of every layer."""
    pattern = text.word("hybrid_override_pattern")
    if pattern is not None:
        return [feed_forward for _, feed_forward in _letters(text, pattern, layers)]
    blocks = text.items("layers_block_type", length=layers)
    if blocks is not None and {"mlp", "moe"} & {block for block in blocks if isinstance(block, str)}:
        own: dict[Any, FeedForward] = {"mlp": "dense", "moe": "moe"}
        return [own.get(block, "none") if isinstance(block, str) else "none" for block in blocks]
    if not experts(text):
        return ["dense"] * layers
    listed = text.raw("moe_layer_freq", "moe_layers", "mlp_layer_types")
    if isinstance(listed, list) and len(listed) == layers:
        return ["moe" if entry in (1, True, "sparse", "moe") else "dense" for entry in listed]
    if isinstance(listed, list) and text.has("moe_layers"):
        return ["moe" if layer in listed else "dense" for layer in range(layers)]
    first = text.whole("first_k_dense_replace", "n_dense_layers", "moe_layer_start_index", most=layers, least=0) or 0
    period = text.raw("moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step", "expert_layer_period")
    step = period if isinstance(period, int) and not isinstance(period, bool) and period > 0 else 1
    # Each family says differently which layer of a period is the sparse one; only their number matters here.
    dense = {layer for layer in text.items("mlp_only_layers") or [] if isinstance(layer, int)}
    return [
        "moe" if layer >= first and layer not in dense and (layer + 1) % step == 0 else "dense"
        for layer in range(layers)
    ]


def experts(text: Fields) -> int:
    """Routed experts of a sparse layer, 0 for a dense model."""
    names = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts", "num_routed_experts")
    if text.raw("enable_moe_block") is False:
        return 0
    return text.whole(*names, most=100_000, least=0) or 0


def _letters(text: Fields, pattern: str, layers: int) -> list[tuple[Attention, FeedForward]]:
    unknown = sorted(set(pattern) - set(_LETTERS))
    if unknown or len(pattern) != layers:
        text.wrong("hybrid_override_pattern", f"has {len(pattern)} letters, {unknown or 'all'} of them known"
            if not unknown else f"holds letters this reader does not know: {''.join(unknown)[:20]}",
            f"{layers} letters of {''.join(_LETTERS)}",
        )  # fmt: skip
        return [("full", "dense")] * layers
    return [_LETTERS[letter] for letter in pattern]


def _named(text: Fields, word: Any) -> Attention:
    if isinstance(word, str) and word in _WORDS:
        return _WORDS[word]
    text.wrong("layer_types", f"holds {str(word)[:40]!r}, a kind of layer this reader does not know",
        ", ".join(_WORDS),
    )  # fmt: skip
    return "full"


def _windowless(kinds: list[Attention], text: Fields) -> list[Attention]:
    """Sliding layers of a config whose window is null see everything."""
    if window(text) is None:
        return ["full" if kind == "sliding" else kind for kind in kinds]
    return kinds


def _searched(text: Fields, layers: int) -> list[Attention]:
    """Architectures found by search (DeciLM) say per block whether it has attention at all."""
    kinds: list[Attention] = []
    for block in text.items("block_configs", length=layers) or [{}] * layers:
        attention = block.get("attention") if isinstance(block, dict) else None
        gone = isinstance(attention, dict) and (attention.get("no_op") or attention.get("replace_with_linear"))
        kinds.append("none" if gone else "full")
    return kinds


def _by_index(text: Fields, layers: int) -> list[Attention] | None:
    """Hybrids that list where attention stands, or how often it comes."""
    linear = text.inner("linear_attn_config")
    if linear is not None:
        # Counted from one, as Kimi Linear's code does.
        full = {n for n in linear.items("full_attn_layers") or [] if isinstance(n, int)}
        return ["full" if layer + 1 in full else "recurrent" for layer in range(layers)]
    pattern = text.items("hybrid_layer_pattern", length=layers)
    if pattern is not None:
        return ["sliding" if entry else "full" for entry in pattern]
    types = text.items("attn_type_list", length=layers)
    if types is not None:
        return ["full" if entry == 1 else "recurrent" for entry in types]
    indices = text.items("attn_layer_indices")
    if indices is not None:
        return ["full" if layer in indices else "recurrent" for layer in range(layers)]
    interval = text.whole("full_attention_interval", most=layers)
    if interval is not None:
        return ["full" if (layer + 1) % interval == 0 else "recurrent" for layer in range(layers)]
    period = text.whole("attn_layer_period", most=layers)
    if period is not None:
        offset = text.whole("attn_layer_offset", most=layers, least=0) or 0
        return ["full" if layer % period == offset else "recurrent" for layer in range(layers)]
    return None


def _by_family(text: Fields, layers: int, model_type: str) -> list[Attention]:
    """Families whose code knows the pattern, and the plain case."""
    if text.has("attention_chunk_size") and model_type.startswith("llama4"):
        every = text.whole("no_rope_layer_interval", most=layers) or 4
        listed = text.items("no_rope_layers")
        if listed is not None and len(listed) == layers:
            return ["chunked" if rope else "full" for rope in listed]
        return ["full" if (layer + 1) % every == 0 else "chunked" for layer in range(layers)]
    if window(text) is None:
        return ["full"] * layers
    if model_type == "gemma2":
        return ["full" if layer % 2 else "sliding" for layer in range(layers)]
    # Gemma 3 and Cohere 2 leave the pattern out of the file where it is their default.
    default = {"gemma3": 6, "gemma3_text": 6, "cohere2": 4}.get(model_type)
    pattern = text.whole("sliding_window_pattern", "_sliding_window_pattern", most=layers) or default
    if pattern is not None:
        return ["full" if (layer + 1) % pattern == 0 else "sliding" for layer in range(layers)]
    return ["sliding"] * layers


def window(text: Fields) -> int | None:
    """Tokens that a sliding layer looks back over; None where no layer slides."""
    if text.raw("use_sliding_window") is False:
        return None
    tokens = text.whole("sliding_window", "sliding_window_size", most=10**9, least=0)
    longest = text.raw("max_position_embeddings")
    # A window as long as the context is none (Phi-3 and others keep such a number).
    if not tokens or (isinstance(longest, int) and tokens >= longest):
        return None
    return tokens
