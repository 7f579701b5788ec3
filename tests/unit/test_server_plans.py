"""How servers start, change and leave, as planned: roll-outs, places of weights, budgets and graces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelstacks import render, review, spec, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput
from modelstacks.plan import Plan, plan
from modelstacks.plan.rollout import rollout

CATALOG = Catalog()
ROOT = Path(__file__).resolve().parents[2]
Manifest = dict[str, Any]


def decide(**more: Any) -> Plan:
    asked = {"model": "llama-3.1-8b", "gpu": "l4", "acceptedLicense": "llama3.1", **more}
    return plan(spec.parse(asked, CATALOG, source="test"), CATALOG, stack="test")


def manifests(**more: Any) -> list[Manifest]:
    return render.render(decide(**more), CATALOG)


def one(found: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    (match,) = (m for m in found if m["kind"] == kind and name in (None, m["metadata"]["name"]))
    return match


def pod_of(found: list[Manifest]) -> Manifest:
    spec_: Manifest = one(found, "Deployment", "test")["spec"]["template"]["spec"]
    return spec_


def server_of(found: list[Manifest]) -> Manifest:
    (server,) = pod_of(found)["containers"]
    return dict(server)


AWS = {"kind": "karpenter-aws", "cluster": "c"}
SIMULATED = {"kind": "kwok"}
ON_ONE_NODE = {"claim": "w", "accessMode": "ReadWriteOnce"}
QWEN = {"model": "qwen-2.5-72b", "gpu": "h100-sxm", "acceptedLicense": "qwen"}


@pytest.mark.parametrize(
    ("more", "way", "needed", "out"),
    [
        ({}, "recreate", 0, True),
        ({"replicas": 2}, "in-place", 0, False),
        ({"replicas": 2, "cloud": {**SIMULATED, "limitGpus": 3}}, "surge", 1, False),
        ({"cloud": {**SIMULATED, "warmSpares": 1}}, "surge", 1, False),
        ({"cloud": {"kind": "existing", "limitGpus": 2}}, "surge", 1, False),
        ({"replicas": 2, "rollout": "recreate"}, "recreate", 0, True),
        ({"autoscale": {"max": 3}}, "in-place", 0, True),
        ({"replicas": 2, "cloud": {**SIMULATED, "limitGpus": 3}, "rollout": "in-place"}, "in-place", 0, False),
        ({"replicas": 2, "weights": ON_ONE_NODE, "gpu": "h100-sxm"}, "in-place", 0, False),
        # Machines are rented whole: six of eight GPUs are idle and paid for.
        ({**QWEN, "cloud": AWS}, "surge", 2, False),
        ({**QWEN, "cloud": SIMULATED}, "recreate", 0, True),
    ],
)  # fmt: skip
def test_the_roll_out_follows_the_gpus_that_may_be_had(more: dict[str, Any], way: str, needed: int, out: bool) -> None:
    """Surge only where the next replica has a place; the manifest, the quota and the words say the same."""
    decided = decide(**more)
    change = rollout(decided)
    assert change.way == way, change.reason
    assert (change.needed_gpus if change.comes_first else 0) == needed
    assert bool(change.out_s) == out
    strategy = one(render.render(decided, CATALOG), "Deployment", "test")["spec"]["strategy"]
    expected = {
        "surge": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "in-place": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "recreate": {"type": "Recreate"},
    }
    assert strategy == expected[way]
    quota = int(one(render.render(decided, CATALOG), "ResourceQuota")["spec"]["hard"]["requests.nvidia.com/gpu"])
    assert quota >= decided.gpus_committed + needed, "the quota lets the next replica in"
    assert f"needs {needed} spare GPU" in change.words
    assert change.words in review.page(decided, render.render(decided, CATALOG), "test", CATALOG)


def test_the_words_are_those_of_a_review() -> None:
    """Pods, GPUs, minutes and what serves meanwhile."""
    words = rollout(decide(replicas=2)).words
    assert words.startswith("restarts 2 pods, needs 0 spare GPUs, about 18 minutes; one goes before the next comes")
    assert "nothing serves for 9 minutes" in rollout(decide()).words
    assert rollout(decide(replicas=0)).words == "restarts no pod: none runs"


@pytest.mark.parametrize(
    ("more", "need", "have"),
    [
        ({"rollout": "surge"}, 1, 0),
        ({"rollout": "surge", "replicas": 2, "cloud": {**SIMULATED, "limitGpus": 2}}, 1, 0),
        ({"rollout": "surge", "weights": ON_ONE_NODE, "replicas": 8, "gpu": "h100-sxm",
          "cloud": {"kind": "existing", "limitGpus": 64}}, 1, 0),
    ],
)  # fmt: skip
def test_a_change_that_could_only_hang_is_refused(more: dict[str, Any], need: int, have: int) -> None:
    """Pain 19: in numbers, with what would let it."""
    (refusal,) = decide(**more).refusals
    assert (refusal.code, refusal.need, refusal.have) == ("rollout-would-hang", need, have)
    assert "modelstacks:rollout: in-place" in refusal.message
    assert decide(**more).fits, "the hardware itself fits"


PLACES: dict[str, dict[str, Any]] = {
    "node": {},
    "volume-per-pod": {"storageClass": "fast"},
    "shared-volume": {"storageClass": "efs", "shared": True},
    "claim": {"claim": "models", "path": "llama"},
    "claim-filled": {"claim": "models"},
    "image": {"image": "example.com/llama@sha256:" + "0" * 64},
    "object-store": {"uri": "s3://bucket/llama", "credentialsSecret": "bucket"},
    "node-folder": {"hostPath": "/mnt/models", "path": "llama"},
    "node-folder-filled": {"hostPath": "/mnt/models", "prefetch": True},
}


@pytest.mark.parametrize("place", PLACES)
def test_servers_only_read_weights_and_budgets_follow_their_place(place: str) -> None:
    """Pains 11 to 14: read-only, offline unless they fetch themselves, and every timer from bytes over speed."""
    decided = decide(weights=PLACES[place], cloud=AWS)
    found = render.render(decided, CATALOG)
    server, times = server_of(found), decided.timeouts
    env = {variable["name"]: variable.get("value") for variable in server["env"]}
    mounts = {mount["name"]: mount for mount in server["volumeMounts"]}
    fetches = place in ("node", "volume-per-pod")
    assert ("HF_TOKEN" in env) == fetches
    assert (env.get("HF_HUB_OFFLINE") == "1") == (not fetches)
    assert ("weights" in mounts) == (not fetches and place != "object-store")
    assert all(mount.get("readOnly") for name, mount in mounts.items() if name == "weights")
    assert not mounts["scratch"].get("readOnly"), "caches and their locks are elsewhere"
    assert server["args"][0] == decided.weights.source
    load_format = server["args"][server["args"].index("--load-format") + 1]
    assert load_format == ("runai_streamer" if place == "object-store" else "safetensors")
    # One number for probe, engine, progress, await and Karpenter.
    probe = server["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= times.startup_s > times.load_s
    assert env["VLLM_ENGINE_READY_TIMEOUT_S"] == str(times.startup_s)
    workload = one(found, "Deployment", "test")
    assert workload["spec"]["progressDeadlineSeconds"] >= times.ready_s + decided.leaving.grace_s
    awaited = int(workload["metadata"]["annotations"]["pulumi.com/timeoutSeconds"])
    assert awaited >= workload["spec"]["progressDeadlineSeconds"]
    kept = workload["spec"]["template"]["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"]
    assert kept == f"{times.ready_s}s"
    policy = one(found, "NetworkPolicy", "test")["spec"]["egress"]
    reaches_out = [rule for rule in policy if "to" not in rule]
    assert bool(reaches_out) == (fetches or place in ("object-store", "node-folder-filled"))
    jobs = [m for m in found if m["kind"] == "Job"]
    assert bool(jobs) == (place in ("shared-volume", "claim-filled"))
    if jobs:
        assert jobs[0]["spec"]["activeDeadlineSeconds"] == times.before_s
        assert one(found, "NetworkPolicy", "test-weights")
    page = review.page(decided, found, "test", CATALOG)
    level = one(found, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert (level == "privileged") == place.startswith("node-folder")
    assert ("`hostPath: /mnt/models`" in page) == place.startswith("node-folder")


def test_nearer_weights_are_read_sooner() -> None:
    """A budget is not a constant."""
    hub, volume, disk = (decide(weights=PLACES[place]).timeouts for place in ("node", "claim", "node-folder"))
    assert hub.startup_s > volume.startup_s > disk.startup_s
    large = decide(model="llama-3.1-405b", gpu="h200").timeouts
    assert large.startup_s > 5 * hub.startup_s


TIERS: dict[str, dict[str, Any]] = {
    "vllm": {"replicas": 2},
    "tgi": {"engine": "tgi"},
    "ray": {"model": "deepseek-r1", "gpu": "h100-sxm", "quantization": "fp8", "acceptedLicense": "MIT"},
    "groups": {"model": "deepseek-r1", "gpu": "h100-sxm", "quantization": "fp8", "acceptedLicense": "MIT",
               "launcher": "leader-worker-set"},
}  # fmt: skip


def pods_in(value: Any) -> list[Manifest]:
    """Every pod spec inside a manifest."""
    if isinstance(value, list):
        return [pod for item in value for pod in pods_in(item)]
    if not isinstance(value, dict):
        return []
    return ([value] if "containers" in value else []) + [pod for item in value.values() for pod in pods_in(item)]


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("place", [*PLACES, "google"])
def test_every_mount_has_its_volume_in_every_tier(tier: str, place: str) -> None:
    """Whatever fills the weights and whatever reads them; what a tier cannot read is refused."""
    weights = {"uri": "gs://bucket/llama", "credentialsSecret": "bucket"} if place == "google" else PLACES[place]
    decided = decide(**TIERS[tier], weights=weights)
    if not decided.runs:
        assert [refusal.code for refusal in decided.refusals] == ["engine-unsupported"]
        assert place in ("object-store", "google")
        return
    for manifest in render.render(decided, CATALOG):
        for pod in pods_in(manifest):
            volumes = [volume["name"] for volume in pod.get("volumes", [])]
            assert len(volumes) == len(set(volumes))
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                mounts = [mount["name"] for mount in container.get("volumeMounts", [])]
                assert set(mounts) <= set(volumes), (manifest["kind"], container["name"])


def test_a_volume_of_another_checkpoint_is_another_volume() -> None:
    """Its size would shrink, which Kubernetes does not allow; of another revision it is the same."""
    shared = {"storageClass": "efs", "shared": True}
    first = one(manifests(weights=shared, quantization="fp8"), "PersistentVolumeClaim")
    second = one(manifests(weights=shared, quantization="bf16"), "PersistentVolumeClaim")
    assert first["metadata"]["name"] != second["metadata"]["name"]
    size = int(first["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
    checkpoint = decide(weights=shared, quantization="fp8").checkpoint
    assert checkpoint is not None
    assert size >= 2 * checkpoint.size_gib, "two revisions side by side"


@pytest.mark.parametrize("tier", ["ray", "groups"])
def test_over_several_nodes_nothing_is_made_anew_all_at_once(tier: str) -> None:
    """`recreate` is for one node."""
    with pytest.raises(BadInput, match="is for replicas on one node"):
        decide(**TIERS[tier], rollout="recreate")


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"hostPath": "/a/../b"}, "without .."),
        ({"hostPath": "/"}, "a folder from the root on"),
        ({"claim": "a", "image": "b:1"}, "names claim and image"),
        ({"shared": True}, "goes with a storageClass"),
        ({"storageClass": "a", "accessMode": "ReadWriteOnce"}, "every pod has a volume of its own"),
        ({"claim": "a", "prefetch": False}, "the folder of the model in the claim must be named"),
        ({"claim": "a", "path": "../b"}, "without a leading / and .."),
        ({"uri": "http://a/b"}, "s3://BUCKET/FOLDER"),
        ({"storageClass": "a", "shared": True, "prefetch": False}, "nothing else fills a new volume"),
        ({"claim": "a", "path": "b", "prefetch": True}, "one of the two"),
        ({"hostPath": "models"}, "hostPath"),
        ({"credentialsSecret": "a"}, "goes with a uri"),
    ],
)
def test_places_that_cannot_be_are_named(weights: dict[str, Any], says: str) -> None:
    """Each with its key."""
    with pytest.raises(BadInput) as caught:
        decide(weights=weights)
    assert says in str(caught.value)
    assert "modelstacks:weights" in str(caught.value)


def test_weights_that_do_not_reach_every_pod_are_refused() -> None:
    """Pain 13: a ReadWriteOnce volume is on one node."""
    weights = {"storageClass": "gp3", "shared": True, "accessMode": "ReadWriteOnce"}
    together = pod_of(manifests(weights=weights, replicas=2, gpu="h100-sxm"))["affinity"]["podAffinity"]
    assert together["requiredDuringSchedulingIgnoredDuringExecution"][0]["topologyKey"] == "kubernetes.io/hostname"
    (refusal,) = decide(weights=weights, replicas=9, gpu="h100-sxm").refusals
    assert (refusal.code, refusal.need, refusal.have) == ("volume-on-one-node", 9, 8)
    refused = decide(engine="tgi", weights={"uri": "s3://a/b"})
    assert [refusal.code for refusal in refused.refusals] == ["engine-unsupported"]
    assert not refused.alternatives, "no other hardware reads them either"


GROUPS: dict[str, Any] = {"model": "deepseek-r1", "gpu": "h100-sxm", "acceptedLicense": "MIT", "quantization": "fp8",
                          "context": 65536, "launcher": "leader-worker-set"}  # fmt: skip


@pytest.mark.parametrize("weights", [{}, {"hostPath": "/m", "prefetch": True}, {"image": "example.com/w:1"}])
def test_the_first_of_a_group_waits_for_the_others(weights: dict[str, Any]) -> None:
    """Pain 8 over several nodes: another node may still be bought and filled while the leader has all it needs."""
    more = {**GROUPS, "weights": weights, "cloud": {**AWS, "zones": ["us-east-1a"]}}
    decided = decide(**more)
    times = decided.timeouts
    group = one(manifests(**more), "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    (leader,) = group["leaderTemplate"]["spec"]["containers"]
    probe = leader["startupProbe"]
    wait_s = times.load_s + times.before_s + CATALOG.versions.loading.node_ready_s
    assert probe["periodSeconds"] * probe["failureThreshold"] >= wait_s
    for template in (group["leaderTemplate"], group["workerTemplate"]):
        (server,) = template["spec"]["containers"]
        for flag in ("--distributed-timeout-seconds", "--cpu-distributed-timeout-seconds"):
            assert int(server["args"][server["args"].index(flag) + 1]) >= wait_s
    env = {entry["name"]: entry.get("value") for entry in leader["env"]}
    assert int(env["VLLM_ENGINE_READY_TIMEOUT_S"]) >= wait_s


def test_a_warm_spare_holds_a_machine_that_somebody_buys() -> None:
    """All GPUs of the machine, by a claim too; and not below the Cluster Autoscaler's cutoff of -10."""
    cloud = {"kind": "eks", "cluster": "c", "zones": "us-east-1a", "machine": "g6.12xlarge", "warmSpares": 1}
    found = manifests(cloud={**cloud, "gpuAllocation": "dra"})
    counts = {
        m["metadata"]["name"]: m["spec"]["spec"]["devices"]["requests"][0]["exactly"]["count"]
        for m in found
        if m["kind"] == "ResourceClaimTemplate"
    }
    names = sorted(counts, key=lambda name: counts[name])
    assert [(name.rpartition("-")[0], counts[name]) for name in names] == [("test-gpus", 1), ("test-spare-gpus", 4)]
    holder = one(found, "Deployment", "test-spare")["spec"]["template"]["spec"]
    assert holder["resourceClaims"][0]["resourceClaimTemplateName"] == names[1]
    assert 0 > one(found, "PriorityClass", "test-spare")["value"] >= -10


