"""While `pulumi up` waits for servers: says what keeps them, as soon as two readings of the cluster agree on it.

The provider that waits knows pods; what the autoscaler, the device plugin or a quota did is seen here. A daemon thread
reads, so it never holds the program up, and it ends with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from modelstacks.catalog import Catalog
from modelstacks.cluster import access, doctor
from modelstacks.cluster.connection import Manifest
from modelstacks.errors import ClusterError
from modelstacks.plan import Plan

# Nodes that come take longer than this, and until then there is nothing to say.
_FIRST_S = 20.0
_EVERY_S = 10.0
# Later it reads more rarely: a large cluster has much to list, and what is wrong was said early.
_SLOWER = 1.3
_AT_MOST_S = 60.0
_WORTH_SAYING = (
    "pool",
    "nodes",
    "workload",
    "pods",
    "quota",
    "weights",
    "scaling",
    "operators",
    "gpu-software",
    "webhooks",
)


def start(decided: Plan, manifests: list[Manifest], catalog: Catalog, say: Callable[[str], None]) -> None:
    """Begin to watch; `say` is called on the loop that is running now."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        said: set[str] = set()
        before: set[str] = set()
        pause_s = _EVERY_S
        time.sleep(_FIRST_S)
        while True:
            now = _problems(decided, manifests, catalog)
            for text in sorted((now.keys() & before) - said):
                said.add(text)
                try:
                    loop.call_soon_threadsafe(say, now[text])
                except RuntimeError:  # the program has ended
                    return
            before = set(now)
            time.sleep(pause_s)
            pause_s = min(pause_s * _SLOWER, _AT_MOST_S)

    threading.Thread(target=watch, name="modelstacks-watch", daemon=True).start()


def _problems(decided: Plan, manifests: list[Manifest], catalog: Catalog) -> dict[str, str]:
    """What keeps the stack now, by a key that stays the same while it lasts; nothing while the cluster is silent."""
    try:
        cluster = access.connect(decided.spec.kubeconfig, decided.spec.kube_context)
        found = doctor.look(cluster, decided, manifests, catalog)
    # A proxy's page in place of an answer, for instance: this thread only helps, and never speaks of itself.
    except (ClusterError, ValueError, LookupError, TypeError, AttributeError, OSError):
        return {}
    where = f"{decided.spec.kube_context}: " if decided.spec.clusters else ""
    worth = [one for one in found if one.level == "problem" and one.check in _WORTH_SAYING]
    return {
        f"{one.check} {one.object or one.message}": where + one.message + (f"; mend: {one.mend}" if one.mend else "")
        for one in worth
    }
