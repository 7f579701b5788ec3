"""The stack's namespace: security level, secrets, volumes, quotas and limits, and webhooks that would refuse pods."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from modelstacks.cluster.connection import Manifest
from modelstacks.cluster.findings import Finding, note, problem, quantity, shown, warning
from modelstacks.cluster.nodes import Need
from modelstacks.cluster.snapshot import Snapshot, labels_of
from modelstacks.plan import Plan
from modelstacks.render.cloud import LEVELS

_ENFORCE = "pod-security.kubernetes.io/enforce"


def examine(snapshot: Snapshot, plan: Plan, manifests: list[Manifest], wanted: list[Need]) -> list[Finding]:
    """Everything in the namespace that pods of the stack depend on."""
    found = _namespace(snapshot, plan, manifests)
    found += _hub_token(snapshot, plan)
    found += _pull_secret(snapshot, plan, wanted)
    found += _storage(snapshot, plan)
    found += _quotas(snapshot, plan, wanted)
    found += _limit_ranges(snapshot, wanted)
    return found + _webhooks(snapshot)


def _namespace(snapshot: Snapshot, plan: Plan, manifests: list[Manifest]) -> list[Finding]:
    live = next((n for n in snapshot.of("namespaces") if n["metadata"]["name"] == plan.namespace), None)
    owner = plan.spec.namespace_owner
    if live is None:
        if owner is None or not snapshot.can_read("namespaces"):
            return []
        text = f"namespace {plan.namespace} does not exist, and {owner} is said to own it"
        return [problem("namespace", text, f"pulumi up -s {owner}, or kubectl create namespace {plan.namespace}")]
    found = []
    if (live.get("status") or {}).get("phase") == "Terminating":
        held = [
            c["message"]
            for c in (live["status"].get("conditions") or [])
            if c.get("status") == "True" and "message" in c
        ]
        text = f"namespace {plan.namespace} is being deleted" + (f": {held[0]}" if held else "")
        found.append(
            problem("namespace", text, f"wait, or see what holds it: kubectl get namespace {plan.namespace} -o yaml")
        )
    needed = next(
        (labels_of(m).get(_ENFORCE, "restricted") for m in manifests if m["kind"] == "Namespace"), "restricted"
    )
    enforced = labels_of(live).get(_ENFORCE)
    if enforced in LEVELS and LEVELS.index(enforced) < LEVELS.index(needed):
        text = f"namespace {plan.namespace} enforces Pod Security {enforced}, and this stack's pods need {needed}"
        mend = f"kubectl label namespace {plan.namespace} {_ENFORCE}={needed} --overwrite"
        found.append(problem("namespace", text, mend))
    return found


def _hub_token(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    name, gated = plan.spec.hub_token_secret, plan.choice.model.licence.gated
    create = (
        f"pulumi config set --secret modelstacks:hubToken TOKEN, or kubectl -n {plan.namespace} create secret generic "
    )
    create += f"{name} --from-literal=token=TOKEN"
    if not snapshot.can_read("secrets"):
        why = snapshot.unreadable.get("secrets", "forbidden")
        return [note("secrets", f"secrets of {plan.namespace} cannot be read ({why}): {name} was not looked at")]
    secret = snapshot.named("secrets", name)
    if secret is None:
        text = f"there is no Secret {name} in {plan.namespace}"
        if gated:
            return [problem("secrets", f"{text}, and {plan.choice.model.id} is gated on the hub", create)]
        return [note("secrets", f"{text}: the model is public, a token would only raise the hub's rate limit", create)]
    data = secret.get("data") or {}
    level = problem if gated else warning
    if "token" not in data:
        keys = ", ".join(data) or "nothing"
        return [level("secrets", f"Secret {name} holds {keys} and no key token, which pods read", create)]
    token = _decoded(data["token"])
    if not token:
        return [level("secrets", f"the token in Secret {name} is empty", create)]
    if token != token.strip():
        text = f"the token in Secret {name} ends in a blank or a line break, which the hub refuses"
        return [level("secrets", text, f"{create}   # echo -n, not echo")]
    if not token.startswith("hf_"):
        return [warning("secrets", f"the token in Secret {name} does not begin with hf_ as Hugging Face's do", create)]
    return []


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode()
    except ValueError:
        return ""


def _pull_secret(snapshot: Snapshot, plan: Plan, wanted: list[Need]) -> list[Finding]:
    name = plan.spec.image_pull_secret
    if name is None or not snapshot.can_read("secrets"):
        return []
    images = sorted({c["image"] for need in wanted for c in need.spec.get("containers", [])})
    create = f"kubectl -n {plan.namespace} create secret docker-registry {name} --docker-server=… --docker-username=… "
    create += "--docker-password=…"
    secret = snapshot.named("secrets", name)
    if secret is None:
        text = f"there is no Secret {name} in {plan.namespace}, which imagePullSecret names"
        return [problem("secrets", text, create)]
    if secret.get("type") != "kubernetes.io/dockerconfigjson":
        text = f"Secret {name} is of type {secret.get('type')}, image pulls take kubernetes.io/dockerconfigjson"
        return [problem("secrets", text, f"kubectl -n {plan.namespace} delete secret {name}, then: {create}")]
    try:
        servers = set(json.loads(_decoded((secret.get("data") or {}).get(".dockerconfigjson", "")))["auths"])
    except (ValueError, KeyError, TypeError):
        return [problem("secrets", f"Secret {name} holds no readable .dockerconfigjson", create)]
    known = {re.sub(r"^https?://|/.*$", "", server).replace("index.docker.io", "docker.io") for server in servers}
    missing = sorted({registry for image in images if (registry := _registry(image)) not in known})
    if missing:
        text = f"Secret {name} has credentials for {', '.join(sorted(known)) or 'nothing'}, images come from "
        return [warning("secrets", text + ", ".join(missing), create)]
    return []


def _registry(image: str) -> str:
    head, slash, _ = image.partition("/")
    return head if slash and ("." in head or ":" in head or head == "localhost") else "docker.io"


def _storage(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    weights = plan.spec.weights
    if weights.storage_class is not None and snapshot.can_read("storageclasses"):
        classes = {c["metadata"]["name"]: c for c in snapshot.of("storageclasses")}
        if weights.storage_class not in classes:
            text = f"there is no StorageClass {weights.storage_class}; there are {', '.join(sorted(classes)) or 'none'}"
            mend = "name one of them in modelstacks:weights.storageClass, or leave it out to use the node's disk"
            return [problem("storage", text, mend)]
        if classes[weights.storage_class].get("volumeBindingMode") != "WaitForFirstConsumer":
            text = f"StorageClass {weights.storage_class} binds volumes before pods are placed: they may lie in a zone "
            return [
                warning("storage", text + "without the GPUs", "take one with volumeBindingMode WaitForFirstConsumer")
            ]
    if weights.claim is not None and snapshot.can_read("claims"):
        claim = snapshot.named("claims", weights.claim)
        if claim is None:
            text = f"there is no PersistentVolumeClaim {weights.claim} in {plan.namespace}"
            return [problem("storage", text, "create it, or leave modelstacks:weights.claim out")]
        return _claim(claim, plan, snapshot)
    return []


def _claim(claim: Manifest, plan: Plan, snapshot: Snapshot) -> list[Finding]:
    name, spec = claim["metadata"]["name"], claim["spec"]
    found = []
    phase = (claim.get("status") or {}).get("phase")
    storage = spec.get("storageClassName")
    late = next((c for c in snapshot.of("storageclasses") if c["metadata"]["name"] == storage), None)
    waits = late is not None and late.get("volumeBindingMode") == "WaitForFirstConsumer"
    if phase != "Bound" and not waits:
        why = (
            _last_event(snapshot, "PersistentVolumeClaim", name) or f"no volume of class {storage or '(default)'} came"
        )
        text = f"PersistentVolumeClaim {name} is {phase or 'not bound'}: {why}"
        found.append(problem("storage", text, f"kubectl -n {plan.namespace} describe pvc {name}"))
    modes = set(spec.get("accessModes") or [])
    pods = plan.spec.replicas * plan.nodes_per_replica
    if pods > 1 and not modes & {"ReadWriteMany", "ReadOnlyMany"}:
        text = f"{pods} pods would share PersistentVolumeClaim {name}, which is {', '.join(sorted(modes))}: "
        found.append(problem("storage", text + "one node alone can mount it", "take a ReadWriteMany claim"))
    have = quantity((spec.get("resources") or {}).get("requests", {}).get("storage", 0))
    if have and have < plan.weights_gib * 2**30:
        text = (
            f"PersistentVolumeClaim {name} holds {shown('memory', have)}, the weights are {plan.weights_gib:,.0f} GiB"
        )
        found.append(problem("storage", text, "take a larger claim"))
    return found


def _last_event(snapshot: Snapshot, kind: str, name: str) -> str | None:
    """The newest message about an object of the namespace."""
    about = [
        e for e in snapshot.of("events")
        if e.get("involvedObject", {}).get("kind") == kind and e["involvedObject"].get("name") == name
    ]  # fmt: skip
    newest = max(about, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "", default=None)
    return None if newest is None else str(newest.get("message"))


def _quotas(snapshot: Snapshot, plan: Plan, wanted: list[Need]) -> list[Finding]:
    """Quotas of others than this stack, against what the stack's pods ask for beside what runs already."""
    asked: dict[str, float] = {"pods": float(sum(need.count for need in wanted))}
    limits: dict[str, float] = {}
    for need in wanted:
        for resource, amount in need.requests.items():
            for key in (f"requests.{resource}", resource):
                asked[key] = asked.get(key, 0.0) + amount * need.count
        for container in need.spec.get("containers", []):
            for resource, amount in ((container.get("resources") or {}).get("limits") or {}).items():
                limits[f"limits.{resource}"] = limits.get(f"limits.{resource}", 0.0) + quantity(amount) * need.count
    mine = _used_by_stack(snapshot, plan)
    found = []
    for quota in snapshot.here("quotas"):
        if labels_of(quota).get("app.kubernetes.io/managed-by") == "modelstacks":
            continue
        name, status = quota["metadata"]["name"], quota.get("status") or {}
        for resource, hard in ((quota.get("spec") or {}).get("hard") or {}).items():
            need_here = asked.get(resource, limits.get(resource))
            if resource in ("limits.cpu", "limits.memory") and resource not in limits:
                text = f"quota {name} counts {resource}, which this stack's pods do not set: they would be refused"
                mend = (
                    f"kubectl -n {plan.namespace} create a LimitRange with a default, or drop {resource} from the quota"
                )
                found.append(problem("quota", text, mend))
            if need_here is None:
                continue
            others = quantity((status.get("used") or {}).get(resource, 0)) - mine.get(resource, 0.0)
            if max(others, 0.0) + need_here > quantity(hard):
                kind = resource.removeprefix("requests.").removeprefix("limits.")
                text = f"quota {name} allows {shown(kind, quantity(hard))} {resource}, others use "
                text += f"{shown(kind, max(others, 0))} and this stack needs {shown(kind, need_here)}"
                mend = f"kubectl -n {plan.namespace} edit resourcequota {name}, or another modelstacks:namespace"
                found.append(problem("quota", text, mend))
    return found


