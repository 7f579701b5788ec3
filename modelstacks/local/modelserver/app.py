"""The routes of vLLM and of TGI over one imitated engine."""

from __future__ import annotations

import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from modelstacks.local.imitation import EngineDead, Imitation, TooLong, TooMany, count
from modelstacks.local.modelserver.measures import Measures

_SSE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Server:
    """One engine behind HTTP. `key` is what guarded routes ask for, None: nothing."""

    engine: str
    core: Imitation
    measures: Measures
    key: str | None

    def app(self) -> Starlette:
        """The application, with the engine's own routes."""
        routes = [
            Route("/health", self.health),
            Route("/ping", self.health, methods=["GET", "POST"]),
            Route("/metrics", self.metrics),
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        if self.engine == "tgi":
            routes += [
                Route("/info", self.info),
                Route("/", self.generate, methods=["POST"]),
                Route("/generate", self.generate, methods=["POST"]),
                Route("/generate_stream", self.generate_stream, methods=["POST"]),
            ]
        return Starlette(routes=routes)

    async def health(self, request: Request) -> Response:
        """200, and 503 once the engine is dead."""
        return PlainTextResponse("", 503 if self.core.death is not None else 200)

    async def metrics(self, request: Request) -> Response:
        """Everything that Prometheus reads."""
        return Response(self.measures.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The one model. vLLM asks for the key, TGI does not."""
        if self.engine == "vllm" and not self._allowed(request):
            return self._unauthorized()
        card = {"id": self.core.settings.model, "object": "model", "owned_by": self.engine}
        if self.engine == "vllm":
            card["max_model_len"] = self.core.settings.max_model_len  # type: ignore[assignment]
        return JSONResponse({"object": "list", "data": [card]})

    async def info(self, request: Request) -> Response:
        """TGI's description of itself."""
        settings = self.core.settings
        return JSONResponse({"model_id": settings.model, "max_total_tokens": settings.max_model_len})

    async def completions(self, request: Request) -> Response:
        """OpenAI's completions."""
        return await self._openai(request, chat=False)

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions."""
        return await self._openai(request, chat=True)

    async def generate(self, request: Request) -> Response:
        """TGI's own call, whole."""
        return await self._own(request, stream=False)

    async def generate_stream(self, request: Request) -> Response:
        """TGI's own call, token by token."""
        return await self._own(request, stream=True)

    async def _openai(self, request: Request, *, chat: bool) -> Response:
        if not self._allowed(request):
            return self._unauthorized()
        body = await _json(request)
        if body is None:
            return self._failed(400, "the body is no JSON object")
        served = self.core.settings.model
        if body.get("model") not in (None, served) and self.engine == "vllm":
            return self._failed(404, f"The model `{body['model']}` does not exist.", "NotFoundError")
        messages = body.get("messages") if chat else None
        if chat and not isinstance(messages, list):
            return self._failed(400, "messages: Field required")
        prompt = "\n".join(str(m.get("content", "")) for m in messages or []) if chat else str(body.get("prompt", ""))
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": served,
        }
        words = self._words(prompt, most)
        try:
            first = await anext(words, None)
        except (TooLong, TooMany, EngineDead) as error:
            return self._refused(error)
        if body.get("stream"):
            return StreamingResponse(self._events(head, first, words, chat=chat), media_type=_SSE)
        try:
            text = (first or "") + "".join([word async for word in words])
        except EngineDead as error:
            return self._refused(error)
        used = {"prompt_tokens": count(prompt), "completion_tokens": count(text) - 1}
        used["total_tokens"] = sum(used.values())
        piece = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return JSONResponse(head | {"choices": [{"index": 0, **piece, "finish_reason": "length"}], "usage": used})

    async def _events(
        self, head: dict[str, Any], first: str | None, words: AsyncIterator[str], *, chat: bool
    ) -> AsyncIterator[str]:
        if chat:
            head = head | {"object": "chat.completion.chunk"}

        def event(text: str, finish: str | None) -> str:
            piece = {"delta": {"content": text} if text else {}} if chat else {"text": text}
            return f"data: {json.dumps(head | {'choices': [{'index': 0, **piece, 'finish_reason': finish}]})}\n\n"

        try:
            if first is not None:
                yield event(first, None)
            async for word in words:
                yield event(word, None)
        except EngineDead as error:
            yield f"data: {json.dumps({'error': {'message': str(error), 'code': 500}})}\n\n"
        else:
            yield event("", "length")
        yield "data: [DONE]\n\n"

    async def _own(self, request: Request, *, stream: bool) -> Response:
        if not self._allowed(request):
            return self._unauthorized()
        body = await _json(request)
        if body is None or not isinstance(body.get("inputs"), str):
            return JSONResponse({"error": "inputs: invalid type", "error_type": "validation"}, 422)
        most = (body.get("parameters") or {}).get("max_new_tokens", 20)
        words = self._words(body["inputs"], most)
        try:
            first = await anext(words, None)
        except (TooLong, TooMany, EngineDead) as error:
            return self._refused(error)

        async def events() -> AsyncIterator[str]:
            text = ""
            pending = first
            while pending is not None:
                text += pending
                upcoming = await anext(words, None)
                whole = text if upcoming is None else None
                yield f"data:{json.dumps({'token': {'text': pending}, 'generated_text': whole})}\n\n"
                pending = upcoming

        if stream:
            return StreamingResponse(events(), media_type=_SSE)
        return JSONResponse({"generated_text": (first or "") + "".join([word async for word in words])})

    async def _words(self, prompt: str, most: int | None) -> AsyncIterator[str]:
        """The words of an answer, each measured as it goes out."""
        answer = self.measures.begin(count(prompt))
        async for word in self.core.tokens(prompt, most):
            answer.token()
            yield word
        answer.done()

    def _allowed(self, request: Request) -> bool:
        shown = request.headers.get("authorization", "")
        return self.key is None or hmac.compare_digest(shown.encode(), f"Bearer {self.key}".encode())

    def _unauthorized(self) -> Response:
        return JSONResponse({"error": "Unauthorized"}, 401)

    def _refused(self, error: Exception) -> Response:
        """Each engine's own answer to what it cannot do."""
        if self.engine == "tgi":
            status, kind = {TooLong: (422, "validation"), TooMany: (429, "overloaded")}.get(
                type(error), (500, "generation")
            )
            text = "Model is overloaded" if kind == "overloaded" else str(error)
            return JSONResponse({"error": text, "error_type": kind}, status)
        status, kind = {TooLong: (400, "BadRequestError"), TooMany: (503, "ServiceUnavailableError")}.get(
            type(error), (500, "InternalServerError")
        )
        return self._failed(status, str(error), kind)

    def _failed(self, status: int, message: str, kind: str = "BadRequestError") -> Response:
        return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


async def _json(request: Request) -> dict[str, Any] | None:
    try:
        body = await request.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
