"""The command line: turns options into a spec, prints what the pure modules answer, and maps errors to exit codes."""

from __future__ import annotations

import gc
import io
import os
import sys

from modelstacks.errors import EXIT_FAULT, EXIT_OK, ModelstacksError


def main() -> None:
    """Entry point of `modelstacks`. Exit codes: 0 done, 1 fault, 2 bad input, 3 refused."""
    # Imports make many objects that all stay: collecting among them took a tenth of a short command's time.
    gc.set_threshold(50_000)
    # No pydantic plugin takes part, and looking for one reads the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # Inside, because importing takes most of a short command's time, and Ctrl-C may come then.
        from modelstacks.cli.commands import app

        code = app(standalone_mode=False)
    except ModelstacksError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: nothing to report, and nothing to flush into.
        sys.stderr.close()
        sys.exit(EXIT_FAULT)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        print("  next: make that place readable and writable, and run again", file=sys.stderr)
        sys.exit(EXIT_FAULT)
    except Exception as error:
        _exit_like_click(error)
    else:
        sys.exit(code if isinstance(code, int) else EXIT_OK)


def _exit_like_click(error: Exception) -> None:
    """Usage errors keep Click's own text and exit code 2; anything else is a defect and keeps its traceback."""
    exit_code = getattr(error, "exit_code", None)
    show = getattr(error, "show", None)
    if exit_code is None:
        raise error
    if callable(show):
        show()
    sys.exit(exit_code)
