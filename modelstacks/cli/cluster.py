"""`modelstacks doctor` and `modelstacks status`: a stack beside the cluster that it runs on, or should."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from modelstacks import project, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import EXIT_FAULT, BadInput, ClusterError, Problem, Refused
from modelstacks.plan import Plan, plan

if TYPE_CHECKING:
    from modelstacks.cluster.findings import Finding

app = typer.Typer(rich_markup_mode=None)

Stack = Annotated[str, typer.Argument(help="The stack.")]
Context = Annotated[Optional[str], typer.Option(help="A context of the kubeconfig; the stack's own if left out.")]
Kubeconfig = Annotated[Optional[str], typer.Option(help="A kubeconfig file; the stack's own or KUBECONFIG.")]
Local = Annotated[bool, typer.Option("--local", help="Look at the embedded cluster and its simulated nodes.")]
_WATCH_S = 3.0
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
        raise Refused(
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
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until interrupted.")] = False,
    seconds: Annotated[float, typer.Option(min=0, max=60, help="Between two readings of the servers' counters.")] = 2.0,
    as_json: Json = False,
) -> None:
    """Show how a stack stands: roll-out, replicas, pods, nodes, traffic beside the plan, cost, and what keeps them.

    Exit code 1 unless every replica is ready.
    """
    question = _question(stack, context, kubeconfig, local)
    if watch and as_json:
        raise BadInput([Problem("--watch", "is for people, and --json for programs")], source="command line")
    while watch:
        # A person reads one picture at a time; what was before is gone, as with `watch`.
        typer.echo("\x1b[2J\x1b[H", nl=False) if sys.stdout.isatty() else None
        try:
            _status(stack, question, seconds, as_json=False)
        except typer.Exit:
            pass
        except ClusterError as error:
            # A cluster that is silent for a moment is looked at again.
            typer.echo(f"error: {error}", err=True)
        time.sleep(_WATCH_S)
    _status(stack, question, seconds, as_json=as_json)


def _status(stack: str, question: _Question, seconds: float, *, as_json: bool) -> None:
    from modelstacks.cluster import access, doctor, snapshot
    from modelstacks.cluster import status as standing

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
        found = standing.status(read, place, question.manifests, findings)
        standings[str(name)] = standing.with_servers(found, cluster, read, place, seconds)
    several = len(question.decided.places) > 1
    if as_json:
        answers: dict[str, Any] = {
            name: standing.answer(stack, found, question.decided) for name, found in standings.items()
        }
        answers |= {name: {"stack": stack, "healthy": False, "error": text} for name, text in silent.items()}
        one = {"stack": stack, "clusters": answers} if several else next(iter(answers.values()))
        typer.echo(json.dumps(one, indent=2, ensure_ascii=False))
    else:
        for name, found in standings.items():
            _print_status(f"{stack} in {name}" if several else stack, found, question.decided)
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


def _print_status(stack: str, found: Any, decided: Plan) -> None:
    from modelstacks.cli.tables import table, terminal

    console = terminal()
    head = (
        f"{stack}: {found.ready_replicas} of {found.replicas} replicas ready"
        if found.deployed
        else (f"{stack} is not deployed on this cluster")
    )
    console.print(head)
    if found.change is not None:
        console.print(f"changing: {found.change}", soft_wrap=True)
    if found.pods:
        rows = [(p.name, _state(p, decided), str(p.restarts), str(p.gpus), p.node or "–") for p in found.pods]
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
        money += "" if found.usd_so_far is None else f", ${found.usd_so_far:,.2f} so far for nodes that are there"
        console.print(f"{sum(n.gpus for n in found.nodes)} of at most {found.gpu_limit} GPUs{money}")
    if found.traffic is not None:
        _print_traffic(console, found, decided)
    if found.findings:
        console.print()
        _print(list(found.findings), stack)


def _state(pod: Any, decided: Plan) -> str:
    """What a pod does: how long it took to be ready beside its budget, or how far it has loaded."""
    if pod.ready:
        if pod.ready_after_s is None:
            return "ready"
        return f"ready after {pod.ready_after_s:,.0f} of {decided.timeouts.startup_s:,} s"
    return str(pod.state) if pod.loaded_percent is None else f"{pod.state}, {pod.loaded_percent} % loaded"


def _print_traffic(console: Any, found: Any, decided: Plan) -> None:
    """What the servers do now, each number beside the plan's."""
    from modelstacks.cli.tables import table

    seen, memory, load = found.traffic, decided.memory, decided.choice.load
    speed = decided.throughput

    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:,.0f}"

    planned = None if speed is None else speed.output_tokens_per_s * found.replicas
    cache = "–" if seen.kv_cache is None else f"{100 * seen.kv_cache:.0f} %"
    rows = [
        ("output tokens/s", number(seen.output_tokens_per_s), f"up to about {number(planned)}"),
        ("prompt tokens/s", number(seen.prompt_tokens_per_s), "–"),
        ("requests running", number(seen.running), f"at most {load.max_num_seqs * found.replicas:,}"),
        ("requests waiting", number(seen.waiting), "0"),
        ("KV cache in use", cache, f"{load.concurrency} × {load.context:,} tokens fit"),
        ("KV cache tokens a replica", number(seen.cache_tokens), f"about {memory.kv_cache_tokens:,}"),
    ]
    if seen.servers:
        table(console, (f"of {seen.servers} server{'s' * (seen.servers != 1)}", "now", "planned"), rows, right=("now",))
    if seen.silent and decided.cloud is not None and decided.cloud.simulated:
        console.print(
            f"simulated pods run nothing; `modelstacks local serve {decided.stack}` puts a server behind them"
        )
        return
    for text in seen.silent:
        console.print(f"not read: {text}", soft_wrap=True)


