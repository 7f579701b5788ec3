"""The stack's namespace: its security level, its secrets, and where weights are kept."""

from __future__ import annotations

import json
import re

from modelstacks.cluster.connection import Manifest
from modelstacks.cluster.findings import Finding, note, problem, quantity, shown, warning
from modelstacks.cluster.nodes import Need
from modelstacks.cluster.pods import events_of
from modelstacks.cluster.secrets import decoded, key_in, unsendable
from modelstacks.cluster.snapshot import Snapshot, labels_of
from modelstacks.images import registry_of
from modelstacks.plan import Plan
from modelstacks.render.cloud import LEVELS
from modelstacks.render.values import api_key_secret, security_level

_ENFORCE = "pod-security.kubernetes.io/enforce"


def examine(snapshot: Snapshot, plan: Plan, manifests: list[Manifest], wanted: list[Need]) -> list[Finding]:
    """Everything in the namespace that pods of the stack depend on."""
    found = _namespace(snapshot, plan, manifests)
    found += _hub_token(snapshot, plan)
    found += _api_key(snapshot, plan)
    found += _pull_secret(snapshot, plan, wanted)
    return found + _storage(snapshot, plan)


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
    needed = security_level(plan)
    enforced = labels_of(live).get(_ENFORCE)
    if enforced in LEVELS and LEVELS.index(enforced) < LEVELS.index(needed):
        text = f"namespace {plan.namespace} enforces Pod Security {enforced}, and this stack's pods need {needed}"
        mend = f"kubectl label namespace {plan.namespace} {_ENFORCE}={needed} --overwrite"
        found.append(problem("namespace", text, mend))
    return found


