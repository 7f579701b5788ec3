"""A hub on loopback that speaks the routes which huggingface_hub asks, with the ways in which a real one says no."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORY, COMMIT = "acme/model", "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files by name, and what goes wrong: `refusals` answers in turn, `cut` ends a download in its middle, once.

    The bytes of `held` files do not come: who waits for them does so until `release`, and gets none.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.cut: set[str] = set()
        self.damaged: set[str] = set()
        self.held: set[str] = set()
        self.release = threading.Event()
        self.token: str | None = None
        self.asked: list[str] = []
        self.sent = 0

    @property
    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}

    @property
    def tree(self) -> list[dict[str, Any]]:
        found = []
        for entry in self.listing["siblings"]:
            row = {"type": "file", "path": entry["rfilename"], "size": entry["size"], "oid": entry["blobId"]}
            if "lfs" in entry:
                row["lfs"] = {"oid": entry["lfs"]["sha256"], "size": entry["size"], "pointerSize": 130}
            found.append(row)
        return found


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """The address of `hub`, for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            return

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._say(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif hub.refusals:
                status, headers = hub.refusals.pop(0)
                self._say(status, b'{"error": "no"}', headers)
            elif re.match(rf"/api/models/{REPOSITORY}/tree/", self.path):
                self._say(200, json.dumps(hub.tree).encode(), {})
            elif re.match(rf"/api/models/{REPOSITORY}(/revision/[^/?]+)?(\?|$)", self.path):
                self._say(200, json.dumps(hub.listing).encode(), {})
            elif found := re.match(rf"/{REPOSITORY}/resolve/[^/]+/([^?]+)", self.path):
                self._file(found[1], body=body)
            else:
                self._say(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})

        def _file(self, name: str, *, body: bool) -> None:
            content = hub.files.get(name)
            if content is None:
                self._say(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            if name in hub.damaged and body:
                content = content[:-1] + b"!"
                hub.damaged.discard(name)
            begin = 0
            if found := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
                begin = int(found[1])
                headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            self.send_response(206 if begin else 200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            if not body:
                return
            if name in hub.held:
                hub.release.wait(120)
                self.close_connection = True
                return
            piece = content[begin:]
            if name in hub.cut:
                hub.cut.discard(name)
                piece = piece[: len(piece) // 2]
                self.close_connection = True
            self.wfile.write(piece)
            hub.sent += len(piece)

        def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
