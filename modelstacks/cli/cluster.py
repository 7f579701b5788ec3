"""`modelstacks doctor` and `modelstacks status`: a stack beside the cluster that it runs on, or should."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from modelstacks import project, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import EXIT_FAULT, BadInput, ClusterError, Problem
from modelstacks.plan import Plan, plan

if TYPE_CHECKING:
    from modelstacks.cluster.findings import Finding

app = typer.Typer(rich_markup_mode=None)

Stack = Annotated[str, typer.Argument(help="The stack.")]
Context = Annotated[Optional[str], typer.Option(help="A context of the kubeconfig; the stack's own if left out.")]
Kubeconfig = Annotated[Optional[str], typer.Option(help="A kubeconfig file; the stack's own or KUBECONFIG.")]
Local = Annotated[bool, typer.Option("--local", help="Look at the embedded cluster and its simulated nodes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@dataclass(frozen=True)
class _Question:
    """A stack as it would be on the cluster that is asked."""

    decided: Plan
    manifests: list[dict[str, Any]]
    catalog: Catalog


def _question(stack: str, context: str | None, kubeconfig: str | None, local: bool) -> _Question:
    from modelstacks.render import render

    catalog, root = Catalog(), project.root()
    overlay: dict[str, Any] = {"kubeContext": context, "kubeconfig": kubeconfig}
    if context is not None:
        overlay["clusters"] = []
    path = stackfile.stack_file(root, stack)
    if local:
        from modelstacks.local import journey
        from modelstacks.local.layout import Layout

        if context or kubeconfig:
            problem = Problem("--local", "names the embedded cluster, and --context or --kubeconfig another one")
            raise BadInput([problem], source="command line")
        layout = Layout.of(root)
        if not layout.kubeconfig.is_file():
            raise ClusterError("the embedded cluster is not up", next_step=f"make up STACK={stack}")
        overlay = {"kubeconfig": str(layout.kubeconfig), **journey.overlay(path, catalog)}
    asked = stackfile.parse_file(path, catalog, overlay={k: v for k, v in overlay.items() if v is not None})
    decided = plan(asked, catalog, stack=stack, thorough=False)
    # A plan that is refused for its budget or licence can still be looked for on a cluster.
    if not decided.fits:
        raise ClusterError(
            "\n".join([f"{stack} does not fit, so there is nothing to look for", *decided.refusal_lines]),
            next_step=f"modelstacks plan {stack}",
        )
    return _Question(decided, render(decided, catalog), catalog)


@app.command()
def doctor(
    stack: Annotated[Optional[str], typer.Argument(help="The stack; without one the cluster as a whole.")] = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Find what keeps a stack from running on a live cluster, each with the command that mends it.

    Exit code 1 when something does.
    """
    from modelstacks.cluster import access, doctor

    question = _question(stack, context, kubeconfig, local) if stack is not None else None
    contexts = [context]
    if question is not None:
        kubeconfig = question.decided.spec.kubeconfig
        contexts = [place.spec.kube_context for place in question.decided.places]
    elif local:
        from modelstacks.local.layout import Layout

        kubeconfig = str(Layout.of(project.root()).kubeconfig)
        if not Path(kubeconfig).is_file():
            raise ClusterError("the embedded cluster is not up", next_step="make up")
    hosts, found = [], []
    for name in contexts:
        try:
            cluster = access.connect(kubeconfig, name)
            hosts.append(cluster.host)
            if question is None:
                here = doctor.look(cluster, None, [], Catalog())
            else:
                here = doctor.look(cluster, question.decided, question.manifests, question.catalog)
        except ClusterError as error:
            here = [doctor.unreachable(error)]
        several = len(contexts) > 1
        found += [replace(one, message=f"{name}: {one.message}") if several else one for one in here]
    host = ", ".join(hosts) or "the cluster"
    sick = any(one.level == "problem" for one in found)
    if as_json:
        answer = {"stack": stack, "cluster": host, "healthy": not sick, "findings": [one.answer() for one in found]}
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        _print(found, stack or "the cluster")
    if sick:
        raise typer.Exit(EXIT_FAULT)


