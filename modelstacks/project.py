"""Finds the folders of a modelstacks project: the data it plans from, the stacks of the user, what was rendered."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


@cache
def data_root() -> Path:
    """The folder that holds templates/, hardware/ and local/: the checkout, or the copy inside an installed wheel."""
    checkout = _PACKAGE.parent
    return checkout if (checkout / "templates").is_dir() else _PACKAGE / "data"


def root(start: Path | None = None) -> Path:
    """The project folder: the nearest one with a Pulumi.yaml and stacks/ at or above `start`, else the checkout."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "Pulumi.yaml").is_file() and (folder / "stacks").is_dir():
            return folder
    return _PACKAGE.parent


def stacks_dir(project: Path) -> Path:
    """Where the user's stack files live."""
    return project / "stacks"


def rendered_dir(project: Path, stack: str) -> Path:
    """Where the reviewed manifests of one stack live."""
    return project / "rendered" / stack