def _api_key(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    """The Secret with the API's key, without which no server starts."""
    name = api_key_secret(plan)
    if name is None or not snapshot.can_read("secrets"):
        return []
    own = plan.spec.api_key_secret is None
    deployed = any((kind, key) in snapshot.own for kind, key in snapshot.own if kind == plan.tier_form.kind)
    # The same name with another key would not restart the servers that have the old one.
    mend = f"modelstacks rotate-key {plan.stack}" if own else _make(plan, f"generic {name}").replace(
        "ARGUMENTS", "--from-literal=key=KEY"
    )  # fmt: skip
    secret = snapshot.named("secrets", name)
    if secret is None:
        # Before the first `up` nobody has made it yet.
        return (
            [problem("secrets", f"there is no Secret {name} with the API's key", mend)] if deployed or not own else []
        )
    key = key_in(secret)
    if key is None:
        return [problem("secrets", f"Secret {name} has no key `key`, which servers read", mend)]
    why = unsendable(key)
    return [] if why is None else [problem("secrets", f"the key in Secret {name} {why}", mend)]


def _hub_token(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    if plan.weights.fetched_from != "hub":
        return []
    name, gated = plan.spec.hub_token_secret, plan.choice.model.licence.gated
    by_hand = _make(plan, f"generic {name}").replace("ARGUMENTS", "--from-literal=token=TOKEN")
    stack = f" -s {plan.stack}" if plan.stack else ""
    create = f"pulumi config set --secret modelstacks:hubToken TOKEN{stack}, or {by_hand}"
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
    token = decoded(data["token"])
    if "\ufffd" in token:
        return [level("secrets", f"the token in Secret {name} is no text", create)]
    if not token:
        return [level("secrets", f"the token in Secret {name} is empty", create)]
    if token != token.strip() or " " in token:
        text = f"the token in Secret {name} has blanks or a line break, which the hub refuses"
        return [level("secrets", text, f"{create}   # echo -n, not echo")]
    if not token.startswith("hf_"):
        return [warning("secrets", f"the token in Secret {name} does not begin with hf_ as Hugging Face's do", create)]
    return []


def _make(plan: Plan, what: str) -> str:
    """The command that makes a Secret, or makes it again; ARGUMENTS stands for its contents."""
    made = f"kubectl -n {plan.namespace} create secret {what} ARGUMENTS"
    return f"{made} --dry-run=client -o yaml | kubectl apply -f -"


def _pull_secret(snapshot: Snapshot, plan: Plan, wanted: list[Need]) -> list[Finding]:
    name = plan.spec.image_pull_secret
    if name is None or not snapshot.can_read("secrets"):
        return []
    images = sorted({c["image"] for need in wanted for c in need.spec.get("containers", [])})
    what = "--docker-server=SERVER --docker-username=USER --docker-password=PASSWORD"
    create = _make(plan, f"docker-registry {name}").replace("ARGUMENTS", what)
    secret = snapshot.named("secrets", name)
    if secret is None:
        text = f"there is no Secret {name} in {plan.namespace}, which imagePullSecret names"
        return [problem("secrets", text, create)]
    if secret.get("type") != "kubernetes.io/dockerconfigjson":
        text = f"Secret {name} is of type {secret.get('type')}, image pulls take kubernetes.io/dockerconfigjson"
        return [problem("secrets", text, f"kubectl -n {plan.namespace} delete secret {name}, then: {create}")]
    try:
        servers = set(json.loads(decoded((secret.get("data") or {}).get(".dockerconfigjson", "")))["auths"])
    except (ValueError, KeyError, TypeError):
        return [problem("secrets", f"Secret {name} holds no readable .dockerconfigjson", create)]
    known = {re.sub(r"^https?://|/.*$", "", server).replace("index.docker.io", "docker.io") for server in servers}
    missing = sorted({registry for image in images if (registry := registry_of(image)) not in known})
    if missing:
        text = f"Secret {name} has credentials for {', '.join(sorted(known)) or 'nothing'}, images come from "
        return [warning("secrets", text + ", ".join(missing), create)]
    return []


def _storage(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    weights = plan.spec.weights
    if weights.storage_class is not None and snapshot.can_read("storageclasses"):
        classes = {c["metadata"]["name"]: c for c in snapshot.of("storageclasses")}
        if weights.storage_class not in classes:
            text = f"there is no StorageClass {weights.storage_class}; there are {', '.join(sorted(classes)) or 'none'}"
            mend = "name one of them in modelstacks:weights.storageClass, or leave it out to use the node's disk"
            return [problem("storage", text, mend)]
        late = classes[weights.storage_class].get("volumeBindingMode") == "WaitForFirstConsumer"
        # A volume of all is made once, and its network reaches every zone.
        if not late and not weights.shared:
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
    if phase != "Bound" and storage and late is None and snapshot.can_read("storageclasses"):
        text = f"PersistentVolumeClaim {name} asks for StorageClass {storage}, which there is not"
        return [problem("storage", text, "kubectl get storageclass; make the claim again with one of them")]
    waits = late is not None and late.get("volumeBindingMode") == "WaitForFirstConsumer"
    if phase != "Bound" and not waits:
        said = events_of(snapshot, "PersistentVolumeClaim", name, claim["metadata"].get("uid"))
        why = (str(said[0].get("message")) if said else "") or f"no volume of class {storage or '(default)'} came"
        text = f"PersistentVolumeClaim {name} is {phase or 'not bound'}: {why}"
        found.append(problem("storage", text, f"kubectl -n {plan.namespace} describe pvc {name}"))
    modes = set(spec.get("accessModes") or [])
    pods = plan.spec.replicas_at_most * plan.nodes_per_replica
    if plan.weights.fetched_by == "job" and modes <= {"ReadOnlyMany"}:
        text = f"PersistentVolumeClaim {name} is ReadOnlyMany, and prefetch would write to it"
        found.append(problem("storage", text, "modelstacks:weights: {prefetch: false, path: FOLDER}"))
    if pods > 1 and not plan.spec.weights.on_one_node and not modes & {"ReadWriteMany", "ReadOnlyMany"}:
        mend = "take a ReadWriteMany claim, or modelstacks:weights.accessMode: ReadWriteOnce keeps all pods on one node"
        text = f"{pods} pods would share PersistentVolumeClaim {name}, which is {', '.join(sorted(modes))}: "
        found.append(problem("storage", text + "one node alone can mount it", mend))
    have = quantity((spec.get("resources") or {}).get("requests", {}).get("storage", 0))
    if have and have < plan.weights_gib * 2**30:
        text = (
            f"PersistentVolumeClaim {name} holds {shown('memory', have)}, the weights are {plan.weights_gib:,.0f} GiB"
        )
        found.append(problem("storage", text, "take a larger claim"))
    return found
