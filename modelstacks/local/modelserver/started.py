"""The command line of a rendered container, read as the engine itself would read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelstacks.catalog import Catalog
from modelstacks.catalog.flags import Flags, flags_of
from modelstacks.errors import BadInput, Problem
from modelstacks.local.imitation import Settings

# vLLM's own defaults where a container leaves a flag out.
_CONTEXT, _SEQUENCES = 8192, 256


@dataclass(frozen=True, slots=True)
class Started:
    """What a server was started with. `drain_s` is how long it finishes requests once it is told to end."""

    engine: str
    settings: Settings
    port: int
    drain_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the imitation is, and what goes wrong with it; the rest is in the command line."""

    load_s: float = 0.5
    token_s: float = 0.02
    kv_tokens: int | None = None
    dies_after: int | None = None


def read(engine: str, args: Sequence[str], pace: Pace, catalog: Catalog) -> Started:
    """Raises BadInput in the words of the engine's parser for a flag that it does not have."""
    version = catalog.any_form(engine).version
    known = flags_of(catalog.templates, engine, version)
    assert known is not None, f"there is no list of flags for {engine} {version}"
    try:
        words, found = known.read(args)
    except ValueError as error:
        raise BadInput([Problem("arguments", str(error))], source=f"{engine} serve") from None
    return (_vllm if engine == "vllm" else _tgi)(words, found, pace, known)


def _vllm(words: list[str], found: dict[str, list[str]], pace: Pace, known: Flags) -> Started:
    if len(words) != 1:
        raise BadInput([Problem("arguments", f"names {len(words)} models, one is served")], source="vllm serve")
    names = found.get("--served-model-name", words)
    settings = Settings(
        model=names[0],
        max_model_len=_number(found, "--max-model-len", _CONTEXT),
        max_num_seqs=_number(found, "--max-num-seqs", _SEQUENCES),
        load_s=pace.load_s,
        token_s=pace.token_s,
        kv_tokens=pace.kv_tokens,
        max_queued=_number(found, "--max-num-queued-reqs", 0) or None,
        dies_after=pace.dies_after,
    )
    return Started("vllm", settings, _number(found, "--port", 8000), _number(found, "--shutdown-timeout", 0))


def _tgi(words: list[str], found: dict[str, list[str]], pace: Pace, known: Flags) -> Started:
    if words:
        raise BadInput([Problem("arguments", f"unexpected argument {words[0]!r}")], source="text-generation-launcher")
    settings = Settings(
        model=found.get("--model-id", ["bigscience/bloom-560m"])[0],
        max_model_len=_number(found, "--max-total-tokens", _CONTEXT),
        max_num_seqs=_number(found, "--max-concurrent-requests", 128),
        load_s=pace.load_s,
        token_s=pace.token_s,
        kv_tokens=pace.kv_tokens,
        # What is above the concurrent requests is refused at once.
        max_queued=0,
        dies_after=pace.dies_after,
    )
    return Started(
        "tgi", settings, _number(found, "--port", 3000), _number(found, "--graceful-termination-timeout", 90)
    )


def _number(found: dict[str, list[str]], flag: str, default: int) -> int:
    if flag not in found:
        return default
    try:
        return int(found[flag][0])
    except ValueError:
        problem = Problem(flag, f"invalid int value: {found[flag][0]!r}", found[flag][0])
        raise BadInput([problem], source="arguments") from None
