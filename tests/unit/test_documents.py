"""The YAML reader refuses what YAML lets pass in silence, and the writer's output means the same to every parser."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelstacks import documents
from modelstacks.errors import BadInput

_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t"), max_size=30)
_PLAIN_DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(_PLAIN_DATA)
def test_writing_then_reading_is_the_identity(data: object) -> None:
    """parse ∘ write is the identity on everything a manifest can hold."""
    read = documents.read(documents.write(data), source="test")
    assert (read[0] if read else None) == data


@given(_PLAIN_DATA)
def test_writing_twice_gives_the_same_bytes(data: object) -> None:
    """The writer has no state and no random order."""
    assert documents.write(data) == documents.write(data)


@pytest.mark.parametrize(
    "text",
    [
        "1e3",
        "12345e8",
        "y",
        "n",
        "on",
        "off",
        "yes",
        "No",
        "null",
        "None",
        "~",
        "0x1F",
        "1_000",
        "12:30",
        ".5",
        "=",
        "@x",
    ],
)
def test_text_that_parsers_read_as_something_else_is_quoted(text: str) -> None:
    """Go's YAML reads 1e3 as a number and y as a boolean: such text never stands bare."""
    assert documents.write({"value": text}) == f'value: "{text}"\n'


def test_a_key_given_twice_is_refused_with_its_line() -> None:
    """PyYAML would keep the last one and say nothing."""
    with pytest.raises(BadInput, match=r"line 2.*duplicate key 'a'"):
        documents.read("a: 1\na: 2\n", source="test")


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: b: c",
        "\t",
        "- a\nb: c",
        "!!python/object:os.system x",
        'a: !!int ""',
        "a: !!bool x",
        "a: !!timestamp x",
        "a: 010",
        "a: 1:30",
        "a: 1_000",
        "a: 0x1f",
        "[" * 100_000,
        "- " * 100_000,
        "[\n" * 90_000,
        "x" * 2_000_000,
    ],
)
def test_text_that_is_not_yaml_is_bad_input(text: str) -> None:
    """No parser error escapes as a traceback."""
    with pytest.raises(BadInput):
        documents.read(text, source="test")


def test_merges_are_read_as_other_readers_do() -> None:
    """What is written out wins over what is merged."""
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n"
    assert documents.read(text, source="test") == [{"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}]


def test_lines_are_found_by_path() -> None:
    """Problems in data files point at the line of the value."""
    text = "a:\n  - b: 1\n  - b: 2\n    c: 3\n"
    assert documents.line_of(text, ["a", 1, "c"]) == 4
    assert documents.line_of(text, ["a", 1, "missing"]) == 3


def test_the_writer_quotes_for_the_fast_and_the_slow_emitter_alike() -> None:
    """Both emitters ship with PyYAML; the plain Python one must read back what we wrote."""
    data = {"multi": "line one\nline two\n", "emoji": "\N{ROCKET} ok", "empty": "", "space": " x "}
    assert yaml.safe_load(documents.write(data)) == data