@app.command(name="try")
def try_(
    stack: Stack,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "In one sentence: what is a GPU?",
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 128,
    keep: Annotated[
        Optional[int], typer.Option(min=0, max=65535, help="Go on forwarding at this port of loopback; 0 takes any.")
    ] = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Forward a port to a ready server and print a first completion as it streams in."""
    from modelstacks.cluster import access, forward, trial

    question = _question(stack, context, kubeconfig, local)
    place = question.decided.places[0]
    cluster = access.connect(place.spec.kubeconfig, place.spec.kube_context)
    target = trial.target(cluster, place)
    # Nobody behind the port is told before a question is asked of it.
    try:
        forward.get(cluster, place.namespace, target.pod, target.port, target.health_path)
    except ClusterError as error:
        if place.cloud is None or not place.cloud.simulated:
            raise
        text = f"{error.message}: simulated pods run nothing"
        raise ClusterError(text, next_step=f"modelstacks local serve {stack}, which goes on beside this") from None
    listener = forward.Listener(cluster, place.namespace, target.pod, target.port, keep or 0)
    if not as_json:
        typer.echo(f"http://{forward.HOST}:{listener.port}/v1 is pod {target.pod}", err=True)
    answered = trial.ask(
        target, listener.port, prompt, max_tokens, None if as_json else lambda text: typer.echo(text, nl=False)
    )
    if as_json:
        typer.echo(json.dumps({"stack": stack, "pod": target.pod, **answered.answer()}, indent=2, ensure_ascii=False))
    else:
        speed = "" if answered.tokens_per_s is None else f", then {answered.tokens_per_s:,.1f} tokens/s"
        typer.echo(f"\n{answered.tokens} tokens, the first after {answered.first_token_s:.2f} s{speed}", err=True)
    if keep is None:
        return
    key = "" if target.key is None else f' -H "Authorization: Bearer $(kubectl -n {place.namespace} get secret '
    key += "" if target.key is None else f"{target.secret} -o jsonpath='{{.data.key}}' | base64 -d)\""
    typer.echo(f"forwarding until interrupted; curl{key} http://{forward.HOST}:{listener.port}/v1/models", err=True)
    while True:
        time.sleep(3600)
