"""What a stack says of its cloud: contradictions, the pool that follows, and what is bounded by it."""

from typing import Any

import pytest

from modelstacks import render, spec
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput
from modelstacks.plan import Plan, plan
from modelstacks.plan.rollout import rollout

CATALOG = Catalog()
RESERVED = {"reservation": "cr-0123456789abcdef0"}


def decide(cloud: dict[str, Any], **more: Any) -> Plan:
    """The plan of an 8B model on L4 GPUs, or of what `more` says."""
    asked = {"model": "llama-3.1-8b", "gpu": "l4", "acceptedLicense": "llama3.1", **more, "cloud": cloud}
    return plan(spec.parse(asked, CATALOG, source="test"), CATALOG, stack="test")


def pools(cloud: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """The rendered objects that make nodes."""
    return [m for m in render.render(decide(cloud, **more), CATALOG) if render.is_pool(m)]


@pytest.mark.parametrize(
    ("cloud", "more", "says"),
    [
        ({"zones": ["us-west-2a"], "region": "us-east-1"}, {}, "us-west-2a is a zone of us-west-2, and region is us-e"),
        ({"zones": ["us-eest-1a"]}, {}, r"no zone of aws; did you mean us-(w|e)est-1a"),
        ({"zones": ["us-east-1a", "us-west-2a"]}, {}, "lie in us-east-1 and us-west-2; a pool is in one region"),
        ({"zones": ["us-east-1"]}, {}, "is a region, not a zone"),
        ({"zones": ["us-east-1z"]}, {}, "is no zone of us-east-1"),
        ({"zones": ["us-east-1a", "us-east-1a"]}, {}, "names a zone twice"),
        ({"region": "us-east-9"}, {}, "no region of aws; did you mean us-east"),
        ({"machine": "g6.3xlarge"}, {}, r"no machine type of aws.*did you mean g6.*g6.12xlarge \(4\)"),
        ({"machine": "g2-standard-4"}, {}, "is a machine type of gcp, and kind karpenter-aws buys from aws"),
        ({"machine": "p5.48xlarge"}, {}, r"carries 8 × h100-sxm, and gpu is l4 .*g6.xlarge \(1\)"),
        ({"machine": "g6.xlarge"}, {"gpus": 4}, r"g6.xlarge has 1 GPU, and a node of this stack needs 4.*g6.12xlarge"),
        ({"capacity": "reservation"}, {}, "a reservation needs its id"),
        ({"capacity": [{"capacity-block": "block"}]}, {}, "'block' is no id of a capacity-block"),
        ({"capacity": {"reservation": None}}, {}, "must be written reservation: ID"),
        ({"capacity": ["spot", "spot"]}, {}, "names spot twice"),
        ({"capacity": []}, {}, "is an empty list"),
        ({"capacity": ["flex-start"]}, {}, "flex-start cannot be had with kind karpenter-aws: it is Google Cloud's"),
        ({"capacity": "spott"}, {}, "did you mean spot"),
        (
            {"capacity": [{"capacity-block": RESERVED["reservation"]}], "zones": ["us-east-1a", "us-east-1b"]},
            {},
            "lies in one zone",
        ),
        ({"limitGpus": 1}, {"gpus": 4}, "1 is below the 4 GPUs of one replica"),
        ({"limitGpus": 1}, {"replicas": 2}, "1 GPUs are below what the replicas need: 2 GPUs on g6.xlarge"),
        ({"limitGpus": 2, "warmSpares": 1}, {"replicas": 2}, "the replicas and 1 warm spare need: 3 GPUs"),
        ({"limitGpus": 0}, {}, "limitGpus"),
        ({"nodeClass": "mine", "image": "al2023@v1"}, {}, "names a class that exists, which settles image itself"),
        ({"poolOwner": "other", "zones": ["us-east-1a"]}, {}, "is settled by the pool's owner, other"),
        ({"fabric": "infinband"}, {}, "did you mean infiniband"),
        ({"startupTaints": [{"key": "a b"}]}, {}, "no usable name"),
        ({"zone": ["us-east-1a"]}, {}, "is not a known key; did you mean zones"),
        ({"cluster": 3}, {}, "must be text"),
        ({"kind": "aks", "gpuAllocation": "claims"}, {"gpu": "h100-nvl"}, "gpuAllocation.*'claims' is not known"),
        ({"kind": "karpenter-azure", "image": "Ubunt"}, {"gpu": "h100-nvl"}, "cloud.image: 'Ubunt' is not known; did"),
        ({"kind": "coreweave", "capacity": ["spot", "on-demand"]}, {"gpu": "h100-sxm"}, "is bought in one way"),
        ({"kind": "gke", "capacity": ["spot", "on-demand"], "region": "us-central1"}, {}, "gke-compute-class tries"),
        ({"kind": "gke-compute-class", "machine": "a3-highgpu-1g", "capacity": "on-demand"}, {"gpu": "h100-sxm"},
         "a3-highgpu-1g is sold as flex-start, spot, not on-demand"),
        ({"kind": "gke-compute-class", "capacity": "flex-start", "warmSpares": 1}, {}, "leave after seven days"),
        ({"kind": "cluster-api"}, {}, "cloud.infrastructure: is needed by kind cluster-api"),
        ({"kind": "aks", "zones": ["eastus-4"]}, {"gpu": "h100-nvl"}, "is no zone of eastus"),
        ({"kind": "existing", "zones": ["a"]}, {}, "is not an option of kind existing"),
        ({"kind": "karpenter-gcp"}, {}, "did you mean karpenter-aws"),
    ],
)  # fmt: skip
def test_contradictions_are_named_before_anything_is_made(
    cloud: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    """Bad input, with the place, the value and what is allowed."""
    with pytest.raises(BadInput, match=says) as caught:
        decide({"kind": "karpenter-aws", **cloud}, **more)
    assert caught.value.exit_code == 2
    assert "cloud" in str(caught.value)


@pytest.mark.parametrize(
    ("cloud", "more", "says"),
    [
        ({"kind": "karpenter-azure"}, {}, "azure has no machine type with 1 × l4; l4 is to be had of aws, gcp"),
        ({"kind": "gke-compute-class", "capacity": "on-demand"}, {"gpu": "h200"}, "a3-ultragpu-8g is sold as reserv"),
        ({"kind": "karpenter-aws"}, {"gpu": "rtx-4090"}, "rtx-4090 is to be had of no cloud"),
    ],
)
def test_a_refusal_names_the_machine_types_that_there_are(
    cloud: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    """Where the wanted one does not exist, those that carry the GPU in that cloud are listed."""
    decided = decide(cloud, **more)
    assert any(says in refusal.message for refusal in decided.refusals), decided.refusal_lines
    assert "machine-unavailable" in {refusal.code for refusal in decided.refusals}


@pytest.mark.parametrize(
    ("ways", "types"),
    [
        (["on-demand"], [["on-demand"]]),
        (["spot", "on-demand"], [["spot", "on-demand"]]),
        ([RESERVED, "on-demand"], [["reserved", "on-demand"]]),
        (["on-demand", "spot"], [["on-demand"], ["spot"]]),
        ([RESERVED, "on-demand", "spot"], [["reserved", "on-demand"], ["spot"]]),
        (["spot", RESERVED, "on-demand"], [["spot"], ["reserved", "on-demand"]]),
    ],
)
def test_karpenter_tries_ways_in_the_listed_order(ways: list[Any], types: list[list[str]]) -> None:
    """Within a pool Karpenter goes by price, so what it would turn round takes a pool of lower weight."""
    made = [m for m in pools({"kind": "karpenter-aws", "capacity": ways}) if m["kind"] == "NodePool"]

    def capacity_types(pool: dict[str, Any]) -> list[str]:
        requirements = pool["spec"]["template"]["spec"]["requirements"]
        (values,) = [r["values"] for r in requirements if r["key"] == "karpenter.sh/capacity-type"]
        return list(values)

    made.sort(key=lambda pool: -pool["spec"].get("weight", 0))
    assert [capacity_types(pool) for pool in made] == types
    if len(made) > 1:
        weights = [pool["spec"]["weight"] for pool in made]
        assert weights == sorted(set(weights), reverse=True)


def test_gke_has_one_class_with_the_steps_as_listed() -> None:
    """A compute class keeps an order itself."""
    ways = ["spot", "flex-start", {"reservation": "projects/p/reservations/r"}, "on-demand"]
    (made,) = pools({"kind": "gke-compute-class", "capacity": ways})
    first, second, third, fourth = made["spec"]["priorities"]
    assert first["spot"] is True
    assert second["flexStart"]["enabled"] is True
    assert third["reservations"] == {"affinity": "Specific", "specific": [{"name": "r", "project": "p"}]}
    assert not {"spot", "flexStart", "reservations"} & fourth.keys()


@pytest.mark.parametrize("kind", ["karpenter-aws", "kwok"])
@pytest.mark.parametrize(
    ("more", "cloud", "most"),
    [({}, {}, 1), ({"replicas": 3}, {}, 3), ({"replicas": 0}, {}, 0), ({"replicas": 2}, {"warmSpares": 1}, 3),
     ({}, {"limitGpus": 5}, 5), ({"gpus": 4, "replicas": 2}, {}, 8)],
)  # fmt: skip
def test_a_pool_may_hold_what_the_replicas_use_and_no_more(
    kind: str, more: dict[str, Any], cloud: dict[str, Any], most: int
) -> None:
    """Limits in GPUs of whole machines; the namespace's quota says the same of pods."""
    decided = decide({"kind": kind, **cloud}, **more)
    manifests = render.render(decided, CATALOG)
    (pool,) = [m for m in manifests if m["kind"] == "NodePool"]
    assert pool["spec"]["limits"] == {"nvidia.com/gpu": str(most)}
    (quota,) = [m for m in manifests if m["kind"] == "ResourceQuota"]
    # A spare's place is where the next replica comes first, and the spare then waits for another one in vain.
    assert quota["spec"]["hard"] == {"requests.nvidia.com/gpu": str(most + (1 if cloud.get("warmSpares") else 0))}
    assert rollout(decided).comes_first == bool(cloud)


def test_limits_follow_the_most_that_an_autoscaler_may_ask_for() -> None:
    """The price is that of the least, the limit and the budget that of the most."""
    decided = decide({"kind": "karpenter-aws"}, autoscale={"min": 1, "max": 4}, budgetUsdPerMonth=2000)
    by_kind = {m["kind"]: m for m in render.render(decided, CATALOG)}
    assert by_kind["NodePool"]["spec"]["limits"] == {"nvidia.com/gpu": "4"}
    assert by_kind["ResourceQuota"]["spec"]["hard"] == {"requests.nvidia.com/gpu": "4"}
    assert "replicas" not in by_kind["Deployment"]["spec"]
    scaled = by_kind["ScaledObject"]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (1, 4)
    assert scaled["triggers"][0]["metadata"]["ignoreNullValues"] == "false"
    assert scaled["cooldownPeriod"] > decided.timeouts.load_s
    assert decided.cost.usd_per_hour == pytest.approx(0.8048)
    (refusal,) = decided.refusals
    assert refusal.need == pytest.approx(4 * 0.8048 * 730, abs=0.01)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"autoscale": {"min": 3, "max": 2}}, "max 2 is below min 3"),
        ({"autoscale": {"max": 2}, "replicas": 1}, "autoscale decides the replicas"),
        ({"autoscale": {"max": 2, "prometheus": "here"}}, "prometheus"),
        ({"autoscale": {"maximum": 2}}, "did you mean max"),
    ],
)
def test_an_autoscaler_that_cannot_be_is_named(more: dict[str, Any], says: str) -> None:
    """Contradicting counts, and an address that is none."""
    with pytest.raises(BadInput, match=says):
        decide({"kind": "karpenter-aws"}, **more)


