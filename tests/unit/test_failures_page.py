"""docs/failures.md: a row for every pain of starting, changing, many nodes and capacity, with tests that exist."""

from __future__ import annotations

import re

from modelstacks import project
from modelstacks.plan.values import Refusal

ROOT = project.root()
PAGE = (ROOT / "docs" / "failures.md").read_text()


def test_every_pain_has_a_row_and_every_row_its_tests() -> None:
    """8 to 31, in order; a test that is renamed is missed here."""
    rows = [line.split(" | ") for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0].strip("| ")) for row in rows] == list(range(8, 32))
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        tests = re.findall(r"`(test_\w+)`", row[-1])
        assert tests, row[0]
        for name in tests:
            assert f"def {name}(" in sources, name
        assert "prevented" in row[2] or "refused" in row[2] or "found" in row[2]


def test_every_refusal_is_documented() -> None:
    """A code that a user meets is a row of the command line's page."""
    page = (ROOT / "docs" / "command-line.md").read_text()
    text = "\n".join(path.read_text() for path in (ROOT / "modelstacks" / "plan").glob("*.py"))
    codes = set(re.findall(r'Refusal\(\s*"([a-z-]+)"', text)) | set(Refusal.POLICY)
    assert not [code for code in codes if f"| `{code}` |" not in page]
