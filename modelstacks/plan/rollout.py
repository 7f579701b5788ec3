"""How running pods are changed: decided by the GPUs that the stack may hold beside those that serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelstacks.plan.values import Plan, Refusal

Way = Literal["surge", "in-place", "recreate", "new-cluster"]
_WORDS: dict[Way, str] = {
    "surge": "the next is ready before an old one goes",
    "in-place": "one goes before the next comes",
    "recreate": "the old one goes before the new one comes",
    "new-cluster": "the next is ready before an old one goes",
}


@dataclass(frozen=True, slots=True)
class Rollout:
    """What a change of the servers' pods does. GPUs are of one cluster, times in seconds.

    `surge` and `new-cluster` (Ray) bring a new replica first and take `needed_gpus` for it, of `spare_gpus` that may be
    had; `in-place` takes one replica away first, `recreate` all of them. `pods` restart in `steps`, one after the
    other; `duration_s` is expected in all, `out_s` of it without any replica.
    """

    way: Way
    spare_gpus: int
    needed_gpus: int
    pods: int
    steps: int
    duration_s: int
    out_s: int
    reason: str

    @property
    def comes_first(self) -> bool:
        """The next replica is ready before an old one goes."""
        return self.way in ("surge", "new-cluster")

    @property
    def words(self) -> str:
        """As `pulumi preview` and plan.md say it: restarts 2 pods, needs 0 spare GPUs, about 9 minutes."""
        if not self.pods:
            return "restarts no pod: none runs"
        spare = self.needed_gpus if self.comes_first else 0
        text = f"restarts {self.pods} pod{'s' * (self.pods != 1)}, needs {spare} spare GPU{'s' * (spare != 1)}, "
        text += f"about {minutes(self.duration_s)}; {_WORDS[self.way]}"
        if self.way == "recreate" and self.steps == 1 and self.pods > 1:
            text = text.replace(_WORDS["recreate"], "all go before the new ones come")
        return text + (f", nothing serves for {minutes(self.out_s)}" if self.out_s else "")


def minutes(seconds: int) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds} seconds"
    return f"{round(seconds / 60)} minutes"


def rollout(plan: Plan, running: int | None = None) -> Rollout:
    """The way that never asks for GPUs which the stack may not hold, or the one that the stack names.

    `running` replicas are what is there to restart; the plan's own number where that is not known.
    """
    several = plan.nodes_per_replica > 1
    # Where one apply may change every replica at once, there must be room for a second of each, or for none.
    at_once = max(1, plan.spec.replicas_at_most) if plan.tier_form.changed_together else 1
    needed = plan.choice.topology.gpus * at_once
    spare, whence = _spare(plan)
    asked = plan.spec.rollout
    first: Way = "new-cluster" if plan.tier_form.form == "ray" else "surge"
    what = "a second of every replica" if at_once > 1 else "a second replica"
    have = f"{whence}, {what} takes {needed}"
    on_one_node = plan.spec.weights.on_one_node
    if asked is not None:
        way, reason = (first if asked == "surge" else asked), "the stack says so"
    elif on_one_node:
        way, reason = "in-place", "the volume of the weights is on one node, where a second replica may find no GPU"
    elif spare >= needed and plan.spec.replicas:
        way, reason = first, have
    else:
        way = "in-place"
        reason = f"{have}: modelstacks:cloud.limitGpus: {_limit(plan, needed)} would let the next come first"
    if way == "in-place" and not several and plan.spec.replicas_at_most == 1:
        # Of one replica nothing serves meanwhile anyway; made anew, the new pod waits until the old one's GPUs are
        # free.
        way = "recreate"
        if asked is not None:
            reason = "of one replica nothing serves meanwhile, whichever goes first"
    return _timed(plan, way, spare, needed, reason, plan.spec.replicas if running is None else running)


def refusals(plan: Plan) -> list[Refusal]:
    """A way that the stack names and that could only hang: the next replica would wait for GPUs that never come."""
    change = rollout(plan)
    if not change.comes_first or plan.spec.rollout != "surge" or not plan.spec.replicas_at_most:
        return []
    if change.spare_gpus < change.needed_gpus:
        whence, limit = _spare(plan)[1], _limit(plan, change.needed_gpus)
        text = f"a roll-out by surge would wait for ever: {whence}, a second replica takes {change.needed_gpus}; "
        text += f"modelstacks:cloud.limitGpus: {limit}, or modelstacks:rollout: in-place"
        return [Refusal("rollout-would-hang", text, change.needed_gpus, change.spare_gpus, "spare GPUs")]
    if plan.spec.weights.on_one_node:
        room = plan.gpus_of_node - plan.choice.topology.gpus * plan.spec.replicas_at_most
        if room < change.needed_gpus:
            text = "a roll-out by surge would wait for ever: the weights' volume is ReadWriteOnce, and its node has "
            text += f"{max(0, room)} GPUs left; modelstacks:rollout: in-place, or a ReadWriteMany volume"
            return [
                Refusal("rollout-would-hang", text, change.needed_gpus, max(0, room), "spare GPUs on the volume's node")
            ]
    return []


def _timed(plan: Plan, way: Way, spare: int, needed: int, reason: str, replicas: int) -> Rollout:
    together = way == "recreate" or (plan.tier_form.changed_together and way == "new-cluster")
    steps = min(replicas, 1) if together else replicas
    leave_s = plan.leaving.pre_stop_s
    if plan.nodes_per_replica > 1:
        # A group sleeps through its whole time to leave.
        leave_s += plan.leaving.drain_s
    step_s = plan.timeouts.again_s + leave_s
    comes_first = way in ("surge", "new-cluster")
    return Rollout(
        way=way,
        spare_gpus=spare,
        needed_gpus=needed,
        pods=replicas * plan.nodes_per_replica,
        steps=steps,
        duration_s=steps * step_s,
        out_s=0 if comes_first or (replicas > 1 and steps > 1) else steps * step_s,
        reason=reason,
    )


def _spare(plan: Plan) -> tuple[int, str]:
    """GPUs of one cluster that a second replica could take, and the words for where they would come from."""
    cloud = plan.spec.cloud
    limit = cloud.limit_gpus if cloud is not None and cloud.limit_gpus is not None else 0
    unit = plan.gpus_per_node
    # Whole shares of a node: what is left over holds no pod.
    allowed = max(0, limit - plan.gpus_committed) // unit * unit
    pool = plan.pool
    if pool is None or plan.nodes_per_replica > 1:
        return allowed, f"the stack may hold {allowed} GPUs beside those that serve"
    # Machines are rented whole: what the replicas leave of the last one is paid for anyway.
    used = plan.choice.topology.gpus * plan.spec.replicas_at_most
    per_machine = pool.machine.gpus // unit
    machines = -(-plan.spec.replicas_at_most // per_machine) if per_machine else 0
    # What others may use, or what only imitates a machine, is not counted on.
    alone = pool.owner is None and "pool" not in plan.spec.shared and not (plan.cloud is None or plan.cloud.simulated)
    idle = max(0, machines * per_machine * unit - used) if alone else 0
    # Where only a quota bounds the machines, the spare that is driven away would be bought again beside it.
    warm = pool.spares * per_machine * unit if plan.cloud is not None and plan.cloud.bounded_by == "pool" else 0
    beyond = max(0, limit // pool.machine.gpus - machines - pool.spares) * per_machine * unit
    total = idle + warm + beyond
    parts = [
        f"{count} {what}"
        for count, what in ((idle, "idle on its machines"), (warm, "of warm spares"), (beyond, "more that it may buy"))
        if count
    ]
    return (
        total,
        f"the stack has {' and '.join(parts)}" if parts else "the stack may hold 0 GPUs beside those that serve",
    )


def _limit(plan: Plan, needed: int) -> int:
    """The limit of GPUs that would let `needed` more come: whole machines, or shares of a node."""
    step = plan.pool.machine.gpus if plan.pool is not None else plan.gpus_per_node
    return -(-(plan.gpus_committed + needed) // step) * step
