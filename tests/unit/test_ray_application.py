"""The application that runs inside a Ray cluster: what it reads, what it refuses, and what it hands to Ray."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray._private.label_utils import validate_label_selector
from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

from modelstacks import project, render, stackfile
from modelstacks.catalog import Catalog
from modelstacks.plan import plan
from modelstacks.render import ray as launcher
from modelstacks_ray import application, entry, placement, probe, serving_plan
from modelstacks_ray.errors import PlanError
from modelstacks_ray.placement import Node

ROOT = project.root()
CATALOG = Catalog()


def _plans() -> dict[str, str]:
    """Every shipped stack that Ray serves → its plan file."""
    found = {}
    for stack in stackfile.stack_names(ROOT):
        decided = plan(stackfile.parse_file(stackfile.stack_file(ROOT, stack), CATALOG), CATALOG, stack=stack)
        if decided.tier_form.launcher == "ray-serve":
            maps = [m for m in render.render(decided, CATALOG) if m["kind"] == "ConfigMap"]
            found[stack] = next(m["data"]["plan.json"] for m in maps if "plan.json" in m["data"])
    return found


PLANS = _plans()
PLAN = serving_plan.parse(PLANS["deepseek-r1"], "plan.json")


def node(name: str, *, gpus: int = 8, free: int | None = None, kind: str = "H100") -> Node:
    """A node, whole and of the planned type unless said otherwise."""
    return Node(f"id-{name}", name, (kind,), gpus, gpus if free is None else free)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_nothing_of_the_application_imports_vllm() -> None:
    """It is read, typed and tested where no GPU is."""
    assert "vllm" not in sys.modules
    assert entry.build.__module__ == "modelstacks_ray.entry"


@pytest.mark.parametrize("stack", PLANS)
def test_rays_own_config_takes_what_the_plan_gives(stack: str) -> None:
    """LLMConfig of the pinned Ray validates it, and vLLM of the pinned version knows every argument."""
    read = serving_plan.parse(PLANS[stack], stack)
    config = LLMConfig(**application.llm_config(read))
    assert config.model_id == read.model
    deployment = config.deployment_config
    assert deployment["autoscaling_config"]["target_ongoing_requests"] == read.max_num_seqs
    assert config.experimental_configs == {"stream_batching_interval_ms": 0}
    # Requests queue in the engine, so that a probe of its health never waits behind them.
    assert min(deployment["max_ongoing_requests"], application.ingress_options(read)["max_ongoing_requests"]) >= 100_000
    known = json.loads((ROOT / f"templates/engines/vllm-{read.engine_version}-arguments.json").read_text())
    assert set(config.engine_kwargs) <= {*known["engine"], *known["frontend"]}
    assert config.engine_kwargs["tensor_parallel_size"] * config.engine_kwargs["pipeline_parallel_size"] == read.gpus


def test_several_replicas_in_one_cluster_are_routed_by_prefix_and_by_load() -> None:
    """The router's own default never looks at load."""
    router = application.llm_config(replace(PLAN, replicas=2))["deployment_config"]["request_router_config"]
    assert router["request_router_kwargs"] == {"imbalanced_threshold": 10, "do_eviction": True}


def test_the_digest_is_one_on_both_sides(tmp_path: Path) -> None:
    """What the render writes into the serve config is what the application computes of its files."""
    file = tmp_path / "plan.json"
    file.write_text(PLANS["deepseek-r1"])
    wanted = launcher.digest_of({"plan.json": PLANS["deepseek-r1"], **launcher.application()})
    assert entry.digest_of(file) == wanted
    assert entry.await_digest(file, wanted) is None
    file.write_text(PLANS["deepseek-r1"] + " ")
    clock = Clock()
    stale = entry.await_digest(file, wanted, within_s=10, clock=clock, sleep=clock.sleep)
    assert stale == entry.digest_of(file) != wanted
    missing = tmp_path / "none.json"
    said = entry.await_digest(missing, wanted, within_s=10, clock=clock, sleep=clock.sleep)
    assert said == "unreadable (No such file or directory)"


