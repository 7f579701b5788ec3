"""What the serve config names: waits for the files that belong to it, then builds the application from them.

Nothing else of this package is imported before they are complete, so that an update of the files is seen whole.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

_WITHIN_S = 240.0


def build(args: dict[str, Any]) -> Application:
    """The Serve application of the plan at `args["plan"]`, once plan and code have the digest `args["digest"]`.

    Raises PlanError when they never do, or when the cluster is not what the plan was made for.
    """
    path = Path(args["plan"])
    wanted = args.get("digest")
    stale = await_digest(path, wanted) if wanted is not None else None
    package = __name__.rpartition(".")[0]
    for name in [name for name in sys.modules if name.startswith(f"{package}.") and name != __name__]:
        del sys.modules[name]
    from modelstacks_ray import application
    from modelstacks_ray.errors import PlanError

    if stale is not None:
        text = f"{path} and the application beside it are {stale}, the serve config was rendered with {wanted}"
        raise PlanError(f"{text}: apply the ConfigMaps and the RayService of one render together")
    return application.build(application.read(path))


def digest(files: Iterable[tuple[str, bytes]]) -> str:
    """One word for the content of named files, whatever their order."""
    total = hashlib.sha256()
    for name, content in sorted(files):
        total.update(f"{name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()[:12]


def digest_of(plan_file: Path) -> str:
    """The digest of the plan file and of this package as they are on disk now."""
    code = sorted(Path(__file__).parent.glob("*.py"))
    return digest((path.name, path.read_bytes()) for path in [plan_file, *code])


def await_digest(
    plan_file: Path,
    wanted: str,
    within_s: float = _WITHIN_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Wait until plan and code are those that the serve config was rendered with; what they are instead when they stay.

    A mounted ConfigMap follows its object within a minute or two; the serve config arrives at once.
    """
    deadline = clock() + within_s
    while True:
        try:
            have = digest_of(plan_file)
        except OSError as error:
            have = f"unreadable ({error.strerror})"
        if have == wanted:
            return None
        if clock() > deadline:
            return have
        sleep(2)
