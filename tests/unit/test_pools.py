"""Managed node pools under mocks, with the typed classes of the clouds' own Pulumi packages."""

import json
from typing import Any

import pulumi
import pytest
from pulumi.runtime import mocks

from modelstacks import stackfile
from modelstacks.plan import Plan, plan
from tests.unit.test_program import CATALOG, ROOT, STACKS, Recorder, config_of, plain, run_program

POOL_TYPES = {
    "gke": "gcp:container/nodePool:NodePool",
    "eks": "aws:eks/nodeGroup:NodeGroup",
    "aks": "azure-native:containerservice:AgentPool",
}
OPTIONS: dict[str, dict[str, Any]] = {"gke": {"region": "us-central1"}, "eks": {}, "aks": {}}
BLOCK = {"capacity-block": "cr-0123456789abcdef0"}


class Clouds(Recorder):
    """Answers the look-ups of existing things too."""

    def call(self, args: mocks.MockCallArgs) -> dict[str, Any]:
        if args.token == "aws:eks/getCluster:getCluster":
            network = {"subnetIds": ["subnet-a", "subnet-b"], "clusterSecurityGroupId": "sg-1"}
            return {"name": args.args["name"], "vpcConfig": network}
        if args.token == "aws:iam/getRole:getRole":
            return {"arn": f"arn:aws:iam::1:role/{args.args['name']}"}
        if args.token == "aws:ec2/getSubnets:getSubnets":
            return {"ids": ["subnet-a"]}
        raise AssertionError(f"the program calls {args.token}")


def decided(stack: str, cloud: dict[str, Any], **more: Any) -> Plan:
    """The plan of a shipped stack with another cloud."""
    overlay = {"cloud": cloud, **more}
    asked = stackfile.parse_file(stackfile.stack_file(ROOT, stack), CATALOG, overlay=overlay)
    return plan(asked, CATALOG, stack=stack, thorough=False)


def run(stack: str, cloud: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **more: Any) -> Recorder:
    """The program of a shipped stack with another cloud."""
    config = config_of(stack) | {"modelstacks:cloud": json.dumps(cloud)}
    config |= {f"modelstacks:{key}": str(value) for key, value in more.items()}
    return run_program(stack, config, monkeypatch, Clouds())


def the(recorder: Recorder, kind: str) -> dict[str, Any]:
    """The inputs of the one resource of a type."""
    (resource,) = [r for r in recorder.resources if r.typ == kind]
    inputs: dict[str, Any] = plain(resource.inputs)
    return inputs


