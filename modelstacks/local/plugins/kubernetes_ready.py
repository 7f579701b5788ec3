"""Decides from an object, and what belongs to it, whether it is ready."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from modelstacks.cluster.connection import Kind, Manifest, group_of
from modelstacks.errors import BadInput, Problem

WAIT_FOR: Final = "pulumi.com/waitFor"
SKIP_AWAIT: Final = "pulumi.com/skipAwait"
REPLACE_UNREADY: Final = "pulumi.com/replaceUnready"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an object is ready, or can no longer become so, and what it still waits for."""

    ready: bool
    message: str = ""
    failed: bool = False


class Lookup(Protocol):
    """The part of a cluster that waiting needs."""

    def get(self, kind: Kind, namespace: str | None, name: str) -> Manifest | None:
        """The live object, or None."""

    def items(self, kind: Kind, namespace: str | None, **query: str) -> list[Manifest]:
        """The objects of one kind."""


Rule = Callable[[Manifest, Lookup], Verdict]


def annotation(obj: Manifest, name: str) -> str:
    """One annotation of an object, empty where it has none."""
    return str((obj["metadata"].get("annotations") or {}).get(name, ""))


def _observed(obj: Manifest) -> bool:
    return bool(obj.get("status", {}).get("observedGeneration", 0) >= obj["metadata"].get("generation", 0))


def condition(obj: Manifest, kind: str) -> dict[str, Any]:
    conditions = obj.get("status", {}).get("conditions") or []
    return next((entry for entry in conditions if entry.get("type") == kind), {})


def _deployment(obj: Manifest, look: Lookup) -> Verdict:
    status, wanted = obj.get("status", {}), obj["spec"].get("replicas", 1)
    updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
    old = status.get("replicas", 0) - updated
    ready = _observed(obj) and updated >= wanted and available >= wanted and old == 0
    return Verdict(ready, f"{min(available, updated)} of {wanted} pods available" + (f", {old} old" if old > 0 else ""))


def _stateful_set(obj: Manifest, look: Lookup) -> Verdict:
    status, wanted = obj.get("status", {}), obj["spec"].get("replicas", 1)
    ready, updated = status.get("readyReplicas", 0), status.get("updatedReplicas", 0)
    strategy = obj["spec"].get("updateStrategy", {})
    partition = (strategy.get("rollingUpdate") or {}).get("partition", 0)
    if strategy.get("type") == "OnDelete":
        partition = wanted
    done = _observed(obj) and ready >= wanted and updated >= wanted - partition
    return Verdict(done, f"{ready} of {wanted} pods ready, {updated} updated")


def _daemon_set(obj: Manifest, look: Lookup) -> Verdict:
    status = obj.get("status", {})
    wanted = status.get("desiredNumberScheduled", 0)
    available, updated = status.get("numberAvailable", 0), status.get("updatedNumberScheduled", 0)
    done = _observed(obj) and available >= wanted and updated >= wanted
    return Verdict(done, f"{available} of {wanted} pods available")


def _job(obj: Manifest, look: Lookup) -> Verdict:
    failure = condition(obj, "Failed")
    if failure.get("status") == "True":
        return Verdict(False, f"the job failed: {failure.get('message', failure.get('reason', ''))}", failed=True)
    if obj["spec"].get("suspend") or condition(obj, "Complete").get("status") == "True":
        return Verdict(True)
    wanted, done = obj["spec"].get("completions", 1), obj.get("status", {}).get("succeeded", 0)
    return Verdict(False, f"{done} of {wanted} pods completed")


def _service(obj: Manifest, look: Lookup) -> Verdict:
    spec, namespace = obj["spec"], obj["metadata"]["namespace"]
    if spec.get("type") == "ExternalName":
        return Verdict(True)
    if spec.get("type") == "LoadBalancer" and not obj.get("status", {}).get("loadBalancer", {}).get("ingress"):
        return Verdict(False, "no load balancer address yet")
    selector = spec.get("selector")
    if not selector or spec.get("clusterIP") == "None":
        return Verdict(True)
    query = {"labelSelector": f"kubernetes.io/service-name={obj['metadata']['name']}"}
    slices = look.items(Kind("discovery.k8s.io/v1", "EndpointSlice"), namespace, **query)
    endpoints = [endpoint for part in slices for endpoint in part.get("endpoints") or []]
    if any((endpoint.get("conditions") or {}).get("ready") for endpoint in endpoints):
        return Verdict(True)
    workloads = [
        workload
        for kind in ("Deployment", "StatefulSet")
        for workload in look.items(Kind("apps/v1", kind), namespace)
        if selector.items() <= (workload["spec"]["template"]["metadata"].get("labels") or {}).items()
    ]
    if workloads and all(workload["spec"].get("replicas", 1) == 0 for workload in workloads):
        return Verdict(True)  # scaled to zero on purpose
    return Verdict(False, "no ready endpoint behind the selector")


