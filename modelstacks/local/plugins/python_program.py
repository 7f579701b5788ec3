"""Runs one Pulumi program as the settings on stdin say, and tells by its exit code how that went."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import runpy
import signal
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import pulumi
import pulumi.runtime

from modelstacks.errors import ModelstacksError

# What pulumi-language-python-exec uses too: the user has seen a message, nothing more is to be said.
EXIT_MESSAGE_SHOWN = 32


def run(settings: dict[str, Any]) -> int:
    """Runs the program and returns the exit code; `settings` is what `python_host` wrote."""
    pulumi.runtime.set_all_config(settings["config"], settings["secret_keys"])
    names = ("monitor", "engine", "project", "stack", "parallel", "dry_run", "organization", "root_directory")
    pulumi.runtime.configure(pulumi.runtime.Settings(**{name: settings[name] for name in names}))
    program = str(Path(settings["program"]).resolve())
    sys.argv = [program, *settings["arguments"]]
    if not Path(program).is_dir():
        sys.path.insert(0, str(Path(program).parent))  # runpy does so for directories
    # Futures that nobody awaits are how Pulumi programs fail; asyncio's words on them help no one.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=max(settings["parallel"], 1) * 4))
    try:
        loop.run_until_complete(pulumi.runtime.run_in_stack(lambda: _execute(program)))
    except Exception as error:
        return _report(error, program)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _execute(program: str) -> None:
    runpy.run_path(program, run_name="__main__")


def _report(error: BaseException, program: str) -> int:
    shown: BaseException | None = error
    while shown is not None:  # an error inside an apply arrives as the cause of another
        if isinstance(shown, ModelstacksError | pulumi.RunError):
            pulumi.log.error(str(shown))
            return EXIT_MESSAGE_SHOWN
        shown = shown.__cause__ or shown.__context__
    unavailable = isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.UNAVAILABLE
    if unavailable or "resource monitor" in str(error).lower():
        return EXIT_MESSAGE_SHOWN  # the engine has ended the deployment and says why itself
    frames = traceback.extract_tb(error.__traceback__)
    own = next((index for index, frame in enumerate(frames) if frame.filename.startswith(program)), 0)
    text = "".join(traceback.format_exception(error, limit=own - len(frames) if own else None))
    pulumi.log.error(f"Program failed with an unhandled exception:\n{text}")
    return EXIT_MESSAGE_SHOWN


if __name__ == "__main__":
    # The host interrupts a program whose deployment has ended. An exception could come up anywhere then, in a
    # callback of gRPC as well, and be printed as if it were the program's fault.
    signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_MESSAGE_SHOWN))
    sys.exit(run(json.load(sys.stdin)))
