"""Every image that a stack runs: where it comes from, where a mirror has it, and whether it is pinned by digest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DOCKER_HUB = "docker.io"


def registry_of(image: str) -> str:
    """The registry that an image reference names; Docker Hub where it names none."""
    head, slash, _ = image.partition("/")
    return head if slash and ("." in head or ":" in head or head == "localhost") else DOCKER_HUB


def mirrored(image: str, registry: str | None) -> str:
    """The same image in a mirror: its path and tag behind the mirror's name; as it is without one."""
    if registry is None or image.startswith(f"{registry}/"):
        return image
    origin = registry_of(image)
    path = image.removeprefix(f"{origin}/")
    if origin == DOCKER_HUB and "/" not in path.partition(":")[0]:
        path = f"library/{path}"
    return f"{registry}/{path}"


def used_by(manifests: list[dict[str, Any]]) -> list[str]:
    """Every image that the manifests name, each once, in the order of their objects; image volumes among them."""
    return list(dict.fromkeys(_images(manifests)))


def _images(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _images(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "image" and isinstance(inner, str):
                yield inner
            elif key == "image" and isinstance(inner, dict) and isinstance(inner.get("reference"), str):
                yield inner["reference"]
            else:
                yield from _images(inner)
