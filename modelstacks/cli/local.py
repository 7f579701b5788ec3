"""The `modelstacks local` commands: the embedded cluster's life."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from typing import Annotated, Optional

import typer

from modelstacks import project

local_app = typer.Typer(
    no_args_is_help=True, help="The embedded Kubernetes with simulated GPU nodes.", rich_markup_mode=None
)

Stack = Annotated[str, typer.Argument(help="The stack to bring up.")]


@local_app.command()
def up(
    stack: Stack = "quickstart",
    without: Annotated[
        Optional[list[str]], typer.Option(help="A machine type that the simulated cloud has run out of.")
    ] = None,
) -> None:
    """Build the toolchain if needed, start the cluster and run `pulumi up` of a stack on simulated nodes."""
    from modelstacks.local import journey

    typer.echo("\n".join(journey.up(project.root(), stack, _Progress(), without or ())))


@local_app.command()
def preview(stack: Stack = "quickstart") -> None:
    """Show what `pulumi up` of a stack would change on the embedded cluster."""
    from modelstacks.local import journey

    journey.preview(project.root(), stack, _Progress())


@local_app.command()
def ray(
    stack: Annotated[str, typer.Argument(help="A stack over several nodes, such as deepseek-r1.")],
    stop: Annotated[bool, typer.Option("--stop", help="Stop its local Ray instead.")] = False,
    nodes: Annotated[Optional[int], typer.Option(min=0, help="Nodes a replica, other than planned.")] = None,
    gpus_per_node: Annotated[Optional[int], typer.Option(min=1, help="GPUs a node, other than planned.")] = None,
    accelerator_type: Annotated[Optional[str], typer.Option(help="Ray's name of another GPU, such as A100.")] = None,
    shm_gib: Annotated[Optional[float], typer.Option(help="What nodes say of their /dev/shm.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run the serve config of a stack on a real Ray with simulated GPU nodes, and show where it landed."""
    from modelstacks.local.raycluster import command

    root = project.root()
    report = _Progress(err=as_json)
    if stop:
        command.down(root, stack, report)
        return
    facts = {} if shm_gib is None else {"shm_gib": shm_gib}
    found = command.up(root, stack, report, command.Nodes(nodes, gpus_per_node, accelerator_type, facts))
    answers = {replica.name: command.stream(replica) for replica in found}
    if as_json:
        rows = [replica.answer() | {"answer": answers[replica.name]} for replica in found]
        typer.echo(json.dumps({"stack": stack, "replicas": rows}, indent=2))
        return
    for replica in found:
        typer.echo(f"\n{replica.name}  {replica.endpoint}")
        for group in replica.groups:
            typer.echo(f"  ranks {group['first_rank']:>2}–{group['last_rank']:<2} on node {group['node'][:8]}")
        typer.echo(f"  streamed: {answers[replica.name]}")
    typer.echo(
        f"\nnext:\n  edit modelstacks:replicas in stacks/Pulumi.{stack}.yaml, then: modelstacks local ray {stack}\n"
        f"  modelstacks local ray {stack} --stop"
    )


@local_app.command()
def serve(
    stack: Annotated[str, typer.Argument(help="A stack that is up on the embedded cluster.")] = "quickstart",
    load_s: Annotated[float, typer.Option(min=0, help="Seconds that loading takes.")] = 2.0,
    token_s: Annotated[float, typer.Option(min=0, help="Seconds of an output token.")] = 0.02,
) -> None:
    """Put a server that answers as the stack's engine does behind its simulated pods, until interrupted.

    It runs with the container's own arguments and key; `modelstacks try STACK --local` and `status --local` reach it.
    """
    from modelstacks.local import serving

    serving.serve(project.root(), stack, _Progress(), load_s=load_s, token_s=token_s)


@local_app.command()
def down() -> None:
    """Stop the cluster and every local Ray, and remove their state; the toolchain cache stays."""
    from modelstacks.local import cluster
    from modelstacks.local.layout import Layout
    from modelstacks.local.raycluster import command

    command.down(project.root(), None, _Progress())
    layout = Layout.of(project.root())
    cluster.down(layout, _Progress())
    shutil.rmtree(layout.state, ignore_errors=True)
    typer.echo("down: nothing runs, no state is left; the built programs stay in the cache")


@local_app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say which components run, on which ports, and which nodes there are."""
    from dataclasses import asdict

    from modelstacks.local import cluster
    from modelstacks.local.layout import Layout

    found = cluster.status(Layout.of(project.root()))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    for component in found.components:
        state = f"pid {component.pid}" if component.running else "stopped"
        port = f"127.0.0.1:{component.port}" if component.port else "–"
        typer.echo(f"{component.name:26} {component.version:10} {state:12} {port}")
    typer.echo(f"API server {'answers' if found.api_answers else 'does not answer'}; {len(found.nodes)} node(s)")
    for node in found.nodes:
        ready = "Ready" if node.ready else "NotReady"
        typer.echo(f"  {node.name:28} {ready:9} {node.instance_type or '–':16} {node.gpus} GPU(s)")
    if not found.up:
        typer.echo("next: make up")


@local_app.command()
def env() -> None:
    """Print the exports with which a shell's pulumi and kubectl act on the embedded cluster."""
    from modelstacks.local import journey
    from modelstacks.local.layout import Layout

    root = project.root()
    for name, value in journey.variables(root, Layout.of(root)).items():
        typer.echo(f"export {name}={shlex.quote(value)}")


class _Progress:
    """Prints each line with the time since the start."""

    def __init__(self, *, err: bool = False) -> None:
        self._start = time.monotonic()
        self._err = err

    def __call__(self, line: str) -> None:
        elapsed = int(time.monotonic() - self._start)
        typer.echo(f"[{elapsed // 60:2}:{elapsed % 60:02}] {line}", err=self._err)
