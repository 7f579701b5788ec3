"""The stack's node pool: whether its objects are healthy, whether it may still grow, and why its nodes do not come."""

from __future__ import annotations

from modelstacks.catalog import Catalog
from modelstacks.cluster import drift
from modelstacks.cluster.connection import Manifest
from modelstacks.cluster.findings import Finding, note, problem, quantity, warning
from modelstacks.cluster.nodes import GPU
from modelstacks.cluster.pods import events_of, source
from modelstacks.cluster.snapshot import Snapshot, condition, labels_of
from modelstacks.plan import Plan
from modelstacks.render import is_pool

# Conditions of pool objects that are as they should be when False.
_GOOD_WHEN_FALSE = ("Disrupted", "Drifted", "Deleting", "Empty", "Paused", "ScalingDown", "ScalingUp", "Remediating")
# What tells that the cloud has none to give, in Karpenter's own words.
_NO_CAPACITY = "InsufficientCapacityError"


def examine(snapshot: Snapshot, plan: Plan, manifests: list[Manifest]) -> list[Finding]:
    """Pool objects, the claims that Karpenter made of them, and the nodes that came of those."""
    if plan.pool is None or plan.cloud is None:
        return []
    found = _objects(snapshot, plan, manifests)
    nodes = [n for n in snapshot.of("nodes") if labels_of(n).get(plan.cloud.pool_label) == plan.pool.name]
    found += _nodes(nodes, plan)
    if plan.cloud.node_class is not None:
        found += _karpenter(snapshot, plan)
        found += _room(snapshot, plan, nodes)
    return found


def _objects(snapshot: Snapshot, plan: Plan, manifests: list[Manifest]) -> list[Finding]:
    """Conditions that say a pool object does not work, and a live limit that is not the plan's."""
    found = []
    for manifest in manifests:
        live = snapshot.own.get((manifest["kind"], manifest["metadata"]["name"]))
        if not is_pool(manifest) or live is None:
            continue
        label = f"{manifest['kind']} {manifest['metadata']['name']}"
        look = f"kubectl describe {manifest['kind'].lower()} {manifest['metadata']['name']}"
        for entry in (live.get("status") or {}).get("conditions") or []:
            if entry.get("status") == "False" and entry.get("type") not in _GOOD_WHEN_FALSE:
                why = entry.get("message") or entry.get("reason") or "no reason given"
                found.append(problem("pool", f"{label}: {entry['type']} is false: {why}", look, label))
        for key in ("limits", "targetNodes", "maxNodes"):
            ours, theirs = manifest["spec"].get(key), (live.get("spec") or {}).get(key)
            if ours is not None and theirs is not None and _plain(ours) != _plain(theirs):
                text = f"{label} has {key} {_words(theirs)} in the cluster and {_words(ours)} in the plan"
                found.append(warning("pool", text, drift.refresh(plan), label))
        if live["metadata"].get("deletionTimestamp"):
            found.append(problem("pool", f"{label} is being deleted", f"wait for it, or see {look}", label))
    return found


def _words(value: object) -> str:
    """A limit as people read it."""
    return ", ".join(f"{amount} {name}" for name, amount in value.items()) if isinstance(value, dict) else str(value)


def _plain(value: object) -> object:
    return {key: quantity(amount) for key, amount in value.items()} if isinstance(value, dict) else value


def _nodes(nodes: list[Manifest], plan: Plan) -> list[Finding]:
    """Nodes of the pool that are not what was paid for."""
    if plan.pool is None:
        return []
    found = []
    wanted = plan.pool.machine.gpus
    for node in nodes:
        name, status = node["metadata"]["name"], node.get("status") or {}
        ready = condition(node, "Ready")
        if ready.get("status") != "True":
            why = ready.get("message") or ready.get("reason") or "its kubelet says nothing"
            text = f"node {name} is not ready: {why}"
            found.append(
                problem("pool", text, f"kubectl describe node {name}; a new one comes when it is deleted", name)
            )
        if (node.get("spec") or {}).get("unschedulable"):
            found.append(warning("pool", f"node {name} is cordoned", f"kubectl uncordon {name}", name))
        have = quantity((status.get("allocatable") or {}).get(GPU, 0))
        if have < wanted and plan.spec.cloud is not None and plan.spec.cloud.gpu_allocation != "dra":
            what = f"offers {have:g} of {wanted} GPUs" if have else f"offers none of its {wanted} GPUs"
            why = "a GPU is unhealthy" if have else "its device plugin does not run"
            mend = f"kubectl get pods -A -o wide --field-selector spec.nodeName={name}   # {_plugin_hint(plan)}"
            found.append(problem("pool", f"node {name} {what}: {why}", mend, name))
    return found


