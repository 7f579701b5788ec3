"""Namespaces and node pools that two stacks use: each has one owner, who knows of it and leaves room for the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modelstacks import stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput, Problem
from modelstacks.fields import key_path, nearest
from modelstacks.plan import Plan, plan
from modelstacks.render.cloud import LEVELS
from modelstacks.render.values import security_level
from modelstacks.spec import StackSpec


def check(decided: Plan, root: Path, catalog: Catalog) -> None:
    """Raise BadInput unless what a stack shares with others is owned, announced and large enough.

    Reads the stack files of the others; does nothing for a stack that shares nothing.
    """
    spec = decided.spec
    problems: list[Problem] = []
    if "namespace" in spec.shared:
        problems += _levels(decided, root, catalog)
    if spec.namespace_owner is not None or "namespace" in spec.shared:
        problems += _names(decided, spec.namespace_owner or decided.stack or decided.name, root, catalog)
    if spec.namespace_owner is not None:
        problems += _namespace(decided, spec.namespace_owner, root, catalog)
    if decided.pool is not None and decided.pool.owner is not None:
        problems += _pool(decided, decided.pool.owner, root, catalog)
    if "pool" in spec.shared and decided.pool is not None and decided.stack is not None:
        problems += _room(decided, decided.stack, root, catalog)
    if problems:
        source = decided.stack or decided.name
        raise BadInput(problems, source=source, next_step="see “Sharing” in docs/clouds.md")


def _others(stack: str | None, root: Path, catalog: Catalog) -> Iterator[tuple[str, StackSpec]]:
    """Every other stack of the project, by its name."""
    for other in stackfile.stack_names(root):
        if other != stack:
            yield other, stackfile.parse_file(stackfile.stack_file(root, other), catalog)


def _owner(name: str, key: str, root: Path, catalog: Catalog) -> StackSpec | Problem:
    if name not in stackfile.stack_names(root):
        known = stackfile.stack_names(root)
        return Problem(key_path(key), f"{name} is no stack of this project", name, None, nearest(name, known))
    return stackfile.parse_file(stackfile.stack_file(root, name), catalog)


# What follows a stack's name in the names of its own objects.
_BESIDE = ("spare", "weights")


def _names(decided: Plan, owner: str, root: Path, catalog: Catalog) -> list[Problem]:
    """Stacks of one namespace where one has the name of an object of another."""
    found = []
    for other, spec in _others(decided.stack, root, catalog):
        if owner not in (other, spec.namespace_owner):
            continue
        theirs, mine = stackfile.object_name(other), decided.name
        if any(f"{one}-{word}" == two for word in _BESIDE for one, two in ((theirs, mine), (mine, theirs))):
            text = f"{mine} and {theirs} share a namespace, and one is the name of an object of the other"
            found.append(Problem("stack", text, mine, "another name for one of them"))
    return found


def _levels(owner: Plan, root: Path, catalog: Catalog) -> list[Problem]:
    """Guests whose pods the owner's Pod Security level would refuse at their next restart."""
    mine = security_level(owner)
    found = []
    for other, spec in _others(owner.stack, root, catalog):
        if spec.namespace_owner != owner.stack:
            continue
        level = security_level(plan(spec, catalog, stack=other, thorough=False))
        if LEVELS.index(mine) < LEVELS.index(level):
            text = f"Pod Security would be {mine}, and the pods of {other}, a guest, need {level}"
            found.append(Problem(key_path("shared"), text, None, f"another namespace for {other}"))
    return found


def _namespace(decided: Plan, owner: str, root: Path, catalog: Catalog) -> list[Problem]:
    path = key_path("namespaceOwner")
    found = _owner(owner, "namespaceOwner", root, catalog)
    if isinstance(found, Problem):
        return [found]
    theirs = found.namespace or stackfile.object_name(owner)
    problems = []
    if theirs != decided.namespace:
        text = f"{owner} owns namespace {theirs}, and this stack names {decided.namespace}"
        problems.append(Problem(path, text, decided.namespace, theirs))
    level = security_level(plan(found, catalog, stack=owner, thorough=False))
    mine = security_level(decided)
    if LEVELS.index(level) < LEVELS.index(mine):
        text = f"{owner} keeps its namespace at Pod Security {level}, and this stack's pods need {mine}"
        problems.append(Problem(path, text, owner, "a namespace of its own"))
    if "namespace" not in found.shared:
        text = f"{owner} does not share its namespace: destroying it would delete this stack's objects"
        problems.append(Problem(path, text, owner, f"modelstacks:shared: [namespace] in {owner}"))
    return problems


def _pool(decided: Plan, owner: str, root: Path, catalog: Catalog) -> list[Problem]:
    path = key_path("cloud.poolOwner")
    found = _owner(owner, "cloud.poolOwner", root, catalog)
    if isinstance(found, Problem):
        return [found]
    if "pool" not in found.shared:
        text = f"{owner} does not share its pool: destroying it would take this stack's nodes away"
        return [Problem(path, text, owner, f"modelstacks:shared: [pool] in {owner}")]
    theirs = plan(found, catalog, stack=owner, thorough=False)
    kind = decided.cloud.id if decided.cloud is not None else None
    if theirs.pool is None or theirs.cloud is None or theirs.cloud.id != kind:
        have = theirs.cloud.id if theirs.cloud is not None else "existing"
        return [Problem(path, f"{owner} has kind {have}, and this stack {kind}", kind, have)]
    if decided.pool is not None and theirs.pool.machine.name != decided.pool.machine.name:
        text = f"the pool of {owner} has {theirs.pool.machine.name}, this stack is planned for "
        return [Problem(path, text + decided.pool.machine.name, None, f"gpu: {theirs.choice.gpu.id}")]
    return _room(theirs, owner, root, catalog)


def _room(owner: Plan, name: str, root: Path, catalog: Catalog) -> list[Problem]:
    """The owner's limit against its own machines and those of every stack that uses its pool."""
    if owner.pool is None:
        return []
    wanted = {name: owner.pool.machines + owner.pool.spares}
    for other, spec in _others(name, root, catalog):
        if spec.cloud is not None and spec.cloud.pool_owner == name:
            guest = plan(spec, catalog, stack=other, thorough=False)
            wanted[other] = guest.pool.machines if guest.pool is not None else 0
    total = sum(wanted.values())
    if total <= owner.pool.machines_at_most:
        return []
    each = ", ".join(f"{stack} {count}" for stack, count in wanted.items())
    gpus = total * owner.pool.machine.gpus
    text = f"the pool of {name} may hold {owner.pool.machines_at_most} × {owner.pool.machine.name}, its stacks need "
    text += f"{total} ({each})"
    return [Problem(key_path("cloud.limitGpus"), text, owner.pool.gpus_at_most, f"{gpus} or more, in {name}")]
