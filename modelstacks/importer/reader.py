"""A Hugging Face config.json → the architecture that the memory arithmetic needs, or all reasons why it is not one.

Raises BadInput, never anything else, whatever the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from modelstacks.catalog.models import Architecture, Mla, Moe, Window
from modelstacks.errors import BadInput, Problem
from modelstacks.importer import counting, layers
from modelstacks.importer.counting import MOST_WIDTH, Heads
from modelstacks.importer.fields import Fields

_TEXT_PARTS = ("text_config", "language_config", "llm_config")
# What the engine does with these is known to differ from every rule of this reader: no number would be right.
_UNREADABLE = {
    "compress_ratios": "compressed attention (DeepSeek V4) keeps caches of its own layout",
    "sparse_attention_config": "block-sparse attention keeps an index cache of its own layout",
    "index_topk_pattern": "the index cache is shared between layers in a pattern",
}
# Model types whose class in vLLM 0.32 builds embeddings and output layer on every pipeline stage.
_ENDS_EVERYWHERE = ("gpt_oss", "mixtral", "qwen3_moe", "qwen3_next", "qwen3_vl_moe", "gemma3", "gemma4", "nemotron_h")
# server/text_generation_server/models/__init__.py of TGI 3.3.7, without what it leaves to a generic fallback.
_TGI_TYPES = (
    "llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "gemma3_text", "qwen2", "qwen2_vl", "qwen2_5_vl",
    "phi", "phi3", "phimoe", "gpt2", "gpt_neox", "gptj", "gpt_bigcode", "falcon", "bloom", "opt", "mpt", "starcoder2",
    "cohere", "granite", "deepseek_v2", "dbrx", "olmo",
)  # fmt: skip
# Classes that generate text: LlamaForCausalLM, Gemma3ForConditionalGeneration, GPT2LMHeadModel.
_GENERATES = r"\w+For(CausalLM|ConditionalGeneration)|\w*LMHead\w*"
_NEXT_STEP = "see docs/adding.md for what is read, or write the template by hand"


@dataclass(frozen=True, slots=True)
class Weights:
    """How a checkpoint stores its weights: our word for it, bytes per weight, and the KV cache it asks for."""

    quantization: str
    bytes_per_weight: float
    kv_cache_dtype: str | None = None
    method: str | None = None
    # False where nothing says what the method makes of the weights.
    known: bool = True


@dataclass(frozen=True, slots=True)
class HubModel:
    """What a config.json says: the architecture, how weights are stored, and what was assumed on the way."""

    architecture: Architecture
    weights: Weights
    model_class: str | None
    notes: tuple[str, ...]
    model_type: str = ""

    @property
    def tgi_serves(self) -> bool:
        """TGI 3.3.7 has an implementation of its own for this type of model."""
        return self.model_type in _TGI_TYPES


def read(data: Mapping[str, Any], source: str) -> HubModel:
    """Read one config. Raises BadInput that lists every problem: missing, impossible or unknown values."""
    problems: list[Problem] = []
    outer = Fields(data, "", problems)
    name = next((part for part in _TEXT_PARTS if isinstance(data.get(part), Mapping)), None)
    # Values that a nested text part leaves out are the outer object's (vocab_size, quantization_config, …).
    inner = {**data, **data[name]} if name is not None else data
    text = Fields(inner, f"{name}." if name is not None else "", problems)
    model = _Reading(outer, text, problems).model(source)
    if problems or model is None:
        raise BadInput(problems, source=source, next_step=_NEXT_STEP)
    return model


class _Reading:
    """The steps of reading one config; every mistake goes into `problems`."""

    def __init__(self, outer: Fields, text: Fields, problems: list[Problem]) -> None:
        self.outer, self.text, self.problems = outer, text, problems
        self.notes: list[str] = []
        self.model_type = text.word("model_type") or outer.word("model_type") or ""

    def model(self, source: str) -> HubModel | None:
        """Everything at once; None when the file is no model's config."""
        text = self.text
        if not text.has("hidden_size", "d_model", "n_embd", "dim"):
            self.problems.append(
                Problem("file", "has no hidden_size, so it is not the config.json of a language model")
            )
            return None
        for key, why in _UNREADABLE.items():
            if text.raw(key):
                text.wrong(key, f"cannot be read: {why}")
        if text.flag("is_encoder_decoder"):
            text.wrong("is_encoder_decoder", "encoder-decoder models are not planned")
        hidden = text.needed("hidden_size", "d_model", "n_embd", "dim", most=1_000_000)
        listed = text.raw("layers_block_type", "layer_types", "hybrid_override_pattern")
        if text.has("num_hidden_layers", "n_layer", "n_layers", "num_layers") or not isinstance(listed, list | str):
            count = text.needed("num_hidden_layers", "n_layer", "n_layers", "num_layers", most=2_000)
        else:
            count = min(max(len(listed), 1), 2_000)
        if self.problems:
            return None
        architecture = self._architecture(hidden, count, source)
        if self.problems or architecture is None:
            return None
        weights = self._weights(architecture)
        named = self.outer.items("architectures") or [None]
        model_class = named[0] if isinstance(named[0], str) else None
        if model_class is not None and not re.fullmatch(_GENERATES, model_class):
            shown = repr(model_class[:60])
            self.outer.wrong("architectures", f"names {shown}, which generates no text", "…ForCausalLM")
            return None
        return HubModel(architecture, weights, model_class, tuple(self.notes), self.model_type)

    def _architecture(self, hidden: int, count: int, source: str) -> Architecture | None:
        text = self.text
        kinds = layers.attention_of(text, count, self.model_type)
        parts = layers.feed_forward_of(text, count)
        full, side = self._heads(hidden)
        mla = self._mla()
        vocab = text.needed("vocab_size", "padded_vocab_size", most=100_000_000)
        intermediate = self._intermediate(hidden, parts)
        tied = text.flag("tie_word_embeddings", default=self.model_type.startswith(("gemma", "cohere")))
        if self.problems:
            return None

        shared = min(text.whole("num_kv_shared_layers", most=count, least=0) or 0, count)
        cacheless = shared + sum(kind == "none" for kind in kinds[: count - shared])
        windows = self._windows(kinds[: count - shared], full, side)
        recurrent_row, recurrent_size = self._recurrent(hidden, kinds)
        if self.problems:
            return None
        attention = counting.attention(text, hidden, full)
        if mla is not None:
            attention = counting.latent_attention(text, hidden, full.heads, mla)
        sizes = {"full": attention, "sliding": counting.attention(text, hidden, side), "chunked": attention}
        sizes |= {"recurrent": recurrent_size, "none": 0}
        moe, routed, sparse = self._moe(hidden, parts, count)
        dense = counting.feed_forward(text, hidden, intermediate)
        body = sum(sizes[kind] for kind in kinds) + sum(dense for part in parts if part == "dense")
        body += sparse * sum(part == "moe" for part in parts)
        if layers_beside := self._dense_beside_experts(hidden):
            body += layers_beside * count
        ends = (1 if tied else 2) * vocab * hidden
        encoder = counting.encoder(self.outer, hidden)
        total = body + ends + (encoder.parameters if encoder is not None else 0)
        active = total - routed
        if moe is not None:
            active += routed * moe.experts_per_token // moe.experts
        ahead = self._predicts_ahead(hidden, attention, sparse if moe is not None else dense, vocab)
        try:
            return Architecture(
                layers=count, hidden=hidden, heads=full.heads, kv_heads=full.kv_heads, head_dim=full.head_dim,
                v_head_dim=full.v_head_dim if full.v_head_dim != full.head_dim else None,
                intermediate=intermediate, vocab=vocab, max_context=self._context(), parameters=total,
                active_parameters=active, unloaded_parameters=ahead, tied_embeddings=tied,
                ends_on_every_stage=self.model_type.startswith(_ENDS_EVERYWHERE),
                attention_sinks=self.model_type == "gpt_oss", mla=mla, windows=windows,
                recurrent=recurrent_row, cacheless_layers=cacheless,
                moe=moe, encoder=encoder, source=source,
            )  # fmt: skip
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                where = ".".join(map(str, detail["loc"])) or "file"
                self.problems.append(Problem(where, detail["msg"].removeprefix("Value error, ")))
            return None

    def _heads(self, hidden: int) -> tuple[Heads, Heads]:
        """Heads of the full layers, and of the windowed ones where they have their own."""
        text = self.text
        count = text.needed("num_attention_heads", "n_head", "n_heads", "num_heads", most=100_000)
        one = text.raw("multi_query") is True and not text.has("num_key_value_heads", "n_head_kv", "num_kv_heads")
        own = text.whole("num_key_value_heads", "n_head_kv", "n_kv_heads", "num_kv_heads", most=100_000)
        own = own or self._searched_heads(count) or (1 if one else count)
        width = text.whole("head_dim", "attention_head_dim", "kv_channels", most=100_000)
        if width is None and text.has("kv_lora_rank"):
            # With latent attention only activations use the width: position and content parts together.
            parts = [text.whole(name, most=100_000) or 0 for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
            width = max(1, sum(parts))
        elif width is None:
            if hidden % count:
                text.wrong(
                    "num_attention_heads", f"{count} does not divide hidden_size {hidden}, and there is no head_dim"
                )
                width = 1
            else:
                width = hidden // count
        value = text.whole("v_head_dim", most=100_000) if not text.has("kv_lora_rank") else None
        side = Heads(
            text.whole("swa_num_attention_heads", most=100_000) or count,
            text.whole("swa_num_key_value_heads", most=100_000) or own,
            text.whole("swa_head_dim", most=100_000) or width,
            text.whole("swa_v_head_dim", most=100_000) or value or width,
        )
        # Gemma 4 gives its global layers heads of their own.
        full = Heads(
            count,
            text.whole("num_global_key_value_heads", most=100_000) or own,
            text.whole("global_head_dim", most=100_000) or width,
            text.whole("global_head_dim", most=100_000) or value or width,
        )
        return full, side

    def _searched_heads(self, count: int) -> int | None:
        groups = set()
        for block in self.text.items("block_configs") or []:
            part = block.get("attention") if isinstance(block, dict) else None
            size = part.get("n_heads_in_group") if isinstance(part, dict) else None
            if isinstance(size, int) and not isinstance(size, bool) and size > 0:
                groups.add(size)
        if len(groups) > 1:
            self.text.wrong("block_configs", f"blocks differ in n_heads_in_group: {sorted(groups)}", "one size")
        return count // min(groups) if groups else None

    def _mla(self) -> Mla | None:
        text = self.text
        rank = text.whole("kv_lora_rank", most=MOST_WIDTH)
        if rank is None:
            return None
        indexer = text.whole("index_head_dim", most=MOST_WIDTH, least=0) or 0
        rope = text.needed("qk_rope_head_dim", most=MOST_WIDTH)
        kinds = text.items("indexer_types")
        if kinds is not None and "shared" in kinds:
            self.notes.append("layers that share another layer's index are counted as if they kept their own")
        rank_of_query = text.whole("q_lora_rank", most=MOST_WIDTH)
        # An 8-bit key and one 32-bit scale per 128 elements.
        return Mla(
            kv_lora_rank=rank, qk_rope_head_dim=rope, q_lora_rank=rank_of_query,
            indexer_bytes=indexer + 4 * -(-indexer // 128), indexer_parameters=counting.indexer(text, rank_of_query),
        )  # fmt: skip

    def _intermediate(self, hidden: int, parts: list[layers.FeedForward]) -> int:
        text = self.text
        names = ("dense_intermediate_size", "intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner",
            "ffn_hidden_size", "hidden_dim", "d_ff",
        )  # fmt: skip
        found = text.whole(*names, most=MOST_WIDTH)
        if found is None and text.has("block_configs"):
            return self._searched_width(hidden)
        if found is None and "dense" not in parts:
            return text.whole("moe_intermediate_size", most=MOST_WIDTH) or 4 * hidden
        if found is None and self.model_type.startswith(("gpt", "bloom", "falcon")):
            return 4 * hidden
        return found or text.needed("intermediate_size", most=MOST_WIDTH)

    def _searched_width(self, hidden: int) -> int:
        """The mean feed-forward width of a searched architecture, which differs from block to block."""
        factors = []
        for block in self.text.items("block_configs") or []:
            part = block.get("ffn") if isinstance(block, dict) else None
            factor = part.get("ffn_mult") if isinstance(part, dict) and not part.get("no_op") else 0
            good = isinstance(factor, int | float) and not isinstance(factor, bool) and 0 <= factor < 1000
            factors.append(float(factor) if good and factor else 0.0)
        mean = sum(factors) / max(len(factors), 1)
        self.notes.append("feed-forward widths differ from block to block; their mean is used")
        return max(1, round(2 * mean * hidden / 3))

    def _windows(self, kinds: list[layers.Attention], full: Heads, side: Heads) -> tuple[Window, ...]:
        windows = []
        own = (side.kv_heads, side.head_dim) != (full.kv_heads, full.head_dim)
        for kind, tokens in (
            ("sliding", layers.window(self.text)),
            ("chunked", self.text.whole("attention_chunk_size", most=10**9)),
        ):
            count = kinds.count(kind)  # type: ignore[arg-type]  # the two names are kinds of layers
            if count and tokens is None:
                self.text.wrong("sliding_window", f"is missing, and {count} layers are {kind}")
            elif count:
                heads = {"kv_heads": side.kv_heads, "head_dim": side.head_dim} if own else {}
                windows.append(Window(kind=kind, tokens=tokens, layers=count, **heads))  # type: ignore[arg-type]
        return tuple(windows)

    def _recurrent(self, hidden: int, kinds: list[layers.Attention]) -> tuple[Any, int]:
        count = kinds.count("recurrent")
        kind = counting.recurrent_kind(self.text)
        if not count and kind is not None and kind != "linear-attention":
            # Falcon H1 and others run attention and a state side by side in every layer.
            self.text.wrong(
                "model_type", f"{self.model_type!r} keeps a state ({kind}), and nothing says in which layers"
            )
        if not count:
            return None, 0
        if kind is None:
            self.text.wrong("layer_types", f"{count} layers are recurrent, and nothing says how large their state is")
            return None, 0
        return counting.recurrent(self.text, hidden, count, kind)

    def _moe(self, hidden: int, parts: list[layers.FeedForward], count: int) -> tuple[Moe | None, int, int]:
        """The experts, parameters of all routed ones, and parameters of one sparse layer."""
        text = self.text
        number, sparse_layers = layers.experts(text), parts.count("moe")
        if not number or not sparse_layers:
            return None, 0, 0
        width = text.whole("moe_intermediate_size", "expert_intermediate_size", "ffn_hidden_size_moe", most=MOST_WIDTH)
        width = width or text.needed("intermediate_size", most=MOST_WIDTH)
        chosen = text.whole("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k",
            "experts_per_token", most=number,
        )  # fmt: skip
        if chosen is None:
            text.wrong("num_experts_per_tok", "is missing")
            chosen = 1
        latent = text.whole("moe_latent_size", "routed_expert_hidden_size", most=MOST_WIDTH) or hidden
        matrices = 3 if counting.gated(text) else 2
        routed = number * matrices * latent * width
        shared = text.whole("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", most=1000, least=0)
        named = text.whole("moe_shared_expert_intermediate_size", "shared_expert_intermediate_size", "share_expert_dim",
            "shared_intermediate_size", most=MOST_WIDTH, least=0,
        )  # fmt: skip
        if self.model_type.startswith("llama4"):
            shared = 1
        shared_width = named if named is not None else (shared or 0) * width
        latent_ends = 2 * hidden * latent if latent != hidden else 0
        layer = routed + matrices * hidden * shared_width + hidden * number + latent_ends
        moe = Moe(
            experts=number, experts_per_token=chosen, intermediate=width,
            expert_parameters=max(1, routed * sparse_layers),
            layers=sparse_layers if sparse_layers != count else None, hidden=latent if latent != hidden else None,
        )  # fmt: skip
        return moe, routed * sparse_layers, layer

    def _dense_beside_experts(self, hidden: int) -> int:
        """Gemma 4 runs a dense feed-forward part beside the experts of each layer."""
        if not self.text.flag("enable_moe_block"):
            return 0
        width = self.text.whole("intermediate_size", most=MOST_WIDTH) or 0
        return 3 * hidden * width

    def _predicts_ahead(self, hidden: int, attention: int, feed_forward: int, vocab: int) -> int:
        """Parameters of layers that only speculative decoding loads.

        MiniMax's configs name such layers too (mtp_transformer_layers), but its checkpoints come without them.
        """
        text = self.text
        count = text.whole("num_nextn_predict_layers", "mtp_num_hidden_layers", most=100, least=0)
        if not count:
            return 0
        own_ends = text.raw("mtp_use_dedicated_embeddings") is not False and not text.has("mtp_hybrid_override_pattern")
        ends = 2 * vocab * hidden if own_ends else 0
        self.notes.append(f"{count} layer(s) that predict ahead are not loaded without speculative decoding")
        return count * (attention + feed_forward + 2 * hidden * hidden) + ends

    def _context(self) -> int:
        """The longest context, tokens, as vLLM derives it: the config's, times a scaling that is not yet in it."""
        text = self.text
        names = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length",
            "model_max_length", "max_seqlen", "max_trained_positions",
        )  # fmt: skip
        if not text.has(*names):
            self.notes.append("the config names no longest context; 2048 is assumed, as vLLM does")
            return 2048
        longest = text.needed(*names, most=1_000_000_000)
        scaling = text.inner("rope_scaling", "rope_parameters")
        if scaling is None or not scaling.has("factor"):
            return longest
        kind = scaling.word("rope_type", "type") or ""
        if kind == "yarn":
            original = scaling.whole("original_max_position_embeddings", most=1_000_000_000) or longest
            return max(longest, int(original * scaling.factor("factor")))
        return int(longest * scaling.factor("factor")) if kind in ("linear", "dynamic") else longest

    def _weights(self, architecture: Architecture) -> Weights:
        stored = self.text.inner("quantization_config", "compression_config")
        if stored is None:
            dtype = self.text.word("torch_dtype", "dtype") or self.outer.word("torch_dtype", "dtype") or "bfloat16"
            if dtype.endswith("float32"):
                self.notes.append("stored in 32 bits, served in 16")
            return Weights("bf16", 4.0 if dtype.endswith("float32") else 2.0)
        method = stored.word("quant_method") or "compressed-tensors"
        narrow = self._narrow_cache(stored)
        name = _quantization(stored, method)
        known, name = name is not None, name or "int4"
        if method == "bitsandbytes":
            self.notes.append("bitsandbytes is not part of vLLM 0.32: only older engine versions serve it")
        return Weights(name, {"fp8": 1.0, "int8": 1.0}.get(name, 0.56), narrow, method, known)

    def _narrow_cache(self, stored: Fields) -> str | None:
        scheme = stored.raw("kv_cache_scheme")
        if isinstance(scheme, dict) and scheme.get("num_bits") == 8:
            return "fp8"
        said = stored.word("kv_cache_quant_algo") or ""
        return "fp8" if said.upper().startswith("FP8") else None


def _quantization(stored: Fields, method: str) -> str | None:
    """Our word for how weights are stored."""
    if method in ("fp8", "fbgemm_fp8", "awq", "gptq", "mxfp4", "mxfp8"):
        bits = stored.raw("bits", "w_bit")
        return {"fbgemm_fp8": "fp8", "mxfp8": "fp8"}.get(method, "int8" if method == "gptq" and bits == 8 else method)
    if method == "bitsandbytes":
        return "int8" if stored.raw("load_in_8bit") is True else "int4"
    said = (stored.word("quant_algo") or "").upper()
    if said and "MIXED" not in said:
        return "nvfp4" if "NVFP4" in said else "fp8" if "FP8" in said else "int4" if "4" in said else "int8"
    groups = stored.raw("config_groups")
    found = [_scheme(group.get("weights")) for group in groups.values() if isinstance(group, dict)] if isinstance(
        groups, dict
    ) else []  # fmt: skip
    # Of a mixed checkpoint the narrowest scheme holds most weights.
    order = ("nvfp4", "mxfp4", "int4", "fp8", "int8")
    return min((name for name in found if name is not None), key=order.index, default=None)


def _scheme(weights: Any) -> str | None:
    if not isinstance(weights, dict):
        return None
    bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    if bits == 8:
        return "fp8" if kind == "float" else "int8"
    if bits == 4:
        return "int4" if kind != "float" else "mxfp4" if size == 32 else "nvfp4"
    return None
