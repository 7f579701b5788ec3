"""Reads single values out of a config.json that may hold anything, and remembers every mistake it meets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelstacks.errors import BadInput, Problem

# Real files hold 1 to 100 KB; a few list every module that is left unquantized, and stay below 1 MB.
MAX_BYTES = 8 * 2**20
MAX_DEPTH = 64
_NEXT_STEP = "give the config.json of the model's Hugging Face repository, unchanged"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BadInput for a file that is missing, too large, too deep or no JSON object."""
    source = str(path)
    try:
        if not path.is_file():
            raise BadInput([Problem("file", "is not there")], source=source, next_step=_NEXT_STEP)
        size = path.stat().st_size
        if size > MAX_BYTES:
            text = f"holds {size:,} bytes, which no config.json does"
            raise BadInput([Problem("file", text, allowed=f"at most {MAX_BYTES:,}")], source=source)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = Problem("file", f"cannot be read: {error.strerror or error}")
        raise BadInput([problem], source=source, next_step=_NEXT_STEP) from None
    except UnicodeDecodeError:
        raise BadInput([Problem("file", "is not UTF-8 text")], source=source, next_step=_NEXT_STEP) from None
    if _depth(text) > MAX_DEPTH:
        problem = Problem("file", "is nested too deeply", allowed=f"at most {MAX_DEPTH} levels")
        raise BadInput([problem], source=source, next_step=_NEXT_STEP)
    try:
        data = json.loads(text, object_pairs_hook=_no_key_twice)
    except json.JSONDecodeError as error:
        where, what = f"line {error.lineno}, column {error.colno}", f"is not valid JSON: {error.msg}"
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        ended = " (the file ends too early)" if cut else ""
        raise BadInput([Problem(where, what + ended)], source=source, next_step=_NEXT_STEP) from None
    except (ValueError, RecursionError) as error:
        raise BadInput([Problem("file", f"is not valid JSON: {error}")], source=source, next_step=_NEXT_STEP) from None
    if not isinstance(data, dict):
        problem = Problem("file", f"holds {_kind(data)}", allowed='an object such as {"model_type": …}')
        raise BadInput([problem], source=source, next_step=_NEXT_STEP)
    return data


def _depth(text: str) -> int:
    """How deep brackets nest, those inside strings left out: the parser itself recurses."""
    deepest = depth = 0
    for token in re.findall(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', text):
        if token in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in "]}":
            depth -= 1
    return deepest


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {key[:60]!r} stands twice in one object")
        values[key] = value
    return values


class Fields:
    """One object of the config, read by the first of several names that it is known under.

    `problems` gathers what is wrong; a getter then returns its default so that reading can go on.
    """

    def __init__(self, values: Mapping[str, Any], path: str, problems: list[Problem]) -> None:
        self._values = values
        self._path = path
        self._problems = problems

    def has(self, *names: str) -> bool:
        """One of the names is there and not null."""
        return self._find(names) is not None

    def whole(self, *names: str, most: int, least: int = 1, default: int | None = None) -> int | None:
        """A whole number between `least` and `most`."""
        found = self._find(names)
        if found is None:
            return default
        name, value = found
        if isinstance(value, bool) or not isinstance(value, int):
            self.wrong(name, f"is {_shown(value)}", f"a whole number, {least} to {most:,}")
            return default
        if not least <= value <= most:
            self.wrong(name, f"is {_shown(value)}", f"{least} to {most:,}")
            return default
        return value

    def needed(self, *names: str, most: int, least: int = 1) -> int:
        """A whole number that no model can be planned without."""
        if not self.has(*names):
            self.wrong(names[0], "is missing" + (f" (nor is {', '.join(names[1:])} there)" if names[1:] else ""))
            return least
        return self.whole(*names, most=most, least=least, default=least) or least

    def flag(self, *names: str, default: bool = False) -> bool:
        """True or false."""
        found = self._find(names)
        if found is None:
            return default
        if not isinstance(found[1], bool):
            self.wrong(found[0], f"is {_shown(found[1])}", "true or false")
            return default
        return found[1]

    def factor(self, *names: str, default: float = 1.0) -> float:
        """A positive number, such as a scaling factor."""
        found = self._find(names)
        if found is None:
            return default
        name, value = found
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6 or math.isnan(value):
            self.wrong(name, f"is {_shown(value)}", "a positive number")
            return default
        return float(value)

    def word(self, *names: str) -> str | None:
        """Some text."""
        found = self._find(names)
        if found is None:
            return None
        # It is shown on terminals and written into templates.
        if not isinstance(found[1], str) or len(found[1]) > 20_000 or not found[1].isprintable():
            self.wrong(found[0], f"is {_shown(found[1])}", "text")
            return None
        return found[1]

    def items(self, *names: str, length: int | None = None) -> list[Any] | None:
        """A list, of one item per layer where `length` is given."""
        found = self._find(names)
        if found is None:
            return None
        name, value = found
        if not isinstance(value, list):
            self.wrong(name, f"is {_kind(value)}", "a list")
            return None
        if length is not None and len(value) != length:
            self.wrong(name, f"has {len(value)} entries", f"{length}, one a layer")
            return None
        return value

    def inner(self, *names: str) -> Fields | None:
        """A nested object."""
        found = self._find(names)
        if found is None:
            return None
        name, value = found
        if not isinstance(value, dict):
            self.wrong(name, f"is {_kind(value)}", "an object")
            return None
        return Fields(value, f"{self._path}{name}.", self._problems)

    def raw(self, *names: str) -> Any:
        """Whatever stands there."""
        found = self._find(names)
        return None if found is None else found[1]

    def wrong(self, name: str, message: str, allowed: str | None = None) -> None:
        """Remember a mistake."""
        self._problems.append(Problem(f"{self._path}{name}", message, self._values.get(name), allowed))

    def _find(self, names: tuple[str, ...]) -> tuple[str, Any] | None:
        return next(((name, self._values[name]) for name in names if self._values.get(name) is not None), None)


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**15:
        return "a number of more than 15 digits"
    text = json.dumps(value) if isinstance(value, str | bool | int | float) else _kind(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