def _claim(obj: Manifest, look: Lookup) -> Verdict:
    phase = obj.get("status", {}).get("phase", "Pending")
    if phase == "Bound":
        return Verdict(True)
    name = obj["spec"].get("storageClassName")
    storage_class = look.get(Kind("storage.k8s.io/v1", "StorageClass"), None, name) if name else None
    if storage_class is not None and storage_class.get("volumeBindingMode") == "WaitForFirstConsumer":
        return Verdict(True)  # bound when the first pod that uses it is scheduled
    missing = "" if storage_class is not None else f", and there is no storage class {name or 'by default'}"
    return Verdict(False, f"the volume claim is {phase}{missing}", failed=phase == "Lost")


def _pod(obj: Manifest, look: Lookup) -> Verdict:
    phase = obj.get("status", {}).get("phase", "Pending")
    if phase == "Failed":
        return Verdict(False, f"the pod failed: {obj['status'].get('message', '')}", failed=True)
    return Verdict(phase == "Succeeded" or condition(obj, "Ready").get("status") == "True", f"the pod is {phase}")


def _namespace(obj: Manifest, look: Lookup) -> Verdict:
    phase = obj.get("status", {}).get("phase")
    return Verdict(phase == "Active", f"the namespace is {phase}")


def _definition(obj: Manifest, look: Lookup) -> Verdict:
    return Verdict(condition(obj, "Established").get("status") == "True", "the definition is not established")


_RULES: Final[dict[tuple[str, str], Rule]] = {
    ("apps", "Deployment"): _deployment,
    ("apps", "StatefulSet"): _stateful_set,
    ("apps", "DaemonSet"): _daemon_set,
    ("batch", "Job"): _job,
    ("", "Service"): _service,
    ("", "PersistentVolumeClaim"): _claim,
    ("", "Pod"): _pod,
    ("", "Namespace"): _namespace,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _definition,
}


def verdict(obj: Manifest, look: Lookup) -> Verdict:
    """What the object's own annotations ask for, else what its kind does; other kinds are ready at once."""
    if annotation(obj, SKIP_AWAIT) == "true":
        return Verdict(True)
    if wait_for := annotation(obj, WAIT_FOR):
        open_ones = [text for text, holds in wait_conditions(wait_for) if not holds(obj)]
        return Verdict(not open_ones, f"waits for {', '.join(open_ones)}")
    rule = _RULES.get((group_of(obj["apiVersion"]), obj["kind"]))
    return Verdict(True) if rule is None else rule(obj, look)


_STEP: Final = re.compile(r"""\.([\w-]+)|\[(\d+)\]|\['([^']+)'\]|\[\?\(@\.([\w-]+)\s*==\s*["']([^"']*)["']\)\]""")


def wait_conditions(text: str) -> list[tuple[str, Callable[[Manifest], bool]]]:
    """The tests in a `pulumi.com/waitFor` annotation: one, or a JSON array of several.

    A test: `condition=Ready`, `condition=Ready=False`, `jsonpath={.status.x}`, `jsonpath={.status.x}=value`.
    Raises BadInput naming each one that is none of these.
    """
    try:
        entries = [str(entry) for entry in json.loads(text)] if text.lstrip().startswith("[") else [text]
    except ValueError:
        entries = [text]
    tests = [(entry, _wait_condition(entry.strip())) for entry in entries]
    problems = [
        Problem(
            WAIT_FOR,
            "is no test that can be waited for",
            entry,
            "condition=Ready, jsonpath={.status.x}=value",
        )
        for entry, holds in tests
        if holds is None
    ]
    if problems:
        raise BadInput(problems, source="metadata.annotations")
    return [(entry, holds) for entry, holds in tests if holds is not None]


def _wait_condition(entry: str) -> Callable[[Manifest], bool] | None:
    if match := re.fullmatch(r"condition=([^=]+)(?:=(\w+))?", entry):
        kind, wanted = match[1], (match[2] or "True").lower()

        def holds(obj: Manifest) -> bool:
            found = condition(obj, kind)
            current = found.get("observedGeneration", obj["metadata"].get("generation", 0))
            return bool(
                str(found.get("status", "")).lower() == wanted and current >= obj["metadata"].get("generation", 0)
            )

        return holds
    match = re.fullmatch(r"jsonpath=\{?([^{}]+?)\}?(?:==?(?!=)([^{}]*))?", entry)
    if match is None or re.sub(_STEP, "", match[1]):
        return None
    steps = [found.groups() for found in _STEP.finditer(match[1])]
    value = None if match[2] is None else match[2].strip("\"'")

    def matches(obj: Manifest) -> bool:
        found: Any = obj
        for key, index, quoted, filter_key, filter_value in steps:
            if (name := key or quoted) is not None and isinstance(found, dict):
                found = found.get(name)
            elif isinstance(found, list) and index is not None:
                found = found[int(index)] if int(index) < len(found) else None
            elif isinstance(found, list) and filter_key is not None:
                found = next((item for item in found if str(item.get(filter_key)) == filter_value), None)
            else:
                return False
        text = json.dumps(found) if isinstance(found, bool) else str(found)
        return found is not None if value is None else found is not None and text == value

    return matches
