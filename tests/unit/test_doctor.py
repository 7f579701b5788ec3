"""The doctor on a cluster that is well, and on that cluster with one thing broken after another."""

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from modelstacks import render, spec
from modelstacks.catalog import Catalog
from modelstacks.cluster import access, doctor, operators, status
from modelstacks.cluster.findings import Finding, quantity, tolerates
from modelstacks.cluster.snapshot import Snapshot
from modelstacks.plan import Plan, plan

CATALOG = Catalog()
Objects = dict[str, list[dict[str, Any]]]


def decide(cloud: dict[str, Any] | None = None, **more: Any) -> Plan:
    """A gated 8B model on one L4 of nodes that exist, or what `more` says."""
    asked = {
        "model": "llama-3.1-8b", "gpu": "l4", "acceptedLicense": "llama3.1", **more,
        "cloud": cloud or {"kind": "existing"},
    }  # fmt: skip
    return plan(spec.parse(asked, CATALOG, source="test"), CATALOG, stack="test")


def node(name: str, **labels: str) -> dict[str, Any]:
    """A healthy node with one L4."""
    resources = {"cpu": "8", "memory": "32Gi", "ephemeral-storage": "200Gi", "nvidia.com/gpu": "1", "pods": "110"}
    return {
        "metadata": {"name": name, "labels": {"nvidia.com/gpu.product": "NVIDIA-L4", **labels}},
        "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}]},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "capacity": dict(resources),
            "allocatable": dict(resources),
        },
    }


def named(name: str, namespace: str | None = None, **rest: Any) -> dict[str, Any]:
    """An object of a name, in a namespace or cluster-wide."""
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"metadata": metadata, **rest}


def secret(name: str, **data: str) -> dict[str, Any]:
    """A Secret of the stack's namespace."""
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return named(name, "test", type="Opaque", data=encoded)


def workload(name: str, labels: dict[str, str], image: str, ready: int = 1) -> dict[str, Any]:
    """A Deployment or DaemonSet of an operator."""
    containers = [{"name": "main", "image": image}]
    found = named(name, "ops", spec={"replicas": 1, "template": {"spec": {"containers": containers}}})
    found["metadata"]["labels"] = labels
    found["status"] = {"availableReplicas": ready, "numberReady": ready, "desiredNumberScheduled": 1}
    return found


def well() -> Objects:
    """Everything of a cluster that the stack could run on."""
    namespace = named("test")
    namespace["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": "restricted"}
    plugin = workload("nvdp", {"app.kubernetes.io/name": "nvidia-device-plugin"}, "x/k8s-device-plugin:v0.20.0")
    collections: Objects = {name: [] for name in (
        "pods", "events", "cluster_events", "quotas", "limits", "claims", "deployments", "replicasets",
        "storageclasses", "validating_webhooks", "mutating_webhooks", "nodepools", "nodeclaims", "rayservices",
        "deviceclasses", "scaledobjects", "autoscalers", "jobs",
        "resourceslices", "endpointslices", "definitions", "helm_releases", "operator_claims", "priorityclasses",
    )}  # fmt: skip
    return collections | {
        "nodes": [node("gpu-1"), node("gpu-2")],
        "namespaces": [namespace],
        "daemonsets": [plugin],
        "secrets": [secret("hub-token", token="hf_abc"), secret("test-api-key-1", key="x")],
    }


def look(objects: Objects, decided: Plan | None = None, **more: Any) -> list[Finding]:
    """The findings of one reading."""
    decided = decided or decide()
    snapshot = Snapshot(
        "v1.34.1", "https://cluster", decided.namespace,
        objects={name: tuple(found) for name, found in objects.items()}, **more,
    )  # fmt: skip
    return doctor.examine(snapshot, decided, render.render(decided, CATALOG), CATALOG)


def serious(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.level == "problem"]


def test_a_cluster_that_is_well_has_no_problem() -> None:
    """And says what it looked at."""
    found = look(well())
    assert not serious(found), [one.message for one in found]
    assert any("Kubernetes v1.34.1" in one.message for one in found)


def pod(**status_: Any) -> dict[str, Any]:
    """The stack's pod."""
    found = named("test-1", "test", spec={"nodeName": "gpu-1", "containers": []}, status=status_)
    found["metadata"]["labels"] = {"app.kubernetes.io/instance": "test"}
    return found


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(phase="Pending", containerStatuses=[{"name": "server", "image": "a/b:c", "state": state}])


def ended(code: int, reason: str, message: str = "") -> dict[str, Any]:
    last = {"terminated": {"exitCode": code, "reason": reason, "message": message}}
    return pod(phase="Running", containerStatuses=[{"name": "server", "state": {}, "lastState": last}])


def event(kind: str, name: str, reason: str, message: str, component: str = "default-scheduler") -> dict[str, Any]:
    return {
        **named(f"{name}.1", "test"),
        "involvedObject": {"kind": kind, "name": name},
        "reason": reason, "message": message, "type": "Warning", "source": {"component": component},
        "lastTimestamp": "2026-11-24T10:00:00Z",
    }  # fmt: skip


