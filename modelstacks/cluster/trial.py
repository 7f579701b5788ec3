"""A first request to a stack's server: which pod, with which key, and the answer as it streams in."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from modelstacks.cluster import forward, live, pods, secrets
from modelstacks.cluster.connection import Cluster, Kind
from modelstacks.errors import ClusterError
from modelstacks.plan import Plan
from modelstacks.render.values import api_key_secret, form_of

_FIRST_TOKEN_S = 300.0


@dataclass(frozen=True, slots=True)
class Target:
    """A ready server. `key` is None where its API asks for none; never shown."""

    pod: str
    port: int
    model: str
    health_path: str
    secret: str | None
    key: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back. `tokens_per_s` is None for an answer of one token."""

    text: str
    tokens: int
    first_token_s: float
    tokens_per_s: float | None

    def answer(self) -> dict[str, Any]:
        """As JSON."""
        speed = None if self.tokens_per_s is None else round(self.tokens_per_s, 2)
        return {
            "text": self.text,
            "tokens": self.tokens,
            "first_token_s": round(self.first_token_s, 3),
            "tokens_per_s": speed,
        }


def target(cluster: Cluster, plan: Plan) -> Target:
    """A ready server of the stack and the key of its API. Raises ClusterError that says what is missing."""
    found = cluster.items(Kind("v1", "Pod"), plan.namespace)
    ready = live.servers(plan, [pod for pod in found if pods.is_own(pod, plan) and not pods.is_leaving(pod)])
    if not ready:
        raise ClusterError(
            f"no server of {plan.stack or plan.name} is ready",
            next_step=f"modelstacks status {plan.stack or plan.name}",
        )
    secret, key = api_key_secret(plan), secrets.api_key(cluster, plan)
    if secret is not None and key is None:
        own = plan.spec.api_key_secret is None
        step = f"modelstacks rotate-key {plan.stack}" if own else f"put the key into Secret {secret}, under `key`"
        raise ClusterError(f"Secret {secret} in {plan.namespace} has no key of the API", next_step=step)
    if key is not None and (why := secrets.unsendable(key)) is not None:
        raise ClusterError(f"the key in Secret {secret} {why}", next_step=f"make Secret {secret} again, without them")
    # TGI takes any name and is known by its checkpoint's.
    form = form_of(plan)
    return Target(ready[0], form.port, plan.choice.model.id, form.health_path, secret, key)


def ask(target: Target, port: int, prompt: str, max_tokens: int, say: Callable[[str], None] | None) -> Answered:
    """One streamed chat completion through a port of loopback; `say` gets each piece. Raises ClusterError."""
    body = {
        "model": target.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens,
        "stream": True,
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    if target.key is not None:
        headers["Authorization"] = f"Bearer {target.key}"
    connection = http.client.HTTPConnection(forward.HOST, port, timeout=_FIRST_TOKEN_S)
    began = time.monotonic()
    pieces: list[str] = []
    first = last = began
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ClusterError(_refused(target, answer.status, answer.read()))
        for piece in _pieces(answer):
            last = time.monotonic()
            first = last if not pieces else first
            pieces.append(piece)
            if say is not None:
                say(piece)
    except (OSError, http.client.HTTPException) as error:
        raise ClusterError(
            f"pod {target.pod} broke off after {len(pieces)} tokens: {error or type(error).__name__}",
            next_step="send the request again; `modelstacks status` says how the pod is",
        ) from None
    finally:
        connection.close()
    if not pieces:
        raise ClusterError(f"pod {target.pod} answered without a token", next_step="ask for more with --max-tokens")
    speed = (len(pieces) - 1) / (last - first) if len(pieces) > 1 and last > first else None
    return Answered("".join(pieces), len(pieces), first - began, speed)


def _refused(target: Target, status: int, body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        said = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        said = body.decode(errors="replace").strip()[:200]
    if status == 401:
        said = f"the key in Secret {target.secret} is not the server's: it was rotated and the pod not yet restarted"
    return f"pod {target.pod} answers HTTP {status}: {said}"


def _pieces(answer: http.client.HTTPResponse) -> Iterator[str]:
    """The texts in a stream of server-sent events. Raises ClusterError for an error event."""
    for line in answer:
        text = line.decode(errors="replace").strip()
        if not text.startswith("data:") or text.endswith("[DONE]"):
            continue
        try:
            event = json.loads(text.removeprefix("data:"))
        except ValueError:
            raise ClusterError(f"the answer is no stream of JSON events: {text[:80]!r}") from None
        if not isinstance(event, dict) or "error" in event:
            error = event.get("error") if isinstance(event, dict) else event
            said = error.get("message", error) if isinstance(error, dict) else error
            raise ClusterError(f"the answer ended in an error: {said}")
        for choice in event.get("choices") or []:
            delta = (choice.get("delta") if isinstance(choice, dict) else None) or {}
            piece = delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""
            if piece:
                yield piece
