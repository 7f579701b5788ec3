"""Asks container registries whether they have an image: the distribution API's HEAD of a manifest, no pull."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelstacks.images import DOCKER_HUB, registry_of

_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
_HUB_API = "registry-1.docker.io"
_WITHIN_S = 15
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """`state` is "there", "missing", "refused" or the reason for no answer."""

    state: str
    digest: str | None = None


def look_up(images: Iterable[str]) -> dict[str, Answer]:
    """Every image with its registry's answer."""
    names = list(dict.fromkeys(images))
    with ThreadPoolExecutor(_AT_ONCE) as at_once:
        return dict(zip(names, at_once.map(_ask, names), strict=True))


def _ask(image: str) -> Answer:
    registry = registry_of(image)
    rest = image.removeprefix(f"{registry}/")
    name, at, digest = rest.partition("@")
    name, _, tag = name.rpartition(":") if re.search(r":[^/]+$", name) else (name, "", "latest")
    if registry == DOCKER_HUB and "/" not in name:
        name = f"library/{name}"
    host = _HUB_API if registry == DOCKER_HUB else registry
    url = f"{_scheme(host)}://{host}/v2/{name}/manifests/{digest if at else tag}"
    headers = {"Accept": _MANIFESTS}
    try:
        try:
            return _head(url, headers)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            return _head(url, headers | {"Authorization": _authorization(error, registry)})
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return Answer("missing")
        return Answer("refused" if error.code in (401, 403) else f"HTTP {error.code}")
    except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        return Answer(f"does not answer: {reason}")


def _head(url: str, headers: dict[str, str]) -> Answer:
    request = urllib.request.Request(url, method="HEAD", headers=headers)
    with _OPENER.open(request, timeout=_WITHIN_S) as answer:
        return Answer("there", answer.headers.get("Docker-Content-Digest"))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to another host without the login that was meant for the first."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if made is not None and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            made.remove_header("Authorization")
        return made


_OPENER = urllib.request.build_opener(_Redirects)


def _scheme(host: str) -> str:
    """A registry on loopback speaks plain HTTP, as container tools take it too."""
    return "http" if re.fullmatch(r"(localhost|127\.\d+\.\d+\.\d+)(:\d+)?", host) else "https"


def _authorization(error: urllib.error.HTTPError, registry: str) -> str:
    """What the registry's challenge asks for, with the user's own login where there is one. Raises HTTPError."""
    challenge = error.headers.get("WWW-Authenticate", "")
    basic = _login(registry)
    if not challenge.lower().startswith("bearer"):
        if basic is None:
            raise error
        return f"Basic {basic}"
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = {key: fields[key] for key in ("service", "scope") if key in fields}
    realm = fields.get("realm", "")
    if not realm.startswith(("https://", f"http://{registry}")):
        raise ValueError(f"its login is asked for at {realm or 'nowhere'}")
    request = urllib.request.Request(f"{realm}?{urllib.parse.urlencode(query)}")
    if basic is not None:
        request.add_header("Authorization", f"Basic {basic}")
    with _OPENER.open(request, timeout=_WITHIN_S) as answer:
        token: dict[str, Any] = json.loads(answer.read())
    return f"Bearer {token.get('token') or token.get('access_token')}"


def _login(registry: str) -> str | None:
    """The login that `docker login` left for a registry; credential helpers are not asked."""
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    try:
        logins = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auths") or {}
    except (OSError, ValueError, AttributeError):
        return None
    keys = (registry, f"https://{registry}", "https://index.docker.io/v1/" if registry == DOCKER_HUB else registry)
    found = next((logins[key].get("auth") for key in keys if isinstance(logins.get(key), dict)), None)
    try:
        return found if found and base64.b64decode(found) else None
    except ValueError:
        return None