def _each_node(change: Callable[[dict[str, Any]], object]) -> Callable[[Objects], object]:
    return lambda o: [change(n) for n in o["nodes"]]


def _without_gpu(found: dict[str, Any]) -> None:
    for amounts in ("allocatable", "capacity"):
        found["status"][amounts].pop("nvidia.com/gpu")


BREAKS: list[tuple[str, Callable[[Objects], object], str, str]] = [
    # What is broken, how, what is said, what mends it.
    ("no nodes", lambda o: o["nodes"].clear(), "none of 0 nodes carries an NVIDIA GPU", "cloud.kind"),
    ("cordoned", _each_node(lambda n: n["spec"].update(unschedulable=True)), "is cordoned", "kubectl uncordon gpu-1"),
    (
        "not ready",
        _each_node(
            lambda n: n["status"].update(
                conditions=[{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]
            )
        ),
        "is not ready (NodeStatusUnknown)",
        "kubectl describe node gpu-1",
    ),
    ("no plugin", _each_node(_without_gpu), "offers no nvidia.com/gpu", "device plugin"),
    (
        "sick GPUs",
        _each_node(lambda n: n["status"]["allocatable"].update({"nvidia.com/gpu": "0"})),
        "has 1 GPUs and offers none",
        "device plugin",
    ),
    (
        "a taint",
        _each_node(lambda n: n["spec"]["taints"].append({"key": "sku", "value": "gpu", "effect": "NoSchedule"})),
        "has the taint sku=gpu:NoSchedule",
        "{key: sku, operator: Exists}",
    ),
    (
        "disk pressure",
        _each_node(lambda n: n["status"]["conditions"].append({"type": "DiskPressure", "status": "True"})),
        "is under DiskPressure",
        "kubectl describe",
    ),
    (
        "no memory",
        _each_node(lambda n: n["status"]["allocatable"].update(memory="4Gi")),
        "offers 4 GiB memory, a pod asks for 10 GiB",
        "larger nodes",
    ),
    (
        "small disk",
        _each_node(lambda n: n["status"]["allocatable"].update({"ephemeral-storage": "20Gi"})),
        "offers 20 GiB ephemeral-storage",
        "larger nodes",
    ),
    (
        "time slices",
        _each_node(lambda n: n["metadata"]["labels"].update({"nvidia.com/gpu.product": "NVIDIA-L4-SHARED"})),
        "shared in time slices",
        "whole GPUs",
    ),
    (
        "MIG",
        _each_node(lambda n: n["metadata"]["labels"].update({"nvidia.com/gpu.product": "NVIDIA-L4-MIG-1g.5gb"})),
        "cut into MIG",
        "whole GPUs",
    ),
    (
        "other GPUs",
        _each_node(lambda n: n["metadata"]["labels"].update({"nvidia.com/gpu.product": "NVIDIA-A10G"})),
        "NVIDIA-A10G on 2 nodes",
        "modelstacks plan test --gpu",
    ),
    (
        "no labels",
        _each_node(lambda n: n["metadata"]["labels"].pop("nvidia.com/gpu.product")),
        "GPU Feature Discovery",
        "operators: [gpu-operator]",
    ),
    (
        "GPUs taken",
        lambda o: o["pods"].extend(
            named(
                f"other-{n}",
                "else",
                spec={"nodeName": n, "containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
                status={"phase": "Running"},
            )
            for n in ("gpu-1", "gpu-2")
        ),
        "has 0 of 1 nvidia.com/gpu free",
        "spec.nodeName=gpu-1",
    ),
    ("no token", lambda o: o["secrets"].clear(), "there is no Secret hub-token", "modelstacks:hubToken"),
    (
        "token under another key",
        lambda o: o.update(secrets=[secret("hub-token", HF_TOKEN="hf_x")]),
        "holds HF_TOKEN and no key token",
        "--from-literal=token=",
    ),
    (
        "token with line break",
        lambda o: o.update(secrets=[secret("hub-token", token="hf_x\n")]),
        "has blanks or a line break",
        "echo -n",
    ),
    ("empty token", lambda o: o.update(secrets=[secret("hub-token", token="")]), "is empty", "hubToken"),
    (
        "strict namespace is gone",
        lambda o: o["namespaces"][0].update(status={"phase": "Terminating"}),
        "is being deleted",
        "kubectl get namespace",
    ),
    (
        "foreign quota",
        lambda o: o["quotas"].append(named("team", "test", spec={"hard": {"requests.nvidia.com/gpu": "0"}}, status={})),
        "quota team allows 0 requests.nvidia.com/gpu",
        "edit resourcequota team",
    ),
    (
        "quota on limits",
        lambda o: o["quotas"].append(named("team", "test", spec={"hard": {"limits.cpu": "10"}}, status={})),
        "counts limits.cpu, which this stack's pods do not set",
        "LimitRange",
    ),
    (
        "limit range",
        lambda o: o["limits"].append(
            named("lr", "test", spec={"limits": [{"type": "Container", "max": {"memory": "2Gi"}}]})
        ),
        "LimitRange lr allows a container 2 GiB memory",
        "edit limitrange lr",
    ),
    (
        "webhook",
        lambda o: o["validating_webhooks"].append(
            named(
                "guard",
                webhooks=[
                    {
                        "name": "pods.guard.io",
                        "clientConfig": {"service": {"name": "guard", "namespace": "guard"}},
                        "rules": [{"resources": ["pods"], "operations": ["CREATE"]}],
                    }
                ],
            )
        ),
        "nobody answers behind its Service guard/guard",
        "-n guard get pods",
    ),
    (
        "two plugins",
        lambda o: o["deployments"].append(
            workload(
                "gpu-operator", {"app.kubernetes.io/component": "gpu-operator"}, "nvcr.io/nvidia/gpu-operator:v26.7.0"
            )
        ),
        "hand out the same GPUs",
        "helm uninstall",
    ),
    (
        "image denied",
        lambda o: (
            o["pods"].append(waiting("ImagePullBackOff")),
            o["events"].append(event("Pod", "test-1", "Failed", "failed to authorize: 401 Unauthorized", "kubelet")),
        ),
        "image a/b:c cannot be pulled: failed to authorize",
        "imagePullSecret",
    ),
    (
        "image limited",
        lambda o: o["pods"].append(waiting("ErrImagePull", "429 Too Many Requests: toomanyrequests")),
        "toomanyrequests",
        "anonymous pulls",
    ),
    (
        "bad config",
        lambda o: o["pods"].append(waiting("CreateContainerConfigError", 'secret "x" not found')),
        'secret "x" not found',
        "describe pod",
    ),
    (
        "a small default limit",
        lambda o: o["limits"].append(
            named("lr", "test", spec={"limits": [{"type": "Container", "default": {"memory": "1Gi"}}]})
        ),
        "gives containers a limit of 1 GiB memory",
        "edit limitrange lr",
    ),
    (
        "a count of deployments",
        lambda o: o["quotas"].append(named("n", "test", spec={"hard": {"count/deployments.apps": "0"}}, status={})),
        "quota n allows 0 count/deployments.apps",
        "edit resourcequota n",
    ),
    (
        "a node that is being set up",
        _each_node(
            lambda n: n["spec"]["taints"].append(
                {"key": "node.cloudprovider.kubernetes.io/uninitialized", "effect": "NoSchedule"}
            )
        ),
        "the cloud controller manager has not seen the node yet",
        "kubectl describe node",
    ),
    (
        "no room for pods",
        _each_node(lambda n: n["status"]["allocatable"].update(pods="0")),
        "offers 0 pods, a pod asks for 1",
        "larger nodes",
    ),
    (
        "out of host memory",
        lambda o: o["pods"].append(ended(137, "OOMKilled")),
        "memory, or /dev/shm, was not enough",
        "--previous",
    ),
    (
        "out of GPU memory",
        lambda o: o["pods"].append(ended(1, "Error", "ValueError: No available memory for the cache blocks.")),
        "GPU memory ran out",
        "maxNumSeqs",
    ),
    (
        "evicted",
        lambda o: o["pods"].append(pod(phase="Failed", reason="Evicted", message="low on ephemeral-storage")),
        "Evicted low on ephemeral-storage",
        "delete pod test-1",
    ),
    (
        "node vanished",
        lambda o: (o["pods"].append(pod(phase="Running")), o["nodes"].pop(0)),
        "was on node gpu-1, which is gone",
        "--force",
    ),
    (
        "refused by security",
        lambda o: o["replicasets"].append(
            {
                **named("test-rs", "test"),
                "metadata": {"name": "test-rs", "namespace": "test", "labels": {"app.kubernetes.io/instance": "test"}},
                "status": {
                    "conditions": [
                        {
                            "type": "ReplicaFailure",
                            "status": "True",
                            "message": 'pods "x" is forbidden: violates PodSecurity "restricted:latest"',
                        }
                    ]
                },
            }
        ),
        "violates PodSecurity",
        "pod-security.kubernetes.io/enforce",
    ),
]


def test_a_server_that_restarted_once_and_serves_is_only_a_note() -> None:
    """Its last words are history once it is ready."""
    objects = well()
    found = ended(1, "Error")
    found["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    found["status"]["containerStatuses"][0]["restartCount"] = 2
    objects["pods"].append(found)
    said = look(objects)
    assert not serious(said)
    assert any("serves, after 2 restarts" in one.message for one in said)


@pytest.mark.parametrize(
    ("state", "events", "says"),
    [
        (waiting("CrashLoopBackOff", "back-off 5m0s"), [], "ends again and again: back-off"),
        (ended(137, "Error"), [], "it was killed, by a probe or by hand"),
        (
            waiting("ContainerCreating"),
            [event("Pod", "test-1", "FailedMount", "volume is attached elsewhere", "kubelet")],
            "does not start: FailedMount: volume is attached elsewhere",
        ),
        (pod(phase="Running", startTime="2026-01-01T00:00:00Z"), [], "runs and is not ready after"),
    ],
)  # fmt: skip
def test_a_pod_that_does_not_come_up_says_why(state: dict[str, Any], events: list[dict[str, Any]], says: str) -> None:
    """Loops without an exit code, kills, volumes, and a start-up that outlasts its budget."""
    objects = well()
    objects["pods"].append(state)
    objects["events"] += events
    assert any(says in one.message for one in serious(look(objects))), [one.message for one in look(objects)]


def test_an_evicted_pod_that_was_replaced_is_only_a_note() -> None:
    """A new one came already."""
    objects = well()
    other = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    other["metadata"]["name"] = "test-2"
    objects["pods"] += [pod(phase="Failed", reason="Evicted"), other]
    assert not serious(look(objects))


def test_what_was_taken_away_behind_pulumis_back_is_named() -> None:
    """Pulumi believes its own state, so the mend is a refresh."""
    decided = decide()
    live = {(m["kind"], m["metadata"]["name"]): m for m in render.render(decided, CATALOG)}
    assert not serious(look(well(), own=live))
    without = {key: m for key, m in live.items() if key[0] != "Service"}
    (one,) = serious(look(well(), own=without))
    assert (one.message, one.mend) == (
        "Service test of the stack is not in the cluster any more",
        "pulumi up --refresh -s test",
    )
    assert not serious(look(well(), own=without, hidden=frozenset({("Service", "test")})))
    scaled = {**live, ("Deployment", "test"): {**live["Deployment", "test"], "spec": {"replicas": 0, "paused": True}}}
    said = [one.message for one in serious(look(well(), own=scaled))]
    assert said == [
        "Deployment test has 0 replicas in the cluster and 1 in the plan",
        "Deployment test is paused: no change of it is rolled out",
    ]


HARMLESS: list[tuple[str, Callable[[Objects], object]]] = [
    (
        "a quota for other pods",
        lambda o: o["quotas"].append(
            named("best", "test", spec={"hard": {"pods": "0"}, "scopes": ["BestEffort"]}, status={})
        ),
    ),
    (
        "a quota whose limits have a default",
        lambda o: (
            o["quotas"].append(named("team", "test", spec={"hard": {"limits.cpu": "99"}}, status={})),
            o["limits"].append(named("lr", "test", spec={"limits": [{"type": "Container", "default": {"cpu": "8"}}]})),
        ),
    ),
    (
        "a webhook for another group",
        lambda o: o["validating_webhooks"].append(
            named(
                "metrics",
                webhooks=[
                    {
                        "name": "pods.metrics.io",
                        "clientConfig": {"service": {"name": "m", "namespace": "m"}},
                        "rules": [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods"], "operations": ["CREATE"]}],
                    }
                ],
            )
        ),
    ),
    (
        "a webhook for labelled pods",
        lambda o: o["validating_webhooks"].append(
            named(
                "inject",
                webhooks=[
                    {
                        "name": "inject.io",
                        "clientConfig": {"service": {"name": "m", "namespace": "m"}},
                        "objectSelector": {"matchLabels": {"inject": "yes"}},
                        "rules": [{"apiGroups": [""], "resources": ["pods"], "operations": ["CREATE"]}],
                    }
                ],
            )
        ),
    ),
]


@pytest.mark.parametrize("change", [row[1] for row in HARMLESS], ids=[row[0] for row in HARMLESS])
def test_what_does_not_concern_the_stack_is_no_problem(change: Callable[[Objects], object]) -> None:
    """A doctor that cries wolf is not asked again."""
    objects = well()
    change(objects)
    found = serious(look(objects))
    assert not found, [one.message for one in found]


@pytest.mark.parametrize(("break_it", "says", "mends"), [row[1:] for row in BREAKS], ids=[row[0] for row in BREAKS])
def test_one_broken_thing_is_named_with_its_mend(break_it: Callable[[Objects], object], says: str, mends: str) -> None:
    """The problem in words and numbers, and the command."""
    objects = copy.deepcopy(well())
    break_it(objects)
    found = serious(look(objects))
    assert any(says in one.message for one in found), [one.message for one in look(objects)]
    (one, *_) = [one for one in found if says in one.message]
    assert one.mend is not None
    assert mends in one.mend


def test_one_bad_node_beside_good_ones_is_only_a_warning() -> None:
    """What suffices is not a problem."""
    objects = well()
    objects["nodes"][0]["spec"]["unschedulable"] = True
    found = look(objects)
    assert not serious(found)
    assert any("gpu-1 is cordoned; the other nodes suffice" in one.message for one in found)


@pytest.mark.parametrize(
    ("more", "break_it", "says"),
    [
        ({"weights": {"storageClass": "fast"}}, lambda o: None, "there is no StorageClass fast"),
        ({"weights": {"claim": "w"}}, lambda o: None, "there is no PersistentVolumeClaim w"),
        (
            {"weights": {"claim": "w"}, "replicas": 2},
            lambda o: o["claims"].append(
                named("w", "test", spec={"accessModes": ["ReadWriteOnce"]}, status={"phase": "Bound"})
            ),
            "2 pods would share PersistentVolumeClaim w, which is ReadWriteOnce",
        ),
        (
            {"weights": {"claim": "w"}},
            lambda o: o["claims"].append(
                named("w", "test", spec={"accessModes": ["ReadWriteOnce"]}, status={"phase": "Pending"})
            ),
            "PersistentVolumeClaim w is Pending",
        ),
        ({"imagePullSecret": "pull"}, lambda o: None, "there is no Secret pull"),
        ({"imagePullSecret": "pull"}, lambda o: o["secrets"].append(secret("pull", a="b")), "is of type Opaque"),
        ({"namespaceOwner": "other", "namespace": "team"}, lambda o: None, "namespace team does not exist"),
    ],
)
def test_what_the_stack_names_must_be_there(more: dict[str, Any], break_it: Any, says: str) -> None:
    """Storage, credentials and a namespace of another's."""
    objects = well()
    break_it(objects)
    assert any(says in one.message for one in serious(look(objects, decide(**more))))


def test_a_missing_key_of_the_api_is_named() -> None:
    """No server starts without it, where it is deployed."""
    decided = decide()
    live = {(m["kind"], m["metadata"]["name"]): m for m in render.render(decided, CATALOG)}
    objects = well()
    objects["secrets"].pop()
    (one,) = serious(look(objects, own=live))
    assert one.message == "there is no Secret test-api-key-1 with the API's key"
    assert not serious(look(objects)), "before the first up it is not there yet"
    own = decide(apiKeySecret="mine")
    assert any("no Secret mine" in one.message for one in serious(look(objects, own)))


def _job(**status_: Any) -> dict[str, Any]:
    found = named("test-weights-1", "test", spec={}, status=status_)
    found["metadata"]["labels"] = {"app.kubernetes.io/instance": "test-weights"}
    return found


def test_weights_that_cannot_be_fetched_are_told_in_the_jobs_own_words() -> None:
    """A wrong token, a gated model: the last line of the pod that ended."""
    decided = decide(weights={"storageClass": "efs", "shared": True})
    objects = well()
    objects["storageclasses"].append(named("efs", volumeBindingMode="Immediate"))
    state = {"terminated": {"exitCode": 3, "message": "weights: a\nweights: the hub refuses the token (HTTP 401)"}}
    fetcher = named(
        "test-weights-1-x", "test", spec={}, status={"containerStatuses": [{"name": "weights", "state": state}]}
    )
    fetcher["metadata"]["labels"] = {"batch.kubernetes.io/job-name": "test-weights-1"}
    objects["pods"].append(fetcher)
    objects["jobs"].append(_job(conditions=[{"type": "Failed", "status": "True", "message": "policy"}], failed=1))
    (one,) = [f for f in serious(look(objects, decided)) if f.check == "weights"]
    assert "the hub refuses the token (HTTP 401)" in one.message
    objects["jobs"] = [_job(failed=2)]
    (slow,) = [f for f in look(objects, decided) if f.check == "weights"]
    assert (slow.level, "2 tries failed" in slow.message) == ("warning", True)


def test_an_autoscaler_without_metrics_is_named() -> None:
    """Pain 25: an empty answer is an error that somebody sees, not a reason to scale."""
    decided = decide(autoscale={"max": 3})
    objects = well()
    scaled = named("test", "test", status={"conditions": [{"type": "Ready", "status": "True"}]})
    objects["scaledobjects"].append(scaled)
    serves = {("Deployment", "test"): {"spec": {"replicas": 1}, "status": {"readyReplicas": 1}}}
    assert not [f for f in look(objects, decided, own=serves) if f.check == "scaling"]
    text = "prometheus metrics 'prometheus' target may be lost, the result is empty"
    objects["events"].append(event("ScaledObject", "test", "KEDAScalerFailed", text, "keda-operator"))
    (one,) = [f for f in serious(look(objects, decided, own=serves)) if f.check == "scaling"]
    assert "no answer to its query, so replicas stay as they are" in one.message
    assert "modelstacks:monitoring" in str(one.mend)
    loads = {("Deployment", "test"): {"spec": {"replicas": 1}, "status": {}}}
    assert not [f for f in look(objects, decided, own=loads) if f.check == "scaling"], "it has no metrics yet"


def test_a_query_that_cannot_wake_a_stack_is_mentioned() -> None:
    """Asleep, the other queries may have no answer, but the one that counts those who wait outside should."""
    zero = {"min": 0, "max": 3, "activationQuery": "sum(q) or vector(0)", "coldStartSeconds": 3600}
    objects = well()
    objects["scaledobjects"].append(named("test", "test"))
    objects["events"].append(event("ScaledObject", "test", "KEDAScalerFailed", "no answer", "keda-operator"))
    asleep = {("Deployment", "test"): {"spec": {"replicas": 0}, "status": {}}}
    (one,) = [f for f in look(objects, decide(autoscale=zero), own=asleep) if f.check == "scaling"]
    assert (one.level, "activationQuery" in str(one.mend)) == ("note", True)


def test_a_roll_out_that_waits_for_gpus_is_no_problem() -> None:
    """Pains 19 and 21: the next pod waits for the old one's GPUs, and that is said as it is."""
    objects = well()
    old = pod(phase="Running")
    old["metadata"] |= {"name": "test-old", "deletionTimestamp": "2026-11-24T10:00:00Z"}
    placed = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes: Insufficient nvidia.com/gpu."}
    objects["pods"] += [old, pod(phase="Pending", conditions=[placed])]
    found = look(objects)
    assert not [f for f in serious(found) if f.check == "pods"]
    assert any("waits until test-old has given its GPUs back" in f.message for f in found)


def test_image_volumes_need_a_cluster_that_has_them() -> None:
    """On by default from 1.35."""
    decided = decide(weights={"image": "example.com/weights:1"})
    assert any("image volumes off" in f.message for f in serious(look(well(), decided)))


def test_credentials_for_another_registry_are_noticed() -> None:
    """The Secret is readable, and for other images."""
    config = json.dumps({"auths": {"https://quay.io": {}}})
    found = secret("pull", **{".dockerconfigjson": config}) | {"type": "kubernetes.io/dockerconfigjson"}
    objects = well()
    objects["secrets"].append(found)
    said = [one.message for one in look(objects, decide(imagePullSecret="pull"))]
    assert any("has credentials for quay.io, images come from docker.io" in text for text in said), said


def test_kinds_that_are_not_served_name_what_brings_them() -> None:
    """Karpenter on AWS, KubeRay by operator, and another version than ours."""
    karpenter = decide({"kind": "karpenter-aws"})
    missing = frozenset({("karpenter.sh/v1", "NodePool"), ("karpenter.k8s.aws/v1", "EC2NodeClass")})
    found = look(well(), karpenter, missing_kinds=missing, versions={"karpenter.sh": ("v1beta1",)})
    said = {one.message: one.mend or "" for one in serious(found) if one.check == "apis"}
    assert "the cluster does not serve NodePool of karpenter.sh/v1; it serves karpenter.sh/v1beta1" in said
    assert all("helm upgrade --install karpenter" in mend for mend in said.values())
    ray = decide(model="deepseek-r1", gpu="h100-sxm", gpus=16, quantization="fp8", acceptedLicense="MIT")
    found = look(well(), ray, missing_kinds=frozenset({("ray.io/v1", "RayService")}))
    (one,) = [one for one in found if one.check == "apis"]
    assert "operators: [kuberay]" in (one.mend or "")
    assert any("kuberay is not there" in one.message for one in serious(found))


def test_permissions_that_lack_are_grouped_by_verb() -> None:
    """One line for each verb and place."""
    denied = tuple(access.Denied("create", name, "", "test") for name in ("services", "secrets"))
    (one,) = [f for f in serious(look(well(), denied=denied)) if f.check == "permissions"]
    assert one.message == "this user may not create services, secrets in namespace test"
    assert "kubectl auth can-i create services -n test" in (one.mend or "")


def test_what_may_not_be_read_is_said() -> None:
    """A check that saw nothing must not look like one that found nothing."""
    objects = well()
    del objects["nodes"]
    found = look(objects, unreadable={"nodes": "forbidden"})
    assert any("nodes may not be listed by this user" in one.message for one in found)


def karpenter_pool(**status_: Any) -> dict[str, Any]:
    return named("test", spec={"limits": {"nvidia.com/gpu": "1"}}, status=status_)


@pytest.mark.parametrize(
    ("claim", "says", "mends"),
    [
        ({"type": "Initialized", "status": "Unknown", "reason": "ResourceNotRegistered",
          "message": 'Resource "nvidia.com/gpu" was requested but not registered'}, "its device plugin does not run",
         "operators: [nvidia-device-plugin]"),
        ({"type": "Initialized", "status": "Unknown", "reason": "StartupTaintsExist",
          "message": 'StartupTaint "a=b:NoSchedule" still exists'}, "nobody takes it off", "cloud.startupTaints"),
    ],
)  # fmt: skip
def test_a_node_claim_that_is_stuck_says_where(claim: dict[str, str], says: str, mends: str) -> None:
    """Karpenter's own reason, and what it means here."""
    objects = well()
    found = named("test-abc", status={"conditions": [
        {"type": "Launched", "status": "True"}, {"type": "Registered", "status": "True"}, claim,
    ]})  # fmt: skip
    found["metadata"]["labels"] = {"karpenter.sh/nodepool": "test"}
    objects["nodeclaims"].append(found)
    problems = serious(look(objects, decide({"kind": "karpenter-aws"})))
    (one,) = [p for p in problems if says in p.message]
    assert mends in (one.mend or "")


def test_a_cloud_without_capacity_is_named() -> None:
    """Karpenter deletes the claim at once, so only its event tells."""
    objects = well()
    message = "NodeClaim test-xyz event: all requested instance types were unavailable during launch"
    objects["cluster_events"].append(
        {**event("NodeClaim", "test-xyz", "InsufficientCapacityError", message), "count": 7}
    )
    (one,) = [p for p in serious(look(objects, decide({"kind": "karpenter-aws"}))) if p.check == "pool"]
    assert "the cloud has no g6.xlarge to give (7 tries): all requested instance types" in one.message
    assert "cloud.capacity" in (one.mend or "")


def test_a_pool_object_that_does_not_work_says_its_own_reason() -> None:
    """Conditions of NodePool and node class as they are."""
    decided = decide({"kind": "karpenter-aws"})
    conditions = [{"type": "SubnetsReady", "status": "False", "reason": "SubnetsNotFound", "message": "no subnets"}]
    own = {("EC2NodeClass", "test"): named("test", status={"conditions": conditions})}
    found = serious(look(well(), decided, own=own))
    assert any(one.message == "EC2NodeClass test: SubnetsReady is false: no subnets" for one in found)


def test_claims_need_their_driver() -> None:
    """Dynamic Resource Allocation: the API, the class and the slices."""
    decided = decide({"kind": "existing", "gpuAllocation": "dra"})
    objects = well()
    assert any("no DeviceClass gpu.nvidia.com" in one.message for one in serious(look(objects, decided)))
    objects["deviceclasses"].append(named("gpu.nvidia.com"))
    assert any("no ResourceSlice" in one.message for one in serious(look(objects, decided)))
    del objects["deviceclasses"]
    assert any("does not serve resource.k8s.io/v1" in one.message for one in serious(look(objects, decided)))


def test_an_operator_has_one_owner() -> None:
    """Installed by the first stack, used by the second, kept by the first at its next up."""
    kuberay = CATALOG.operators["kuberay"]
    (first,) = operators.decide([kuberay], {}, {})
    assert first.installs
    there = {"kuberay": operators.Installation(kuberay, "1.5.1", "ray-system", True, "workload")}
    (second,) = operators.decide([kuberay], there, {})
    assert not second.installs
    claim = operators.claim("first", "first", [first], {})
    (again,) = operators.decide([kuberay], there, claim["data"])
    assert again.installs, "its own release stays in its state"
    both = operators.claims([claim, operators.claim("second", "second", [second], {})])
    assert both == {"kuberay": ["first/first (installed)", "second/second (used)"]}


@pytest.mark.parametrize("name", CATALOG.operators)
def test_an_operator_is_found_however_it_came(name: str) -> None:
    """By its workload's labels, or by its Helm release."""
    row = CATALOG.operators[name]
    lists: dict[str, Any] = {"deployments": [], "daemonsets": [], "releases": [], "definitions": []}
    assert name not in operators.find([row], **lists)
    for described in row.workloads:
        found = workload("x", dict(described.labels), "registry/x:v1.2.3")
        key = "deployments" if described.kind == "Deployment" else "daemonsets"
        installation = operators.find([row], **{**lists, key: [found]})[name]
        assert (installation.version, installation.by) == ("1.2.3", "workload")
    release = named("sh.helm.release.v1.x.v1", "ops")
    release["metadata"]["labels"] = {"name": row.release, "owner": "helm"}
    assert operators.find([row], **{**lists, "releases": [release]})[name].by == "Helm release"


def test_status_counts_what_runs() -> None:
    """Replicas, pods and nodes beside the plan."""
    decided = decide({"kind": "kwok"}, replicas=2)
    objects = well()
    objects["nodes"][0]["metadata"]["labels"]["modelstacks.dev/pool"] = "test"
    ready = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    stuck = pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}])
    stuck["metadata"]["name"] = "test-2"
    objects["pods"] += [ready, stuck]
    live = named("test", "test", kind="Deployment", status={"readyReplicas": 1})
    manifests = render.render(decided, CATALOG)
    snapshot = Snapshot(
        "v1.34.1", "https://cluster", "test", objects={k: tuple(v) for k, v in objects.items()},
        own={("Deployment", "test"): live},
    )  # fmt: skip
    found = status.status(snapshot, decided, manifests, [])
    assert (found.deployed, found.ready_replicas, found.replicas, found.healthy) == (True, 1, 2, False)
    assert [(line.name, line.state, line.ready) for line in found.pods] == [
        ("test-1", "Running", True), ("test-2", "Unschedulable", False),
    ]  # fmt: skip
    assert (len(found.nodes), found.gpu_limit) == (1, 2)
    assert found.usd_per_hour == pytest.approx(0.8048)


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("16Gi", 16 * 2**30), ("1", 1.0), ("2k", 2000.0), ("1e3", 1000.0), ("0", 0.0), (3, 3.0)],
)
def test_quantities_are_read_as_kubernetes_has_them(text: object, number: float) -> None:
    assert quantity(text) == number


