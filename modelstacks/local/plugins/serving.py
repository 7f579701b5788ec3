"""Serves one plugin to the engine: prints the port, logs through the engine, ends with the engine."""

from __future__ import annotations

import functools
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc

from modelstacks.errors import ModelstacksError

# Every waiting resource holds a thread, and Cancel must still find one.
_THREADS: Final = 256


class Engine:
    """The engine's log, which shows lines below the resource that they are about."""

    def __init__(self, address: str) -> None:
        channel = grpc.insecure_channel(address, options=_GRPC_CHANNEL_OPTIONS)
        self._engine = engine_pb2_grpc.EngineStub(channel)
        self.address = address

    def info(self, message: str, urn: str = "", *, ephemeral: bool = False) -> None:
        """Shows a line; an ephemeral one is a status that the next one overwrites. Never fails."""
        request = engine_pb2.LogRequest(
            severity=engine_pb2.LogSeverity.INFO, message=message, urn=urn, ephemeral=ephemeral
        )
        try:
            self._engine.Log(request, timeout=5)
        except grpc.RpcError:
            print(message, file=sys.stderr)  # the engine is going away; the work is not


def engine_address(arguments: list[str]) -> str:
    """The engine's `host:port` among a plugin's arguments, such as `--logtostderr -v=9 127.0.0.1:40231`."""
    addresses = [text for text in arguments if re.fullmatch(r"[^-\s][^\s]*:\d+", text)]
    return addresses[-1] if addresses else ""


def answered(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method with its errors turned into gRPC statuses that carry the message and no traceback."""

    @functools.wraps(method)
    def call(self: object, request: Any, context: Any) -> Any:
        try:
            return method(self, request, context)
        except ModelstacksError as error:
            return context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Exception as error:
            if context.code() is not None:  # the method itself has aborted with a status
                raise
            fault = f"fault in modelstacks' stand-in plugin ({method.__name__}): {type(error).__name__}: {error}"
            return context.abort(grpc.StatusCode.INTERNAL, f"{fault}\n  next: report it with the object's manifest")

    return call


def serve(register: Callable[[Any], None], on_end: Callable[[], None] = lambda: None) -> None:
    """Serves until the engine, this process's parent, is gone; `register` adds the service to the server."""
    parent = os.getppid()
    stop = threading.Event()
    # The engine ends a plugin by an interrupt. Ctrl-C does not come here: plugins have a process group of
    # their own, and the engine makes a Cancel call of it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    server = grpc.server(ThreadPoolExecutor(max_workers=_THREADS), options=_GRPC_CHANNEL_OPTIONS)
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    while not stop.wait(1.0) and os.getppid() == parent:
        pass
    on_end()
    server.stop(grace=None)
    time.sleep(0.1)
    os._exit(0)  # calls that still wait must not hold up the end
