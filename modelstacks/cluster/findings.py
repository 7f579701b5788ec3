"""A finding: what is wrong, where, and the command that mends it. The checks that make findings are pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["problem", "warning", "note"]

# The order in which a person should look: without access nothing else can be known, and so on.
CHECKS = (
    "access", "permissions", "apis", "operators", "gpu-software", "namespace", "secrets", "storage", "quota",
    "webhooks", "pool", "nodes", "weights", "workload", "scaling", "pods",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check found. `problem` keeps the stack from running, `warning` may, `note` is to know."""

    check: str
    level: Level
    message: str
    mend: str | None = None
    object: str | None = None

    def answer(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "check": self.check,
            "level": self.level,
            "object": self.object,
            "message": self.message,
            "mend": self.mend,
        }


def problem(check: str, message: str, mend: str | None = None, object_: str | None = None) -> Finding:
    return Finding(check, "problem", message, mend, object_)


def warning(check: str, message: str, mend: str | None = None, object_: str | None = None) -> Finding:
    return Finding(check, "warning", message, mend, object_)


def note(check: str, message: str, mend: str | None = None, object_: str | None = None) -> Finding:
    return Finding(check, "note", message, mend, object_)


def in_order(found: Iterable[Finding]) -> list[Finding]:
    """Problems first in the order of the checks, each once."""
    levels = {"problem": 0, "warning": 1, "note": 2}
    unique = dict.fromkeys(found)
    return sorted(unique, key=lambda f: (levels[f.level], CHECKS.index(f.check)))


def tolerates(tolerations: Iterable[Mapping[str, Any]], taint: Mapping[str, Any]) -> bool:
    """A pod with these tolerations may be scheduled on a node with this taint."""
    if taint.get("effect") == "PreferNoSchedule":
        return True
    return any(
        (toleration.get("effect") in (None, "", taint.get("effect")))
        and (
            (toleration.get("operator") == "Exists" and toleration.get("key") in (None, "", taint.get("key")))
            or (
                toleration.get("operator", "Equal") == "Equal"
                and toleration.get("key") == taint.get("key")
                and (toleration.get("value") or "") == (taint.get("value") or "")
            )
        )
        for toleration in tolerations
    )


def quantity(value: object) -> float:
    """A Kubernetes quantity as a number: 500m → 0.5, 16Gi → 17179869184. Raises ValueError for anything else."""
    text = str(value)
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


_SUFFIXES = {
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
}  # fmt: skip


def shown(resource: str, amount: float) -> str:
    """An amount as people read it: whole devices, GiB for memory and disk, CPUs."""
    if resource in ("memory", "ephemeral-storage", "storage") or resource.startswith("hugepages"):
        return f"{amount / 2**30:,.0f} GiB"
    return f"{amount:g}"
