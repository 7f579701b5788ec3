"""A model server that answers as vLLM does, without weights: its limits, its queue, its cache, its ways to die.

What carries it (Ray's engine protocol in raycluster/, HTTP in modelserver/) is elsewhere; this is the behaviour alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

_ANSWER = "the plan fits because weights and cache were counted before any machine was bought and so this answers"
_WORDS = tuple(_ANSWER.split())


@dataclass(frozen=True, slots=True)
class Settings:
    """What the imitated engine was started with. Seconds and tokens.

    `kv_tokens` is what the cache holds; `max_queued` how many requests may wait, None: any number. It dies after
    `dies_after` requests.
    """

    model: str
    max_model_len: int
    max_num_seqs: int
    load_s: float = 0.5
    token_s: float = 0.02
    kv_tokens: int | None = None
    max_queued: int | None = None
    dies_after: int | None = None


class TooLong(ValueError):
    """A request that does not fit the context, in vLLM's words for it."""


class TooMany(RuntimeError):
    """A request that the queue has no place for."""


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
    # Tokens that running requests keep in the cache.
    kept: int = 0
    answered: int = 0
    death: str | None = None
    _places: asyncio.Semaphore = field(init=False)
    _room: asyncio.Condition = field(init=False)

    def __post_init__(self) -> None:
        self._places = asyncio.Semaphore(self.settings.max_num_seqs)
        self._room = asyncio.Condition()

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
        """Tokens of the prompt and of the answer. Raises TooLong for what the context cannot hold, TooMany in a jam."""
        length, most = count(prompt), self.settings.max_model_len
        asked = max_tokens if max_tokens is not None else min(len(_WORDS), most - length)
        if length + max(asked, 1) > most:
            raise TooLong(
                f"This model's maximum context length is {most} tokens, the prompt has {length} and {asked} were asked "
                "for: shorten one of them."
            )
        queued = self.settings.max_queued
        if queued is not None and self.running + self.waiting >= self.settings.max_num_seqs + queued:
            raise TooMany(f"{self.waiting} requests are waiting already, which is the limit")
        return length, asked

    async def tokens(self, prompt: str, max_tokens: int | None) -> AsyncIterator[str]:
        """The words of the answer, one a step. Raises TooLong or TooMany before the first, EngineDead at any."""
        self.check()
        length, asked = self.admit(prompt, max_tokens)
        self.waiting += 1
        try:
            await self._places.acquire()
            try:
                await self._take(length)
            except BaseException:
                self._places.release()
                raise
        finally:
            self.waiting -= 1
        self.running += 1
        self.prompt_tokens += length
        held = length
        try:
            for index in range(asked):
                await asyncio.sleep(self.settings.token_s)
                self.check()
                self.generation_tokens += 1
                self.kept += 1
                held += 1
                yield _WORDS[index % len(_WORDS)] + " "
        finally:
            self.running -= 1
            self.answered += 1
            self._places.release()
            self.kept -= held
            if self.settings.dies_after is not None and self.answered >= self.settings.dies_after:
                self.die("the engine core ended")
            async with self._room:
                self._room.notify_all()

    async def _take(self, length: int) -> None:
        """Wait until the cache has room for a prompt."""
        async with self._room:
            if self.settings.kv_tokens is not None:
                room = self.settings.kv_tokens
                await self._room.wait_for(lambda: self.kept + length <= room or not self.running)
            self.kept += length

    def gauges(self) -> dict[str, float]:
        """Values under vLLM's names, without the prefix."""
        held = self.kept / self.settings.kv_tokens if self.settings.kv_tokens else 0.0
        return {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting,
            "kv_cache_usage_perc": min(1.0, held),
        }

    def counters(self) -> dict[str, int]:
        """Totals under vLLM's names, without the prefix and without `_total`."""
        return {"prompt_tokens": self.prompt_tokens, "generation_tokens": self.generation_tokens}


def count(prompt: str) -> int:
    """Tokens of a prompt: a word is one, and there is always the first."""
    return 1 + len(prompt.split())