def test_the_budget_is_checked_against_what_may_be_bought() -> None:
    """Not against today's machines: two pools, a spare or a wide limit may hold more."""
    fine = decide({"kind": "karpenter-aws"}, budgetUsdPerMonth=600)
    assert fine.runs
    for cloud in ({"capacity": ["on-demand", "spot"]}, {"warmSpares": 1}, {"limitGpus": 2}):
        refused = decide({"kind": "karpenter-aws", **cloud}, budgetUsdPerMonth=600)
        (refusal,) = refused.refusals
        assert refusal.code == "over-budget"
        assert "may buy up to 2 × g6.xlarge" in refusal.message
        assert refusal.need == pytest.approx(2 * 0.8048 * 730, abs=0.01)


def test_zones_without_a_price_take_another_regions_and_say_so() -> None:
    """An estimate is better than none, and a region that was asked for stays unknown."""
    decided = decide({"kind": "karpenter-aws", "zones": ["us-west-2a"]})
    assert decided.cost.usd_per_hour == pytest.approx(0.8048)
    assert any("in us-west-2 is known: that of us-east-1 is taken" in warning for warning in decided.warnings)
    assert decide({"kind": "karpenter-aws", "region": "us-west-2"}).cost.usd_per_hour is None


def test_a_machine_that_is_not_sold_on_demand_is_bought_as_it_is_sold() -> None:
    """Google's small H100 machines come as flex-start or spot; nobody has to know."""
    decided = decide({"kind": "gke-compute-class", "zones": ["us-central1-a"]}, gpu="h100-sxm", gpus=1)
    assert decided.pool is not None
    assert [way.way for step in decided.pool.steps for way in step] == ["flex-start"]
    assert any("not sold on demand" in warning for warning in decided.warnings)


