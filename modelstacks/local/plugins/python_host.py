"""The Python language host that the engine starts: runs a program in a process of its own."""

# ruff: noqa: N802 -- gRPC names the methods

from __future__ import annotations

import json
import os.path
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from google.protobuf import empty_pb2  # type: ignore[import-untyped]  # protobuf ships no types
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2

from modelstacks.local.plugins.python_program import EXIT_MESSAGE_SHOWN
from modelstacks.local.plugins.serving import answered, engine_address, serve

# Seconds between asking a program to stop and killing it; the official host waits as long.
_GRACE_S = 5.0


class PythonHost(language_pb2_grpc.LanguageRuntimeServicer):
    """The methods are those of language.proto; what only code generation needs stays unimplemented."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._program: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    def Handshake(self, request: Any, context: Any) -> language_pb2.LanguageHandshakeResponse:
        self._engine = request.engine_address or self._engine
        return language_pb2.LanguageHandshakeResponse()

    def GetPluginInfo(self, request: Any, context: Any) -> plugin_pb2.PluginInfo:
        return plugin_pb2.PluginInfo(version=version("pulumi"))

    def About(self, request: Any, context: Any) -> language_pb2.AboutResponse:
        python = ".".join(str(part) for part in sys.version_info[:3])
        metadata = {"host": "modelstacks' stand-in for pulumi-language-python"}
        return language_pb2.AboutResponse(executable=sys.executable, version=python, metadata=metadata)

    def GetRequiredPlugins(self, request: Any, context: Any) -> Any:
        return language_pb2.GetRequiredPluginsResponse()

    def GetRequiredPackages(self, request: Any, context: Any) -> Any:
        # Naming none keeps the engine from downloading any; it takes each from PATH when it is first used.
        return language_pb2.GetRequiredPackagesResponse()

    def GetProgramDependencies(self, request: Any, context: Any) -> Any:
        names = ("pulumi", "pulumi-kubernetes")
        found = [language_pb2.DependencyInfo(name=name, version=version(name)) for name in names]
        return language_pb2.GetProgramDependenciesResponse(dependencies=found)

    def RuntimeOptionsPrompts(self, request: Any, context: Any) -> Any:
        return language_pb2.RuntimeOptionsResponse()

    def Template(self, request: Any, context: Any) -> Any:
        return language_pb2.TemplateResponse()

    def InstallDependencies(self, request: Any, context: Any) -> Iterator[Any]:
        line = f"nothing to install: the program runs with {sys.executable}, which has its dependencies\n"
        yield language_pb2.InstallDependenciesResponse(stdout=line.encode())

    @answered
    def Run(self, request: Any, context: Any) -> language_pb2.RunResponse:
        settings = {
            "project": request.project,
            "stack": request.stack,
            "organization": request.organization,
            "root_directory": request.info.root_directory,
            "monitor": request.monitor_address,
            "engine": self._engine,
            "parallel": request.parallel,
            "dry_run": request.dryRun,
            "program": os.path.join(request.info.program_directory, request.info.entry_point),  # noqa: PTH118 ("." stays)
            "arguments": list(request.args),
            "config": dict(request.config),
            "secret_keys": list(request.configSecretKeys),
        }
        command = [sys.executable, "-P", "-m", "modelstacks.local.plugins.python_program"]
        directory = request.pwd or request.info.program_directory
        # The settings hold secrets, so they go through a pipe: others can read arguments.
        program = subprocess.Popen(command, cwd=directory, stdin=subprocess.PIPE)
        self._program = program
        context.add_callback(self.stop)
        program.communicate(json.dumps(settings).encode())
        self._program = None
        if program.returncode == EXIT_MESSAGE_SHOWN:
            return language_pb2.RunResponse(bail=True)
        if self._stopped.is_set():
            return language_pb2.RunResponse(error="the program was cancelled")
        if program.returncode:
            return language_pb2.RunResponse(error=f"program exited with non-zero exit code: {program.returncode}")
        return language_pb2.RunResponse()

    def Cancel(self, request: Any, context: Any) -> empty_pb2.Empty:
        self._stopped.set()
        self.stop()
        return empty_pb2.Empty()

    def stop(self) -> None:
        """Ends a program that still runs: first by interrupt, then by force."""
        program = self._program
        if program is None or program.poll() is not None:
            return
        program.send_signal(signal.SIGINT)
        try:
            program.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            program.kill()


def main() -> None:
    """Runs the plugin; the engine gives its own address as an argument."""
    host = PythonHost(engine_address(sys.argv[1:]))
    serve(lambda server: language_pb2_grpc.add_LanguageRuntimeServicer_to_server(host, server), on_end=host.stop)


if __name__ == "__main__":
    main()
