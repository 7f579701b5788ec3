"""The `modelstacks local` commands."""
import typer
local_app = typer.Typer(no_args_is_help=True)

@local_app.callback()
def cb() -> None: ...