@pytest.mark.parametrize(
    ("cloud", "resource", "amount"),
    [
        ({"kind": "karpenter-aws", "zones": ["us-east-1a"]}, "vpc.amazonaws.com/efa", "32"),
        ({"kind": "coreweave"}, "rdma/ib", "1"),
        ({"kind": "karpenter-azure"}, "rdma/shared_ib", "1"),
    ],
)
def test_workers_of_several_nodes_ask_for_their_fabric(cloud: dict[str, Any], resource: str, amount: str) -> None:
    """Requests equal limits, NCCL is told the interface, and one node alone asks for none of it."""
    decided = decide(cloud, model="deepseek-r1", gpu="h100-sxm", gpus=16, quantization="fp8", acceptedLicense="MIT")
    (service,) = [m for m in render.render(decided, CATALOG) if m["kind"] == "RayService"]
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["requests"][resource] == container["resources"]["limits"][resource] == amount
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["NCCL_SOCKET_IFNAME"] == "=eth0"
    one = render.render(decide(cloud, gpu="h100-sxm"), CATALOG)
    assert resource not in str(one)


def test_karpenter_is_never_asked_for_huge_pages() -> None:
    """It makes no node for them (kubernetes-sigs/karpenter#751); a managed group's nodes have them."""
    question = {"model": "deepseek-r1", "gpu": "h100-sxm", "gpus": 16, "quantization": "fp8", "acceptedLicense": "MIT"}
    karpenter = str(render.render(decide({"kind": "karpenter-aws"}, **question), CATALOG))
    managed = str(render.render(decide({"kind": "eks"}, **question), CATALOG))
    assert "hugepages" not in karpenter
    assert "FI_EFA_USE_HUGE_PAGE" in karpenter
    assert "'hugepages-2Mi': '5120Mi'" in managed
    assert "FI_EFA_USE_HUGE_PAGE" not in managed


