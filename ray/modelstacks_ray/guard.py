"""Asks for the API's key wherever a request costs a GPU's time; kubelets and Prometheus have none."""

from __future__ import annotations

import hmac
import os
from typing import Any

from starlette.responses import JSONResponse

# As vLLM's own server reads it.
KEY = "VLLM_API_KEY"
OPEN = ("/health", "/metrics")


class KeyGuard:
    """ASGI middleware: 401 for requests without the key, nothing where no key is set."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request: to the application, or 401."""
        key = os.environ.get(KEY)
        # A browser asks first what it may ask, without a key.
        asked = key and scope["type"] == "http" and scope["method"] != "OPTIONS" and scope["path"] not in OPEN
        if asked and not hmac.compare_digest(_shown(scope), f"Bearer {key}".encode()):
            error = {"message": "the API key is missing or wrong", "type": "Unauthorized", "param": None, "code": 401}
            await JSONResponse({"error": error}, status_code=401)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _shown(scope: Any) -> bytes:
    return next((value for name, value in scope["headers"] if name == b"authorization"), b"")