def _used_by_stack(snapshot: Snapshot, plan: Plan) -> dict[str, float]:
    """What running pods of this stack count for in quotas."""
    found: dict[str, float] = {}
    for pod in snapshot.here("pods"):
        if labels_of(pod).get("app.kubernetes.io/instance") != plan.name:
            continue
        found["pods"] = found.get("pods", 0.0) + 1
        for container in pod["spec"].get("containers", []):
            resources = container.get("resources") or {}
            for resource, amount in (resources.get("requests") or {}).items():
                for key in (f"requests.{resource}", resource):
                    found[key] = found.get(key, 0.0) + quantity(amount)
            for resource, amount in (resources.get("limits") or {}).items():
                found[f"limits.{resource}"] = found.get(f"limits.{resource}", 0.0) + quantity(amount)
    return found


def _limit_ranges(snapshot: Snapshot, wanted: list[Need]) -> list[Finding]:
    found = []
    for limit_range in snapshot.here("limits"):
        name = limit_range["metadata"]["name"]
        for limit in (limit_range.get("spec") or {}).get("limits") or []:
            for resource, most in (limit.get("max") or {}).items():
                asked = max((need.requests.get(resource, 0.0) for need in wanted), default=0.0)
                if asked > quantity(most):
                    text = f"LimitRange {name} allows a {limit['type'].lower()} {shown(resource, quantity(most))} "
                    text += f"{resource}, this stack's pods ask for {shown(resource, asked)}"
                    mend = f"kubectl -n {snapshot.namespace} edit limitrange {name}, or another modelstacks:namespace"
                    found.append(problem("quota", text, mend))
    return found