def test_a_fabric_with_host_paths_says_which_level_it_needs() -> None:
    """TCPX has a sidecar and host paths, so its namespace is privileged and plan.md says why."""
    from modelstacks import review

    cloud = {"kind": "gke-compute-class", "zones": ["us-central1-a"], "machine": "a3-highgpu-8g"}
    decided = decide(cloud, model="deepseek-r1", gpu="h100-sxm", gpus=16, quantization="fp8", acceptedLicense="MIT")
    files = review.files(decided, CATALOG, "test")
    assert "enforce: privileged" in files["namespace.test.yaml"]
    assert "tcpx-daemon container runs as root with NET_ADMIN" in files["plan.md"]


def test_claims_take_the_place_of_the_device_plugin() -> None:
    """With Dynamic Resource Allocation no pod asks for nvidia.com/gpu, and the quota counts devices."""
    manifests = render.render(decide({"kind": "existing", "gpuAllocation": "dra"}, gpus=4), CATALOG)
    by_kind = {m["kind"]: m for m in manifests}
    (request,) = by_kind["ResourceClaimTemplate"]["spec"]["spec"]["devices"]["requests"]
    assert request["exactly"]["count"] == 4
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    name = by_kind["ResourceClaimTemplate"]["metadata"]["name"]
    assert pod["resourceClaims"] == [{"name": "gpus", "resourceClaimTemplateName": name}]
    assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]
    assert list(by_kind["ResourceQuota"]["spec"]["hard"]) == ["gpu.nvidia.com.deviceclass.resource.k8s.io/devices"]


