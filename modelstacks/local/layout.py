"""Where the embedded cluster keeps its files: one shared cache of programs, one state folder a project."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

CACHE_DIR_ENV = "MODELSTACKS_CACHE_DIR"
STATE_DIR_ENV = "MODELSTACKS_STATE_DIR"


@dataclass(frozen=True, slots=True)
class Layout:
    """Every path of one project's embedded cluster.

    `cache` holds what can be built again, for all projects of a user; `state` belongs to one project.
    """

    cache: Path
    state: Path

    @classmethod
    def of(cls, root: Path, name: str = "modelstacks") -> Layout:
        """The layout of the project in folder `root`: the folder's path tells projects apart."""
        digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
        cache = os.environ.get(CACHE_DIR_ENV)
        state = os.environ.get(STATE_DIR_ENV)
        return cls(
            cache=Path(cache).absolute() if cache else platformdirs.user_cache_path("modelstacks"),
            state=(Path(state).absolute() if state else platformdirs.user_state_path("modelstacks"))
            / f"{name}-{digest}",
        )

    @property
    def toolchain(self) -> Path:
        """Built programs, their custom resource definitions, and a Go if none was installed."""
        return self.cache / "toolchain"

    @property
    def cluster(self) -> Path:
        """All that `down` removes: the rest of the state folder outlives the cluster."""
        return self.state / "cluster"

    @property
    def cluster_name(self) -> str:
        return self.state.name

    @property
    def kubeconfig(self) -> Path:
        return self.cluster / "kubeconfig"

    @property
    def ports(self) -> Path:
        return self.cluster / "ports.json"

    @property
    def kwok_workdir(self) -> Path:
        return self.cluster / "kwok"

    @property
    def kwok_cluster(self) -> Path:
        """kwokctl's folder of this cluster: kwok.yaml, pki, etcd, pids, logs."""
        return self.kwok_workdir / "clusters" / self.cluster_name

    @property
    def logs(self) -> Path:
        """Logs of the programs that kwokctl does not start; its own are in kwok_cluster/logs."""
        return self.cluster / "logs"

    @property
    def instance_types(self) -> Path:
        return self.cluster / "instance-types.json"

    @property
    def lock(self) -> Path:
        """Held by the one `up` or `down` at work; not in `cluster`, which `down` removes."""
        return self.state / "lock"

    @property
    def pulumi_backend(self) -> Path:
        return self.state / "pulumi"

    @property
    def passphrase(self) -> Path:
        return self.state / "passphrase"

    @property
    def plugins(self) -> Path:
        """A folder for PATH with the Pulumi plugins that this package provides."""
        return self.state / "plugins" / "bin"