def test_what_cannot_be_changed_has_another_name_when_it_differs() -> None:
    """Another claim or class of volume would be refused, or wait for the servers that use the old one."""

    def names(kind: str, **more: Any) -> set[str]:
        return {m["metadata"]["name"] for m in manifests(**more) if m["kind"] == kind}

    shared = {"storageClass": "a", "shared": True}
    for kind in ("PersistentVolumeClaim", "Job"):
        others = ({}, {"storageClass": "b"}, {"accessMode": "ReadWriteOnce"})
        found = [names(kind, weights={**shared, **more}) for more in others]
        assert len(set.union(*found)) == 3, kind
    dra = {"cloud": {"kind": "existing", "gpuAllocation": "dra"}, "gpu": "h100-sxm"}
    assert not names("ResourceClaimTemplate", **dra) & names("ResourceClaimTemplate", **dra, gpus=2)
    ray = {key: value for key, value in GROUPS.items() if key != "launcher"}
    kept = [names("PersistentVolumeClaim", **ray, headRecovery={"storageClass": name}) for name in ("a", "b")]
    assert not kept[0] & kept[1]


def test_spares_of_a_machine_that_is_lent_for_a_week_are_refused() -> None:
    """Also where nobody wrote flex-start, because the machine is sold in no other way."""
    asked = {"model": "qwen-2.5-72b", "gpu": "h100-sxm", "quantization": "fp8", "acceptedLicense": "qwen"}
    cloud = {"kind": "gke", "cluster": "c", "region": "us-central1", "zones": "us-central1-a", "warmSpares": 1}
    with pytest.raises(BadInput, match="bought again and again, and a3-highgpu"):
        decide(**asked, cloud=cloud)


