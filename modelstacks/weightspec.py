"""The part of a stack file that says where servers find the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from modelstacks.errors import Problem
from modelstacks.fields import IMAGE, PATH_PART, Flag, ObjectName, Section, Word, key_path


def _inner_path(value: str) -> str:
    if not _are_folders(value):
        raise ValueError("must be a folder inside the volume, such as models/llama, without a leading / and ..")
    return value


def _host_path(value: str) -> str:
    # A pod that fills the folder writes as root: the node's own root is never meant.
    if not value.startswith("/") or not _are_folders(value.removeprefix("/").removesuffix("/")):
        raise ValueError("must be a folder from the root on, such as /mnt/models, without ..")
    return value


def _are_folders(value: str) -> bool:
    return all(re.fullmatch(PATH_PART, part) and part not in (".", "..") for part in value.split("/"))


class WeightsSpec(Section):
    """Where servers find the weights. At most one place; none: every pod fetches them from the hub onto its node.

    `prefetch` fills a claim or a folder of the node from the hub first; what is filled by others has its model at
    `path`.
    """

    claim: ObjectName | None = None
    storage_class: ObjectName | None = None
    # One volume of the storage class for all pods, filled once, instead of one a pod.
    shared: Flag = False
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] | None = None
    image: Annotated[Word, Field(pattern=IMAGE)] | None = None
    # Kubernetes puts variables where an argument says $(NAME), and some of them are secrets.
    uri: Annotated[Word, Field(pattern=rf"^(s3|gs)://[A-Za-z0-9._-]+(/{PATH_PART})*/?$")] | None = None
    host_path: Annotated[Word, AfterValidator(_host_path)] | None = None
    path: Annotated[Word, AfterValidator(_inner_path)] | None = None
    prefetch: Flag | None = None
    credentials_secret: ObjectName | None = None

    @property
    def from_elsewhere(self) -> bool:
        """The servers themselves fetch nothing from the hub."""
        return self.shared or any((self.claim, self.image, self.uri, self.host_path))

    @property
    def prefetched(self) -> bool:
        """Something of this stack fetches them from the hub before a server looks for them."""
        if self.shared or self.claim is not None:
            return self.path is None and self.prefetch is not False
        return bool(self.host_path is not None and self.prefetch)

    @property
    def on_one_node(self) -> bool:
        """All pods must share the one node that can mount the volume."""
        return self.access_mode == "ReadWriteOnce"


def problems(weights: WeightsSpec, lora_modules: Mapping[str, str]) -> list[Problem]:
    """Places that exclude one another, and settings of one place beside another."""
    places = {
        "claim": weights.claim, "storageClass": weights.storage_class, "image": weights.image, "uri": weights.uri,
        "hostPath": weights.host_path,
    }  # fmt: skip
    named = [name for name, value in places.items() if value is not None]
    if len(named) > 1:
        text = f"names {' and '.join(named)}: the weights are in one place"
        return [Problem(key_path("weights"), text, None, "one of them")]
    of: dict[str, tuple[object, tuple[str, ...], str]] = {
        "shared": (weights.shared or None, ("storageClass",), "a storageClass to make the volume of"),
        "accessMode": (weights.access_mode, ("claim", "storageClass"), "a claim or a shared volume"),
        "path": (weights.path, ("claim", "image", "hostPath"), "a claim, an image or a hostPath"),
        "prefetch": (weights.prefetch, ("claim", "hostPath", "storageClass"), "a claim, a shared volume or a hostPath"),
        "credentialsSecret": (weights.credentials_secret, ("uri",), "a uri"),
    }
    found = [
        Problem(key_path(f"weights.{key}"), f"goes with {what}", value)
        for key, (value, with_, what) in of.items()
        if value is not None and not set(named) & set(with_)
    ]
    beside = (weights.access_mode, weights.prefetch)
    if weights.storage_class is not None and not weights.shared and any(value is not None for value in beside):
        found.append(Problem(key_path("weights.shared"), "is not set: every pod has a volume of its own", None))
    if weights.shared and weights.prefetch is False:
        found.append(Problem(key_path("weights.prefetch"), "is false, and nothing else fills a new volume"))
    if weights.path is not None and weights.prefetch:
        text = "is what others put there, and prefetch would fetch the model too"
        found.append(Problem(key_path("weights.path"), text, weights.path, "one of the two"))
    if weights.claim is not None and weights.prefetch is False and weights.path is None:
        text = "is missing: without prefetch the folder of the model in the claim must be named"
        found.append(Problem(key_path("weights.path"), text))
    fetched = sorted(source for source in lora_modules.values() if not source.startswith("/"))
    if weights.from_elsewhere and fetched:
        text = f"{fetched[0]} comes from the hub, and servers with weights of their own do not reach it"
        found.append(Problem(key_path("loraModules"), text, fetched[0], "a path, such as /weights/adapters/one"))
    return found
