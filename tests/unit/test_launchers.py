"""Replicas over several nodes: launchers, how they are changed, who reaches them, and several clusters."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import pytest
import yaml

from modelstacks import render, review, spec
from modelstacks.answer import answer
from modelstacks.catalog import Catalog
from modelstacks.cluster.nodes import needs
from modelstacks.errors import BadInput, ToolchainError
from modelstacks.local.raycluster import command
from modelstacks.plan import Plan, plan
from modelstacks.plan.rollout import rollout
from modelstacks.render.templates import Manifest

CATALOG = Catalog()
BASE = {"model": "deepseek-r1", "gpu": "h100-sxm", "quantization": "fp8", "context": 65536, "concurrency": 8}
AWS = {"kind": "karpenter-aws", "zones": ["us-east-1a"]}


def decide(**more: Any) -> Plan:
    """DeepSeek R1 on two nodes a replica, and what `more` says."""
    values = {key: value for key, value in (BASE | more).items() if value is not None}
    return plan(spec.parse(values, CATALOG, source="test"), CATALOG, stack="r1")


def manifests(**more: Any) -> list[Manifest]:
    return render.render(decide(**more), CATALOG)


def one(found: list[Manifest], kind: str) -> Manifest:
    (match,) = [m for m in found if m["kind"] == kind]
    return match


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"launcher": "slurm"}, r"launcher: 'slurm' is not known \(allowed: deployment, ray-serve, leader-worker-set"),
        ({"launcher": "ray-sreve"}, "did you mean ray-serve"),
        ({"launcher": "deployment"}, "deployment is for replicas on one node, this plan is ray"),
        ({"gpu": "h200", "launcher": "ray-serve"}, "ray-serve is for replicas of several nodes, this plan is tensor"),
        ({"gpus": 12}, "12 GPUs per replica are no whole number of nodes of 8"),
        ({"tensorParallel": 8, "pipelineParallel": 2, "gpus": 24}, "tensorParallel 8 × pipelineParallel 2 = 16"),
        ({"headRecovery": {}}, "takes redis .* or storageClass, one of the two"),
        ({"headRecovery": {"redis": "r:6379", "storageClass": "gp3"}}, "one of the two"),
        (
            {"headRecovery": {"redis": "no port"}},
            "headRecovery.redis: 'no port' must be HOST:PORT, such as",
        ),
        ({"headRecovery": {"storageClass": "gp3", "passwordSecret": "p"}}, "is for a redis of yours"),
        ({"headRecovery": {"rediss": "r:6379"}}, "did you mean redis"),
        ({"headRecovery": {"storageClass": "gp3"}, "launcher": "leader-worker-set"}, "is for Ray heads, and leader-"),
        ({"clusters": ["a", "a"]}, "a name one cluster"),
        ({"clusters": ["a/b", "a:b"]}, "a/b and a:b name one cluster"),
        ({"headRecovery": {"redis": "r.x:99999"}}, "has no port from 1 to 65535"),
        ({"launcher": "leader-worker-set", "autoscale": {"max": 2}}, "added and removed by hand"),
        ({"clusters": ["a", "b"], "kubeContext": "c"}, "is c, and clusters names contexts too"),
        ({"clusters": "a"}, "must be a list"),
        ({"clusters": ["a", "b"], "cloud": {"kind": "gke", "region": "us-central1"}}, "makes the nodes of one cluster"),
    ],
)
def test_what_cannot_be_meant_is_said(more: dict[str, Any], says: str) -> None:
    """Each with its key, what is allowed, and the nearest word."""
    with pytest.raises(BadInput, match=says):
        decide(**more)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"tensorParallel": 16, "pipelineParallel": 1}, "tensor-parallel-beyond-node"),
        ({"tensorParallel": 1, "pipelineParallel": 64}, "layers-too-few"),
        ({"engine": "tgi", "launcher": "leader-worker-set", "gpus": 16}, "engine-unsupported"),
    ],
)
def test_what_cannot_run_is_refused(more: dict[str, Any], code: str) -> None:
    """In numbers, with exit 3."""
    assert code in {refusal.code for refusal in decide(**more).refusals}


def test_the_memory_plan_is_that_of_the_launchers_own_engine() -> None:
    """Ray's image holds another vLLM than the server's: the plan names the one it was computed for."""
    versions = {name: answer(decide(launcher=name)) for name in ("ray-serve", "leader-worker-set")}
    shipped = CATALOG.versions.engines["vllm"]
    assert versions["ray-serve"]["engine_version"] == shipped["ray"].version
    assert versions["leader-worker-set"]["engine_version"] == shipped["server"].version
    assert {found["tier"] for found in versions.values()} == {"ray"}
    assert answer(decide())["launcher"] == "ray-serve"


def test_groups_run_vllms_own_processes_on_every_node() -> None:
    """One command for all, the leader with the API, the others headless and never probed."""
    found = manifests(launcher="leader-worker-set", replicas=3, cloud=AWS)
    groups = one(found, "LeaderWorkerSet")["spec"]
    template = groups["leaderWorkerTemplate"]
    assert (groups["replicas"], template["size"], template["restartPolicy"]) == (3, 2, "RecreateGroupOnPodRestart")
    leader, worker = (template[f"{role}Template"]["spec"]["containers"][0] for role in ("leader", "worker"))
    assert leader["args"][-2:] == ["--node-rank", "0"]
    assert worker["args"][-3:] == ["--node-rank", "$(LWS_WORKER_INDEX)", "--headless"]
    assert worker["args"][: len(leader["args"]) - 2] == leader["args"][:-2]
    for flag, value in (("--nnodes", "2"), ("--master-addr", "$(LWS_LEADER_ADDRESS)")):
        assert leader["args"][leader["args"].index(flag) + 1] == value
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= leader.keys() - worker.keys()
    for role in ("leader", "worker"):
        pod = template[f"{role}Template"]["spec"]
        assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert one(found, "Service")["spec"]["selector"]["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    assert not [m for m in found if m["kind"] in ("RayService", "ConfigMap")]
    assert sum(need.count * need.gpus for need in needs(found)) == 48
    assert needs(found)[1].count == 3
    terms = template["workerTemplate"]["spec"]["affinity"]["podAffinity"]
    assert terms["requiredDuringSchedulingIgnoredDuringExecution"][0]["matchLabelKeys"]


@pytest.mark.parametrize("launcher", ["ray-serve", "leader-worker-set"])
@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("beside", [0, 8, 16, 32, 48])
@pytest.mark.parametrize("warm", [0, 2])
def test_an_upgrade_never_asks_for_gpus_that_are_not_spare(
    launcher: str, replicas: int, beside: int, warm: int
) -> None:
    """Whatever is rendered: old and new together stay below pool and quota."""
    serving = 16 * replicas + 8 * warm
    cloud = AWS | {"limitGpus": serving + beside, "warmSpares": warm}
    found = manifests(launcher=launcher, replicas=replicas, cloud=cloud)
    quota = int(one(found, "ResourceQuota")["spec"]["hard"]["requests.nvidia.com/gpu"])
    pool = int(one(found, "NodePool")["spec"]["limits"]["nvidia.com/gpu"])
    if launcher == "ray-serve":
        ways = [m["spec"]["upgradeStrategy"]["type"] for m in found if m["kind"] == "RayService"]
        # One apply may change every RayService at once.
        more = 16 * ways.count("NewCluster")
    else:
        update = one(found, "LeaderWorkerSet")["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
        assert update["maxSurge"] + update["maxUnavailable"] == 1
        more = 16 * update["maxSurge"]
    assert serving + more <= min(quota, pool)
    needed = 16 * (replicas if launcher == "ray-serve" else 1)
    assert (more > 0) == (beside >= needed), "and where there is room it is used"


def test_the_page_says_how_a_replica_changes_and_is_lost() -> None:
    """GPUs, minutes, and the key that would let a second cluster in."""
    decided = decide(replicas=2)
    page = review.page(decided, render.render(decided, CATALOG), "r1", CATALOG)
    assert "modelstacks:cloud.limitGpus: 64 would let the next come first" in page
    assert rollout(decided).needed_gpus == 32
    assert "`headRecovery` keeps its state" in page
    kept = decide(headRecovery={"storageClass": "gp3"})
    assert "a Redis of its own on gp3" in review.page(kept, render.render(kept, CATALOG), "r1", CATALOG)


def test_a_heads_state_is_kept_where_the_stack_says() -> None:
    """A Redis for each replica on a volume, or one that is there; never a password in a manifest."""
    found = manifests(replicas=2, headRecovery={"storageClass": "gp3"})
    volumes = [m["metadata"]["name"] for m in found if m["kind"] == "PersistentVolumeClaim"]
    own = [name.rpartition("-")[0] for name in volumes]
    assert own == ["r1-0-state", "r1-1-state"]
    options = [m["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] for m in found if m["kind"] == "RayService"]
    assert options == [{"redisAddress": f"redis://{name}.r1.svc:6379"} for name in own]
    for name in own:
        service, server = (
            next(m for m in found if (m["kind"], m["metadata"]["name"]) == (kind, name))
            for kind in ("Service", "Deployment")
        )
        assert service["spec"]["selector"].items() <= server["spec"]["template"]["metadata"]["labels"].items()
    there = manifests(headRecovery={"redis": "redis.state.svc:6380", "passwordSecret": "redis"})
    assert one(there, "RayService")["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis.state.svc:6380",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
    }
    assert [{"protocol": "TCP", "port": 6380}] in [e.get("ports") for e in policy_of(there)["spec"]["egress"]]
    assert "gcsFaultToleranceOptions" not in one(manifests(), "RayService")["spec"]["rayClusterConfig"]


def policy_of(found: list[Manifest]) -> Manifest:
    """The NetworkPolicy of the servers, not the namespace's own."""
    return one([m for m in found if m["metadata"]["name"] != "default-deny"], "NetworkPolicy")


