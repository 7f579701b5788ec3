"""What Secrets of a stack hold, as the cluster keeps them."""

from __future__ import annotations

import base64

from modelstacks.cluster.connection import Cluster, Kind, Manifest
from modelstacks.plan import Plan
from modelstacks.render.values import api_key_secret


def decoded(text: str) -> str:
    """A value of a Secret's data; the replacement character for what is no text."""
    try:
        return base64.b64decode(text).decode()
    except ValueError:
        return "\ufffd"


def key_in(secret: Manifest | None) -> str | None:
    """The API's key that a Secret holds; None where there is none in it."""
    held = ((secret or {}).get("data") or {}).get("key")
    return decoded(held) if held else None


def unsendable(key: str) -> str | None:
    """Why no client can show a key; None for one that can be shown."""
    if key.isprintable() and key == key.strip():
        return None
    return "has blanks or a line break, which HTTP does not carry"


def api_key(cluster: Cluster, plan: Plan) -> str | None:
    """The key of a stack's API; None where it asks for none, or where its Secret is not there yet."""
    name = api_key_secret(plan)
    return None if name is None else key_in(cluster.get(Kind("v1", "Secret"), plan.namespace, name))
