"""Says why an object is not ready, in the words of the scheduler, the kubelet and the controllers."""

from __future__ import annotations

from collections import defaultdict

from modelstacks.cluster.connection import ApiError, Kind, KindNotFoundError, Manifest, UnreachableError, group_of
from modelstacks.local.plugins.kubernetes_ready import Lookup, condition


def blockers(obj: Manifest, look: Lookup) -> list[str]:
    """Why an object is not ready, in the words of the scheduler, the kubelet and the controllers."""
    found: list[str] = []
    for entry in obj.get("status", {}).get("conditions") or []:
        bad_when_true = entry.get("type") in ("ReplicaFailure", "Failed")
        if (entry.get("status") == "True") == bad_when_true and entry.get("message"):
            found.append(f"{entry['type']}: {entry['message']}")
    pods: dict[str, list[str]] = defaultdict(list)
    try:
        for pod in _pods(obj, look):
            for problem in pod_problems(pod):
                pods[problem].append(pod["metadata"]["name"])
        query = {"fieldSelector": f"involvedObject.uid={obj['metadata'].get('uid')},type=Warning"}
        events = look.items(Kind("v1", "Event"), obj["metadata"].get("namespace"), **query)
    except (ApiError, UnreachableError, KindNotFoundError) as error:
        return [*found, str(error)]
    found += [
        f"{'pod' if len(names) == 1 else f'{len(names)} pods'} {', '.join(names[:3])}"
        f"{', …' if len(names) > 3 else ''}: {problem}"
        for problem, names in pods.items()
    ]
    return found + [f"{event.get('reason')}: {event.get('message')}" for event in events[-2:]]


def _pods(obj: Manifest, look: Lookup) -> list[Manifest]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    if obj["kind"] == "Pod":
        return [obj]
    labels = spec.get("selector") or {}
    labels = labels.get("matchLabels", {}) if "matchLabels" in labels or "matchExpressions" in labels else labels
    selector = ",".join(f"{key}={value}" for key, value in labels.items() if isinstance(value, str))
    if group_of(obj["apiVersion"]) == "ray.io":
        services = (status.get("pendingServiceStatus") or {}, status.get("activeServiceStatus") or {})
        clusters = [service["rayClusterName"] for service in services if service.get("rayClusterName")]
        selector = f"ray.io/cluster in ({','.join(clusters)})" if clusters else ""
    namespace = obj["metadata"].get("namespace")
    return look.items(Kind("v1", "Pod"), namespace, labelSelector=selector) if selector and namespace else []


def pod_problems(pod: Manifest) -> list[str]:
    """What keeps one pod from being ready; empty when nothing does."""
    status = pod.get("status", {})
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return [f"Pending: {scheduled.get('message', scheduled.get('reason', ''))}"]
    found = []
    for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
        waiting = container.get("state", {}).get("waiting", {})
        ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            found.append(f"container {container['name']}: {waiting['reason']} {waiting.get('message', '')}".strip())
        if ended.get("exitCode"):
            found.append(f"container {container['name']}: exit code {ended['exitCode']} ({ended.get('reason', '')})")
    return found
