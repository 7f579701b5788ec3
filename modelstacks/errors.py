"""Every error a user can meet, each with its exit code and its next step.

ModelstacksError            1  a fault: something outside the input went wrong
├── ToolchainError          1  a program of the embedded cluster cannot be had or built
├── ClusterError            1  a Kubernetes API, embedded or not, does not do what was asked
├── BadInput                2  the stack file, an option or a data file is wrong; lists every problem
└── Refused                 3  the plan is well-formed but may not run: no fit, over budget, licence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_FAULT = 1
EXIT_BAD_INPUT = 2
EXIT_REFUSED = 3


class ModelstacksError(Exception):
    """A failure to show to the user as it is: one sentence, and what to do next."""

    exit_code = EXIT_FAULT

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return self.message if self.next_step is None else f"{self.message}\n  next: {self.next_step}"


class ToolchainError(ModelstacksError):
    """A program that the embedded cluster needs is missing and cannot be built."""


class ClusterError(ModelstacksError):
    """A Kubernetes API server refused, failed or did not answer."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in the user's input: where it is, what stands there, what may stand there."""

    path: str
    message: str
    value: object = None
    allowed: str | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}"
        if self.suggestion is not None:
            text += f"; did you mean {self.suggestion}?"
        if self.allowed is not None:
            text += f" (allowed: {self.allowed})"
        return text


def listed(names: Sequence[str], most: int = 14) -> str:
    """Names as an error shows them: all of a few, the first of many."""
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])}, … {len(names)} in all"


class BadInput(ModelstacksError):
    """The input is wrong in one or more places; `problems` names them all."""

    exit_code = EXIT_BAD_INPUT

    def __init__(
        self, problems: Sequence[Problem], *, source: str, next_step: str | None = "correct what is named above"
    ) -> None:
        self.problems = tuple(problems)
        self.source = source
        count = len(self.problems)
        head = f"{source}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]), next_step=next_step)


class Refused(ModelstacksError):
    """The plan was understood and declined; `refusals` says why in numbers."""

    exit_code = EXIT_REFUSED
