"""Write the list of flags that an engine's server takes: `python -m tests.engine_flags vllm 0.32.0 DUMP.json`.

For vLLM the dump is its own parser's, made where it is installed:

    parser = vllm.entrypoints.openai.cli_args.make_arg_parser(FlexibleArgumentParser())
    [{"flags": a.option_strings, "dest": a.dest, "default": repr(a.default), "choices": …} for a in parser._actions]

For TGI it is a list of {"flag", "takes", "choices"}, read in launcher/src/main.rs. Renders and the tests' own server
hold command lines against these lists; nothing of an engine is imported.
"""

from __future__ import annotations

import ast
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from modelstacks import project

# Of vLLM's flags those that take several words (nargs="+" or "*").
_MANY = {"served_model_name", "lora_modules", "api_key", "middleware", "logits_processors", "allowed_media_domains"}
_ALONE = ("False", "True", "'==SUPPRESS=='")


def vllm(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Flag → what it takes, of a dump of argparse actions."""
    found: dict[str, Any] = {}
    for entry in entries:
        switches = any(flag.startswith("--no-") for flag in entry["flags"]) or entry["default"] in _ALONE
        takes = "nothing" if switches else "many" if entry["dest"] in _MANY else "value"
        for flag in entry["flags"]:
            found[flag] = {"takes": takes} | ({"choices": _choices(entry["choices"])} if entry["choices"] else {})
            if entry.get("deprecated"):
                found[flag]["deprecated"] = True
    return found


def _choices(given: Any) -> list[str]:
    choices = ast.literal_eval(given) if isinstance(given, str) else given
    return [str(choice) for choice in choices if choice is not None]


def tgi(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Flag → what it takes, of a list read in the launcher's source."""
    return {
        entry["flag"]: {"takes": entry["takes"]} | ({"choices": entry["choices"]} if entry["choices"] else {})
        for entry in entries
    }


def main(engine: str, version: str, dump: Path) -> None:
    """Write templates/engines/<engine>-<version>-flags.json."""
    entries = json.loads(dump.read_text(encoding="utf-8"))
    flags = {"vllm": vllm, "tgi": tgi}[engine](entries)
    where = {"vllm": "parser of the installed package", "tgi": "launcher/src/main.rs"}[engine]
    source = f"{engine} {version}, {where}, read {datetime.date.today()}"
    target = project.data_root() / "templates" / "engines" / f"{engine}-{version}-flags.json"
    data = {"engine": engine, "version": version, "source": source, "flags": dict(sorted(flags.items()))}
    target.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"{target.name}: {len(flags)} flags")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
