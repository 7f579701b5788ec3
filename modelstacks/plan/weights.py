"""Where a server's weights are, who brings them there, and what the engine is told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from modelstacks.catalog import Checkpoint
from modelstacks.catalog.versions import WeightsSpeed
from modelstacks.weightspec import WeightsSpec

# Where servers see weights that they only read.
MOUNT = "/weights"


@dataclass(frozen=True, slots=True)
class WeightsPlan:
    """`source` is what the engine is given as its model: a repository, a folder or a bucket.

    `fetched_from` and `fetched_by` say how the bytes come to where servers read them, at the speed of `read_from`;
    `again` that a pod which replaces another fetches them anew. `folder` is their place under MOUNT.
    """

    place: Literal["node", "volume-per-pod", "shared-volume", "claim", "image", "object-store", "node-folder"]
    source: str
    revision: str | None
    read_from: WeightsSpeed
    fetched_from: WeightsSpeed | None = None
    fetched_by: Literal["server", "job", "init", "kubelet"] | None = None
    again: bool = True
    folder: str | None = None

    @property
    def reads_hub(self) -> bool:
        """The server itself asks the hub."""
        return self.fetched_by == "server"

    @property
    def reaches_out(self) -> bool:
        """Something in the server's own pod fetches or streams them."""
        return self.reads_hub or self.place == "object-store" or self.fetched_by == "init"

    @property
    def in_pod(self) -> bool:
        """They are fetched after the pod has its node, before the server starts."""
        return self.fetched_by in ("init", "kubelet")


def weights_plan(spec: WeightsSpec, checkpoint: Checkpoint | None) -> WeightsPlan:
    """The place that a stack names; without one every pod fetches from the hub onto its node's disk."""
    repo = checkpoint.repo or "" if checkpoint is not None else ""
    revision = checkpoint.revision if checkpoint is not None else None
    if spec.uri is not None:
        return WeightsPlan("object-store", spec.uri, None, "object-store")
    if spec.image is not None:
        # The kubelet keeps an image on its node, so a pod that comes back finds it there.
        return _mounted(spec, "image", "node-disk", fetched_from="image", fetched_by="kubelet", again=False)
    folder = _folder(repo, revision)
    if spec.host_path is not None:
        if spec.prefetched:
            return WeightsPlan(
                "node-folder", f"{MOUNT}/{folder}", None, "node-disk", "hub", "init", again=False, folder=folder
            )
        return _mounted(spec, "node-folder", "node-disk")
    if spec.claim is not None or spec.shared:
        place: Literal["claim", "shared-volume"] = "claim" if spec.claim is not None else "shared-volume"
        if spec.prefetched:
            return WeightsPlan(place, f"{MOUNT}/{folder}", None, "volume", "hub", "job", again=False, folder=folder)
        return _mounted(spec, "claim", "volume")
    per_pod = "volume-per-pod" if spec.storage_class is not None else "node"
    return WeightsPlan(per_pod, repo, revision, "node-disk", "hub", "server")  # type: ignore[arg-type]


def _mounted(spec: WeightsSpec, place: str, read_from: WeightsSpeed, **fetched: object) -> WeightsPlan:
    """Weights that somebody else put into a volume."""
    source = f"{MOUNT}/{spec.path}" if spec.path is not None else MOUNT
    return WeightsPlan(place, source, None, read_from, folder=spec.path, **fetched)  # type: ignore[arg-type]


def _folder(repo: str, revision: str | None) -> str:
    """One folder for a repository at a revision: another revision never overwrites what servers read."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", repo)
    return f"{name}/{revision or 'main'}"
