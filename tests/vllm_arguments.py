"""Write the list of arguments that a vLLM version takes, from its wheel: `python -m tests.vllm_arguments vllm-*.whl`.

The stub of the local Ray and the tests hold engine arguments against that list. Nothing of the wheel is imported.
"""

from __future__ import annotations

import ast
import datetime
import json
import sys
import zipfile
from pathlib import Path

from modelstacks import project

# Field names of these dataclasses, inherited ones included, are what Ray Serve LLM lets through.
SOURCES = {
    "engine": ("vllm/engine/arg_utils.py", {"EngineArgs", "AsyncEngineArgs"}),
    "frontend": ("vllm/entrypoints/launchers/cli_args.py", {"BaseFrontendArgs", "FrontendArgs"}),
}


def fields(source: bytes, classes: set[str]) -> list[str]:
    """The annotated names in the bodies of `classes`."""
    bodies = [
        node.body for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef) and node.name in classes
    ]
    names = {
        statement.target.id
        for body in bodies
        for statement in body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
    return sorted(names)


def main(wheel: Path) -> None:
    """Write templates/engines/vllm-<version>-arguments.json."""
    version = wheel.name.split("-")[1]
    with zipfile.ZipFile(wheel) as archive:
        found = {name: fields(archive.read(path), classes) for name, (path, classes) in SOURCES.items()}
    paths = " and ".join(path.removeprefix("vllm/") for path, _ in SOURCES.values())
    source = f"vllm {version} wheel: {paths}, read {datetime.date.today()}"
    target = project.data_root() / "templates" / "engines" / f"vllm-{version}-arguments.json"
    target.write_text(json.dumps({"version": version, "source": source, **found}, indent=1) + "\n", encoding="utf-8")
    print(f"{target}: {len(found['engine'])} of the engine, {len(found['frontend'])} of the front end")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
