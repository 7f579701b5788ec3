"""The plan as this application reads it: one JSON file, written by the render that wrote the manifests."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from modelstacks_ray.errors import PlanError

SCHEMA = 1


@dataclass(frozen=True)
class ServingPlan:
    """What runs and what it was planned for. Memory in GiB, times in seconds.

    `replicas` are those of this Ray cluster. `free_gib` is what the engine claims of every GPU, `shm_gib` what
    /dev/shm must hold, `paths` what a node's network shows in the file system (each entry may be a glob).
    `nodes_within_s` is how long missing nodes are waited for; None: for as long as it takes.
    """

    schema: int
    name: str
    model: str
    source: str
    gpu: str
    accelerator_type: str | None
    product: str | None
    ray_version: str
    engine_version: str
    tensor_parallel: int
    pipeline_parallel: int
    replicas: int
    nodes_per_replica: int
    gpus_per_node: int
    max_num_seqs: int
    engine_kwargs: dict[str, Any]
    free_gib: float
    shm_gib: float
    fabric: str | None
    paths: tuple[str, ...]
    nodes_within_s: float | None
    settle_s: float
    drain_s: float

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def nodes(self) -> int:
        """Nodes of all replicas here."""
        return self.nodes_per_replica * self.replicas

    @property
    def wanted(self) -> str:
        """GPUs of one node in words: 8 H100."""
        return f"{self.gpus_per_node} {self.accelerator_type or self.gpu}"


def parse(text: str, where: str) -> ServingPlan:
    """The plan in `text`. Raises PlanError that names `where` and every field that is wrong."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise PlanError(f"{where} holds no JSON ({error}): render the stack again") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        have = data.get("schema") if isinstance(data, dict) else None
        raise PlanError(f"{where} is a plan of schema {have}, this application reads {SCHEMA}: render the stack again")
    names = {field.name for field in fields(ServingPlan)}
    missing, unknown = sorted(names - data.keys()), sorted(data.keys() - names)
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"does not know {', '.join(unknown)}"] * bool(
            unknown
        )
        raise PlanError(f"{where} {' and '.join(wrong)}: render the stack again")
    plan = ServingPlan(**(data | {"paths": tuple(data["paths"])}))
    if plan.gpus != plan.nodes_per_replica * plan.gpus_per_node:
        have = f"{plan.nodes_per_replica} nodes of {plan.gpus_per_node} GPUs"
        split = f"tensor parallel {plan.tensor_parallel} × pipeline parallel {plan.pipeline_parallel}"
        raise PlanError(f"{where}: {split} do not fill {have}: render the stack again")
    if plan.gpus_per_node % plan.tensor_parallel:
        text = f"tensor parallel {plan.tensor_parallel} does not divide the {plan.gpus_per_node} GPUs of a node"
        raise PlanError(f"{where}: {text}, so a group would cross nodes: render the stack again")
    return plan
