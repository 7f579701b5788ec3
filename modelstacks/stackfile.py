"""Stack files and names: where they are, which keys in them are ours, and what may be called how."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelstacks import documents, project
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput, Problem, listed
from modelstacks.fields import NAMESPACE, key_path, nearest
from modelstacks.spec import KEYS, StackSpec, parse

# A stack's name becomes part of object names: RayService allows 47 characters (KubeRay MaxRayServiceNameLength).
_STACK_NAME = re.compile(r"[a-z]([a-z0-9.-]*[a-z0-9])?")
_STACK_NAME_MAX = 40
_TAKEN_NAMES = ("default-deny",)

# Keys that the Pulumi program reads beside the spec: a secret must never pass through plan or render.
PROGRAM_KEYS = ("hubToken", "stackFile")


def parse_file(path: Path, catalog: Catalog, *, overlay: Mapping[str, Any] | None = None) -> StackSpec:
    """Read a stack file and parse it. Keys of other Pulumi packages are left alone."""
    found, bare = _config_of(path)
    values = {**found, **(overlay or {})}
    try:
        parsed = parse({k: v for k, v in values.items() if k not in PROGRAM_KEYS}, catalog, source=str(path))
    except BadInput as error:
        # A data file that is broken answers for itself.
        if error.source != str(path):
            raise
        options = {key_path(key): _option(key) for key in overlay or {}}
        problems = [replace(p, path=options.get(p.path, p.path)) for p in error.problems]
        asked = all(problem.path.startswith("--") for problem in (*bare, *problems))
        source = f"command line, over {path.name}" if asked else str(path)
        raise BadInput([*bare, *problems], source=source, next_step=error.next_step) from None
    if bare:
        raise BadInput(bare, source=str(path))
    return parsed


def _option(key: str) -> str:
    """The command-line option of a stack key."""
    named = {"kubeContext": "context"}
    return "--" + re.sub(r"([A-Z])", r"-\1", named.get(key, key)).lower()


def stack_values(path: Path) -> dict[str, Any]:
    """The modelstacks keys of a stack file, prefix removed. Raises BadInput for a file that is not one."""
    return _config_of(path)[0]


def set_value(path: Path, key: str, value: int) -> None:
    """Write one whole number into a stack file, everything else in it untouched, and the file in one step.

    Raises BadInput for a file that is written in a way that this cannot edit.
    """
    # Where a link points, and with the line ends that it has.
    path = path.resolve()
    wanted = {**stack_values(path), key: value}
    text = path.read_bytes().decode("utf-8")
    name = re.escape(key_path(key))
    number = r"[\"']?\d+[\"']?(?=\s*(#|$))"
    changed, times = re.subn(rf"(?m)^(\s*[\"']?{name}[\"']?\s*:\s*){number}", rf"\g<1>{value}", text)
    if not times:
        line = rf"\g<1>{key_path(key)}: {value}\n\g<0>"
        changed, times = re.subn(rf"(?m)^([ ]+)[\"']?{NAMESPACE}:", line, text, count=1)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(changed.encode("utf-8"))
        try:
            right = times == 1 and stack_values(part) == wanted
        except BadInput:
            right = False
        if not right:
            problem = Problem(key_path(key), "cannot be written into a file of this form", None, f"{value}, by hand")
            raise BadInput([problem], source=str(path), next_step=f"write {key_path(key)}: {value} under config:")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _config_of(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    """The modelstacks keys of a stack file, and a problem for each key that no package could own."""
    next_step = "see docs/stack-file.md, or write one with modelstacks init"
    data = documents.read_file(path)
    if data is None:
        raise BadInput([Problem("file", "is empty", allowed="config: {modelstacks:model: …}")],
            source=str(path), next_step=next_step,
        )  # fmt: skip
    config = data.get("config") if isinstance(data, dict) else None
    if not isinstance(config, dict):
        problem = Problem("config", "must be a mapping of modelstacks:… keys")
        raise BadInput([problem], source=str(path), next_step=next_step)
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    for key in data:
        if isinstance(key, str) and key.startswith(f"{NAMESPACE}:"):
            problems.append(Problem(key, "stands beside config and is not read", None, "under config:, indented"))
    if isinstance(config.get(key_path("hubToken")), str):
        text = "stands there for everybody to read; take it back at the hub"
        problems.append(Problem(key_path("hubToken"), text, None, f"pulumi config set --secret {key_path('hubToken')}"))
    for key, value in config.items():
        if not isinstance(key, str) or ":" not in key:
            near = nearest(str(key), KEYS)
            hint = f"{NAMESPACE}:{near or key}"
            problems.append(Problem(f"config.{key}", "has no namespace", key, suggestion=hint))
        elif key.startswith(f"{NAMESPACE}:"):
            values[key.removeprefix(f"{NAMESPACE}:")] = value
    return values, problems


def config_values(config: Mapping[str, str]) -> dict[str, Any]:
    """The modelstacks keys of a running Pulumi program, where objects arrive as JSON text."""
    values: dict[str, Any] = {}
    for key, text in config.items():
        namespace, _, name = key.partition(":")
        if namespace != NAMESPACE:
            continue
        value: Any = text
        if isinstance(text, str) and (text[:1] in ("{", "[") or text in ("true", "false")):
            try:
                value = json.loads(text)
            except ValueError:
                value = text
        elif name in ("gpuMemoryUtilization", "budgetUsdPerMonth"):
            value = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else text
        values[name] = value
    return values


def stack_file(project_dir: Path, stack: str) -> Path:
    """The file of a stack. Raises BadInput for a bad name, an unknown stack, or two files with one name."""
    check_stack_name(stack)
    folder = project.stacks_dir(project_dir)
    found = [path for path in (*_stack_files(folder), *_stack_files(project_dir)) if stack_name(path) == stack]
    clash = [name for name in stack_names(project_dir) if name != stack and object_name(name) == object_name(stack)]
    if clash:
        text = f"{stack} and {clash[0]} would name the same objects: {object_name(stack)}"
        raise BadInput([Problem("stack", text, stack)], source="stacks", next_step="rename one of the files")
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(project_dir)) for path in sorted(found))
        raise BadInput(
            [Problem("stack", f"two files have the name {stack}: {names}", stack)],
            source="stacks", next_step="keep one of them in stacks/",
        )  # fmt: skip
    if not found:
        names_known = stack_names(project_dir)
        near = nearest(stack, names_known)
        raise BadInput(
            [Problem("stack", f"there is no stacks/Pulumi.{stack}.yaml", stack, listed(names_known), near)],
            source="stacks", next_step=f"modelstacks init {stack} --model <model>",
        )  # fmt: skip
    return found[0]


def stack_names(project_dir: Path) -> tuple[str, ...]:
    """Every stack of the project, sorted."""
    return tuple(sorted({stack_name(path) for path in _stack_files(project.stacks_dir(project_dir))}))


def _stack_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("Pulumi.*.*") if path.suffix in (".yaml", ".yml")]


def stack_name(path: Path) -> str:
    """The stack that a file Pulumi.<stack>.yaml belongs to."""
    return path.name.removeprefix("Pulumi.").removesuffix(".yaml").removesuffix(".yml")


def object_name(stack: str) -> str:
    """The base of a stack's object names: dots are not allowed in all of them."""
    return stack.replace(".", "-")


