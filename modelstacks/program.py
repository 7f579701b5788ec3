"""The Pulumi program: refuses what cannot run, looks at the cluster, and has exactly the rendered manifests registered.

With registration and the programs of pools/ the only code that imports pulumi.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pulumi
from pulumi.runtime import config as runtime_config

from modelstacks import project, registration, render, review, sharing, spec, stackfile, watch
from modelstacks.catalog import Catalog
from modelstacks.cluster import access, change, doctor, scaling
from modelstacks.cluster.connection import Cluster, UnreachableError
from modelstacks.errors import BadInput, ClusterError, ModelstacksError, Problem, Refused
from modelstacks.plan import Plan, plan
from modelstacks.render.templates import Manifest
from modelstacks.spec import StackSpec

# Set, the program asks no cluster anything: previews where there is none.
OFFLINE = "MODELSTACKS_OFFLINE"


@dataclass(frozen=True, slots=True)
class Question:
    """What the running stack asks for: its spec, and whether it was overlaid for the embedded cluster."""

    stack: str
    spec: StackSpec
    overlaid: bool


def deploy() -> None:
    """Read the stack's configuration, refuse or register, and export the facts a user needs next."""
    try:
        catalog = Catalog()
        question = read_question(pulumi.get_stack(), catalog)
        decided = plan(question.spec, catalog, stack=question.stack)
        decided.check_runs()
        if not question.overlaid:
            sharing.check(decided, project.root(), catalog)
        manifests = render.render(decided, catalog)
        if not question.overlaid:
            compare_with_reviewed(decided, catalog)
        for warning in decided.warnings:
            pulumi.log.warn(warning)
        # All clusters are looked at before the first object is made in any.
        places = [(place, preflight(place, manifests, catalog)) for place in decided.places]
        for place, live in places:
            if live is not None:
                change.check_room(live, place, manifests)
            say_change(place, live, manifests)
        if not pulumi.runtime.is_dry_run():
            for place, live in places:
                if live is not None:
                    scaling.hand_over(live, place, manifests)
        registration.register(places, manifests, catalog, several=bool(decided.spec.clusters))
        for place, live in places:
            if live is not None and not pulumi.runtime.is_dry_run():
                watch.start(place, manifests, catalog, pulumi.log.warn)
    except ModelstacksError as error:
        # RunError ends the program with its message alone, without a stack trace.
        raise pulumi.RunError(str(error)) from None


def read_question(stack: str, catalog: Catalog) -> Question:
    """The spec of the running stack.

    `modelstacks:stackFile` names the stack file to read when the engine's own config is an overlay for the embedded
    cluster; every other key then goes on top of that file.
    """
    stackfile.check_stack_name(stack)
    config: Mapping[str, Any] = {**runtime_config.get_config_env(), **runtime_config.CONFIG.get()}
    values = stackfile.config_values(config)
    source = values.pop("stackFile", None)
    values.pop("hubToken", None)
    if source is None:
        return Question(stack, spec.parse(values, catalog, source=f"Pulumi.{stack}.yaml"), overlaid=False)
    path = Path(source)
    if stackfile.stack_name(path) != stack:
        problem = Problem("modelstacks:stackFile", f"is {path.name}, the stack is {stack}", source)
        raise BadInput([problem], source=f"Pulumi.{stack}.yaml", next_step=f"make up STACK={stack}")
    return Question(stack, stackfile.parse_file(path, catalog, overlay=values), overlaid=True)


def compare_with_reviewed(decided: Plan, catalog: Catalog) -> None:
    """Say which objects differ from rendered/<stack>; stop there when the stack requires a review."""
    stack = decided.stack or decided.name
    folder = project.rendered_dir(project.root(), stack)
    changed = review.differences(review.files(decided, catalog, stack), folder)
    if not changed:
        return
    names = ", ".join(f"{difference.file} ({difference.change})" for difference in changed)
    message = f"rendered/{stack} is not what would be applied: {names}"
    if decided.spec.require_reviewed:
        raise Refused(f"{message}; requireReviewed is set", next_step="make render, and have the change reviewed")
    pulumi.log.warn(f"{message}; run `make render` so that the next review shows it")


def say_change(decided: Plan, live: Cluster | None, manifests: list[Manifest]) -> None:
    """Say what this run does to replicas that serve, before it does it; nothing where none is there yet."""
    if live is None:
        return
    try:
        found = change.changes(live, decided, manifests)
        refused = change.refused_preview(live, decided, found) if pulumi.runtime.is_dry_run() else None
    except ClusterError as error:
        pulumi.log.warn(f"what this does to running pods could not be found out: {error}")
        return
    words = change.words(decided, found)
    if words is not None:
        where = f" in {decided.spec.kube_context}" if decided.spec.kube_context is not None else ""
        pulumi.log.info(f"{decided.stack or decided.name}{where}: {words}")
    if refused is not None:
        pulumi.log.warn(refused)


def preflight(decided: Plan, manifests: list[Manifest], catalog: Catalog) -> Cluster | None:
    """The live cluster, after it was seen to serve every kind and to allow every change.

    None without any kubeconfig, with MODELSTACKS_OFFLINE set, and in a preview of a cluster that does not answer: then
    nothing was checked. Raises ClusterError before anything is made.
    """
    where = decided.spec
    if os.environ.get(OFFLINE) or not access.has_kubeconfig(where.kubeconfig):
        return None
    management = where.cloud.management_context if where.cloud is not None else None
    try:
        cluster = access.connect(where.kubeconfig, where.kube_context)
        here = [m for m in manifests if not (management and render.is_pool(m))]
        doctor.preflight(cluster, decided, here, catalog)
        if management is not None:
            pools = [m for m in manifests if render.is_pool(m)]
            doctor.preflight(access.connect(where.kubeconfig, management), decided, pools, catalog)
    except UnreachableError as error:
        if not pulumi.runtime.is_dry_run():
            raise
        pulumi.log.warn(f"{error}; nothing was checked against the cluster")
        return None
    return cluster
