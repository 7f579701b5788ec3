"""Writes the commands that the engine finds on PATH as its plugins."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Final

import modelstacks

_MODULES: Final = {
    "pulumi-resource-kubernetes": "modelstacks.local.plugins.kubernetes_provider",
    "pulumi-language-python": "modelstacks.local.plugins.python_host",
}


COMMANDS: Final = tuple(_MODULES)
"""What can be stood in for."""


def install(bin_dir: Path, commands: Collection[str] = COMMANDS) -> None:
    """Puts the named plugin commands into `bin_dir`, and takes the others away; they run with the Python of this.

    May be repeated, and while a command runs: each file is replaced in one step, and only if it would change.
    """
    bin_dir.mkdir(parents=True, exist_ok=True)
    # The engine starts plugins in any directory, so the package is found by its path.
    package_root = Path(modelstacks.__file__).parents[1]
    for command, module in _MODULES.items():
        if command not in commands:
            (bin_dir / command).unlink(missing_ok=True)
            continue
        text = (
            "#!/bin/sh\n"
            f"# modelstacks' stand-in for {command}; see modelstacks/local/plugins.\n"
            f'PYTHONPATH={shlex.quote(str(package_root))}"${{PYTHONPATH:+:$PYTHONPATH}}"\n'
            "export PYTHONPATH\n"
            f'exec {shlex.quote(sys.executable)} -P -m {module} "$@"\n'
        )
        target = bin_dir / command
        if target.is_file() and target.read_text() == text and os.access(target, os.X_OK):
            continue
        with tempfile.NamedTemporaryFile("w", dir=bin_dir, prefix=f".{command}.", delete=False) as file:
            file.write(text)
        Path(file.name).chmod(0o755)
        Path(file.name).replace(target)
