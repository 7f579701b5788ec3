"""`modelstacks images`: everything that stacks pull, and whether a registry has it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Optional

import typer

from modelstacks import images, project, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import EXIT_FAULT, BadInput, Problem, Refused

app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Line:
    """One image: where it is pulled from, what it is a mirror of, who uses it, and what its registry says."""

    image: str
    origin: str
    pinned_by: str
    stacks: tuple[str, ...]
    found: str | None = None
    digest: str | None = None


@app.command(name="images")
def images_command(
    stacks: Annotated[Optional[list[str]], typer.Argument(help="Stack names; all of them with --all.")] = None,
    all_stacks: Annotated[bool, typer.Option("--all", help="Every stack of the project.")] = False,
    registry: Annotated[
        Optional[str], typer.Option(help="As if the stacks had modelstacks:registry with this mirror.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Ask each registry; exit 1 unless it has every image.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """List every image that stacks pull: what a closed cluster's registry must hold, operators' charts aside."""
    lines, refused = _lines(stacks, all_stacks, registry)
    if check:
        from modelstacks import registry as registries

        answers = registries.look_up([line.image for line in lines])
        lines = [replace(line, found=answers[line.image].state, digest=answers[line.image].digest) for line in lines]
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines], indent=2, ensure_ascii=False))
    else:
        _show(lines, check=check)
    missing = [line for line in lines if check and line.found != "there"]
    if missing:
        copies = [f"  crane copy {line.origin} {line.image}" for line in missing if line.origin != line.image]
        hint = "\n".join(["copy what is missing, for instance:", *copies]) if copies else "see what is named above"
        typer.echo(f"{len(missing)} of {len(lines)} images are not there; {hint}", err=True)
        raise typer.Exit(EXIT_FAULT)
    if refused:
        raise Refused("\n".join(refused), next_step="modelstacks plan STACK")


def _lines(stacks: list[str] | None, all_stacks: bool, registry: str | None) -> tuple[list[Line], list[str]]:
    """The images of the stacks that run, and why others do not."""
    from modelstacks.plan import plan
    from modelstacks.render import render

    root, catalog = project.root(), Catalog()
    names = stackfile.stack_names(root) if all_stacks else tuple(stacks or ())
    if not names:
        raise BadInput([Problem("stack", "name a stack, or --all")], source="command line")
    users: dict[str, list[str]] = {}
    origins: dict[str, str] = {}
    refused: list[str] = []
    # Operators' charts have images of their own, which this list leaves aside.
    overlay: dict[str, object] = {} if registry is None else {"registry": registry, "operators": []}
    for name in names:
        path = stackfile.stack_file(root, name)
        asked = stackfile.parse_file(path, catalog, overlay=overlay)
        decided = plan(asked, catalog, stack=name, thorough=False)
        if not decided.fits:
            refused.append("\n".join([f"{name} does not fit, so it pulls nothing", *decided.refusal_lines]))
            continue
        bare = decided.spec.model_copy(update={"registry": None})
        for origin in images.used_by(render(replace(decided, spec=bare), catalog)):
            image = images.mirrored(origin, decided.spec.registry)
            users.setdefault(image, []).append(name)
            origins[image] = origin
    if refused and not users:
        raise Refused("\n".join(refused), next_step="modelstacks plan STACK")
    lines = [
        Line(image, origins[image], "digest" if "@sha256:" in image else "tag", tuple(used))
        for image, used in users.items()
    ]
    return lines, refused


def _show(lines: list[Line], *, check: bool) -> None:
    from modelstacks.cli.tables import table, terminal

    console = terminal()
    heads = ["image", "pinned by", "stacks", *(["registry says"] if check else [])]
    rows = []
    for line in lines:
        used = ", ".join(line.stacks) if len(line.stacks) < 4 else f"{line.stacks[0]} and {len(line.stacks) - 1} more"
        row = [line.image, line.pinned_by, used]
        if check:
            row.append(f"{line.found}{f' ({line.digest})' if line.digest else ''}")
        rows.append(tuple(row))
    table(console, tuple(heads), rows, fold=("image", "stacks", "registry says"))