_UPDATE = """
import sys, threading, time
from pathlib import Path
here, fresh = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, str(here))
from modelstacks_ray import entry

def arrive():
    time.sleep(1)
    for file in fresh.iterdir():
        (here / "modelstacks_ray" / file.name).write_bytes(file.read_bytes())

threading.Thread(target=arrive).start()
print(entry.build({"plan": sys.argv[3], "digest": sys.argv[4]}))
"""


def test_an_update_of_the_files_is_seen_whole(tmp_path: Path) -> None:
    """The serve config comes first, the mounted files a minute later: then all of the new ones are used, none old."""
    code = launcher.application()
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "modelstacks_ray").mkdir(parents=True)
    new.mkdir()
    changed = {
        "serving_plan.py": "NEWS = 'the new plan reader'\n",
        "application.py": "from modelstacks_ray import serving_plan\nread = str\n"
        "def build(path):\n    return serving_plan.NEWS\n",
    }
    for name, text in code.items():
        (old / "modelstacks_ray" / name).write_text(text)
        (new / name).write_text(changed.get(name, text))
    plan_file = tmp_path / "plan.json"
    plan_file.write_text("{}")
    wanted = launcher.digest_of({"plan.json": "{}"} | {n: changed.get(n, t) for n, t in code.items()})
    command = [sys.executable, "-c", _UPDATE, str(old), str(new), str(plan_file), wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "the new plan reader", done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no JSON"),
        ("[]", "a plan of schema None"),
        ('{"schema": 9}', "schema 9, this application reads 1"),
        ('{"schema": 1}', "lacks accelerator_type, drain_s"),
        (json.dumps(json.loads(PLANS["deepseek-r1"]) | {"more": 1}), "does not know more"),
        (json.dumps(json.loads(PLANS["deepseek-r1"]) | {"pipeline_parallel": 3}), "do not fill 2 nodes of 8"),
        (
            json.dumps(json.loads(PLANS["deepseek-r1"]) | {"tensor_parallel": 16, "pipeline_parallel": 1}),
            "tensor parallel 16 does not divide the 8 GPUs of a node",
        ),
    ],
)
def test_a_bad_plan_file_is_one_sentence(text: str, says: str) -> None:
    """The place and the next step, never a stack trace of its own."""
    with pytest.raises(PlanError, match=says) as caught:
        serving_plan.parse(text, "plan.json")
    assert str(caught.value).startswith("plan.json")
    assert str(caught.value).endswith("render the stack again")


def test_a_missing_plan_file_is_named(tmp_path: Path) -> None:
    """As a pod without its ConfigMap would meet it."""
    with pytest.raises(PlanError, match="cannot be read"):
        application.read(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("ray", "vllm", "says"),
    [("2.59.0", "0.29.0", "the image holds Ray 2.59.0"), ("2.60.0", "0.32.0", "the image holds vLLM 0.32.0")],
)
def test_another_version_than_the_plans_is_refused(ray: str, vllm: str, says: str) -> None:
    """The memory arithmetic is that of one engine version."""
    application.check_versions(PLAN, "2.60.0", "0.29.0+cu130")
    with pytest.raises(PlanError, match=says):
        application.check_versions(PLAN, ray, vllm)


