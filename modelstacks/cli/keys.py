"""`modelstacks rotate-key`: another key for a stack's API, in one command."""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from modelstacks import project, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput, ModelstacksError, Problem
from modelstacks.fields import MOST, key_path
from modelstacks.local import processes

app = typer.Typer(rich_markup_mode=None)


@app.command(name="rotate-key")
def rotate_key(
    stack: Annotated[str, typer.Argument(help="The stack.")],
    apply: Annotated[bool, typer.Option("--up/--no-up", help="Run `pulumi up` of the stack as well.")] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Let `pulumi up` go on without asking.")] = False,
) -> None:
    """Give a stack's API another key: raises apiKeySerial in the stack file, renders, and applies.

    Servers take it as they are restarted; the old key's Secret goes when all have.
    """
    from modelstacks import review
    from modelstacks.plan import plan
    from modelstacks.render.values import api_key_secret

    root, catalog = project.root(), Catalog()
    path = stackfile.stack_file(root, stack)
    asked = stackfile.parse_file(path, catalog)
    if not asked.api_key or asked.api_key_secret is not None:
        what = "is false" if not asked.api_key else f"is {asked.api_key_secret}, a Secret of yours"
        key = "apiKey" if not asked.api_key else "apiKeySecret"
        problem = Problem(key_path(key), f"{what}: there is no key of this stack's own to change")
        raise BadInput([problem], source=path.name, next_step="change it where it comes from")
    # Any other number is another key; the highest one is followed by the first.
    serial = asked.api_key_serial % MOST + 1
    decided = plan(stackfile.parse_file(path, catalog, overlay={"apiKeySerial": serial}), catalog, stack=stack)
    # A stack that may not run keeps the key that it has.
    decided.check_runs()
    files, before = review.files(decided, catalog, stack), path.read_bytes()
    stackfile.set_value(path, "apiKeySerial", serial)
    try:
        review.store(files, project.rendered_dir(root, stack))
    except ModelstacksError:
        path.write_bytes(before)
        raise
    typer.echo(f"stacks/{path.name}: {key_path('apiKeySerial')}: {serial}; rendered/{stack} follows")
    command = ["pulumi", "up", "--stack", stack, *(["--yes"] if yes else [])]
    if not apply:
        typer.echo(f"next: {' '.join(command)}")
        return
    if shutil.which("pulumi") is None:
        raise ModelstacksError("pulumi is not on PATH", next_step=f"{' '.join(command)}, where it is")
    if processes.attend(command, environment=os.environ, folder=root) != 0:
        raise ModelstacksError(f"pulumi up of {stack} failed, see above", next_step=" ".join(command))
    typer.echo(f"clients read the new key from Secret {api_key_secret(decided)} in namespace {decided.namespace}")
