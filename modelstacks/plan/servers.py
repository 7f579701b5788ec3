"""What a stack asks of its servers that the decided plan has no use for, cannot keep, or makes slow."""

from __future__ import annotations

import re

from modelstacks.errors import BadInput, Problem
from modelstacks.fields import key_path
from modelstacks.plan.leaving import GRACE_AT_MOST_S
from modelstacks.plan.values import Plan, Refusal

# From here on it is worth a volume.
_LONG_DOWNLOAD_S = 1800


def check_keys(plan: Plan) -> None:
    """Raise BadInput for settings of servers that the decided tier or engine has no use for."""
    form, spec = plan.choice.form, plan.spec
    own = re.compile(rf"{re.escape(plan.name)}-api-key-[0-9]+")
    secrets = {"hubTokenSecret": spec.hub_token_secret, "imagePullSecret": spec.image_pull_secret}
    for key, name in secrets.items():
        if spec.api_key and spec.api_key_secret is None and name is not None and own.fullmatch(name):
            problem = Problem(
                key_path(key), f"{name} is the Secret with this stack's own API key", name, "another name"
            )
            raise BadInput([problem], source=plan.stack or plan.choice.model.id, next_step="correct the name")
    if plan.spec.rollout == "recreate" and plan.nodes_per_replica > 1:
        text = "is for replicas on one node: over several nodes they are changed one by one, or beside one another"
        problem = Problem(key_path("rollout"), text, "recreate", "in-place, surge")
        raise BadInput([problem], source=plan.stack or plan.choice.model.id, next_step="leave it out")
    if plan.spec.read_only_root and form is not None and not form.read_only_root:
        text = f"is not for {plan.choice.engine} in the {plan.choice.tier} tier: {form.writes_root_reason}"
        problem = Problem(key_path("readOnlyRoot"), text, True, "false")
        raise BadInput([problem], source=plan.stack or plan.choice.model.id, next_step="leave it out")


def weights_refusals(plan: Plan) -> list[Refusal]:
    """Places of weights that the engine cannot read, or that do not reach every pod."""
    spec, topology = plan.spec, plan.choice.topology
    found = []
    form = plan.choice.form
    if plan.weights.place == "object-store" and form is not None and not form.streams_weights:
        text = f"{plan.choice.engine} in the {plan.choice.tier} tier cannot stream weights from {spec.weights.uri}; "
        text += "a shared volume or a claim can hold them"
        found.append(Refusal("engine-unsupported", text, 1, 0, "engines that stream weights"))
    if spec.weights.on_one_node:
        node = plan.gpus_of_node
        need = topology.gpus * spec.replicas_at_most
        if need > node:
            text = f"a ReadWriteOnce volume is on one node of {node} GPUs, the replicas take {need}; "
            text += "modelstacks:weights.accessMode: ReadWriteMany reaches every node"
            found.append(Refusal("volume-on-one-node", text, need, node, "GPUs of a node"))
    return found


def warnings(plan: Plan) -> list[str]:
    """What a reviewer must know of how servers start and leave."""
    found = []
    if plan.leaving.grace_s > GRACE_AT_MOST_S:
        text = (
            f"drainSeconds asks for a grace of {plan.leaving.grace_s} s: node drains by the Cluster Autoscaler and by "
        )
        text += f"clouds wait {GRACE_AT_MOST_S} s"
        if plan.nodes_per_replica > 1:
            text += ", and over several nodes every pod that leaves takes all of it, busy or not"
        found.append(text)
    shared, zones = plan.spec.weights, plan.spec.cloud.zones if plan.spec.cloud is not None else ()
    if shared.on_one_node and plan.weights.fetched_by == "job" and len(zones) != 1:
        found.append("a ReadWriteOnce volume lies in the zone of the Job that fills it: name one in cloud.zones")
    scale = plan.spec.autoscale
    if scale is not None and scale.activation_query is not None and "vector(" not in scale.activation_query:
        text = "autoscale.activationQuery must answer 0, not nothing, when nothing waits: a query without an answer is "
        found.append(text + "an error, and keeps the last server; `… or vector(0)` at its end sees to that")
    if plan.weights.reads_hub and plan.timeouts.download_s > _LONG_DOWNLOAD_S:
        minutes = round(plan.timeouts.download_s / 60)
        text = f"every pod that comes fetches {plan.weights_gib:,.0f} GiB from the hub, {minutes} minutes: "
        found.append(text + "modelstacks:weights: {storageClass: NAME, shared: true} fetches them once")
    return found