def _plugin_hint(plan: Plan) -> str:
    if plan.cloud is None:
        return "the device plugin"
    brought = [s for s in plan.cloud.software if "plugin" in s.name]
    if brought and brought[0].operator is not None:
        return f"operators: [{brought[0].operator}] installs it"
    return "the cloud brings the device plugin itself"


def _karpenter(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    """Claims that are not nodes yet, and those that were given up."""
    if plan.pool is None:
        return []
    pools = set(pool_names(plan))
    found = []
    for claim in snapshot.of("nodeclaims"):
        name = claim["metadata"]["name"]
        if labels_of(claim).get("karpenter.sh/nodepool") not in pools or claim["metadata"].get("deletionTimestamp"):
            continue
        for stage in ("Launched", "Registered", "Initialized"):
            entry = condition(claim, stage)
            if entry.get("status") == "True":
                continue
            reason = entry.get("reason") or "not yet"
            text = f"NodeClaim {name} is not {stage.lower()}: {reason} {entry.get('message') or ''}".rstrip()
            found.append(_stuck(reason, text, name, plan))
            break
    missing: dict[str, int] = {}
    for event in snapshot.of("cluster_events"):
        about = event.get("involvedObject") or {}
        of_ours = any(str(about.get("name", "")).startswith(f"{pool}-") for pool in pools)
        if about.get("kind") == "NodeClaim" and of_ours and event.get("reason") == _NO_CAPACITY:
            message = str(event.get("message", "")).partition(" event: ")[2] or str(event.get("message"))
            missing[message] = missing.get(message, 0) + int(event.get("count") or 1)
    for message, count in missing.items():
        machine = plan.pool.machine.name
        text = f"the cloud has no {machine} to give ({count} tries): {message}"
        mend = "name more zones or another way in modelstacks:cloud.capacity, or wait: Karpenter tries again by itself"
        found.append(problem("pool", text, mend))
    return found


def _stuck(reason: str, text: str, claim: str, plan: Plan) -> Finding:
    look = f"kubectl describe nodeclaim {claim}"
    if reason == "ResourceNotRegistered":
        return problem("pool", f"{text}: its device plugin does not run", f"{look}   # {_plugin_hint(plan)}", claim)
    if reason == "StartupTaintsExist":
        mend = "run what takes the taint off, or drop it from modelstacks:cloud.startupTaints"
        return problem("pool", f"{text}: nobody takes it off", mend, claim)
    return note("pool", text, look, claim)


def pool_names(plan: Plan) -> list[str]:
    """The pool objects of a plan, the preferred one first."""
    if plan.pool is None:
        return []
    return [plan.pool.name if n == 0 else f"{plan.pool.name}-{n + 1}" for n in range(len(plan.pool.steps))]


def _room(snapshot: Snapshot, plan: Plan, nodes: list[Manifest]) -> list[Finding]:
    """Pools at their limit while pods of the stack wait for GPUs."""
    if plan.pool is None:
        return []
    waiting = [
        pod
        for pod in snapshot.here("pods")
        if condition(pod, "PodScheduled").get("status") == "False"
        and not _is_nominated(snapshot, pod)
        and (pod.get("spec") or {}).get("nodeSelector", {}).get(plan.cloud.pool_label if plan.cloud else "") is not None
    ]
    if not waiting:
        return []
    found = []
    for name in pool_names(plan):
        live = next((p for p in snapshot.of("nodepools") if p["metadata"]["name"] == name), None)
        if live is None:
            if snapshot.can_read("nodepools"):
                text = f"NodePool {name} does not exist, so no node is made for {len(waiting)} waiting pods"
                found.append(problem("pool", text, drift.refresh(plan), name))
            continue
        for resource, most in ((live.get("spec") or {}).get("limits") or {}).items():
            now = quantity(((live.get("status") or {}).get("resources") or {}).get(resource, 0))
            step = plan.pool.machine.gpus if resource == GPU else 0
            if now + step > quantity(most) and now >= quantity(most) - step:
                text = f"NodePool {name} is at its limit: {now:g} of {quantity(most):g} {resource}, while "
                text += "1 pod waits" if len(waiting) == 1 else f"{len(waiting)} pods wait"
                mend = f"raise modelstacks:cloud.limitGpus above {quantity(most):g}, or ask for fewer replicas"
                if resource == GPU and quantity(most) < plan.pool.gpus_at_most:
                    text += f"; the plan's limit is {plan.pool.gpus_at_most}"
                    mend = drift.refresh(plan)
                others = _foreign(snapshot, plan, nodes)
                if others:
                    text += f"; {', '.join(f'{space}/{pod}' for space, pod in others[:3])} hold GPUs of it"
                    mend = f"kubectl -n {others[0][0]} delete pod {others[0][1]}, or {mend}"
                found.append(problem("pool", text, mend, name))
    return found


def _is_nominated(snapshot: Snapshot, pod: Manifest) -> bool:
    """Karpenter has a node on its way for the pod."""
    events = events_of(snapshot, "Pod", pod["metadata"]["name"], pod["metadata"].get("uid"))
    newest = next((e for e in events if source(e) == "karpenter"), {})
    return str(newest.get("message", "")).startswith("Pod should schedule on")


def _foreign(snapshot: Snapshot, plan: Plan, nodes: list[Manifest]) -> list[tuple[str, str]]:
    """Namespace and name of pods of others that hold GPUs on the pool's nodes."""
    names = {node["metadata"]["name"] for node in nodes}
    return [
        (pod["metadata"]["namespace"], pod["metadata"]["name"])
        for pod in snapshot.of("pods")
        if (pod.get("spec") or {}).get("nodeName") in names
        and labels_of(pod).get("app.kubernetes.io/instance") != plan.name
        and any(GPU in ((c.get("resources") or {}).get("limits") or {}) for c in pod["spec"].get("containers", []))
    ]


def unserved(snapshot: Snapshot, plan: Plan, manifests: list[Manifest], catalog: Catalog) -> list[Finding]:
    """Kinds of the stack's objects that the cluster does not serve, with the command that brings them."""
    found = []
    mends = {(api.kind, api.api_version): api.mend for kind in catalog.clouds.values() for api in kind.serves}
    if plan.cloud is not None:
        mends |= {(api.kind, api.api_version): api.mend for api in plan.cloud.serves}
    for manifest in manifests:
        group = manifest["apiVersion"].partition("/")[0]
        if (manifest["apiVersion"], manifest["kind"]) not in snapshot.missing_kinds:
            continue
        served = snapshot.versions.get(group, ())
        mend = mends.get((manifest["kind"], manifest["apiVersion"])) or _operator_mend(group, catalog)
        text = f"the cluster does not serve {manifest['kind']} of {manifest['apiVersion']}"
        others = [one for one in served if f"{group}/{one}" != manifest["apiVersion"]]
        if others:
            text += f"; it serves {', '.join(f'{group}/{one}' for one in others)}"
        elif served:
            text += f", though it serves other kinds of {group}"
        found.append(problem("apis", text, mend))
    return list(dict.fromkeys(found))


def _operator_mend(group: str, catalog: Catalog) -> str | None:
    for operator in catalog.operators.values():
        if any(crd.endswith(f".{group}") for crd in operator.crds):
            return f"modelstacks:operators: [{operator.id}], or {operator.install_command}"
    return None
