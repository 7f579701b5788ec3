"""Reads what Ray Serve says of an application: why it stopped, without the stack traces around it."""

from __future__ import annotations

from collections.abc import Iterable

# The application's own sentences begin so (ray/modelstacks_ray/errors.py).
_OWN = "PlanError: "


def sentence(messages: Iterable[str]) -> str:
    """The application's own sentence among Serve's messages, else the last line that says anything."""
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    # Validation errors end with a link.
    lines = [line for line in lines if not line.startswith("For further information visit")]
    own = [line.rpartition(_OWN)[2] for line in lines if _OWN in line]
    return own[-1] if own else (lines[-1] if lines else "it stopped without a reason")
