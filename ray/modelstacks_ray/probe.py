"""What a node says about itself before weights are loaded onto it: shared memory, GPUs, network."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
from typing import Any

from modelstacks_ray.serving_plan import ServingPlan

GIB = 2**30
# A rehearsal without GPUs says here what its nodes have (JSON of the same keys as `look`).
SIMULATED = "MODELSTACKS_SIMULATED_NODE"
_QUERY = "--query-gpu=name,memory.total,memory.free"


def look(paths: tuple[str, ...]) -> dict[str, Any]:
    """Facts of the node that this runs on.

    `shm_gib`; `gpus`: name, total and free GiB of each, None when nvidia-smi is not there; `absent`: those of `paths`
    that do not exist.
    """
    simulated = os.environ.get(SIMULATED)
    if simulated:
        said: dict[str, Any] = json.loads(simulated)
        return {"gpus": None, "absent": [], "shm_gib": None} | said
    return {
        "shm_gib": shutil.disk_usage("/dev/shm").total / GIB,
        "gpus": _gpus(),
        "absent": [path for path in paths if not glob.glob(path)],  # noqa: PTH207
    }


def _gpus() -> list[dict[str, Any]] | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, _QUERY, "--format=csv,noheader,nounits"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = []
    for line in listing.strip().splitlines():
        name, total, free = (part.strip() for part in line.split(","))
        found.append({"name": name, "total_gib": _gib(total), "free_gib": _gib(free)})
    return found


def _gib(mib: str) -> float | None:
    """What the driver says in MiB; None where GPU and host share their memory and it says nothing."""
    try:
        return float(mib) / 1024
    except ValueError:
        return None


def faults(plan: ServingPlan, facts: dict[str, Any]) -> list[str]:
    """What is not as planned, each in words; facts that nobody knows are no faults."""
    found = []
    shm = facts["shm_gib"]
    if shm is not None and shm < 0.95 * plan.shm_gib:
        found.append(f"/dev/shm holds {shm:.1f} GiB, the plan has {plan.shm_gib:.0f}")
    gpus = facts["gpus"]
    if gpus is not None:
        if len(gpus) != plan.gpus_per_node:
            found.append(f"the driver shows {len(gpus)} GPUs, the plan has {plan.gpus_per_node}")
        others = sorted({gpu["name"] for gpu in gpus if plan.product and not _same(gpu["name"], plan.product)})
        if others:
            found.append(f"GPUs are {', '.join(others)}, the plan is for {plan.product}")
        for index, gpu in enumerate(gpus):
            if gpu["free_gib"] is not None and gpu["free_gib"] < plan.free_gib:
                free = f"GPU {index} has {gpu['free_gib']:.1f} of {gpu['total_gib']:.1f} GiB free"
                found.append(f"{free}, the plan needs {plan.free_gib:.1f}: something else runs on it")
                break
    if facts["absent"]:
        found.append(f"the network {plan.fabric} is not there: {', '.join(facts['absent'])} is missing")
    return found


def _same(name: str, product: str) -> bool:
    return name.replace(" ", "-").lower() == product.replace(" ", "-").lower()