def test_hundreds_of_replicas_over_several_nodes_are_rendered() -> None:
    """What users write is bounded, not what it renders to."""
    ray = {key: value for key, value in GROUPS.items() if key != "launcher"}
    assert len([m for m in manifests(**ray, replicas=150) if m["kind"] == "RayService"]) == 150


def test_own_code_of_a_model_runs_only_when_it_is_accepted() -> None:
    """trust_remote_code takes the template and the user."""
    asked = {"model": "kimi-k2", "gpu": "h200", "acceptedLicense": None}
    asked = {key: value for key, value in asked.items() if value is not None}
    refused = plan(spec.parse(asked, CATALOG, source="test"), CATALOG, stack="test")
    assert "remote-code-not-accepted" in [refusal.code for refusal in refused.refusals]
    assert refused.fits
    accepted = plan(spec.parse(asked | {"acceptRemoteCode": True}, CATALOG, source="test"), CATALOG, stack="test")
    assert "remote-code-not-accepted" not in [refusal.code for refusal in accepted.refusals]
    assert "--trust-remote-code" not in server_of(manifests())["args"]


def test_the_grace_follows_context_and_pace() -> None:
    """preStop, the engine's drain and a margin; never longer than a node drain waits for."""
    decided = decide()
    going = decided.leaving
    found = manifests()
    server, pod = server_of(found), pod_of(found)
    assert server["lifecycle"] == {"preStop": {"sleep": {"seconds": going.pre_stop_s}}}
    assert server["args"][server["args"].index("--shutdown-timeout") + 1] == str(going.drain_s)
    assert pod["terminationGracePeriodSeconds"] == going.grace_s > going.pre_stop_s + going.drain_s
    assert going.grace_s <= 600
    short = decide(context=512, concurrency=1).leaving
    assert short.drain_s < going.drain_s
    assert short.whole
    assert short.tokens == 511
    assert decide(drainSeconds=3600).leaving.grace_s > 3600
    speed = decided.throughput
    assert speed is not None
    assert going.token_s > speed.concurrency / speed.output_tokens_per_s, "slower than the mean"