@pytest.mark.parametrize(
    ("toleration", "taint", "holds"),
    [
        ({"operator": "Exists"}, {"key": "a", "effect": "NoSchedule"}, True),
        ({"key": "a", "operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute"}, True),
        ({"key": "a", "operator": "Exists", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}, False),
        ({"key": "a", "value": "b"}, {"key": "a", "value": "b", "effect": "NoSchedule"}, True),
        ({"key": "a", "value": "c"}, {"key": "a", "value": "b", "effect": "NoSchedule"}, False),
        ({"key": "z", "operator": "Exists"}, {"key": "a", "effect": "PreferNoSchedule"}, True),
    ],
)
def test_tolerations_meet_taints_as_the_scheduler_has_it(
    toleration: dict[str, str], taint: dict[str, str], holds: bool
) -> None:
    assert tolerates([toleration], taint) == holds


def over_nodes(**more: Any) -> Plan:
    """DeepSeek R1 on two nodes a replica."""
    asked = {"model": "deepseek-r1", "gpu": "h100-sxm", "quantization": "fp8", **more}
    return plan(spec.parse(asked, CATALOG, source="test"), CATALOG, stack="test")


def test_an_application_that_stopped_says_why_in_its_own_words() -> None:
    """Out of the stack traces that Serve puts around them, with how to start it again."""
    said = "test needs 2 nodes with 8 H100 free each, the cluster has 1: b has 7 GPUs, not 8. Give the stack such nodes"
    trace = f'Traceback (most recent call last):\n  File "x.py", line 3\nmodelstacks_ray.errors.PlanError: {said}\n'
    service = named("test-0", "test")
    service["metadata"]["labels"] = {"app.kubernetes.io/instance": "test"}
    applications = {"llm-1": {"status": "DEPLOY_FAILED", "message": trace, "serveDeploymentStatuses": {}}}
    service["status"] = {
        "pendingServiceStatus": {"rayClusterName": "test-0-abcde", "applicationStatuses": applications}
    }
    found = look(well() | {"rayservices": [service]}, over_nodes())
    (one,) = [f for f in serious(found) if f.check == "workload"]
    assert one.message == f"RayService test-0 stopped: {said}"
    assert "ray.io/cluster=test-0-abcde,ray.io/node-type=head" in (one.mend or "")
    applications["llm-1"]["status"] = "RUNNING"
    assert not [f for f in serious(look(well() | {"rayservices": [service]}, over_nodes())) if f.check == "workload"]


