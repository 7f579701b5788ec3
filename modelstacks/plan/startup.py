"""Where a server's weights come from, and how long it takes from there: bytes over the speed of that place."""

from __future__ import annotations

import math

from modelstacks.catalog import Catalog, CloudKind
from modelstacks.catalog.versions import TierForm, WeightsSpeed
from modelstacks.plan.check import Checked
from modelstacks.plan.values import Timeouts
from modelstacks.plan.weights import WeightsPlan


def timeouts(
    catalog: Catalog, checked: Checked, weights: WeightsPlan, kind: CloudKind | None, form: TierForm
) -> Timeouts:
    """Seconds that each step takes at pessimistic speeds, and the budgets that follow."""
    loading = catalog.versions.loading
    choice = checked.choice
    stored = choice.checkpoint
    gib = stored.size_gib if stored is not None else checked.weights.total_gib

    def seconds(place: WeightsSpeed) -> int:
        return math.ceil(gib / loading.gib_per_s[place])

    fetched_s = 0 if weights.fetched_from is None else seconds(weights.fetched_from)
    load_s = seconds(weights.read_from) + choice.figures.init_s
    # A server that fetches does so under its start-up probe; a Job, an init container or the kubelet do it before.
    in_server = weights.fetched_by == "server"
    startup_s = _tens(loading.safety_factor * (load_s + (fetched_s if in_server else 0)))
    # What is fetched ahead is read once more for its checksums.
    checked_s = seconds(weights.read_from) if weights.fetched_by in ("job", "init") else 0
    before_s = 0 if in_server else _tens(loading.safety_factor * (fetched_s + checked_s))
    if weights.fetched_by == "job":
        # Its node, its volume and the engine's image come first.
        before_s += loading.node_ready_s
    node_s = kind.node_ready_s or loading.node_ready_s if kind is not None else loading.node_ready_s
    ready_s = startup_s + node_s + (before_s if weights.in_pod else 0)
    if form.meets_in_server:
        # The first of a group has nothing left to fetch, perhaps, while another one's node is still to come.
        startup_s = ready_s
    cold_s = load_s + (fetched_s if in_server or weights.in_pod else 0)
    return Timeouts(
        download_s=fetched_s,
        load_s=load_s,
        startup_s=startup_s,
        ready_s=ready_s,
        before_s=before_s,
        again_s=load_s + (fetched_s if weights.again else 0),
        cold_start_s=cold_s + (node_s if kind is not None and kind.makes_nodes else 0),
    )


def _tens(seconds: float) -> int:
    return math.ceil(seconds / 10) * 10
