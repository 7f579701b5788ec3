"""The stack's workloads and pods: why one is not made, not placed, not started or not kept, and what mends it."""

from __future__ import annotations

import datetime
import re

from modelstacks import serving
from modelstacks.cluster.connection import Manifest
from modelstacks.cluster.findings import Finding, note, problem, warning
from modelstacks.cluster.snapshot import Snapshot, condition, labels_of
from modelstacks.plan import Plan

# Karpenter's words for a machine type that no offering is left of, whatever the provider.
_SOLD_OUT = re.compile(r"filtered out all (available )?instance types|required offering|no instance type which")
# What the log of a server that does not fit says (vLLM 0.6-0.32), found in a container's last words.
_OUT_OF_MEMORY = re.compile(r"CUDA out of memory|No available memory for the cache blocks|Free memory on device")


def examine(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    """Workloads that make no pods, then pods that do not run."""
    found = _refused_pods(snapshot, plan) + _ray(snapshot, plan)
    pods = own_pods(snapshot, plan)
    has_spare = len(pods) > plan.nodes_per_replica * plan.spec.replicas
    for pod in pods:
        if has_spare and (pod.get("status") or {}).get("phase") == "Failed":
            name = pod["metadata"]["name"]
            text = f"pod {name} failed ({(pod['status'].get('reason') or 'Error')}) and another one took its place"
            found.append(note("pods", text, f"kubectl -n {plan.namespace} delete pod {name}", name))
        else:
            found += _pod(snapshot, plan, pod)
    return found


def weights(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    """The Job that fetches weights: why it failed, in its own last words, or how it stands."""
    found = []
    for job in snapshot.here("jobs"):
        if labels_of(job).get("app.kubernetes.io/instance") != f"{plan.name}-weights":
            continue
        name = job["metadata"]["name"]
        failed = condition(job, "Failed")
        pods = [p for p in snapshot.here("pods") if labels_of(p).get("batch.kubernetes.io/job-name") == name]
        words = next((said for pod in pods if (said := _last_words(pod))), "")
        logs = f"kubectl -n {plan.namespace} logs job/{name}"
        if failed.get("status") == "True":
            why = words or failed.get("message") or failed.get("reason")
            mend = f"mend what it names, then kubectl -n {plan.namespace} delete job {name}; pulumi up --refresh -s "
            found.append(problem("weights", f"Job {name} failed: {why}", mend + (plan.stack or plan.name), name))
        elif condition(job, "Complete").get("status") != "True":
            tries = (job.get("status") or {}).get("failed", 0)
            text = f"Job {name} fetches the weights" + (f", {tries} tries failed: {words}" if tries else "")
            found.append((warning if tries else note)("weights", text, logs, name))
            for pod in pods:
                if not is_ready(pod) and (pod.get("status") or {}).get("phase") == "Pending":
                    found += _pod(snapshot, plan, pod)
    return found


def _last_words(pod: Manifest) -> str:
    """The last line that a container which ended left with its pod."""
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated")
        said = str((ended or {}).get("message") or "").strip()
        if ended and ended.get("exitCode") and said:
            return said.splitlines()[-1]
    return ""


def leaving(snapshot: Snapshot, plan: Plan) -> list[Manifest]:
    """The stack's GPU pods that are told to go and still finish their requests."""
    return [pod for pod in snapshot.here("pods") if is_own(pod, plan) and is_leaving(pod)]


def own_pods(snapshot: Snapshot, plan: Plan) -> list[Manifest]:
    """The stack's pods that are not on their way out."""
    return [
        pod
        for pod in snapshot.here("pods")
        if is_own(pod, plan) and not is_leaving(pod) and (pod.get("status") or {}).get("phase") != "Succeeded"
    ]


def is_own(found: Manifest, plan: Plan) -> bool:
    """The object is one of the stack's servers, or of what makes and reaches them."""
    return labels_of(found).get("app.kubernetes.io/instance") == plan.name


def is_leaving(pod: Manifest) -> bool:
    """It is told to go."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_ready(pod: Manifest) -> bool:
    """Its containers answer their probes."""
    return condition(pod, "Ready").get("status") == "True"


def events_of(snapshot: Snapshot, kind: str, name: str, uid: str | None = None) -> list[Manifest]:
    """Events about one object of the namespace, the newest first; with `uid` none of a namesake before it."""
    about = [
        e for e in snapshot.of("events")
        if (e.get("involvedObject") or {}).get("kind") == kind and e["involvedObject"].get("name") == name
        and (uid is None or e["involvedObject"].get("uid") in (None, uid))
    ]  # fmt: skip
    return sorted(about, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "", reverse=True)


def _refused_pods(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    """Pods that the API server did not let in: quotas, limits, Pod Security, webhooks."""
    found = []
    going = leaving(snapshot, plan)
    for owner in snapshot.here("replicasets"):
        if not is_own(owner, plan):
            continue
        failure = condition(owner, "ReplicaFailure")
        if failure.get("status") == "True":
            found.append(_refusal(str(failure.get("message", "")), plan, going))
    for event in snapshot.of("events"):
        about = event.get("involvedObject") or {}
        ours = about.get("kind") == "RayCluster" and str(about.get("name", "")).startswith(plan.name)
        # LeaderWorkerSet makes its pods through a StatefulSet of its own name, and one a group.
        ours = ours or (
            plan.tier_form.kind == "LeaderWorkerSet"
            and about.get("kind") == "StatefulSet"
            and str(about.get("name", "")).startswith(plan.name)
        )
        if ours and event.get("reason") in ("FailedToCreatePod", "FailedToCreateWorkerPod", "FailedCreate"):
            found.append(_refusal(str(event.get("message", "")), plan, going))
    return found


def _waits_for(going: list[Manifest], plan: Plan) -> str:
    names = ", ".join(pod["metadata"]["name"] for pod in going)
    return f"waits until {names} has given its GPUs back, at most {plan.leaving.grace_s} s"


def _refusal(message: str, plan: Plan, going: list[Manifest]) -> Finding:
    space = plan.namespace
    if "exceeded quota" in message and going:
        return note("workload", f"the next pod {_waits_for(going, plan)}", f"kubectl -n {space} get pods")
    if "exceeded quota" in message or "failed quota" in message:
        mend = f"kubectl -n {space} describe resourcequota; raise it, or ask for fewer replicas"
    elif "violates PodSecurity" in message:
        mend = f"pulumi up sets the level of a namespace of its own; else kubectl label namespace {space} "
        mend += "pod-security.kubernetes.io/enforce=LEVEL --overwrite"
    elif "failed calling webhook" in message:
        mend = "start what answers behind the webhook, or delete its configuration"
    elif "serviceaccount" in message:
        mend = "pulumi up makes it"
    else:
        mend = f"kubectl -n {space} get events --field-selector reason=FailedCreate"
    return problem("workload", f"pods are refused: {message}", mend)


def _ray(snapshot: Snapshot, plan: Plan) -> list[Finding]:
    """What KubeRay says of the stack's services, and its silence."""
    found = []
    for service in snapshot.here("rayservices"):
        if not is_own(service, plan):
            continue
        name = service["metadata"]["name"]
        if not service.get("status"):
            mend = "kubectl get pods -A -l app.kubernetes.io/name=kuberay-operator"
            found.append(
                problem("workload", f"RayService {name} is not looked after: no KubeRay operator answers", mend)
            )
            continue
        found += _stopped(service, plan)
        for event in events_of(snapshot, "RayService", name)[:3]:
            if event.get("type") == "Warning":
                look = f"kubectl -n {plan.namespace} describe rayservice {name}"
                found.append(warning("workload", f"RayService {name}: {event.get('message')}", look))
    return found


def _stopped(service: Manifest, plan: Plan) -> list[Finding]:
    """Serve applications that gave up, in their own words; Serve does not try again."""
    name, status = service["metadata"]["name"], service["status"]
    found = []
    for part in ("activeServiceStatus", "pendingServiceStatus"):
        cluster = status.get(part) or {}
        for application in (cluster.get("applicationStatuses") or {}).values():
            if application.get("status") not in ("DEPLOY_FAILED", "UNHEALTHY"):
                continue
            deployments = (application.get("serveDeploymentStatuses") or {}).values()
            texts = [application.get("message") or "", *(one.get("message") or "" for one in deployments)]
            mend = f"mend what it names, then kubectl -n {plan.namespace} delete pod -l "
            mend += f"ray.io/cluster={cluster.get('rayClusterName')},ray.io/node-type=head"
            found.append(problem("workload", f"RayService {name} stopped: {serving.sentence(texts)}", mend, name))
    return found


def _pod(snapshot: Snapshot, plan: Plan, pod: Manifest) -> list[Finding]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    placed = condition(pod, "PodScheduled")
    if placed.get("status") == "False":
        return [_unplaced(snapshot, plan, pod, placed)]
    if status.get("phase") == "Failed":
        text = f"pod {name} failed: {status.get('reason', '')} {status.get('message', '')}".rstrip()
        return [problem("pods", text, f"kubectl -n {plan.namespace} delete pod {name}   # a new one comes", name)]
    found = []
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        if is_ready(pod) and container.get("restartCount"):
            text = f"pod {name}: container {container.get('name')} serves, after {container['restartCount']} restarts"
            found.append(note("pods", text, f"kubectl -n {plan.namespace} logs {name} --previous", name))
        elif not is_ready(pod):
            found += _container(snapshot, plan, name, container)
    if not is_ready(pod) and not found:
        found += _stuck(snapshot, plan, pod)
    node = (pod.get("spec") or {}).get("nodeName")
    host = next((n for n in snapshot.of("nodes") if n["metadata"]["name"] == node), None)
    if host is None and node and snapshot.can_read("nodes"):
        mend = f"kubectl -n {plan.namespace} delete pod {name} --force   # a new one comes"
        found.append(problem("pods", f"pod {name} was on node {node}, which is gone", mend, name))
    elif host is not None and condition(host, "Ready").get("status") != "True":
        found.append(
            problem("pods", f"pod {name} is on node {node}, which is not ready", f"kubectl describe node {node}", name)
        )
    if not found and not is_ready(pod) and status.get("phase") == "Running" and (late := _late_min(plan, status)):
        text = f"pod {name} runs and is not ready after {late} min; its start-up budget is "
        text += f"{round(plan.timeouts.startup_s / 60)} min"
        found.append(problem("pods", text, f"kubectl -n {plan.namespace} logs {name}", name))
    elif not found and not is_ready(pod) and status.get("phase") == "Running":
        found.append(
            note(
                "pods",
                f"pod {name} runs and is not ready: it loads for up to {round(plan.timeouts.startup_s / 60)} min",
                f"kubectl -n {plan.namespace} logs -f {name}",
                name,
            )
        )
    return found


# Events of a kubelet that cannot start a pod, and keeps trying.
_STUCK = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedPrepareDynamicResources")


def _stuck(snapshot: Snapshot, plan: Plan, pod: Manifest) -> list[Finding]:
    """What the kubelet says of a pod that is placed and does not start."""
    name = pod["metadata"]["name"]
    for event in events_of(snapshot, "Pod", name, pod["metadata"].get("uid")):
        if event.get("reason") in _STUCK:
            text = f"pod {name} does not start: {event['reason']}: {event.get('message')}"
            return [problem("pods", text, f"kubectl -n {plan.namespace} describe pod {name}", name)]
    return []


def _late_min(plan: Plan, status: Manifest) -> int | None:
    """Minutes that a pod runs, when they are more than its start-up budget."""
    try:
        began = datetime.datetime.fromisoformat(str(status.get("startTime")))
    except ValueError:
        return None
    ran_s = (datetime.datetime.now(datetime.UTC) - began).total_seconds()
    return round(ran_s / 60) if ran_s > plan.timeouts.startup_s else None


def _unplaced(snapshot: Snapshot, plan: Plan, pod: Manifest, placed: dict[str, str]) -> Finding:
    """Why the scheduler, and the autoscaler behind it, do not place a pod."""
    name = pod["metadata"]["name"]
    events = events_of(snapshot, "Pod", name, pod["metadata"].get("uid"))
    by = {source(event): str(event.get("message", "")) for event in reversed(events)}
    reason = str(placed.get("message") or placed.get("reason") or "no reason given").partition(" preemption:")[0]
    reason = reason.replace(" no new claims to deallocate,", "")
    going = leaving(snapshot, plan)
    if going and "Insufficient" in reason:
        return note("pods", f"pod {name} {_waits_for(going, plan)}", f"kubectl -n {plan.namespace} get pods", name)
    waits = next((m for m in by.values() if m.startswith("Pod should schedule on")), None)
    if waits is not None and "karpenter" in by:
        return note("pods", f"pod {name} waits for its node: {waits}", "kubectl get nodeclaims", name)
    autoscaler = by.get("karpenter") or by.get("cluster-autoscaler")
    text = f"pod {name} is not placed: {reason}"
    if autoscaler:
        text += f" Autoscaler: {autoscaler}"
    mend = f"kubectl -n {plan.namespace} describe pod {name}"
    if "exceed limits" in (autoscaler or ""):
        mend = "raise modelstacks:cloud.limitGpus, or ask for fewer replicas"
    elif _SOLD_OUT.search(autoscaler or "") and plan.pool is not None:
        ways = " or ".join(dict.fromkeys(way.way for step in plan.pool.steps for way in step))
        zones = ", ".join(plan.spec.cloud.zones) if plan.spec.cloud is not None and plan.spec.cloud.zones else ""
        where = f" in {zones}" if zones else ""
        text = f"pod {name} is not placed: no {plan.pool.machine.name} is to be had as {ways}{where}. {autoscaler}"
        mend = "name more zones, another way in modelstacks:cloud.capacity, or another modelstacks:cloud.machine"
    return problem("pods", text, mend, name)


def source(event: Manifest) -> str:
    """Who reported an event."""
    reporter = event.get("reportingComponent") or (event.get("source") or {}).get("component") or ""
    return str(reporter)


def _container(snapshot: Snapshot, plan: Plan, pod: str, container: Manifest) -> list[Finding]:
    waiting = (container.get("state") or {}).get("waiting") or {}
    last = (
        (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    )
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    logs = f"kubectl -n {plan.namespace} logs {pod} -c {container.get('name')} --previous"
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        newest = next(
            (str(e.get("message")) for e in events_of(snapshot, "Pod", pod) if e.get("reason") == "Failed"), message
        )
        return [_pull(plan, pod, str(container.get("image")), newest)]
    if "read-only file system" in message or "read-only file system" in str(last.get("message", "")):
        text = f"pod {pod}: the container runtime's own hooks need to write to its root file system"
        return [problem("pods", text, "modelstacks:readOnlyRoot: false", pod)]
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return [
            problem("pods", f"pod {pod}: {reason}: {message}", f"kubectl -n {plan.namespace} describe pod {pod}", pod)
        ]
    code = last.get("exitCode")
    if not code:
        if reason == "CrashLoopBackOff":
            text = f"pod {pod}: container {container.get('name')} ends again and again: {message or 'no reason given'}"
            return [problem("pods", text, logs, pod)]
        return []
    said = str(last.get("message") or "").strip()[-400:]
    text = f"pod {pod}: container {container.get('name')} ended with code {code} ({last.get('reason') or 'Error'})"
    if code == 137 and last.get("reason") != "OOMKilled":
        return [problem("pods", f"{text}: it was killed, by a probe or by hand", logs, pod)]
    if last.get("reason") == "OOMKilled":
        return [problem("pods", f"{text}: the node's memory, or /dev/shm, was not enough", logs, pod)]
    if _OUT_OF_MEMORY.search(said):
        mend = (
            f"{logs}; lower gpuMemoryUtilization, maxNumSeqs or context, and report it: the plan should have refused it"
        )
        return [problem("pods", f"{text}: GPU memory ran out: {said}", mend, pod)]
    return [problem("pods", text + (f": {said}" if said else ""), logs, pod)]


def _pull(plan: Plan, pod: str, image: str, why: str) -> Finding:
    mend = f"see that {image} exists and can be reached from the nodes"
    if re.search(r"\b40[13]\b|denied|[Uu]nauthorized|authoriz", why):
        mend = f"name a Secret with the registry's credentials: modelstacks:imagePullSecret; {mend}"
    elif re.search(r"\b429\b|toomanyrequests", why):
        mend = "the registry limits anonymous pulls: name modelstacks:imagePullSecret, or mirror the image"
    elif "no space left" in why:
        mend = "the node's disk is full: raise modelstacks:cloud.bootDiskGib"
    return problem("pods", f"pod {pod}: image {image} cannot be pulled: {why}", mend, pod)
