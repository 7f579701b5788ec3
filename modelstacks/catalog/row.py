"""The base of every catalogue row: frozen, strict, and never built from data that contradicts itself."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelstacks import documents
from modelstacks.errors import BadInput, Problem

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
NaturalInt = Annotated[int, Field(ge=0)]
Id = Annotated[str, Field(pattern=r"^[a-z0-9]+([.-][a-z0-9]+)*$")]

RowT = TypeVar("RowT", bound="Row")


class Row(BaseModel):
    """A frozen record; unknown keys are errors."""

    # Validators are compiled when a kind of row is first read: most commands read few.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Fact(Row):
    """One number with where and when it was seen."""

    value: PositiveFloat
    source: str = Field(min_length=1)
    date: datetime.date | None = None


def named_rows(data: dict[str, Any], key: str, field: str = "id") -> dict[str, Any]:
    """`data` with each row of the mapping `key` told its own name; what is no row is left for validation to refuse."""
    rows = data.get(key)
    if not isinstance(rows, dict):
        return data
    return {**data, key: {name: {field: name, **row} if isinstance(row, dict) else row for name, row in rows.items()}}


def load_row(row_type: type[RowT], path: Path, **extra: Any) -> RowT:
    """Build a row from a data file. Raises BadInput that names the file and the line of every problem."""
    data = documents.read_file(path)
    if not isinstance(data, dict):
        raise BadInput([Problem("file", "must hold a mapping")], source=str(path))
    try:
        return row_type(**{**data, **extra})
    except (ValidationError, TypeError, OverflowError) as error:
        raise BadInput(_problems(error, documents.read_text(path)), source=str(path)) from None


def _problems(error: ValidationError | TypeError | OverflowError, text: str) -> list[Problem]:
    if not isinstance(error, ValidationError):
        return [Problem("file", str(error))]
    problems = []
    for detail in error.errors(include_url=False, include_context=False):
        path = [step for step in detail["loc"] if isinstance(step, str | int)]
        # A contradiction between values names its place in its own words: "checkpoints.fp8.size_gib …".
        named = re.match(r"Value error, ([a-z_]+(?:\.[\w-]+)+) ", detail["msg"])
        if not path and named is not None:
            path = [int(step) if step.isdigit() else step for step in named.group(1).split(".")]
        problems.append(Problem(documents.place_of(text, path), detail["msg"], detail.get("input")))
    return problems
