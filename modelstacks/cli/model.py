"""The `modelstacks model` commands: own models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from modelstacks import project
from modelstacks.errors import BadInput, Problem

model_app = typer.Typer(no_args_is_help=True, help="Own models beside the catalogue.", rich_markup_mode=None)


@model_app.callback()
def _group() -> None:
    """Own models beside the catalogue."""


@model_app.command(name="import")
def import_(
    repo: Annotated[str, typer.Option(help="Hugging Face repository of the weights, organisation/name.")],
    config: Annotated[Path, typer.Option(help="Its config.json, downloaded.")],
    weights_gib: Annotated[float, typer.Option(help="Size of the whole checkpoint, GiB.")],
    name: Annotated[Optional[str], typer.Option(help="Id of the model; from the repository when left out.")] = None,
    revision: Annotated[Optional[str], typer.Option(help="The commit to pin, 40 hexadecimal digits.")] = None,
    quantization: Annotated[Optional[str], typer.Option(help="How weights are stored; from the config.")] = None,
) -> None:
    """Write templates/models/<name>.yaml from a config.json. Never overwrites a file."""
    from modelstacks import spec
    from modelstacks.catalog import Model
    from modelstacks.catalog.row import load_row
    from modelstacks.importer import own_model
    from modelstacks.importer.template import template

    if quantization is not None and quantization not in spec.QUANTIZATIONS:
        allowed = ", ".join(spec.QUANTIZATIONS)
        problem = Problem("--quantization", f"{quantization!r} is not known", quantization, allowed)
        raise BadInput([problem], source="model import")
    model, hub = own_model(
        config, weights_gib=weights_gib, repo=repo, revision=revision, name=name, quantization=quantization
    )
    folder = project.root() / "templates" / "models"
    target = folder / f"{model.id}.yaml"
    if target.exists():
        problem = Problem("--name", f"templates/models/{model.id}.yaml exists already", model.id)
        raise BadInput([problem], source="model import", next_step="choose another --name, or edit that file")
    folder.mkdir(parents=True, exist_ok=True)
    # Complete or not at all, also when interrupted.
    draft = target.with_suffix(".yaml.new")
    draft.write_text(template(model, hub), encoding="utf-8")
    try:
        # What was written is what was meant, whatever words the config holds.
        load_row(Model, draft, id=model.id)
    except BadInput:
        draft.unlink()
        raise
    os.replace(draft, target)  # noqa: PTH105  # atomic on every file system
    architecture = model.architecture
    typer.echo(f"wrote templates/models/{model.id}.yaml: {architecture.parameters / 1e9:.1f}B parameters, "
        f"{architecture.layers} layers, context {architecture.max_context:,}"
    )  # fmt: skip
    for note in hub.notes:
        typer.echo(f"  {note}")
    typer.echo(f"add its licence, parsers and profiles, then: modelstacks plan {model.id}")