def test_weights_that_no_disk_holds_are_refused() -> None:
    """AKS leaves local NVMe raw: the OS disk has 2048 GiB at most."""
    decided = decide({"kind": "aks", "bootDiskGib": 120}, gpu="h100-nvl")
    (refusal,) = decided.refusals
    assert (refusal.code, refusal.have) == ("disk-too-small", 20)
    assert "storageClass" in refusal.message


def test_names_that_the_cloud_keeps_are_refused() -> None:
    """GKE keeps names that begin with gke."""
    asked = {
        "model": "llama-3.1-8b",
        "gpu": "l4",
        "acceptedLicense": "llama3.1",
        "cloud": {"kind": "gke-compute-class"},
    }
    with pytest.raises(BadInput, match="begins with gke"):
        plan(spec.parse(asked, CATALOG, source="test"), CATALOG, stack="gke-llm")


@pytest.mark.parametrize(
    ("operators", "kind", "says"),
    [
        (["kubray"], "existing", "did you mean kuberay"),
        (["gpu-operator"], "coreweave", "CoreWeave manages driver and plugin itself"),
        (["gpu-operator", "nvidia-device-plugin"], "existing", "do the same: keep one"),
        (["efa-device-plugin"], "karpenter-azure", "is not for kind karpenter-azure"),
        (["keda", "keda"], "existing", "names keda twice"),
    ],
)
def test_operators_that_do_not_belong_are_named(operators: list[str], kind: str, says: str) -> None:
    """Unknown, brought by the cloud, or in one another's way."""
    with pytest.raises(BadInput, match=says):
        decide({"kind": kind}, gpu="h100-sxm", operators=operators)


def test_every_fabric_and_region_of_the_data_is_known() -> None:
    """Machine rows name fabrics and clouds name regions that exist."""
    assert {m.fabric for m in CATALOG.machines if m.fabric} <= CATALOG.fabrics.keys()
    for kind in CATALOG.clouds.values():
        if kind.regions_of is not None:
            regions = CATALOG.regions_of(kind.regions_of)
            for region in regions.zones:
                assert all(regions.region_of(zone) == region for zone in regions.names_in(region))
        assert {s.operator for s in kind.software if s.operator} <= CATALOG.operators.keys()


def test_every_machine_of_google_has_its_accelerator_name() -> None:
    """A compute class without it would order machines without GPUs."""
    for gpu in CATALOG.gpus.values():
        for machine in gpu.machines:
            if machine.cloud == "gcp":
                assert gpu.name_in(machine), machine.name