def test_an_operator_that_the_network_policy_shuts_out_is_found() -> None:
    """KubeRay elsewhere than where heads let it in from: nothing would ever start."""
    there = workload("kuberay", {"app.kubernetes.io/name": "kuberay-operator"}, "x/operator:v1.5.1")
    found = look(well() | {"deployments": [there]}, over_nodes())
    (one,) = [f for f in serious(found) if f.check == "operators"]
    assert "kuberay runs in ops, and the stack's NetworkPolicy lets that of ray-system reach Ray heads" in one.message
    assert one.mend == "modelstacks:rayOperatorNamespace: ops, then make render"
    told = look(well() | {"deployments": [there]}, over_nodes(rayOperatorNamespace="ops"))
    assert not [f for f in serious(told) if f.check == "operators"]


@pytest.mark.parametrize(("version", "level"), [("1.4.2", "problem"), ("1.5.1", None), ("1.7.0", "warning")])
def test_an_operator_older_than_the_fields_that_are_used_is_a_problem(version: str, level: str | None) -> None:
    """An older KubeRay would leave the token out; a newer one is merely untried."""
    there = workload("kuberay", {"app.kubernetes.io/name": "kuberay-operator"}, f"x/operator:v{version}")
    found = look(well() | {"deployments": [there]}, over_nodes(rayOperatorNamespace="ops"))
    said = [f.level for f in found if f.check == "operators" and f"kuberay {version} is there" in f.message]
    assert said == ([level] if level else [])


def test_groups_need_their_own_operator() -> None:
    """And no KubeRay."""
    found = [f.message for f in serious(look(well(), over_nodes(launcher="leader-worker-set")))]
    assert any(message.startswith("lws is not there") for message in found)
    assert not any("kuberay" in message for message in found)
