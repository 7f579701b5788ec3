"""What the serve config names: waits for the files that belong to it, then builds the application from them.

Nothing else of this package is imported before, so that an update of the files is seen whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def build(args: dict[str, Any]) -> Application:
    """The Serve application of the plan at `args["plan"]`, once plan and code have the digest `args["digest"]`.

    Raises PlanError when they never do, or when the cluster is not what the plan was made for.
    """
    from modelstacks_ray import serving_plan

    path = Path(args["plan"])
    wanted = args.get("digest")
    if wanted is not None:
        serving_plan.await_digest(path, wanted)
    from modelstacks_ray import application

    return application.build(application.read(path))
