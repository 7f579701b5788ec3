"""The table of simulated machines that Karpenter reads."""

from dataclasses import dataclass

import pytest

from modelstacks.local import nodes


@dataclass(frozen=True)
class Machine:
    name: str = "g6.xlarge"
    cloud: str = "aws"
    gpu: str = "l4"
    gpus: int = 1
    vcpu: int = 4
    memory_gib: float = 16
    disk_gib: float = 250
    usd_per_hour: float | None = 0.8


def offered(entry: dict, key: str) -> set[str]:
    return {
        requirement["values"][0]
        for offering in entry["offerings"]
        for requirement in offering["Requirements"]
        if requirement["key"] == key
    }


def test_machine_becomes_an_instance_type_with_its_gpus():
    """CPU, memory, disk and GPUs of the machine are the resources of the instance type."""
    (entry,) = nodes.instance_types([Machine()])
    assert entry["name"] == "g6.xlarge"
    assert entry["resources"] == {
        "cpu": "4",
        "memory": "16384Mi",
        "ephemeral-storage": "250Gi",
        "pods": "110",
        "nvidia.com/gpu": "1",
    }


def test_every_zone_and_capacity_type_is_offered():
    """A NodePool may ask for any zone, on demand or spot."""
    (entry,) = nodes.instance_types([Machine()])
    assert len(entry["offerings"]) == 4
    assert offered(entry, "topology.kubernetes.io/zone") == set(nodes.ZONES)
    assert offered(entry, "karpenter.sh/capacity-type") == {"on-demand", "spot"}


def test_gpu_and_cloud_are_labels():
    """NodePools and pods can select by GPU type and cloud."""
    (entry,) = nodes.instance_types([Machine()])
    assert offered(entry, nodes.GPU_LABEL) == {"l4"}
    assert offered(entry, nodes.CLOUD_LABEL) == {"aws"}


def test_machine_without_gpus_has_no_gpu_resource_or_label():
    """A CPU machine does not attract GPU pods."""
    (entry,) = nodes.instance_types([Machine(name="m7i.xlarge", gpu="", gpus=0)])
    assert "nvidia.com/gpu" not in entry["resources"]
    assert offered(entry, nodes.GPU_LABEL) == set()


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        pytest.param([0.9, 0.8, 1.1], 0.8, id="the cheapest region"),
        pytest.param([None, 0.8], 0.8, id="a known price beats an unknown one"),
    ],
)
def test_one_entry_a_machine(prices, expected):
    """Rows of several regions become one instance type, since Karpenter finds types by name."""
    (entry,) = nodes.instance_types(Machine(usd_per_hour=price) for price in prices)
    assert max(offering["Price"] for offering in entry["offerings"]) == expected


def test_unknown_price_is_dearer_than_any_known_one():
    """Karpenter, which takes the cheapest, prefers machines whose price is known."""
    known, unknown = nodes.instance_types([Machine(name="a", usd_per_hour=113.9), Machine(name="b", usd_per_hour=None)])
    assert max(o["Price"] for o in known["offerings"]) < min(o["Price"] for o in unknown["offerings"])


def test_table_does_not_depend_on_the_order_of_machines():
    """The same catalogue gives the same file, so `up` does not restart Karpenter for nothing."""
    machines = [Machine(name="b"), Machine(name="a"), Machine(name="a", usd_per_hour=0.5)]
    assert nodes.instance_types(machines) == nodes.instance_types(reversed(machines))
