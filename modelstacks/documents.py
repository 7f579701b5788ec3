"""Turns YAML text into plain data and back: one strict reader, one stable writer, for every file of the project."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from modelstacks.errors import BadInput, Problem

# The C parser is about eight times faster and ships with every PyYAML wheel; source builds may lack it.
_Parser: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Emitter: type = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


# Far above any real file, far below what makes the parser recurse too deep.
MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 200
_BRACKETS = re.compile(r"[\[\]{}]")
_NESTED_ITEMS = re.compile(r"\s*([-?]\s+){50}")


class _Reader(_Parser):  # type: ignore[misc]  # the base is chosen at run time
    """A safe loader that refuses a mapping with the same key twice, which YAML would let pass in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain value", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]

    def construct_number(self, node: yaml.ScalarNode) -> int:
        """Whole numbers that all YAML readers agree on: 010 is 8 or 10 to them, 1:30 and 1_000 are numbers or text."""
        if not _DECIMAL.fullmatch(node.value):
            text = f"{node.value[:40]!r} is another number, or none, to other readers of YAML: write it in plain digits"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
        return int(node.value)


_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_Reader.add_constructor("tag:yaml.org,2002:int", _Reader.construct_number)


def read(text: str, *, source: str, most: int | None = MAX_CHARACTERS) -> list[Any]:
    """Parse every document of `text`; empty documents are left out.

    Raises BadInput with file and line when the text is not YAML, repeats a key, or is too large (more than `most`
    characters) or deep to be meant.
    """
    _refuse_hostile(text, source, most)
    try:
        return [document for document in yaml.load_all(text, Loader=_Reader) if document is not None]
    # A value with a tag of YAML's own that it does not fit fails in the parser as it may.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        next_step = "correct the file and run again"
        raise BadInput([_yaml_problem(error)], source=source, next_step=next_step) from None


def read_file(path: Path) -> Any:
    """The single document of a YAML file, None when it is empty. Raises BadInput naming the file."""
    documents = read(read_text(path), source=str(path))
    if len(documents) > 1:
        raise BadInput([Problem("---", f"holds {len(documents)} documents, one is expected")], source=str(path))
    return documents[0] if documents else None


def read_text(path: Path) -> str:
    """The text of a file; unreadable or not UTF-8 becomes BadInput."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise BadInput([Problem("file", f"cannot be read: {reason}")], source=str(path)) from None


def _refuse_hostile(text: str, source: str, most: int | None) -> None:
    """The C parser recurses per level and has no limit of its own: very deep nesting would end the process."""
    if most is not None and len(text) > most:
        size = f"holds {len(text):,} characters"
        raise BadInput([Problem("file", size, allowed=f"at most {most:,}")], source=source)
    depth = 0
    for number, line in enumerate(text.splitlines(), 1):
        deepest = depth
        for character in _BRACKETS.findall(line):
            depth += 1 if character in "[{" else -1
            deepest = max(deepest, depth)
        if deepest > MAX_DEPTH or _NESTED_ITEMS.match(line):
            problem = Problem(f"line {number}", "is nested too deeply", allowed=f"at most {MAX_DEPTH} levels")
            raise BadInput([problem], source=source)


def line_of(text: str, path: Iterable[str | int]) -> int | None:
    """The 1-based line where the value at `path` begins (or the deepest part of it that exists)."""
    try:
        node = yaml.compose(text, Loader=_Parser)
    except (yaml.YAMLError, RecursionError):
        return None
    if node is None:
        return None
    line = node.start_mark.line + 1
    for step in path:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = (node.value[step], node.value[step])
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def place_of(text: str, path: Iterable[str | int]) -> str:
    """How an error names the value at `path`: its line, where it has one, and its keys."""
    steps = list(path)
    line, where = line_of(text, steps), ".".join(map(str, steps)) or "file"
    return f"line {line}, {where}" if line else where


def _yaml_problem(error: Exception) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "file"
    what = getattr(error, "problem", None) or str(error)
    if isinstance(error, RecursionError):
        what = "nested too deeply"
    elif isinstance(error, TypeError | LookupError | AttributeError):
        what = "a value does not fit its tag"
    return Problem(where, f"is not valid YAML: {what}")


# Plain style is kept for text that no YAML 1.1 or 1.2 parser reads as anything but a string: a letter first,
# then a narrow alphabet, and none of the boolean, null or float words. The rest is double-quoted.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*\Z")
_NOT_PLAIN = re.compile(
    r"(?i:y|n|yes|no|on|off|true|false|null|none|nan|inf|\.nan|\.inf|infinity)\Z|[eE]?[0-9.]*[eE][0-9]"
)


class _Writer(_Emitter):  # type: ignore[misc]  # the base is chosen at run time
    """A safe dumper without aliases whose strings survive every YAML parser."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if "\n" in text and not re.search(r"[^\S\n]\n|[^\x09\x0a\x20-\x7e]|\t", text) and text[:1] not in " \n":
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
    if _PLAIN.match(text) and not _NOT_PLAIN.match(text):
        return dumper.represent_scalar("tag:yaml.org,2002:str", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Writer.add_representer(str, _represent_str)


def write(document: Any) -> str:
    """One YAML document as text, keys in the given order, byte-identical from run to run."""
    text = yaml.dump(
        document, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=2**31 - 1, default_flow_style=False
    )
    return str(text)