@pytest.mark.parametrize(
    ("nodes", "unfit", "says"),
    [
        ([node("a"), node("b")], [], None),
        # Exactly the case that PACK would split 4 + 4 + 8.
        ([node("a", free=4), node("b", free=4), node("c")], ["id-a", "id-b"], "has 1: a has 4 of 8 GPUs free"),
        ([node("a", free=4), node("b", free=4), node("c"), node("d")], ["id-a", "id-b"], None),
        ([node("a"), node("b", gpus=7)], ["id-b"], "b has 7 GPUs, not 8"),
        ([node("a", gpus=10), node("b", gpus=8)], ["id-a"], "a has 10 GPUs, not 8"),
        ([node("a", kind="A100"), node("b", kind="A100")], ["id-a", "id-b"], "a has A100 GPUs, not H100"),
        ([node("a"), node("b", kind="H200"), node("c")], ["id-b"], None),
        ([node("a")], [], "needs 2 nodes with 8 H100 free each, the cluster has 1"),
        ([], [], "the cluster has 0"),
    ],
)
def test_only_whole_nodes_of_the_planned_kind_are_used(nodes: list[Node], unfit: list[str], says: str | None) -> None:
    """Others are kept out by name, and too few are said in numbers."""
    verdict = placement.judge(PLAN, nodes)
    assert list(verdict.unfit) == unfit
    assert (verdict.lacking is None) == (says is None)
    assert says is None or says in str(verdict.lacking)


def test_whole_nodes_alone_can_never_be_split() -> None:
    """Whatever PACK does: replicas take whole nodes of equal size, so those that are left are whole again."""
    for replicas in (1, 2, 3):
        asked = replace(PLAN, replicas=replicas)
        free = dict.fromkeys((f"id-{n}" for n in range(asked.nodes)), 8)
        for _ in range(replicas):
            bundles: list[str] = []
            for name in free:
                take = min(free[name], asked.gpus - len(bundles))
                free[name] -= take
                bundles += [name] * take
            placement.check_groups(asked, dict(enumerate(bundles)))
        assert set(free.values()) == {0}


def test_missing_nodes_are_waited_for_and_wrong_ones_are_not() -> None:
    """A cluster that grows is given time; a cluster of the wrong machines is not."""
    clock = Clock()
    said: list[str] = []
    growing = [[], [node("a")], [node("a")], [node("a"), node("b")]]

    def look() -> list[Node]:
        return growing[min(int(clock.now), 3)]

    assert placement.await_nodes(PLAN, look, said.append, clock, clock.sleep) == ()
    assert [line.rpartition(" ")[2] for line in said] == ["0", "1"]
    with pytest.raises(PlanError, match="7 GPUs, not 8"):
        placement.await_nodes(PLAN, lambda: [node("a", gpus=7), node("b")], said.append, clock, clock.sleep)
    assert clock.now < 60
    hurried = replace(PLAN, nodes_within_s=5)
    with pytest.raises(PlanError, match="Look for worker pods that are Pending"):
        placement.await_nodes(hurried, lambda: [node("a")], said.append, clock, clock.sleep)


@pytest.mark.parametrize(
    ("bundles", "says"),
    [
        (["a"] * 8 + ["b"] * 8, None),
        (["b"] * 8 + ["a"] * 8, None),
        (["a"] * 4 + ["b"] * 4 + ["c"] * 8, r"group 0 would cross nodes \(4 on a \+ 4 on b\)"),
        (["a"] * 8 + ["b"] * 7 + ["c"], r"group 1 would cross nodes \(7 on b \+ 1 on c\)"),
        (["a"] * 8, "8 bundles were placed, the plan has 16"),
    ],
)
def test_what_was_placed_is_checked_again(bundles: list[str], says: str | None) -> None:
    """No engine starts with a tensor-parallel group on two nodes."""
    placed = dict(enumerate(bundles))
    if says is None:
        placement.check_groups(PLAN, placed)
        return
    with pytest.raises(PlanError, match=says):
        placement.check_groups(PLAN, placed)


def test_unfit_nodes_are_kept_out_by_a_selector_that_ray_takes() -> None:
    """By what they are, so that nodes which come later are welcome."""
    assert placement.selector([]) is None
    (found,) = placement.selector(["b" * 56, "a" * 56]) or []
    assert found == {"ray.io/node-id": f"!in({'a' * 56},{'b' * 56})"}
    assert validate_label_selector(found) is None