def reaches(policy: Manifest, namespace: str, pod: dict[str, str], port: int, **space: str) -> bool:
    """Whether a pod may open a connection to the pods of the policy, by the rules of NetworkPolicy."""
    own = policy["metadata"]["namespace"]
    labels_of_space = {"kubernetes.io/metadata.name": namespace} | space

    def selects(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
        return selector is not None and (selector.get("matchLabels") or {}).items() <= labels.items()

    for rule in policy["spec"]["ingress"]:
        if "ports" in rule and port not in [entry["port"] for entry in rule["ports"]]:
            continue
        for peer in rule["from"]:
            spaces = peer.get("namespaceSelector")
            in_space = namespace == own if spaces is None else selects(spaces, labels_of_space)
            if in_space and ("podSelector" not in peer or selects(peer["podSelector"], pod)):
                return True
    return False


STACK_POD = {"app.kubernetes.io/instance": "r1"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
# GCS, dashboard and job API, client, agent, and ports that Ray takes at random.
RAY_PORTS = (6379, 8265, 10001, 52365, 8080, 8076, 10002, 19999, 29501, 45123)


@pytest.mark.parametrize("launcher", ["ray-serve", "leader-worker-set"])
def test_rays_ports_are_closed_to_all_but_the_stack(launcher: str) -> None:
    """Read by an evaluator: clients reach the API alone, the operator the dashboard alone, from its own namespace."""
    policy = policy_of(manifests(launcher=launcher))
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for port in RAY_PORTS:
        assert reaches(policy, "r1", STACK_POD, port)
        for namespace, pod in (
            ("r1", {"app": "other"}),
            ("default", {}),
            ("default", STACK_POD),
            ("default", OPERATOR),
        ):
            assert not reaches(policy, namespace, pod, port), (namespace, pod, port)
        assert not reaches(policy, "apps", {}, port, **{"modelstacks.dev/client": "true"})
        assert reaches(policy, "ray-system", OPERATOR, port) == (launcher == "ray-serve" and port == 8265)
        assert not reaches(policy, "ray-system", {"app": "other"}, port)
    assert reaches(policy, "apps", {}, 8000, **{"modelstacks.dev/client": "true"})
    assert reaches(policy, "r1", {"modelstacks.dev/client": "true"}, 8000)
    assert not reaches(policy, "r1", {"app": "client"}, 8000)
    assert not reaches(policy, "default", {}, 8000)
    assert reaches(policy, "monitoring", {}, 8000), "Prometheus reads the metrics"
    moved = policy_of(manifests(rayOperatorNamespace="operators"))
    assert reaches(moved, "operators", OPERATOR, 8265)
    assert not reaches(moved, "ray-system", OPERATOR, 8265)


def test_every_worker_can_be_ready_and_nothing_kills_a_loading_one() -> None:
    """Readiness is the engine's answer through the node's own ingress; liveness asks the raylet, not the engine."""
    cluster = one(manifests(), "RayService")["spec"]["rayClusterConfig"]
    (group,) = cluster["workerGroupSpecs"]
    worker, head = group["template"]["spec"], cluster["headGroupSpec"]["template"]["spec"]
    probes = worker["containers"][0]
    assert probes["readinessProbe"]["httpGet"] == {"path": "/health", "port": 8000}
    assert probes["livenessProbe"]["httpGet"]["path"] == "/api/local_raylet_healthz"
    assert head["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/api/healthz"
    for pod in (worker, head):
        (container,) = pod["containers"]
        stays = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert 60 <= stays < pod["terminationGracePeriodSeconds"]
    assert group["template"]["spec"]["containers"][0]["env"][0] == {"name": "PYTHONPATH", "value": "/opt/modelstacks"}
    shm = next(v for v in worker["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory"


def test_plan_and_application_are_mounted_where_the_serve_config_looks() -> None:
    """In head and workers alike: Serve builds the application on any of them."""
    found = manifests()
    service = one(found, "RayService")["spec"]
    (application,) = yaml.safe_load(service["serveConfigV2"])["applications"]
    cluster = service["rayClusterConfig"]
    files = {m["metadata"]["name"]: m["data"] for m in found if m["kind"] == "ConfigMap"}
    for template in (cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]):
        volumes = {v["name"]: v["configMap"]["name"] for v in template["spec"]["volumes"] if "configMap" in v}
        mounted = {
            f"{mount['mountPath']}/{key}"
            for mount in template["spec"]["containers"][0]["volumeMounts"]
            for key in files.get(volumes.get(mount["name"], ""), {})
        }
        assert application["args"]["plan"] in mounted
        assert "/opt/modelstacks/modelstacks_ray/entry.py" in mounted
    assert sum(len(text) for text in files["r1-ray"].values()) < 2**20
    waits = json.loads(one(found, "RayService")["metadata"]["annotations"]["pulumi.com/waitFor"])
    assert waits[0] == "condition=Ready"
    assert application["name"] in waits[1]


def test_another_plan_is_another_application_on_the_same_pods() -> None:
    """A change of what is served leaves the cluster as it is; a change of pods does not."""
    before, after = (one(manifests(context=length), "RayService")["spec"] for length in (65536, 32768))
    assert before["serveConfigV2"] != after["serveConfigV2"]
    assert before["rayClusterConfig"] == after["rayClusterConfig"]
    other = one(manifests(hubTokenSecret="other"), "RayService")["spec"]
    assert other["rayClusterConfig"] != before["rayClusterConfig"]


def test_several_clusters_are_paid_for_and_have_the_same_objects() -> None:
    """The money of all, the manifests of one."""
    single, both = decide(cloud=AWS), decide(cloud=AWS, clusters=["east", "west"])
    assert render.render(single, CATALOG) == render.render(both, CATALOG)
    assert both.gpus == 2 * single.gpus
    for name in ("usd_per_hour", "usd_per_month"):
        assert getattr(both.cost, name) == pytest.approx(2 * getattr(single.cost, name))
    assert both.usd_per_month_at_most == pytest.approx(2 * (single.usd_per_month_at_most or 0))
    assert answer(both)["cost"]["usd_per_million_output_tokens"] == pytest.approx(
        answer(single)["cost"]["usd_per_million_output_tokens"]
    )
    assert [place.spec.kube_context for place in both.places] == ["east", "west"]
    month = single.cost.usd_per_month or 0
    refused = decide(cloud=AWS, clusters=["east", "west"], budgetUsdPerMonth=1.5 * month)
    assert "in each of 2 clusters" in refused.refusals[0].message
    assert decide(cloud=AWS, budgetUsdPerMonth=1.5 * month).runs


def test_a_checkout_without_ray_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's own folder ray/ can be imported under that name, so the installed package is asked for."""

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ToolchainError, match="Ray is not installed") as caught:
        command.check_installed()
    assert "make env" in str(caught.value)


def test_mistakes_of_every_sort_are_named_at_once() -> None:
    """One reading, not one a mistake."""
    with pytest.raises(BadInput) as caught:
        decide(launcher="lws", clusters=["a", "a"], headRecovery={"redis": "localhost"}, replica=2)
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {f"modelstacks:{key}" for key in ("launcher", "clusters", "headRecovery.redis", "replica")}