def test_a_spot_notice_is_held_against_the_answers_that_run() -> None:
    """Two minutes of EC2 are what is left, whatever the grace."""
    spot = decide(cloud={**AWS, "capacity": "spot"})
    assert spot.leaving.notice_s == 120
    assert spot.leaving.notice_tokens is not None
    assert 0 < spot.leaving.notice_tokens < spot.leaving.tokens
    page = review.page(spot, render.render(spot, CATALOG), "test", CATALOG)
    assert "A spot notice leaves 120 s" in page
    assert decide(cloud=AWS).leaving.notice_s is None


def test_replicas_spread_without_waiting_for_it() -> None:
    """Over zones, and over nodes where that takes no further machine."""
    spread = pod_of(manifests(replicas=2))["topologySpreadConstraints"]
    assert [rule["topologyKey"] for rule in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert {rule["whenUnsatisfiable"] for rule in spread} == {"ScheduleAnyway"}
    packed = {**QWEN, "cloud": SIMULATED, "replicas": 2}
    assert [r["topologyKey"] for r in pod_of(manifests(**packed))["topologySpreadConstraints"]] == [
        "topology.kubernetes.io/zone"
    ]


@pytest.mark.parametrize("stack", stackfile.stack_names(ROOT))
def test_another_number_of_replicas_restarts_no_server(stack: str) -> None:
    """What a pod is made of is the same for one replica and for three: a scaled stack keeps the servers that run."""
    asked = stackfile.stack_values(stackfile.stack_file(ROOT, stack))
    asked.pop("autoscale", None)

    def servers(replicas: int) -> Manifest:
        decided = plan(spec.parse({**asked, "replicas": replicas}, CATALOG, source="test"), CATALOG, stack="test")
        found = render.render(decided, CATALOG)
        (first, *_) = (m for m in found if m["kind"] in ("Deployment", "LeaderWorkerSet", "RayService"))
        # How many there are and the way to change them are no part of a pod.
        return {key: value for key, value in first["spec"].items() if key not in ("replicas", "strategy")}

    assert servers(1) == servers(3)


def test_servers_go_before_batch_jobs_and_drive_nobody_away() -> None:
    """A class of their own, or yours."""
    found = manifests()
    own = one(found, "PriorityClass")
    assert pod_of(found)["priorityClassName"] == own["metadata"]["name"] == "modelstacks-test"
    assert (own["value"], own["preemptionPolicy"]) == (1000, "Never")
    spared = [m for m in manifests(cloud={**SIMULATED, "warmSpares": 1}) if m["kind"] == "PriorityClass"]
    assert {m["metadata"]["name"]: m["preemptionPolicy"] for m in spared} == {
        "modelstacks-test-preempting": "PreemptLowerPriority", "test-spare": "Never",
    }  # fmt: skip
    mine = manifests(priorityClass="gold")
    assert pod_of(mine)["priorityClassName"] == "gold"
    assert not [m for m in mine if m["kind"] == "PriorityClass"]


def test_scaling_to_zero_takes_a_query_and_an_agreed_cold_start() -> None:
    """Pains 24 to 26: nothing is thrown away while it loads, emptiness is an error, and nobody fights over replicas."""
    zero = {"min": 0, "max": 3, "activationQuery": "sum(router_queue)", "coldStartSeconds": 3600}
    found = manifests(autoscale=zero, cloud=AWS)
    scaled = one(found, "ScaledObject")["spec"]
    assert "replicas" not in one(found, "Deployment", "test")["spec"]
    assert (scaled["idleReplicaCount"], scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (0, 1, 3)
    assert [trigger["name"] for trigger in scaled["triggers"]] == ["requests-in-flight", "kv-cache", "waiting-outside"]
    assert {trigger["metadata"]["ignoreNullValues"] for trigger in scaled["triggers"]} == {"false"}
    decided = decide(autoscale=zero, cloud=AWS)
    load_s = decided.timeouts.download_s + decided.timeouts.load_s
    assert scaled["cooldownPeriod"] > load_s
    assert scaled["initialCooldownPeriod"] >= decided.timeouts.ready_s
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] > load_s
    assert scaled["cooldownPeriod"] > decided.timeouts.cold_start_s
    assert all(" or sum(kube_deployment_spec_replicas{" in t["metadata"]["query"] for t in scaled["triggers"][:2])
    assert any("must answer 0, not nothing" in warning for warning in decided.warnings)
    image = decide(autoscale=zero, cloud=AWS, weights={"image": "example.com/w:1"})
    (later,) = [m for m in render.render(image, CATALOG) if m["kind"] == "ScaledObject"]
    assert later["spec"]["cooldownPeriod"] > image.timeouts.cold_start_s, "a new node pulls the image first"
    assert "idleReplicaCount" not in one(manifests(autoscale={"max": 2}, cloud=AWS), "ScaledObject")["spec"]
    (refusal,) = decide(autoscale={**zero, "coldStartSeconds": 60}, cloud=AWS).refusals
    assert refusal.code == "cold-start-too-slow"
    assert refusal.need == decided.timeouts.cold_start_s
    for missing in ("activationQuery", "coldStartSeconds"):
        with pytest.raises(BadInput, match=missing):
            decide(autoscale={k: v for k, v in zero.items() if k != missing}, cloud=AWS)
    with pytest.raises(BadInput, match="is for min 0"):
        decide(autoscale={**zero, "min": 1}, cloud=AWS)
