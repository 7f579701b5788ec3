"""The OpenAI API of the application, with what Ray's own ingress leaves out: the engine's health, and its metrics."""

from __future__ import annotations

import asyncio
import functools
import json
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import ray
from fastapi import FastAPI
from ray.llm._internal.serve.core.ingress.ingress import init
from ray.serve.llm.ingress import OpenAiIngress
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from modelstacks_ray.guard import KeyGuard

ENDPOINTS: dict[str, Callable[[FastAPI], Any]] = {
    "health": lambda app: app.get("/health"),
    "metrics": lambda app: app.get("/metrics"),
    "models": lambda app: app.get("/v1/models"),
    "model_data": lambda app: app.get("/v1/models/{model:path}"),
    "completions": lambda app: app.post("/v1/completions"),
    "chat": lambda app: app.post("/v1/chat/completions"),
    "tokenize": lambda app: app.post("/tokenize"),
    "detokenize": lambda app: app.post("/detokenize"),
}
_HEALTH_WITHIN_S = 4.0
# Ray's agent writes vLLM's metrics with a prefix of its own and without the colon.
_AGENT_PREFIX, _ENGINE_PREFIX = "ray_vllm_", "vllm:"


def guarded_app() -> FastAPI:
    """The application that Ray's own ingress would make, behind the key."""
    app = init()
    app.add_middleware(KeyGuard)
    return app


def _guarded(method: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """The same endpoint, whose stream ends in words when the engine dies behind it."""

    # FastAPI reads the wrapped signature.
    @functools.wraps(method)
    async def endpoint(*given: Any, **named: Any) -> Response:
        response = await method(*given, **named)
        if isinstance(response, StreamingResponse):
            response.body_iterator = ended_in_words(response.body_iterator)
        return response

    return endpoint


async def ended_in_words(chunks: Any) -> AsyncIterator[Any]:
    """The chunks of a stream; a failure in the middle becomes an error event and the usual end."""
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        yield f"data: {json.dumps({'error': _lost(error)})}\n\n"
        yield "data: [DONE]\n\n"


def _lost(error: Exception) -> dict[str, Any]:
    # A failure on another process comes with that process's whole stack; its last line is the failure.
    reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    text = "the server of this answer was lost before it was complete; send the request again"
    return {"message": f"{text} ({reason[0]})", "type": "server_lost", "param": None, "code": 503}


class Ingress(OpenAiIngress):
    """One on every node. Routes are in ENDPOINTS."""

    def __init__(self, llm_deployments: dict[str, Any], model_cards: dict[str, Any], **others: Any) -> None:
        super().__init__(llm_deployments, model_cards, **others)
        (self._engine,) = llm_deployments.values()
        self._cards = dict(model_cards)

    async def health(self) -> Response:
        """200 when the engine answers, 503 while it loads, and when it is dead or cut off."""
        try:
            await asyncio.wait_for(self._ask_engine(), _HEALTH_WITHIN_S)
        except TimeoutError:
            return JSONResponse({"status": "the engine does not answer, or still loads"}, status_code=503)
        except Exception as error:
            return JSONResponse({"status": f"the engine is dead ({type(error).__name__})"}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def _ask_engine(self) -> None:
        await self._engine.check_health.remote()

    async def metrics(self) -> Response:
        """The engine's metrics of this node, under vLLM's own names, so that one dashboard reads every tier."""
        try:
            text = await asyncio.to_thread(_agent_metrics)
        except OSError as error:
            return PlainTextResponse(f"# Ray's metrics agent of this node does not answer: {error}\n", 503)
        return PlainTextResponse(engine_metrics(text))

    async def models(self) -> Response:  # type: ignore[override]
        """The one model, as vLLM lists it."""
        return JSONResponse({"object": "list", "data": list(self._cards.values())})

    async def model_data(self, model: str) -> Response:  # type: ignore[override]
        """The one model by name."""
        card = self._cards.get(model)
        if card is None:
            text = f"The model `{model}` does not exist; this server has {', '.join(self._cards)}."
            return JSONResponse({"error": {"message": text, "type": "NotFoundError", "code": 404}}, status_code=404)
        return JSONResponse(card)

    completions = _guarded(OpenAiIngress.completions)  # type: ignore[assignment]
    chat = _guarded(OpenAiIngress.chat)  # type: ignore[assignment]


def _agent_metrics() -> str:
    here = ray.get_runtime_context().get_node_id()
    (node,) = (entry for entry in ray.nodes() if entry["NodeID"] == here)  # type: ignore[no-untyped-call]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        return str(answer.read().decode())


def engine_metrics(text: str) -> str:
    """The lines of Ray's exposition that are the engine's, renamed to what vLLM itself calls them."""
    kept = []
    for line in text.splitlines():
        words = line.split(" ", 3)
        comment = line.startswith("# ") and len(words) > 2
        name = words[2] if comment else words[0]
        if name.startswith(_AGENT_PREFIX):
            kept.append(line.replace(_AGENT_PREFIX, _ENGINE_PREFIX, 1))
    return "\n".join(kept) + "\n" if kept else ""
