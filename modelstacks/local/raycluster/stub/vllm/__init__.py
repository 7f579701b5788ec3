"""Stands in for vLLM where none is installed: just the names that `ray.serve.llm` imports, with open request models.

Only the processes of a local Ray have this folder on their path. Which engine arguments exist is not open: it is read
from the list of the real version beside the templates, so that a serve config is refused as vLLM would refuse it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict

ARGUMENTS = "MODELSTACKS_VLLM_ARGUMENTS"
_known: dict[str, Any] = json.loads(Path(os.environ[ARGUMENTS]).read_text(encoding="utf-8"))
__version__ = str(_known["version"])


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class CompletionRequest(_Open):
    """POST /v1/completions."""

    model: str | None = None
    prompt: Any = ""
    max_tokens: int | None = None
    stream: bool = False


class ChatCompletionRequest(_Open):
    """POST /v1/chat/completions."""

    model: str | None = None
    messages: list[Any]
    max_tokens: int | None = None
    stream: bool = False


class ErrorInfo(_Open):
    """The inner part of an error."""

    message: str
    type: str = "BadRequestError"
    param: str | None = None
    code: int = 400


class ErrorResponse(_Open):
    """What an engine answers to a bad request."""

    error: ErrorInfo


class VLLMClientError(Exception):
    """An error of the client."""


def _open(name: str) -> type[BaseModel]:
    return type(name, (_Open,), {"__doc__": "Any fields.", "__module__": __name__})


def _arguments(kind: str, name: str) -> type:
    made = dataclasses.make_dataclass(name, [(field, Any, None) for field in _known[kind]])
    made.__module__ = __name__
    return made


AsyncEngineArgs, FrontendArgs = _arguments("engine", "AsyncEngineArgs"), _arguments("frontend", "FrontendArgs")
_CHAT = {"ChatCompletionRequest": ChatCompletionRequest} | {
    name: _open(name) for name in ("ChatCompletionResponse", "ChatCompletionStreamResponse")
}
_COMPLETION = {"CompletionRequest": CompletionRequest} | {
    name: _open(name) for name in ("CompletionResponse", "CompletionStreamResponse")
}
_MODULES: dict[str, dict[str, Any]] = {
    "engine.arg_utils": {"AsyncEngineArgs": AsyncEngineArgs},
    "entrypoints.launchers.cli_args": {"FrontendArgs": FrontendArgs},
    "entrypoints.openai.chat_completion.protocol": _CHAT,
    "entrypoints.openai.completion.protocol": _COMPLETION,
    "entrypoints.pooling.embed.protocol": {
        name: _open(name) for name in ("EmbeddingChatRequest", "EmbeddingCompletionRequest", "EmbeddingResponse")
    },
    "entrypoints.pooling.scoring.protocol": {name: _open(name) for name in ("ScoreResponse", "ScoreTextRequest")},
    "entrypoints.serve.engine.protocol": {"ErrorInfo": ErrorInfo, "ErrorResponse": ErrorResponse},
    "entrypoints.serve.tokenize.protocol": {
        name: _open(name)
        for name in (
            "DetokenizeRequest", "DetokenizeResponse", "TokenizeChatRequest", "TokenizeCompletionRequest",
            "TokenizeResponse",
        )
    },
    "entrypoints.speech_to_text.transcription.protocol": {
        name: _open(name)
        for name in ("TranscriptionRequest", "TranscriptionResponse", "TranscriptionStreamResponse")
    },
    "exceptions": {"VLLMClientError": VLLMClientError},
}  # fmt: skip

for _path, _names in _MODULES.items():
    _parts = _path.split(".")
    for _depth in range(1, len(_parts) + 1):
        _full = ".".join([__name__, *_parts[:_depth]])
        if _full not in sys.modules:
            _module = ModuleType(_full)
            _module.__path__ = []
            sys.modules[_full] = _module
            setattr(sys.modules[_full.rpartition(".")[0]], _parts[_depth - 1], _module)
    for _name, _value in _names.items():
        setattr(sys.modules[f"{__name__}.{_path}"], _name, _value)
        # Pickle finds a class where it says that it lives.
        globals().setdefault(_name, _value)
