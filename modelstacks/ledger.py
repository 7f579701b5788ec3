"""A plan's memory as one line of text, for terminals and plan.md alike."""

from __future__ import annotations

from modelstacks.plan import Plan


def ledger_bar(plan: Plan, width: int = 60) -> str:
    """One line that shows the card: W weights, o overhead, K KV cache, · left to others."""
    memory = plan.memory
    cells = [
        ("W", memory.weights_gib),
        ("o", memory.overhead_gib),
        ("K", max(memory.kv_cache_gib, 0.0)),
    ]
    bar = "".join(letter * round(size / memory.gpu_gib * width) for letter, size in cells)[:width]
    return bar.ljust(width, "·")
