"""How the engine pages its KV cache: which layers share a pool of equal blocks, and how many a request takes.

Follows vLLM's v1/core/kv_cache_utils.py and kv_cache_interface.py; versions differ in the fields of EngineForm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modelstacks.catalog import Architecture, EngineForm
from modelstacks.catalog.models import Window


@dataclass(frozen=True, slots=True)
class Group:
    """Layers of one kind that take their blocks together, `times` such groups of equal size."""

    kind: Literal["full", "sliding", "chunked", "state"]
    times: int
    block_tokens: int
    window: int = 0
    state_blocks: int = 1

    def blocks(self, context: int, in_flight: int) -> int:
        """Blocks that a request of `context` tokens takes from the pool, at worst."""
        if self.kind == "state":
            return self.times * self.state_blocks
        kept = context
        if self.kind != "full":
            kept = min(self.window - (self.kind == "sliding") + in_flight, context)
        # A window moves over block borders, so it can touch one block more.
        return self.times * (-(-kept // self.block_tokens) + (self.kind == "sliding"))


@dataclass(frozen=True, slots=True)
class KvCache:
    """The paged cache of one rank: bytes of a block of the shared pool, and what takes blocks from it."""

    groups: tuple[Group, ...]
    bytes_per_block: float
    bytes_per_token: float
    in_flight: int

    def blocks_per_request(self, context: int) -> int:
        """Blocks of one request: full layers keep it all, windows what they see and what is in flight, states one."""
        return sum(group.blocks(context, self.in_flight) for group in self.groups) or 1

    def tokens(self, blocks: int, context: int, *, as_share: bool) -> int:
        """The size of the cache in tokens as the engine prints it.

        `as_share`: older versions divide the pool evenly between groups; newer ones multiply concurrency and context.
        """
        if len(self.groups) == 1 and self.groups[0].times == 1 and self.groups[0].kind == "full":
            return blocks * self.groups[0].block_tokens
        if as_share:
            tokens = min(group.block_tokens for group in self.groups)
            return blocks // sum(group.times for group in self.groups) * tokens
        return int(blocks / self.blocks_per_request(context) * context)


def kv_heads_per_rank(kv_heads: int, tensor_parallel: int) -> int:
    """KV heads one rank keeps: above the model's count they are copied, not cut (vLLM config/model.py)."""
    return max(1, kv_heads // tensor_parallel)


def token_bytes(
    architecture: Architecture, tensor_parallel: int, width: float, *, padded: int | None = None, packed: bool = False
) -> float:
    """Bytes that one token takes in one full layer on one rank.

    A latent row may be padded to `padded` elements. `packed`: sparse kernels of some GPUs keep an 8-bit row with the
    rope part in 16 bits and a scale per 128 elements (fp8_ds_mla).
    """
    if architecture.mla is not None:
        mla = architecture.mla
        row = max(mla.kv_lora_rank + mla.qk_rope_head_dim, padded or 0) * width
        if packed and mla.indexer_bytes and width == 1:
            row = mla.kv_lora_rank + 4 * -(-mla.kv_lora_rank // 128) + 2 * mla.qk_rope_head_dim
        return row + mla.indexer_bytes
    values = architecture.head_dim + architecture.value_dim
    return kv_heads_per_rank(architecture.kv_heads, tensor_parallel) * values * width


@dataclass(frozen=True, slots=True)
class _Kind:
    """Layers of one kind before they are grouped; `page` bytes of one block of one layer."""

    kind: Literal["full", "sliding", "chunked", "state"]
    layers: int
    page: float
    block_tokens: int
    window: int = 0


def layout(
    architecture: Architecture,
    form: EngineForm,
    tensor_parallel: int,
    layers: int,
    width: float,
    in_flight: int,
    *,
    packed: bool = False,
) -> KvCache:
    """The cache of a stage of `layers` layers; `width` is bytes per element, `in_flight` tokens of running batches.

    Groups are those of the whole model; a pipeline stage keeps its share of each, rounded up.
    """
    mla, recurrent = architecture.mla, architecture.recurrent
    block = form.mla_block_tokens if mla is not None else form.block_tokens
    full_token = token_bytes(architecture, tensor_parallel, width, padded=form.mla_row_elements, packed=packed)
    state_page = recurrent.page_bytes(tensor_parallel) if recurrent is not None else 0.0
    if recurrent is not None and architecture.full_layers:
        # Blocks of attention are made as large as one request's state, so that both fit the same pages.
        step = form.mla_state_alignment if mla is not None else form.state_alignment
        block = max(block, math.ceil(math.ceil(state_page / full_token) / step) * step)
        state_page = block * full_token
    kinds: list[_Kind] = []
    per_token = full_token * architecture.full_layers
    if architecture.full_layers:
        kinds.append(_Kind("full", architecture.full_layers, full_token * block, block))
    for window in architecture.windows:
        row = _window_bytes(architecture, window, tensor_parallel, width) if mla is None else full_token
        per_token += row * window.layers
        saves = form.windows_save_memory and (form.chunks_save_memory or window.kind == "sliding")
        kind: Literal["full", "sliding", "chunked"] = window.kind if saves else "full"
        kinds.append(_Kind(kind, window.layers, row * block, block, window.tokens if saves else 0))
    if recurrent is not None:
        kinds.append(_Kind("state", recurrent.layers, state_page, block))
    # With prefix caching a request also keeps the state it branched from, and Mamba 2 one more for its checkpoint.
    extra = form.state_blocks > 1 and recurrent is not None and recurrent.kind == "mamba2"
    share = layers / architecture.layers
    return _grouped(_merged(kinds), form, per_token * share, in_flight, form.state_blocks + extra, share)


def _window_bytes(architecture: Architecture, window: Window, tensor_parallel: int, width: float) -> float:
    """Bytes of one token in one windowed layer, whose heads may be its own."""
    heads = kv_heads_per_rank(window.kv_heads or architecture.kv_heads, tensor_parallel)
    values = 2 * window.head_dim if window.head_dim else architecture.head_dim + architecture.value_dim
    return heads * values * width


def _merged(kinds: list[_Kind]) -> list[_Kind]:
    """Full layers and windowed ones that are kept like full ones are one kind when their pages are equal."""
    merged: list[_Kind] = []
    for kind in kinds:
        same = next((k for k in merged if (k.kind, k.page, k.window) == (kind.kind, kind.page, kind.window)), None)
        if same is not None and kind.kind == "full":
            merged[merged.index(same)] = _Kind("full", same.layers + kind.layers, kind.page, kind.block_tokens)
        else:
            merged.append(kind)
    return merged


def _grouped(
    kinds: list[_Kind], form: EngineForm, per_token: float, in_flight: int, states: int, share: float
) -> KvCache:
    """Groups of equal layer count share one pool of equal pages; what does not divide is padded."""
    if not kinds:
        return KvCache((Group("full", 1, form.block_tokens),), 1.0, 0.0, in_flight)
    page = max(kind.page for kind in kinds)
    counts = [kind.layers for kind in kinds]
    # Near-equal kinds are padded up to the larger rather than cut to the smaller.
    size = max(counts) if max(counts) < form.group_stretch * min(counts) else min(counts)
    groups = []
    for kind in kinds:
        ratio = int(page // kind.page) if kind.kind != "state" and kind.page and page % kind.page == 0 else 1
        times = -(-kind.layers // size)
        groups.append(Group(kind.kind, times, kind.block_tokens * ratio, kind.window, states))
    # A share that is whole but for rounding errors stays whole.
    return KvCache(tuple(groups), page * math.ceil(size * share - 1e-9), per_token, in_flight)
