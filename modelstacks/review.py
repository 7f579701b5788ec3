"""What a reviewer reads: plan.md and the manifests under rendered/, and how they differ from a fresh render."""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modelstacks import render
from modelstacks.answer import usd_per_million
from modelstacks.catalog import Catalog
from modelstacks.cloudspec import Capacity
from modelstacks.errors import ModelstacksError
from modelstacks.ledger import ledger_bar
from modelstacks.plan import Plan
from modelstacks.plan.rollout import rollout
from modelstacks.render.templates import Manifest

PLAN_FILE = "plan.md"


@dataclass(frozen=True, slots=True)
class Difference:
    """One file of rendered/<stack> that a fresh render would add, change or remove."""

    file: str
    change: str
    diff: str


def files(plan: Plan, catalog: Catalog, stack: str) -> dict[str, str]:
    """Every file of rendered/<stack>: the manifests and plan.md."""
    manifests = render.render(plan, catalog)
    return {**render.write(manifests, stack), PLAN_FILE: page(plan, manifests, stack, catalog)}


def differences(fresh: Mapping[str, str], folder: Path) -> list[Difference]:
    """How `folder` differs from `fresh`, file by file, as unified diffs; empty when it is current."""
    known = {path.name: _text(path) for path in folder.iterdir()} if folder.is_dir() else {}
    found = []
    for name in sorted(known.keys() | fresh.keys()):
        old, new = known.get(name), fresh.get(name)
        if old == new:
            continue
        change = "added" if old is None else "removed" if new is None else "changed"
        lines = difflib.unified_diff(
            (old or "").splitlines(), (new or "").splitlines(), f"rendered/{name}", f"fresh/{name}", lineterm=""
        )
        found.append(Difference(name, change, "\n".join(lines)))
    return found


