"""What would refuse the stack's objects or pods: quotas, limit ranges, and webhooks that nobody answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from modelstacks.cluster.connection import Manifest, group_of
from modelstacks.cluster.findings import Finding, problem, quantity, shown
from modelstacks.cluster.nodes import Need
from modelstacks.cluster.pods import is_own
from modelstacks.cluster.snapshot import Snapshot, labels_of
from modelstacks.plan import Plan

# Kinds that quotas count by their plain plural, and by count/ with it.
_PLURALS = {
    "Service": "services", "Secret": "secrets", "ConfigMap": "configmaps", "Deployment": "deployments.apps",
    "ResourceQuota": "resourcequotas", "ServiceAccount": "serviceaccounts", "RayService": "rayservices.ray.io",
    "LeaderWorkerSet": "leaderworkersets.leaderworkerset.x-k8s.io", "PersistentVolumeClaim": "persistentvolumeclaims",
}  # fmt: skip


def examine(snapshot: Snapshot, plan: Plan, manifests: list[Manifest], wanted: list[Need]) -> list[Finding]:
    """Everything that admission would say no to."""
    found = _quotas(snapshot, plan, manifests, wanted)
    return found + _limit_ranges(snapshot, wanted) + _webhooks(snapshot, manifests, wanted)


def _quotas(snapshot: Snapshot, plan: Plan, manifests: list[Manifest], wanted: list[Need]) -> list[Finding]:
    """Quotas of others than this stack, against what the stack asks for beside what others use already."""
    asked, limits = _asked(plan, manifests, wanted)
    mine = _used_by_stack(snapshot, plan, manifests)
    defaults = _defaults(snapshot)
    found = []
    for quota in snapshot.here("quotas"):
        spec = quota.get("spec") or {}
        ours = labels_of(quota).get("app.kubernetes.io/managed-by") == "modelstacks"
        # A scoped quota counts only some pods (of a priority, best effort, terminating): ours are none of those.
        if ours or spec.get("scopes") or spec.get("scopeSelector"):
            continue
        name, status = quota["metadata"]["name"], quota.get("status") or {}
        for resource, hard in (spec.get("hard") or {}).items():
            edit = f"kubectl -n {plan.namespace} edit resourcequota {name}, or another modelstacks:namespace"
            kind = resource.removeprefix("requests.").removeprefix("limits.")
            if resource in ("limits.cpu", "limits.memory") and resource not in limits and kind not in defaults:
                text = f"quota {name} counts {resource}, which this stack's pods do not set: they would be refused"
                found.append(
                    problem("quota", text, f"{edit}: drop {resource} from it, or add a LimitRange with a default")
                )
                continue
            need_here = asked.get(resource.removeprefix("count/"), limits.get(resource))
            if need_here is None:
                continue
            others = quantity((status.get("used") or {}).get(resource, 0)) - mine.get(
                resource.removeprefix("count/"), 0.0
            )
            if max(others, 0.0) + need_here > quantity(hard):
                text = f"quota {name} allows {shown(kind, quantity(hard))} {resource}, others use "
                text += f"{shown(kind, max(others, 0))} and this stack needs {shown(kind, need_here)}"
                found.append(problem("quota", text, edit))
    return found


def _asked(plan: Plan, manifests: list[Manifest], wanted: list[Need]) -> tuple[dict[str, float], dict[str, float]]:
    """What the stack's pods and objects count for in quotas: by request or number, and by limit."""
    asked: dict[str, float] = defaultdict(float)
    limits: dict[str, float] = defaultdict(float)
    for need in wanted:
        asked["pods"] += need.count
        for resource, amount in need.requests.items():
            for key in (f"requests.{resource}", resource):
                asked[key] += amount * need.count
        for container in need.spec.get("containers", []):
            for resource, amount in ((container.get("resources") or {}).get("limits") or {}).items():
                limits[f"limits.{resource}"] += quantity(amount) * need.count
    for manifest in manifests:
        if manifest["kind"] in _PLURALS:
            asked[_PLURALS[manifest["kind"]]] += 1
    weights = plan.spec.weights
    if weights.storage_class is not None:
        volumes = [
            v for need in wanted for v in need.spec.get("volumes", []) if "ephemeral" in v for _ in range(need.count)
        ]
        asked["persistentvolumeclaims"] += len(volumes)
        for volume in volumes:
            size = volume["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]["storage"]
            asked["requests.storage"] += quantity(size)
    return dict(asked), dict(limits)


def _used_by_stack(snapshot: Snapshot, plan: Plan, manifests: list[Manifest]) -> dict[str, float]:
    """What of it is there already, so that it is not counted twice."""
    found: dict[str, float] = defaultdict(float)
    for pod in snapshot.here("pods"):
        if not is_own(pod, plan):
            continue
        found["pods"] += 1
        for container in pod["spec"].get("containers", []):
            resources = container.get("resources") or {}
            for resource, amount in (resources.get("requests") or {}).items():
                for key in (f"requests.{resource}", resource):
                    found[key] += quantity(amount)
            for resource, amount in (resources.get("limits") or {}).items():
                found[f"limits.{resource}"] += quantity(amount)
    for manifest in manifests:
        if manifest["kind"] in _PLURALS and (manifest["kind"], manifest["metadata"]["name"]) in snapshot.own:
            found[_PLURALS[manifest["kind"]]] += 1
    return dict(found)


def _defaults(snapshot: Snapshot) -> set[str]:
    """Resources for which a limit range of the namespace gives containers a limit."""
    entries = [one for lr in snapshot.here("limits") for one in (lr.get("spec") or {}).get("limits") or []]
    return {resource for one in entries if one.get("type") == "Container" for resource in one.get("default") or {}}


def _limit_ranges(snapshot: Snapshot, wanted: list[Need]) -> list[Finding]:
    """Bounds of a namespace that the stack's containers leave, or that a default would put below their request."""
    found = []
    for limit_range in snapshot.here("limits"):
        name = limit_range["metadata"]["name"]
        mend = f"kubectl -n {snapshot.namespace} edit limitrange {name}, or another modelstacks:namespace"
        for limit in (limit_range.get("spec") or {}).get("limits") or []:
            for text in _outside(limit, wanted):
                found.append(problem("quota", f"LimitRange {name} {text}", mend))
    return found


def _outside(limit: Mapping[str, Any], wanted: list[Need]) -> list[str]:
    kind = str(limit.get("type", "Container")).lower()
    if kind not in ("container", "pod"):
        return []
    found: list[str] = []
    for need in wanted:
        for resource, amount in need.requests.items():
            asks = f"{need.name} asks for {shown(resource, amount)}"
            most, least = (limit.get("max") or {}).get(resource), (limit.get("min") or {}).get(resource)
            if most is not None and amount > quantity(most):
                found.append(f"allows a {kind} {shown(resource, quantity(most))} {resource}, {asks}")
            if least is not None and amount < quantity(least):
                found.append(f"wants {shown(resource, quantity(least))} {resource} of a {kind} at least, {asks}")
            limits = [(c.get("resources") or {}).get("limits") or {} for c in need.spec.get("containers", [])]
            usual = (limit.get("default") or {}).get(resource)
            unset = any(resource not in one for one in limits)
            if usual is not None and unset and amount > quantity(usual):
                found.append(f"gives containers a limit of {shown(resource, quantity(usual))} {resource}, {asks}")
            ratio = (limit.get("maxLimitRequestRatio") or {}).get(resource)
            if ratio is not None and unset:
                found.append(f"bounds limit to request of {resource}, and {need.name} sets no limit of it")
    return list(dict.fromkeys(found))


def _webhooks(snapshot: Snapshot, manifests: list[Manifest], wanted: list[Need]) -> list[Finding]:
    """Admission webhooks that must answer for something of the stack, and whose Service has nobody behind it."""
    found: dict[str, Finding] = {}
    if not snapshot.can_read("endpointslices"):
        return []
    made = [("", "pods", dict(need.labels)) for need in wanted]
    made += [
        (group_of(m["apiVersion"]), _plural(m["kind"]), labels_of(m))
        for m in manifests
        if m["metadata"].get("namespace")
    ]
    space = next((labels_of(n) for n in snapshot.of("namespaces") if n["metadata"]["name"] == snapshot.namespace), {})
    space = {"kubernetes.io/metadata.name": snapshot.namespace} | space
    for config in (*snapshot.of("validating_webhooks"), *snapshot.of("mutating_webhooks")):
        for hook in config.get("webhooks") or []:
            service = (hook.get("clientConfig") or {}).get("service")
            if hook.get("failurePolicy", "Fail") != "Fail" or service is None:
                continue
            meets = [plural for group, plural, labels in made if _meets(hook, group, plural, labels, space)]
            if meets and not _answers(snapshot, service):
                where = f"{service['namespace']}/{service['name']}"
                text = (
                    f"webhook {hook['name']} must admit {', '.join(dict.fromkeys(meets))}, and nobody answers behind "
                )
                mend = (
                    f"kubectl -n {service['namespace']} get pods   # start it, or delete {config['metadata']['name']}"
                )
                found[where] = problem("webhooks", f"{text}its Service {where}", mend)
    return list(found.values())


def _plural(kind: str) -> str:
    low = kind.lower()
    return low[:-1] + "ies" if low.endswith("y") else low + "s"


def _meets(
    hook: Mapping[str, Any], group: str, plural: str, labels: Mapping[str, Any], space: Mapping[str, Any]
) -> bool:
    """The webhook is asked about such an object in this namespace."""
    asked = any(
        {"*", group} & set(rule.get("apiGroups") or ["*"])
        and {"*", "*/*", plural} & set(rule.get("resources") or [])
        and {"*", "CREATE"} & set(rule.get("operations") or [])
        for rule in hook.get("rules") or []
    )
    return asked and _selects(hook.get("namespaceSelector"), space) and _selects(hook.get("objectSelector"), labels)


def _selects(selector: Mapping[str, Any] | None, labels: Mapping[str, Any]) -> bool:
    selector = selector or {}
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    return all(_rule_holds(rule, labels) for rule in selector.get("matchExpressions") or [])


def _rule_holds(rule: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    has: bool = rule["key"] in labels
    inside = has and labels[rule["key"]] in (rule.get("values") or [])
    return {"In": inside, "NotIn": not inside, "Exists": has, "DoesNotExist": not has}.get(rule["operator"], True)


def _answers(snapshot: Snapshot, service: Mapping[str, Any]) -> bool:
    pieces: Iterable[Manifest] = snapshot.of("endpointslices")
    return any(
        (endpoint.get("conditions") or {}).get("ready") is not False
        for piece in pieces
        if labels_of(piece).get("kubernetes.io/service-name") == service["name"]
        and piece["metadata"].get("namespace") == service["namespace"]
        for endpoint in piece.get("endpoints") or []
    )
