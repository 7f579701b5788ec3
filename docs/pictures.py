"""Draws the terminal pictures of the README from the real plans: `make pictures` refreshes them, a test compares."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from modelstacks import project, stackfile
from modelstacks.catalog import Catalog
from modelstacks.cli import tables
from modelstacks.plan import plan

IMAGES = Path(__file__).parent / "images"
PICTURES = {
    "plan.svg": ("modelstacks plan qwen-2.5-72b", "qwen-2.5-72b", {}),
    "refusal.svg": ("modelstacks plan deepseek-r1 --gpus 8", "deepseek-r1", {"gpus": 8}),
}


def draw() -> dict[str, str]:
    """File name → SVG text."""
    catalog = Catalog()
    drawn = {}
    for name, (command, stack, overlay) in PICTURES.items():
        path = stackfile.stack_file(project.root(Path(__file__).parent), stack)
        decided = plan(stackfile.parse_file(path, catalog, overlay=overlay), catalog, stack=stack)
        console = Console(record=True, file=io.StringIO(), width=108, highlight=False, force_terminal=True)
        tables.plan(decided, console)
        svg = console.export_svg(title=command, unique_id=name.removesuffix(".svg"))
        # The default style fetches a web font; any monospaced one will do.
        drawn[name] = re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)
    return drawn


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    for file, text in draw().items():
        (IMAGES / file).write_text(text, encoding="utf-8")
