"""The one Jinja environment, and templates as data: each is rendered, parsed at once and embedded, never indented."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from modelstacks import documents
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput, Problem

Manifest = dict[str, Any]


@cache
def environment(templates: Path) -> jinja2.Environment:
    """The one Jinja environment: strict, no extensions, JSON for every value."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    # Without this, `tojson` writes surrogate pairs that YAML parsers read differently.
    env.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    return env


def many(catalog: Catalog, template: str, context: dict[str, Any]) -> list[Manifest]:
    try:
        text = environment(catalog.templates).get_template(template).render(context)
    except (jinja2.TemplateError, TypeError) as error:
        # A name that does not exist reaches `tojson` and is a TypeError there.
        line = f" line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise BadInput([Problem(f"{template}{line}", str(error))], source="templates") from None
    # What a user writes is small; what it renders to grows with the replicas.
    return documents.read(text, source=template, most=None)


def part(catalog: Catalog, template: str, context: dict[str, Any]) -> Any:
    parts = many(catalog, template, context)
    if len(parts) != 1:
        raise BadInput([Problem(template, f"gives {len(parts)} documents, one is expected")], source="templates")
    return parts[0]