@app.command()
def status(
    stack: Stack,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Show how a stack stands: replicas, pods, nodes, what they cost now, and what keeps them.

    Exit code 1 unless every replica is ready.
    """
    from modelstacks.cluster import access, doctor, snapshot
    from modelstacks.cluster import status as standing

    question = _question(stack, context, kubeconfig, local)
    standings, silent = {}, {}
    for place in question.decided.places:
        name = place.spec.kube_context
        try:
            cluster = access.connect(place.spec.kubeconfig, name)
            read = snapshot.read(cluster, place.namespace, question.manifests)
        except ClusterError as error:
            # Of several clusters the others still have something to say.
            if len(question.decided.places) == 1:
                raise
            silent[str(name)] = error.message
            continue
        findings = doctor.examine(read, place, question.manifests, question.catalog)
        standings[str(name)] = standing.status(read, place, question.manifests, findings)
    several = len(question.decided.places) > 1
    if as_json:
        answers: dict[str, Any] = {name: standing.answer(stack, found) for name, found in standings.items()}
        answers |= {name: {"stack": stack, "healthy": False, "error": text} for name, text in silent.items()}
        one = {"stack": stack, "clusters": answers} if several else next(iter(answers.values()))
        typer.echo(json.dumps(one, indent=2, ensure_ascii=False))
    else:
        for name, found in standings.items():
            _print_status(f"{stack} in {name}" if several else stack, found)
        for name, text in silent.items():
            typer.echo(f"{stack} in {name}: {text}")
    if silent or not all(found.healthy for found in standings.values()):
        raise typer.Exit(EXIT_FAULT)


def _print(found: list[Finding], of: str) -> None:
    """Each finding with its mend; a person reads the first problem first."""
    from rich.text import Text

    from modelstacks.cli.tables import terminal

    console = terminal()
    signs = {"problem": ("✗", "red"), "warning": ("!", "yellow"), "note": ("·", "bright_black")}
    for one in found:
        sign, colour = signs[one.level]
        console.print(Text(f"{sign} {one.check}: ", colour) + Text(one.message), soft_wrap=True)
        if one.mend is not None:
            console.print(
                Text(f"    mend: {one.mend}", "cyan" if one.level == "problem" else "bright_black"), soft_wrap=True
            )
    problems = sum(one.level == "problem" for one in found)
    warnings = sum(one.level == "warning" for one in found)
    blind = any(one.check == "permissions" and one.level == "warning" for one in found)
    fine = "nothing was found, but not everything could be seen" if blind else "nothing keeps it from running"
    verdict = f"{problems} problem{'s' * (problems != 1)}" if problems else fine
    console.print(f"{of}: {verdict}" + (f", {warnings} to know" if warnings else ""))


def _print_status(stack: str, found: Any) -> None:
    from modelstacks.cli.tables import table, terminal

    console = terminal()
    head = (
        f"{stack}: {found.ready_replicas} of {found.replicas} replicas ready"
        if found.deployed
        else (f"{stack} is not deployed on this cluster")
    )
    console.print(head)
    if found.pods:
        rows = [
            (p.name, "ready" if p.ready else p.state, str(p.restarts), str(p.gpus), p.node or "–") for p in found.pods
        ]
        table(
            console,
            ("pod", "state", "restarts", "GPUs", "node"),
            rows,
            fold=("pod", "node"),
            right=("restarts", "GPUs"),
        )
    if found.nodes:
        rows = [
            (n.name, n.machine or "–", n.capacity or "–", "ready" if n.ready else "not ready", str(n.gpus))
            for n in found.nodes
        ]
        table(console, ("node", "machine", "bought as", "state", "GPUs"), rows, fold=("node",), right=("GPUs",))
    if found.gpu_limit is not None:
        money = "" if found.usd_per_hour is None else f", ${found.usd_per_hour:,.2f} an hour now"
        console.print(f"{sum(n.gpus for n in found.nodes)} of at most {found.gpu_limit} GPUs{money}")
    if found.findings:
        console.print()
        _print(list(found.findings), stack)
