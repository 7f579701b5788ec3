"""The imitated engine behind Ray Serve LLM's engine protocol, with one rank on every node of its placement group.

Named to Ray by RAYLLM_VLLM_ENGINE_CLS, so that everything above the engine is the real thing.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ChatCompletionResponse,
    CompletionResponse,
    ErrorInfo,
    ErrorResponse,
)
from ray.llm._internal.serve.core.engine.protocol import LLMEngine
from ray.util import get_current_placement_group, metrics, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from modelstacks.local.imitation import Imitation, Settings, TooLong, count

_REPORT_S = 1.0


class Rank:
    """Holds the first GPU of a node, and with it the engine's part there."""

    async def live(self) -> None:
        """Never returns: its failure is how the engine learns that the rank is gone."""
        await asyncio.Event().wait()


_RankActor: Any = ray.remote(num_cpus=0, num_gpus=1, max_restarts=0)(Rank)


class ImitationEngine(LLMEngine):
    """What Ray Serve LLM asks of an engine."""

    def __init__(self, llm_config: Any) -> None:
        arguments = llm_config.engine_kwargs
        # Refuses what the real version would refuse.
        llm_config.get_engine_config()
        self._core = Imitation(Settings(llm_config.model_id, arguments["max_model_len"], arguments["max_num_seqs"]))
        self._ranks: list[Any] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take a GPU on every node, load, and watch the ranks from then on."""
        group = get_current_placement_group()
        assert group is not None, "the server's deployment has a placement group"
        placed = placement_group_table(group)["bundles_to_node_id"]
        for node, bundle in {node: index for index, node in sorted(placed.items(), reverse=True)}.items():
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
            rank = _RankActor.options(scheduling_strategy=strategy).remote()
            self._ranks.append(rank)
            self._tasks.append(asyncio.create_task(self._watch(rank, node)))
        self._tasks.append(asyncio.create_task(self._report()))
        await self._core.load()
        self._core.check()

    async def _watch(self, rank: Any, node: str) -> None:
        try:
            await rank.live.remote()
        except ray.exceptions.RayError:
            self._core.die(f"the worker on node {node[:8]} is gone")

    async def _report(self) -> None:
        model = {"model_name": self._core.settings.model}
        gauges = {name: metrics.Gauge(f"vllm_{name}", "imitated", ("model_name",)) for name in self._core.gauges()}
        counters = {
            name: metrics.Counter(f"vllm_{name}", "imitated", ("model_name",)) for name in self._core.counters()
        }
        before = dict.fromkeys(counters, 0)
        steps = 0
        while True:
            # The real one sets its gauges in steps, and an idle engine makes none.
            if self._core.generation_tokens > steps or self._core.running:
                steps = self._core.generation_tokens
                for name, value in self._core.gauges().items():
                    gauges[name].set(value, tags=model)
            for name, total in self._core.counters().items():
                if total > before[name]:
                    counters[name].inc(total - before[name], tags=model)
                before[name] = total
            await asyncio.sleep(_REPORT_S)

    async def check_health(self) -> None:
        self._core.check()

    def routing_stats(self) -> dict[str, Any]:
        return {}

    # The protocol declares coroutines, and Ray iterates over generators.
    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:  # type: ignore[override]
        prompt = "\n".join(str(message.get("content", "")) for message in request.messages)
        async for part in self._answer(request, prompt, chat=True):
            yield part

    async def completions(  # type: ignore[override]
        self, request: Any, raw_request_info: Any = None
    ) -> AsyncIterator[Any]:
        async for part in self._answer(request, str(request.prompt), chat=False):
            yield part

    async def _answer(self, request: Any, prompt: str, *, chat: bool) -> AsyncIterator[Any]:
        kind = "chat.completion" if chat else "text_completion"
        head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._core.settings.model,
        }
        stream = self._core.tokens(prompt, request.max_tokens)
        try:
            if request.stream:
                if chat:
                    head["object"] = "chat.completion.chunk"
                async for token in stream:
                    piece = {"delta": {"content": token}} if chat else {"text": token}
                    yield _event(head | {"choices": [{"index": 0, **piece, "finish_reason": None}]})
                last: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
                yield _event(head | {"choices": [{"index": 0, **last, "finish_reason": "length"}]})
                yield "data: [DONE]\n\n"
                return
            text = "".join([token async for token in stream])
        except TooLong as error:
            yield ErrorResponse(error=ErrorInfo(message=str(error), type="BadRequestError", code=400))
            return
        used = {"prompt_tokens": count(prompt), "completion_tokens": count(text) - 1}
        used["total_tokens"] = sum(used.values())
        body = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, **body, "finish_reason": "length"}
        answer = ChatCompletionResponse if chat else CompletionResponse
        yield answer(**head, choices=[choice], usage=used)

    async def resolve_lora(self, lora_model: Any) -> None:
        raise NotImplementedError("the imitated engine has no weights that an adapter could change")

    async def reset_prefix_cache(self) -> None:
        return

    async def shutdown(self) -> None:
        for task in self._tasks:
            task.cancel()

    # The application gives these no route.
    def embeddings(self, request: Any, raw_request_info: Any = None) -> Any:
        raise NotImplementedError("the imitated engine answers with text alone")

    transcriptions = score = embeddings


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