def _facts(**changed: Any) -> dict[str, Any]:
    gpu = {"name": "NVIDIA H100 80GB HBM3", "total_gib": 79.6, "free_gib": 79.0}
    return {"shm_gib": 64.0, "gpus": [dict(gpu) for _ in range(8)], "absent": []} | changed


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (_facts(), []),
        (_facts(gpus=None, shm_gib=None), []),
        (_facts(shm_gib=0.0625), ["/dev/shm holds 0.1 GiB, the plan has 24"]),
        (_facts(gpus=_facts()["gpus"][:7]), ["the driver shows 7 GPUs, the plan has 8"]),
        (
            _facts(gpus=[{"name": "NVIDIA H100 PCIe", "total_gib": 79.6, "free_gib": 79.0}] * 8),
            ["GPUs are NVIDIA H100 PCIe, the plan is for NVIDIA-H100-80GB-HBM3"],
        ),
        (
            _facts(gpus=[*_facts()["gpus"][:7], {**_facts()["gpus"][0], "free_gib": 11.5}]),
            ["GPU 7 has 11.5 of 79.6 GiB free, the plan needs 72.8: something else runs on it"],
        ),
        (
            _facts(absent=["/dev/infiniband/uverbs*"]),
            ["the network efa is not there: /dev/infiniband/uverbs* is missing"],
        ),
    ],
)
def test_a_node_that_is_not_as_planned_is_said_to_be(facts: dict[str, Any], says: list[str]) -> None:
    """Each fault in numbers; what nobody could find out is no fault."""
    assert probe.faults(replace(PLAN, fabric="efa"), facts) == says


def test_a_node_tells_what_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read from this machine, with a driver's program that answers as nvidia-smi does."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559, 81000'\necho 'NVIDIA H100 80GB HBM3, 81559, 500'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv(probe.SIMULATED, raising=False)
    found = probe.look((str(tmp_path / "nvidia*"), str(tmp_path / "none")))
    assert [round(gpu["free_gib"], 2) for gpu in found["gpus"]] == [79.1, 0.49]
    assert found["absent"] == [str(tmp_path / "none")]
    assert found["shm_gib"] > 0
    program.write_text("#!/bin/sh\nexit 9\n")
    assert probe.look(())["gpus"] is None


def test_types_are_read_however_ray_tells_them() -> None:
    """As a resource, as a label, and an A100 under two names."""
    both = placement.types_of({"accelerator_type:A100": 1, "accelerator_type:A100-80G": 1, "GPU": 8}, {})
    assert both == ("A100", "A100-80G")
    assert placement.types_of({"GPU": 8}, {"ray.io/accelerator-type": "H100"}) == ("H100",)
    assert placement.judge(replace(PLAN, accelerator_type="A100"), [Node("a", "a", both, 8, 8)] * 2).lacking is None


def test_the_key_guards_rays_api_and_not_its_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pain 30: whoever reaches the port needs the key, save kubelets and Prometheus."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from modelstacks_ray.guard import KeyGuard

    paths = ("/health", "/metrics", "/v1/models", "/tokenize")
    app = Starlette(
        routes=[Route(path, lambda _: PlainTextResponse("ok"), methods=["GET", "OPTIONS"]) for path in paths]
    )
    client = TestClient(KeyGuard(app))

    def codes(**headers: str) -> list[int]:
        return [client.get(path, headers=headers).status_code for path in paths]

    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert codes() == [200, 200, 200, 200], "without a key nothing is guarded"
    monkeypatch.setenv("VLLM_API_KEY", "opensesame")
    assert codes() == [200, 200, 401, 401]
    assert codes(Authorization="Bearer guess") == [200, 200, 401, 401]
    assert codes(Authorization="Bearer opensesame") == [200, 200, 200, 200]
    assert client.options("/v1/models").status_code == 200, "a browser asks first, without it"