@pytest.mark.parametrize("kind", POOL_TYPES)
def test_every_stack_gets_the_pool_of_its_plan(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine type, GPUs and limit are the plan's, and pods find the pool by its label."""
    made = 0
    for stack in STACKS:
        cloud = {"kind": kind, **OPTIONS[kind]}
        wanted = decided(stack, cloud)
        if wanted.pool is None:
            assert [refusal.code for refusal in wanted.refusals] == ["machine-unavailable"]
            continue
        made += 1
        recorder = run(stack, cloud, monkeypatch)
        pool = the(recorder, POOL_TYPES[kind])
        machine, most = wanted.pool.machine, wanted.pool.machines_at_most
        if kind == "gke":
            node = pool["nodeConfig"]
            (gpu,) = node["guestAccelerators"]
            assert (node["machineType"], gpu["count"]) == (machine.name, machine.gpus)
            assert gpu["type"] == wanted.choice.gpu.name_in(machine)
            assert pool["autoscaling"]["totalMaxNodeCount"] == most
            labels, taints = node["labels"], [(t["key"], t["effect"]) for t in node["taints"]]
            assert taints == [("nvidia.com/gpu", "NO_SCHEDULE")]
        elif kind == "eks":
            template = the(recorder, "aws:ec2/launchTemplate:LaunchTemplate")
            assert template["instanceType"] == machine.name
            assert "instanceTypes" not in pool, "the launch template names it"
            assert pool["scalingConfig"] == {"minSize": most, "maxSize": most, "desiredSize": most}
            labels = pool["labels"]
            adapters = len(template.get("networkInterfaces", []))
            several = wanted.nodes_per_replica > 1
            assert adapters == (machine.efa_interfaces if several else 0)
        else:
            assert (pool["vmSize"], pool["maxCount"], pool["minCount"]) == (machine.name, most, 0)
            assert len(pool["agentPoolName"]) <= 12
            labels = pool["nodeLabels"]
            assert pool["nodeTaints"] == ["nvidia.com/gpu=true:NoSchedule"]
        assert labels["modelstacks.dev/pool"] == wanted.name
        assert not any(r.typ.endswith("karpenter.sh/v1:NodePool") for r in recorder.resources)
    assert made >= 30


@pytest.mark.parametrize(
    ("kind", "cloud", "holds"),
    [
        ("gke", {"capacity": "spot"}, lambda p: p["nodeConfig"]["spot"] is True),
        (
            "gke",
            {"capacity": "flex-start"},
            lambda p: p["nodeConfig"]["flexStart"] and p["nodeConfig"]["maxRunDuration"] == "604800s"
            and p["management"]["autoRepair"] is False,
        ),
        (
            "gke",
            {"capacity": [{"reservation": "projects/p/reservations/r"}], "placementGroup": "compact"},
            lambda p: p["nodeConfig"]["reservationAffinity"]["values"] == ["projects/p/reservations/r"]
            and p["placementPolicy"]["type"] == "COMPACT",
        ),
        ("eks", {"capacity": "spot"}, lambda p: p["capacityType"] == "SPOT"),
        ("eks", {"capacity": [BLOCK]}, lambda p: p["capacityType"] == "CAPACITY_BLOCK"),
        ("eks", {"zones": ["us-east-1a"]}, lambda p: p["subnetIds"] == ["subnet-a"]),
        ("eks", {"subnets": ["subnet-x"], "nodeRole": "arn:aws:iam::1:role/x"},
         lambda p: p["subnetIds"] == ["subnet-x"]),
        ("eks", {"cluster": "prod"}, lambda p: p["nodeRoleArn"].endswith("role/KarpenterNodeRole-prod")),
        ("aks", {"capacity": "spot"}, lambda p: p["scaleSetPriority"] == "Spot" and p["spotMaxPrice"] == -1),
        ("aks", {"region": "eastus", "zones": ["2"]}, lambda p: p["availabilityZones"] == ["2"]),
        ("aks", {"cluster": "prod", "resourceGroup": "llm"}, lambda p: p["resourceGroupName"] == "llm"),
    ],
)  # fmt: skip
def test_the_way_to_buy_reaches_the_pool(
    kind: str, cloud: dict[str, Any], holds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way in the words of the cloud's own API."""
    question = {"kind": kind, **OPTIONS[kind], **cloud}
    pool = the(run("llama-3.1-70b", question, monkeypatch), POOL_TYPES[kind])
    assert holds(pool), pool


def test_a_capacity_block_is_in_the_launch_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """EKS wants the market, the reservation and the type there; local NVMe is put under the kubelet."""
    recorder = run("deepseek-r1", {"kind": "eks", "capacity": [BLOCK], "placementGroup": "compact"}, monkeypatch)
    template = the(recorder, "aws:ec2/launchTemplate:LaunchTemplate")
    assert template["instanceMarketOptions"] == {"marketType": "capacity-block"}
    target = template["capacityReservationSpecification"]["capacityReservationTarget"]
    assert target == {"capacityReservationId": BLOCK["capacity-block"]}
    assert the(recorder, "aws:ec2/placementGroup:PlacementGroup")["strategy"] == "cluster"
    cards = [card["networkCardIndex"] for card in template["networkInterfaces"]]
    assert cards == list(range(32))
    assert [card["interfaceType"] for card in template["networkInterfaces"]][:2] == ["efa", "efa-only"]
    assert template["userData"]


def test_spares_and_limits_bound_what_may_be_bought(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas and spares are wanted now, the stack's own limit is the most there may be."""
    cloud = {"kind": "eks", "warmSpares": 1, "limitGpus": 40}
    pool = the(run("deepseek-r1", cloud, monkeypatch, replicas=2), POOL_TYPES["eks"])
    assert pool["scalingConfig"] == {"minSize": 5, "maxSize": 5, "desiredSize": 5}
    pool = the(run("deepseek-r1", cloud | {"limitGpus": 64}, monkeypatch, replicas=2), POOL_TYPES["eks"])
    assert pool["scalingConfig"] == {"minSize": 5, "maxSize": 8, "desiredSize": 5}


def test_another_stacks_pool_is_used_and_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """One owner: the stack that uses the pool only selects its nodes."""
    monkeypatch.setattr("modelstacks.sharing.check", lambda *_: None)
    recorder = run("quickstart", {"kind": "eks", "poolOwner": "llama-3.1-8b"}, monkeypatch)
    assert not [r for r in recorder.resources if r.typ.startswith("aws:")]
    (deployment,) = [r for r in recorder.resources if r.typ.endswith(":Deployment")]
    spec = plain(deployment.inputs)["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"modelstacks.dev/pool": "llama-3-1-8b"}


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clouds' packages are extras: without one the program says how to get it."""
    monkeypatch.setitem(__import__("sys").modules, "pulumi_gcp", None)
    monkeypatch.delitem(__import__("sys").modules, "modelstacks.pools.gke", raising=False)
    with pytest.raises(pulumi.RunError, match="uv sync --extra gke"):
        run("llama-3.1-70b", {"kind": "gke", "region": "us-central1"}, monkeypatch)