def _text(path: Path) -> str:
    """A file's text; what is no readable text file differs from everything that is rendered."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "(not a text file)"


def store(fresh: Mapping[str, str], folder: Path) -> list[Difference]:
    """Make `folder` hold exactly `fresh`; returns what changed. Files are replaced one by one, never half written."""
    changed = differences(fresh, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for difference in changed:
            target = folder / difference.file
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            if difference.change == "removed":
                target.unlink(missing_ok=True)
                continue
            part = target.with_name(f".{target.name}.part")
            part.write_text(fresh[difference.file], encoding="utf-8")
            part.replace(target)
    except OSError as error:
        raise ModelstacksError(f"{folder} cannot be written: {error.strerror}", next_step="check the folder") from None
    return changed


def page(plan: Plan, manifests: list[Manifest], stack: str, catalog: Catalog) -> str:
    """plan.md: what will run, what it costs, why it fits, and what is not in the manifests."""
    choice = plan.choice
    gpus = f"{choice.topology.gpus} × {choice.gpu.name}"
    if plan.spec.replicas != 1:
        gpus = f"{plan.spec.replicas} replicas of {gpus}"
    sections = [
        f"# {stack}: {choice.model.name} on {gpus}",
        "",
        _headline(plan),
        "",
        *_what_runs(plan),
        *_nodes(plan),
        *_over_nodes(plan),
        *_why_it_fits(plan),
        *_cost(plan),
        *_times(plan),
        *_changes(plan),
        *_objects(plan, manifests, catalog),
    ]
    if plan.warnings:
        sections += ["## To know", "", *(f"- {warning}" for warning in plan.warnings), ""]
    sections += [
        f"Rendered from `stacks/Pulumi.{stack}.yaml`; `make render` writes this page and the manifests beside it.",
    ]
    return "\n".join(sections) + "\n"


def _headline(plan: Plan) -> str:
    month = plan.cost.usd_per_month
    money = "price unknown" if month is None else f"**${month:,.0f} a month**"
    load = plan.choice.load
    return (
        f"{money} · {load.concurrency} × {load.context:,} tokens guaranteed at once per replica "
        f"(at least {plan.memory.max_concurrency_low:.1f} fit) · tier **{plan.choice.tier}**"
    )


def _what_runs(plan: Plan) -> list[str]:
    choice, form = plan.choice, plan.choice.form
    checkpoint = plan.checkpoint
    rows = [("Model", f"{choice.model.name} (`{choice.model.id}`), licence {choice.model.licence.name}")]
    if checkpoint is not None:
        revision = f" at `{checkpoint.revision[:12]}`" if checkpoint.revision else ", revision not pinned"
        rows.append(("Checkpoint", f"`{checkpoint.repo}`{revision}, {choice.quantization}, {plan.weights_gib:.1f} GiB"))
    rows.append(("Weights", _weights(plan)))
    if form is not None:
        rows.append(("Engine", f"{choice.engine} {form.version}, `{form.image}`"))
        rows += [(name, version) for name, version in form.companions.items()]
    parallel = (
        f"tensor parallel {choice.topology.tensor_parallel} × pipeline parallel {choice.topology.pipeline_parallel}"
    )
    rows += [
        ("Replicas", f"{plan.spec.replicas}, each on {_count(plan.nodes_per_replica, 'node')}: {parallel}"),
        ("GPUs", f"{plan.gpus} × {choice.gpu.id}, {choice.gpu.interconnect.kind}"),
        ("Endpoint", f"`{render.endpoint(plan)}`"),
    ]
    if plan.cost.machine is not None:
        # Nodes that exist already are whatever they are; the machine only says where the price comes from.
        title = "Machines" if plan.cloud is not None and plan.cloud.makes_nodes else "Priced as"
        rows.append((title, f"{plan.cost.machines} × {plan.cost.machine.cloud} {plan.cost.machine.name}"))
    if plan.spec.clusters:
        rows.append(("Clusters", f"{', '.join(plan.spec.clusters)}: the whole stack in each, one endpoint each"))
    return _table("What runs", rows)


def _table(title: str, rows: list[tuple[str, str]]) -> list[str]:
    # A bar would begin a column.
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows]
    return [f"## {title}", "", "| | |", "|---|---|", *lines, ""]


def _weights(plan: Plan) -> str:
    """Where servers find the weights, and what brings them there."""
    where, spec = plan.weights, plan.spec.weights
    one_node = "; ReadWriteOnce: all replicas share the one node that mounts it" if spec.on_one_node else ""
    filled = {
        "job": "filled once from the hub by a Job, read-only for servers, which never ask the hub",
        None: "filled by others, read-only for servers, which never ask the hub",
    }
    places = {
        "node": "each pod fetches them from the hub onto its node's disk",
        "volume-per-pod": f"each pod fetches them from the hub onto a volume of its own ({spec.storage_class})",
        "shared-volume": f"a volume of {spec.storage_class} for all, {filled['job']}{one_node}",
        "claim": f"claim `{spec.claim}`, {filled['job' if where.fetched_by == 'job' else None]}{one_node}",
        "image": f"image volume `{spec.image}`, pulled by the kubelet once a node; needs Kubernetes 1.35 or newer",
        "object-store": f"streamed from `{spec.uri}`",
        "node-folder": f"folder `{spec.host_path}` of the node"
        + (
            ", filled once a node from the hub before the server starts"
            if where.fetched_by == "init"
            else ", filled by others"
        ),
    }
    return places[where.place]


_BROUGHT = {"cloud": "the cloud brings it", "image": "in the node image", "you": "must be there"}


def _nodes(plan: Plan) -> list[str]:
    """How nodes come, how far they may grow, and what software they need; nothing for simulated ones."""
    kind, pool = plan.cloud, plan.pool
    if kind is None or kind.simulated:
        return []
    rows = [("Cloud kind", f"`{kind.id}`: {kind.about}")]
    if pool is not None:
        at_most = f"{pool.machines_at_most} × {pool.machine.name}, {pool.gpus_at_most} GPUs"
        if len(pool.steps) > 1:
            at_most += f", in each of {len(pool.steps)} pools"
        bound = "the pool's own limit" if kind.bounded_by == "pool" else "the namespace's quota of GPUs"
        month = plan.usd_per_month_at_most
        if plan.spec.copies > 1:
            at_most += f", in each of {plan.spec.copies} clusters"
        money = "" if month is None else f": at most ${month:,.0f} a month"
        owner = f"the pool of stack {pool.owner}" if pool.owner else f"`{pool.name}`"
        ways = [_way(capacity) for step in pool.steps for capacity in step]
        rows += [
            ("Pool", owner),
            ("May hold", f"{at_most} ({bound}){money}"),
            ("Bought as", ", then ".join(ways) if kind.capacity_order != "one" else ways[0]),
        ]
        if pool.spares:
            rows.append(("Warm spares", f"{pool.spares} × {pool.machine.name}, held by placeholder pods"))
    if plan.spec.cloud is not None and plan.spec.cloud.zones:
        rows.append(("Zones", ", ".join(plan.spec.cloud.zones)))
    if plan.fabric is not None:
        rows.append(("Between nodes", f"{plan.fabric.about}; {plan.fabric.source}"))
        rows += [("Fabric needs", need) for need in plan.fabric.cluster_needs]
    for software in kind.software:
        who = _BROUGHT[software.brought_by]
        operator = f" (`operators: [{software.operator}]`)" if software.operator is not None else ""
        note = f"; {software.note}" if software.note else ""
        rows.append((software.name, f"{who}{operator}{note}"))
    return _table("Where it runs", rows) + ([*(f"- {note}" for note in kind.notes), ""] if kind.notes else [])


def _over_nodes(plan: Plan) -> list[str]:
    """How a replica over several nodes starts, is changed and is lost."""
    if plan.nodes_per_replica == 1:
        return []
    form, minutes = plan.tier_form, _minutes(plan.timeouts.load_s)
    rows = [("Launcher", f"`{form.launcher}`: {form.about}"), *form.notes.items()]
    if form.changed_together:
        rows.append(("A change of context, batch or flags", f"in place, on the same pods: {minutes} without a replica"))
    state = plan.spec.head_recovery
    if form.form == "ray" and plan.spec.replicas:
        kept = state.redis or f"a Redis of its own on {state.storage_class}" if state is not None else None
        rows.append(("A lost head", f"is replaced, its state is kept in {kept}" if kept else
                     f"takes its replica down for {minutes} and more: `headRecovery` keeps its state"))  # fmt: skip
    return _table("Over several nodes", rows)


def _way(capacity: Capacity) -> str:
    return capacity.way if capacity.id is None else f"{capacity.way} `{capacity.id}`"


def _why_it_fits(plan: Plan) -> list[str]:
    memory = plan.memory
    rows = [
        ("GPU memory as the engine sees it", memory.gpu_gib),
        (f"budget at utilization {plan.choice.load.gpu_memory_utilization}", memory.budget_gib),
        ("weights", -memory.weights_gib),
        *((name, -size) for name, size in memory.overhead_parts),
        ("**KV cache**, best estimate", memory.kv_cache_gib),
        ("**KV cache**, at least", memory.kv_cache_low_gib),
        ("needed for the guaranteed requests", memory.kv_needed_gib),
    ]
    table = [f"| {name} | {size:,.2f} |" for name, size in rows]
    return [
        "## Why it fits",
        "",
        "| of the fullest GPU | GiB |",
        "|---|---:|",
        *table,
        "",
        f"`{ledger_bar(plan)}` (W weights, o overhead, K KV cache)",
        "",
        f"{memory.kv_bytes_per_token:,} bytes of KV cache per token and GPU hold about {memory.kv_cache_tokens:,} "
        f"tokens per replica: {memory.max_concurrency:.2f} requests of {plan.choice.load.context:,} tokens, "
        f"at least {memory.max_concurrency_low:.2f}. Each step takes up to {plan.choice.load.max_num_seqs:,} requests "
        f"and {plan.choice.load.max_num_batched_tokens:,} tokens.",
        "",
        *(f"- {reason}" for reason in plan.reasons),
        "",
    ]


def _cost(plan: Plan) -> list[str]:
    cost = plan.cost
    if cost.usd_per_hour is None or cost.usd_per_month is None or cost.price is None or cost.machine is None:
        return ["## What it costs", "", "No price is known for this machine, region or cloud.", ""]
    seen = f"seen {cost.price.date}" if cost.price.date else "undated"
    lines = [
        "## What it costs",
        "",
        f"{cost.machines} × {cost.machine.cloud} `{cost.machine.name}` at ${cost.price.usd_per_hour:,.2f} an hour = "
        f"**${cost.usd_per_hour:,.2f} an hour, ${cost.usd_per_month:,.0f} a month** of 730 hours "
        f"({cost.price.region}, {seen}; {cost.price.source}).",
    ]
    million = usd_per_million(plan)
    if million is not None and plan.throughput is not None:
        rate = plan.throughput
        lines.append(
            f"About {rate.output_tokens_per_s:,.0f} output tokens/s per replica with {rate.concurrency} requests of "
            f"{rate.input_tokens} + {rate.output_tokens} tokens in flight ({rate.method}): "
            f"${million:,.2f} per million output tokens."
        )
    if plan.spec.budget_usd_per_month is not None:
        lines.append(f"Budget: ${plan.spec.budget_usd_per_month:,.0f} a month.")
    return [*lines, ""]


def _times(plan: Plan) -> list[str]:
    times = plan.timeouts
    return [
        "## How long it takes",
        "",
        f"{_fetching(plan)}load and start {_minutes(times.load_s)} at pessimistic speeds. "
        f"The start-up budget is {_minutes(times.startup_s)}: until then no probe kills a server that loads, and none "
        f"sends it requests. `pulumi up` waits {_minutes(times.ready_s)} for a pod, nodes included.",
        "",
    ]


def _fetching(plan: Plan) -> str:
    times, by = plan.timeouts, plan.weights.fetched_by
    if by is None:
        return "Nothing to download; "
    took = f"Download {_minutes(times.download_s)}"
    ahead = {
        "job": f" by the Job, once, before any server starts (at most {_minutes(times.before_s)}); ",
        "init": " before the first server of each node starts; ",
        "kubelet": " by the kubelet, once a node; ",
    }
    return took + ahead.get(by, ", ")


def _changes(plan: Plan) -> list[str]:
    """What a change of the pods does, and what becomes of answers that run."""
    change, going = rollout(plan), plan.leaving
    reason = "" if not change.pods else f" ({change.reason})"
    longest = "any answer that the context allows" if going.whole else f"an answer of up to {going.tokens:,} tokens"
    lines = [
        "## When it changes",
        "",
        f"- A change of image, flags or context **{change.words}**{reason}.",
        f"- A pod that leaves gets no new requests after {going.pre_stop_s} s and has {_minutes(going.drain_s)} for "
        f"those that run: {longest} is finished, at {going.token_s * 1e3:.0f} ms a token of a full batch "
        f"(`terminationGracePeriodSeconds: {going.grace_s}`).",
    ]
    if going.notice_s is not None:
        lines.append(
            f"- A spot notice leaves {going.notice_s} s: answers that run get {going.notice_tokens:,} tokens further."
        )
    scale = plan.spec.autoscale
    if scale is not None and not (plan.cloud is not None and plan.cloud.simulated):
        idle = f", to none when idle: the next request waits about {_minutes(plan.timeouts.cold_start_s)}"
        lines.append(
            f"- KEDA scales between {scale.min} and {scale.max} replicas, one at a time"
            f"{idle if scale.min == 0 else ''}."
        )
    return [*lines, ""]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _minutes(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{round(seconds / 60)} min"


def _writable(plan: Plan) -> str:
    form = plan.choice.form
    if form is not None and form.writes_root_reason is not None:
        return form.writes_root_reason
    return (
        "the engine does not need it, but hooks of NVIDIA's container runtime fail on GPU containers without it "
        "(kserve PR 5711); `modelstacks:readOnlyRoot: true` where yours does not"
    )


def _objects(plan: Plan, manifests: list[Manifest], catalog: Catalog) -> list[str]:
    lines = ["## What is applied", "", "| object | namespace | file |", "|---|---|---|"]
    for manifest in manifests:
        kind, namespace, name = render.identity(manifest)
        file = render.file_name(manifest)
        lines.append(f"| {kind} {name} | {namespace or '–'} | [{file}]({file}) |")
    lines += ["", "Not in these files:", ""]
    lines += [f"- {item.kind} `{item.name}`: {item.reason}" for item in render.unrendered(plan, catalog)]
    form = plan.choice.form
    if plan.spec.weights.host_path is not None:
        lines.append(
            "- Pod Security is `privileged`, not `restricted`: the weights are a folder of the node "
            f"(`hostPath: {plan.spec.weights.host_path}`)"
            + (", which its init container fills as root (`runAsUser: 0`)" if plan.weights.fetched_by == "init" else "")
        )
    if not plan.spec.read_only_root:
        lines.append(f"- The server's root file system is writable (no `readOnlyRootFilesystem`): {_writable(plan)}")
    if form is not None and form.api_key_note and plan.spec.api_key:
        lines.append(f"- The API's key: {form.api_key_note}")
    if form is not None and form.root_reason and plan.spec.weights.host_path is None:
        lines.append(
            f"- Pod Security is `baseline`, not `restricted`: the server runs as user 0 (`runAsUser`), because "
            f"{form.root_reason}"
        )
    if plan.fabric is not None and plan.fabric.pod_security != "restricted":
        lines.append(
            f"- Pod Security is `{plan.fabric.pod_security}`, not `restricted`, for the fabric {plan.fabric.id}: "
            f"{plan.fabric.pod_security_reason}"
        )
    if form is not None and form.digest_note:
        lines.append(f"- The image is pinned by tag, not by digest: {form.digest_note}")
    return [*lines, ""]