def check_namespaces(specs: Mapping[str, StackSpec]) -> None:
    """Raise BadInput when two stacks would own one namespace: deleting one would delete the other's objects."""
    owners: dict[str, str] = {}
    for stack, spec in specs.items():
        namespace = spec.namespace or object_name(stack)
        if spec.namespace_owner is not None:
            continue
        if namespace in owners:
            text = f"{namespace!r} is the namespace of {owners[namespace]} too"
            problem = Problem(f"{stack}: {key_path('namespace')}", text, namespace, "one namespace a stack")
            step = "give one of them another namespace, or name its owner in modelstacks:namespaceOwner"
            raise BadInput([problem], source="stacks", next_step=step)
        owners[namespace] = stack


def check_stack_name(stack: str) -> None:
    """Raise BadInput unless the name can be part of Kubernetes object names."""
    if stack in _TAKEN_NAMES:
        raise BadInput([Problem("stack", f"{stack} is the name of an object of every stack", stack)], source="stack")
    if not _STACK_NAME.fullmatch(stack) or len(stack) > _STACK_NAME_MAX:
        allowed = f"lower case letters, digits, '-' and '.', a letter first, at most {_STACK_NAME_MAX} characters"
        raise BadInput([Problem("stack", f"{stack!r} is no usable stack name", stack, allowed)], source="stack")
