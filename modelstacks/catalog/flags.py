"""The flags that an engine's server takes, as generated data, and a command line held against them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Flags:
    """Flags of one engine version; each takes `nothing`, a `value` or `many`, of `choices` where it has some."""

    engine: str
    version: str
    known: dict[str, dict[str, Any]]

    def read(self, args: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
        """Words before the first flag, and flag → what follows it. Raises ValueError that names what is wrong."""
        words: list[str] = []
        found: dict[str, list[str]] = {}
        rest = list(args)
        while rest and not rest[0].startswith("-"):
            words.append(rest.pop(0))
        while rest:
            flag, equals, value = rest.pop(0).partition("=")
            known = self.known.get(flag)
            if known is None:
                near = difflib.get_close_matches(flag, self.known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{flag} is no flag of {self.engine} {self.version}{hint}")
            given = [value] if equals else []
            while rest and not self._is_flag(rest[0]) and (known["takes"] == "many" or not given):
                if known["takes"] == "nothing":
                    raise ValueError(f"{flag} takes no value, and {rest[0]!r} follows it")
                given.append(rest.pop(0))
            if known["takes"] != "nothing" and not given:
                raise ValueError(f"{flag} lacks its value")
            for one in given:
                if known.get("choices") and one not in known["choices"]:
                    raise ValueError(f"{flag} {one}: allowed are {', '.join(known['choices'])}")
            found[flag] = given
        return words, found

    def _is_flag(self, word: str) -> bool:
        # A negative number is a value.
        return word.startswith("-") and not word[1:2].isdigit() and word != "-"


@cache
def flags_of(templates: Path, engine: str, version: str) -> Flags | None:
    """The list of one engine version; None where there is none."""
    path = templates / "engines" / f"{engine}-{version}-flags.json"
    if not path.is_file():
        return None
    data = json.loads(path.read_text(encoding="utf-8"))
    return Flags(data["engine"], data["version"], data["flags"])