def _webhooks(snapshot: Snapshot) -> list[Finding]:
    """Admission webhooks that must answer, for pods, and whose Service has nobody behind it."""
    found: dict[str, Finding] = {}
    if not snapshot.can_read("endpointslices"):
        return []
    for config in (*snapshot.of("validating_webhooks"), *snapshot.of("mutating_webhooks")):
        for hook in config.get("webhooks") or []:
            service = (hook.get("clientConfig") or {}).get("service")
            if hook.get("failurePolicy", "Fail") != "Fail" or service is None or not _meets_pods(hook, snapshot):
                continue
            if not _answers(snapshot, service):
                where = f"{service['namespace']}/{service['name']}"
                text = f"webhook {hook['name']} must admit pods, and nobody answers behind its Service {where}"
                mend = (
                    f"kubectl -n {service['namespace']} get pods   # start it, or delete {config['metadata']['name']}"
                )
                found[where] = problem("webhooks", text, mend)
    return list(found.values())


def _meets_pods(hook: dict[str, Any], snapshot: Snapshot) -> bool:
    about_pods = any(
        {"*", "pods", "*/*"} & set(rule.get("resources") or []) and {"*", "CREATE"} & set(rule.get("operations") or [])
        for rule in hook.get("rules") or []
    )
    labels = {"kubernetes.io/metadata.name": snapshot.namespace} | next(
        (labels_of(n) for n in snapshot.of("namespaces") if n["metadata"]["name"] == snapshot.namespace), {}
    )
    return about_pods and _selects(hook.get("namespaceSelector") or {}, labels)


def _selects(selector: dict[str, Any], labels: dict[str, Any]) -> bool:
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    for rule in selector.get("matchExpressions") or []:
        has, values = rule["key"] in labels, rule.get("values") or []
        inside = has and labels[rule["key"]] in values
        if not {"In": inside, "NotIn": not inside, "Exists": has, "DoesNotExist": not has}[rule["operator"]]:
            return False
    return True


def _answers(snapshot: Snapshot, service: dict[str, Any]) -> bool:
    for piece in snapshot.of("endpointslices"):
        same = labels_of(piece).get("kubernetes.io/service-name") == service["name"]
        if same and piece["metadata"].get("namespace") == service["namespace"]:
            ready = [(e.get("conditions") or {}).get("ready") for e in piece.get("endpoints") or []]
            if any(state is not False for state in ready):
                return True
    return False
