"""A model server that answers as vLLM does, without weights: its limits, its queue, its metrics, its ways to die.

What carries it (Ray's engine protocol, later HTTP) is elsewhere; this is the behaviour alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_ANSWER = "the plan fits because weights and cache were counted before any machine was bought and so this answers"
_WORDS = tuple(_ANSWER.split())


@dataclass(frozen=True, slots=True)
class Settings:
    """What the imitated engine was started with. Seconds and tokens."""

    model: str
    max_model_len: int
    max_num_seqs: int
    load_s: float = 0.5
    token_s: float = 0.02


class TooLong(ValueError):
    """A request that does not fit the context, in vLLM's words for it."""


class EngineDead(RuntimeError):
    """The engine has lost a part of itself and will not answer again."""


@dataclass(slots=True)
class Imitation:
    """One engine: `running` requests at most `max_num_seqs`, the others wait."""

    settings: Settings
    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    death: str | None = None
    _places: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.settings.max_num_seqs)

    async def load(self) -> None:
        """Take the time that loading takes."""
        await asyncio.sleep(self.settings.load_s)

    def die(self, reason: str) -> None:
        """From now on every request and every health check fails with `reason`."""
        self.death = self.death or reason

    def check(self) -> None:
        """Raise EngineDead when it is."""
        if self.death is not None:
            raise EngineDead(self.death)

    def admit(self, prompt: str, max_tokens: int | None) -> tuple[int, int]:
        """Tokens of the prompt and of the answer. Raises TooLong for what the context cannot hold."""
        length, most = count(prompt), self.settings.max_model_len
        asked = max_tokens if max_tokens is not None else min(len(_WORDS), most - length)
        if length + max(asked, 1) > most:
            raise TooLong(
                f"This model's maximum context length is {most} tokens, the prompt has {length} and {asked} were asked "
                "for: shorten one of them."
            )
        return length, asked

    async def tokens(self, prompt: str, max_tokens: int | None) -> AsyncIterator[str]:
        """The words of the answer, one a step. Raises TooLong before the first, EngineDead at any."""
        self.check()
        length, most = self.admit(prompt, max_tokens)
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self.prompt_tokens += length
        try:
            for index in range(most):
                await asyncio.sleep(self.settings.token_s)
                self.check()
                self.generation_tokens += 1
                yield _WORDS[index % len(_WORDS)] + " "
        finally:
            self.running -= 1
            self._places.release()

    def gauges(self) -> dict[str, float]:
        """Values under vLLM's names, without the prefix."""
        return {"num_requests_running": self.running, "num_requests_waiting": self.waiting}

    def counters(self) -> dict[str, int]:
        """Totals under vLLM's names, without the prefix and without `_total`."""
        return {"prompt_tokens": self.prompt_tokens, "generation_tokens": self.generation_tokens}


def count(prompt: str) -> int:
    """Tokens of a prompt: a word is one, and there is always the first."""
    return 1 + len(prompt.split())
