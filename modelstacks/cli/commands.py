"""The commands of `modelstacks`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from modelstacks import documents, fields, project, sharing, spec, stackfile
from modelstacks.catalog import Catalog
from modelstacks.cli.cluster import app as cluster_app
from modelstacks.cli.images import app as images_app
from modelstacks.cli.keys import app as keys_app
from modelstacks.cli.local import local_app
from modelstacks.cli.model import model_app
from modelstacks.cli.prices import app as prices_app
from modelstacks.errors import EXIT_FAULT, EXIT_REFUSED, BadInput, Problem, listed
from modelstacks.plan import Plan, plan
from modelstacks.spec import StackSpec

app = typer.Typer(
    help="Deploy open LLMs on GPU Kubernetes clusters, with proof that the plan fits before the money is spent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.registered_commands += cluster_app.registered_commands
app.registered_commands += images_app.registered_commands
app.registered_commands += keys_app.registered_commands
app.add_typer(local_app, name="local")
app.add_typer(model_app, name="model")
app.add_typer(prices_app, name="prices")

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Stacks = Annotated[Optional[list[str]], typer.Argument(help="Stack names; all of them with --all.")]
All = Annotated[bool, typer.Option("--all", help="Every stack of the project.")]


@app.command()
def models(as_json: Json = False) -> None:
    """List the models of the catalogue with their checkpoints, licence and default profile."""
    catalog = Catalog()
    rows = [catalog.model(model_id) for model_id in catalog.model_ids]
    if as_json:
        _print_json([model.model_dump(mode="json") for model in rows])
        return
    from modelstacks.cli import tables

    tables.models(rows)


@app.command()
def gpus(as_json: Json = False) -> None:
    """List the GPU types with what an engine sees of them and the machines that carry them."""
    catalog = Catalog()
    if as_json:
        _print_json([gpu.model_dump(mode="json") for gpu in catalog.gpus.values()])
        return
    from modelstacks.cli import tables

    tables.gpus(list(catalog.gpus.values()))


@app.command(name="plan")
def plan_command(
    name: Annotated[Optional[str], typer.Argument(help="A stack, or a model of the catalogue.")] = None,
    model: Annotated[Optional[str], typer.Option(help="Plan this bare model, whatever stacks exist.")] = None,
    gpu: Annotated[Optional[str], typer.Option(help="GPU type, see `modelstacks gpus`.")] = None,
    gpus: Annotated[Optional[str], typer.Option(help="GPUs per replica.")] = None,
    tensor_parallel: Annotated[Optional[str], typer.Option(help="Ranks inside a node.")] = None,
    pipeline_parallel: Annotated[Optional[str], typer.Option(help="Pipeline stages.")] = None,
    quantization: Annotated[Optional[str], typer.Option(help=", ".join(spec.QUANTIZATIONS))] = None,
    kv_cache_dtype: Annotated[Optional[str], typer.Option(help="auto, fp8, or the engine's own names.")] = None,
    gpu_memory_utilization: Annotated[Optional[str], typer.Option(help="Share of the card, 0 to 1.")] = None,
    max_num_batched_tokens: Annotated[Optional[str], typer.Option(help="Tokens per engine step.")] = None,
    max_num_seqs: Annotated[Optional[str], typer.Option(help="Requests per engine step.")] = None,
    context: Annotated[Optional[str], typer.Option(help="Tokens per request that must fit.")] = None,
    concurrency: Annotated[Optional[str], typer.Option(help="Such requests at once that must fit.")] = None,
    replicas: Annotated[Optional[str], typer.Option(help="Copies of the server.")] = None,
    engine: Annotated[Optional[str], typer.Option(help="vllm or tgi.")] = None,
    engine_version: Annotated[Optional[str], typer.Option(help="The engine version to plan for.")] = None,
    launcher: Annotated[Optional[str], typer.Option(help="What starts a replica over several nodes.")] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Leave a vision tower unloaded.")] = False,
    max_loras: Annotated[Optional[str], typer.Option(help="LoRA adapters kept on the GPU.")] = None,
    max_lora_rank: Annotated[Optional[str], typer.Option(help="Highest rank of an adapter.")] = None,
    model_config: Annotated[
        Optional[Path], typer.Option(help="An own model: its Hugging Face config.json.", show_default=False)
    ] = None,
    weights_gib: Annotated[Optional[str], typer.Option(help="Size of the own model's whole checkpoint, GiB.")] = None,
    cloud: Annotated[Optional[str], typer.Option(help="Cloud kind, see docs/stack-file.md.")] = None,
    budget_usd_per_month: Annotated[Optional[str], typer.Option(help="Say so above this; a stack refuses.")] = None,
    accepted_license: Annotated[Optional[str], typer.Option(help="The licence id you accept.")] = None,
    namespace: Annotated[Optional[str], typer.Option(help="Where the stack would live.")] = None,
    as_json: Json = False,
) -> None:
    """Decide a deployment, or refuse it in numbers and name the nearest plans that fit."""
    given = {
        "gpu": gpu, "gpus": gpus, "tensorParallel": tensor_parallel, "pipelineParallel": pipeline_parallel,
        "quantization": quantization, "kvCacheDtype": kv_cache_dtype,
        "gpuMemoryUtilization": _as_number(gpu_memory_utilization), "maxNumBatchedTokens": max_num_batched_tokens,
        "maxNumSeqs": max_num_seqs, "context": context, "concurrency": concurrency, "replicas": replicas,
        "engine": engine, "engineVersion": engine_version, "launcher": launcher,
        "textOnly": text_only or None, "maxLoras": max_loras,
        "maxLoraRank": max_lora_rank, "cloud": {"kind": cloud} if cloud is not None else None,
        "budgetUsdPerMonth": _as_number(budget_usd_per_month), "acceptedLicense": accepted_license,
        "namespace": namespace,
    }  # fmt: skip
    overrides = {key: value for key, value in given.items() if value is not None}
    catalog = Catalog()
    if model_config is not None:
        catalog, model = _own_model(name, model, model_config, weights_gib, quantization, catalog)
        overrides.setdefault("quantization", catalog.model(model).profiles[0].quantization)
        name = None
    elif weights_gib is not None:
        problem = Problem("--weights-gib", "speaks of an own model, and there is no --model-config")
        raise BadInput([problem], source="plan", next_step="add --model-config config.json")
    stack, asked = _question(name, model, overrides, catalog)
    decided = _decide(asked, catalog, stack)
    if as_json:
        from modelstacks.answer import answer

        _print_json(answer(decided))
    else:
        from modelstacks.cli import tables

        tables.plan(decided)
    if decided.refusals:
        raise typer.Exit(EXIT_REFUSED)


@app.command(name="compare")
def compare_command(
    model: Annotated[str, typer.Argument(help="A model of the catalogue.")],
    gpu: Annotated[Optional[str], typer.Option(help="Only this GPU type.")] = None,
    quantization: Annotated[Optional[str], typer.Option(help="Only this one.")] = None,
    context: Annotated[Optional[str], typer.Option(help="Tokens per request that must fit.")] = None,
    concurrency: Annotated[Optional[str], typer.Option(help="Such requests at once that must fit.")] = None,
    engine: Annotated[Optional[str], typer.Option(help="vllm or tgi.")] = None,
    cloud: Annotated[Optional[str], typer.Option(help="Cloud kind whose machines count.")] = None,
    kv_cache_dtype: Annotated[Optional[str], typer.Option(help="auto, fp8, or the engine's own names.")] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Leave a vision tower unloaded.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what does not fit, with the reasons in --json.")
    ] = False,
    picture: Annotated[Optional[Path], typer.Option(help="Draw speed over price into this .svg or .png.")] = None,
    as_json: Json = False,
) -> None:
    """Show every GPU × count × quantization for a model: what fits, how far, how fast, at what price."""
    from modelstacks import compare, price
    from modelstacks.cli import compare as shown

    given = {
        "model": model, "gpu": gpu, "quantization": quantization, "context": context, "concurrency": concurrency,
        "engine": engine, "kvCacheDtype": kv_cache_dtype, "textOnly": text_only or None,
        "cloud": {"kind": cloud} if cloud is not None else None,
    }  # fmt: skip
    if picture is not None and picture.suffix.lower() not in (".svg", ".png"):
        problem = Problem("--picture", f"{picture.name!r} is neither", str(picture), "a .svg or .png file")
        raise BadInput([problem], source="compare")
    catalog = Catalog()
    asked = spec.parse({key: value for key, value in given.items() if value is not None}, catalog, source="compare")
    ways = compare.compare(asked, catalog, catalog.model(asked.model), price.market(asked.cloud, catalog))
    if as_json:
        _print_json(compare.answer(ways if everything else [way for way in ways if way.checked.fits]))
    else:
        shown.show(model, ways, everything=everything)
    if picture is not None:
        shown.draw(model, ways, picture)
        if not as_json:
            typer.echo(f"drew {picture}")
    if not any(way.checked.fits for way in ways):
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def render(
    stacks: Stacks = None,
    all_stacks: All = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit 1 unless rendered/ is current.")] = False,
) -> None:
    """Write rendered/<stack>: the manifests that would be applied, and plan.md for the reviewer."""
    from modelstacks import review

    folder = project.root()
    stale = []
    plans = _plans(folder, stacks, all_stacks)
    for stack, decided, catalog in _runnable(plans):
        fresh = review.files(decided, catalog, stack)
        target = project.rendered_dir(folder, stack)
        changed = review.differences(fresh, target) if check else review.store(fresh, target)
        stale += [stack] if check and changed else []
        words = ", ".join(f"{difference.file} {difference.change}" for difference in changed) or "current"
        typer.echo(f"rendered/{stack}: {words}")
        if check:
            for difference in changed:
                typer.echo(difference.diff)
    if all_stacks:
        stale += _leftovers(folder, check)
    refused = _print_refused(plans)
    if stale:
        typer.echo(f"not current: {', '.join(stale)}; run `make render` and commit the result", err=True)
        raise typer.Exit(EXIT_FAULT)
    if refused:
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def diff(stacks: Stacks = None, all_stacks: All = False) -> None:
    """Show how a fresh render differs from rendered/<stack>; writes nothing."""
    from modelstacks import review

    folder = project.root()
    plans = _plans(folder, stacks, all_stacks)
    for stack, decided, catalog in _runnable(plans):
        changed = review.differences(review.files(decided, catalog, stack), project.rendered_dir(folder, stack))
        typer.echo("\n".join(d.diff for d in changed) if changed else f"rendered/{stack} is current")
    if _print_refused(plans):
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def cost(
    names: Annotated[Optional[list[str]], typer.Argument(help="Stacks, or models of the catalogue.")] = None,
    all_stacks: All = False,
    as_json: Json = False,
) -> None:
    """What stacks or models cost: an hour, a month, a million tokens, a query, and where an API costs the same."""
    from modelstacks.cli import costs

    wanted = stackfile.stack_names(project.root()) if all_stacks else tuple(names or ())
    if not wanted:
        raise BadInput([Problem("name", "name a stack or a model, or --all")], source="command line")
    catalog = Catalog()
    asked = [(name, *_question(name, None, {}, catalog)) for name in wanted]
    lines = [costs.line(name, _decide(question, catalog, stack, dated=False)) for name, stack, question in asked]
    if as_json:
        _print_json(costs.as_json(lines))
    else:
        costs.show(lines)
    if costs.refused(lines):
        raise typer.Exit(EXIT_REFUSED)


@app.command()
def init(
    stack: Annotated[str, typer.Argument(help="The new stack's name.")],
    model: Annotated[str, typer.Option(help="A model of the catalogue.")],
    gpu: Annotated[Optional[str], typer.Option(help="GPU type; the cheapest that fits when left out.")] = None,
) -> None:
    """Write stacks/Pulumi.<stack>.yaml for a model, filled in from its plan. Never overwrites a file."""
    from modelstacks.answer import options

    catalog = Catalog()
    stackfile.check_stack_name(stack)
    folder = project.root()
    target = project.stacks_dir(folder) / f"Pulumi.{stack}.yaml"
    if stack in stackfile.stack_names(folder):
        problem = Problem("stack", f"stacks/Pulumi.{stack}.yaml exists already", stack)
        raise BadInput([problem], source="init", next_step="choose another name, or edit that file")
    asked = spec.parse({"model": model} | ({"gpu": gpu} if gpu else {}), catalog, source="init")
    decided = _decide(asked, catalog, None)
    if not decided.fits:
        _print_refusals(stack, decided)
        raise typer.Exit(EXIT_REFUSED)
    chosen = options(decided.choice, decided)
    kept = ("model", "gpu", "quantization", "context", "concurrency", "replicas", "engine")
    config = {f"{fields.NAMESPACE}:{key}": chosen[key] for key in kept}
    licence = decided.choice.model.licence
    header = f"# {decided.choice.model.name}; see `modelstacks plan {stack}`.\n"
    if licence.must_accept:
        header += f"# Licence {licence.name}: {'; '.join(licence.terms)}.\n"
        header += f"# If you accept it, add modelstacks:acceptedLicense: {licence.id}\n"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(header + documents.write({"config": config}), encoding="utf-8")
    accept = f"read the licence terms in it and add modelstacks:acceptedLicense: {licence.id}, then "
    first = accept if licence.must_accept else ""
    typer.echo(f"wrote {target.relative_to(folder)}\nnext: {first}modelstacks plan {stack}, then make render")


def _own_model(
    name: str | None,
    model: str | None,
    config: Path,
    weights_gib: str | None,
    quantization: str | None,
    catalog: Catalog,
) -> tuple[Catalog, str]:
    """The catalogue with the model of a config.json in it, and its id."""
    from modelstacks.importer import own_model

    if model is not None:
        problem = Problem("--model", "names a model of the catalogue, --model-config another one", model)
        raise BadInput([problem], source="plan", next_step="give one of them")
    size = _as_number(weights_gib)
    if isinstance(size, str):
        problem = Problem("--weights-gib", f"{size!r} is not a number", size, "GiB, such as 131.4")
        raise BadInput([problem], source="plan")
    if quantization is not None and quantization not in spec.QUANTIZATIONS:
        allowed = ", ".join(spec.QUANTIZATIONS)
        raise BadInput(
            [Problem("--quantization", f"{quantization!r} is not known", quantization, allowed)], source="plan"
        )
    row, _ = own_model(config, weights_gib=size, name=name, quantization=quantization)
    return catalog.with_model(row), row.id


def _question(
    name: str | None, model: str | None, overrides: dict[str, Any], catalog: Catalog
) -> tuple[str | None, StackSpec]:
    """The stack (if any) and spec that a plan question means: a stack of that name wins over a model."""
    if (name is None) == (model is None):
        problem = Problem("name", "give one stack or model, or --model ID")
        raise BadInput([problem], source="plan", next_step="modelstacks models")
    if name is not None:
        folder = project.root()
        if name in stackfile.stack_names(folder):
            path = stackfile.stack_file(folder, name)
            return name, stackfile.parse_file(path, catalog, overlay=overrides)
        if name not in catalog.model_ids:
            unknown = catalog.unknown_model(name)
            stacks = listed(stackfile.stack_names(folder)) or "none"
            text = f"{unknown.message}; no stack has that name either"
            problems = [Problem("name", text, name, None, unknown.suggestion)]
            if unknown.allowed is not None:
                problems.append(Problem("models", f"known are {unknown.allowed}"))
                problems.append(Problem("stacks", f"known are {stacks}"))
            raise BadInput(problems, source="plan", next_step="modelstacks models")
    return None, spec.parse({"model": model or name, **overrides}, catalog, source="plan")


def _plans(folder: Path, stacks: list[str] | None, all_stacks: bool) -> list[tuple[str, Plan, Catalog]]:
    """The plans of the named stacks, every one of them parsed before the first is used."""
    names = stackfile.stack_names(folder) if all_stacks else tuple(stacks or ())
    if not names:
        raise BadInput([Problem("stack", "name a stack, or --all")], source="command line")
    catalog = Catalog()
    asked = [(name, stackfile.parse_file(stackfile.stack_file(folder, name), catalog)) for name in names]
    stackfile.check_namespaces(dict(asked))
    decided = [(name, _decide(question, catalog, name, dated=False), catalog) for name, question in asked]
    for _, one, _ in decided:
        sharing.check(one, folder, catalog)
    return decided


def _runnable(plans: list[tuple[str, Plan, Catalog]]) -> list[tuple[str, Plan, Catalog]]:
    """The plans that may run."""
    return [entry for entry in plans if entry[1].runs]


def _print_refused(plans: list[tuple[str, Plan, Catalog]]) -> bool:
    """Say what was refused, after everything else, where it is not scrolled away; whether anything was."""
    refused = [(stack, decided) for stack, decided, _ in plans if not decided.runs]
    for stack, decided in refused:
        _print_refusals(stack, decided)
    return bool(refused)


def _decide(asked: StackSpec, catalog: Catalog, stack: str | None, *, dated: bool = True) -> Plan:
    """The plan; warnings that depend on today's date only where a person reads them today."""
    import datetime

    return plan(asked, catalog, stack=stack, today=datetime.date.today() if dated else None)


def _leftovers(folder: Path, check: bool) -> list[str]:
    """Folders under rendered/ whose stack is gone: removed, or reported with --check."""
    import shutil

    rendered = folder / "rendered"
    known = set(stackfile.stack_names(folder))
    gone = (
        [path for path in sorted(rendered.iterdir()) if path.is_dir() and path.name not in known]
        if rendered.is_dir()
        else []
    )
    for path in gone:
        if not check:
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path)
            typer.echo(f"rendered/{path.name}: removed, its stack is gone")
    return [path.name for path in gone] if check else []


def _print_refusals(stack: str, decided: Plan) -> None:
    typer.echo("\n".join([f"{stack}: refused", *decided.refusal_lines]), err=True)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


def _as_number(text: str | None) -> float | str | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
