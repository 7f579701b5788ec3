"""Every cloud kind for every stack, through a real API server with strict fields and the providers' definitions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelstacks import documents, render, spec, stackfile
from modelstacks.catalog import Catalog
from modelstacks.cluster.connection import Cluster, Kind, Manifest
from modelstacks.cluster.nodes import pod_templates
from modelstacks.local import golang
from modelstacks.local.layout import Layout
from modelstacks.plan import Plan, plan
from tests.embedded.conftest import ROOT, Checkout, trial_pod
from tests.unit.test_server_plans import PLACES

pytestmark = pytest.mark.embedded

CATALOG = Catalog()
STACKS = stackfile.stack_names(ROOT)
DEFINITIONS = ROOT / "tests" / "data" / "definitions"
REFERENCE = {"apiVersion": "infrastructure.cluster.x-k8s.io/v1beta2", "kind": "AWSMachineTemplate", "name": "gpu"}
BOOTSTRAP = {"apiVersion": "bootstrap.cluster.x-k8s.io/v1beta2", "kind": "KubeadmConfigTemplate", "name": "gpu"}
# The options that each kind must have, and for some a second question with everything that changes the objects.
CLOUDS: dict[str, list[dict[str, Any]]] = {
    "existing": [{}, {"gpuAllocation": "dra", "warmSpares": 1}, {"fabric": "efa"}],
    "kwok": [{}, {"capacity": ["on-demand", "spot"], "zones": ["local-a"], "warmSpares": 1}],
    "karpenter-aws": [
        {},
        {
            "zones": ["us-east-1a"], "capacity": [{"reservation": "cr-0123456789abcdef0"}, "on-demand", "spot"],
            "placementGroup": "close", "startupTaints": [{"key": "example.com/agent", "value": "starting"}],
            "image": "bottlerocket@v1.68.1", "warmSpares": 1,
        },
        {"nodeClass": "shared"},
    ],
    "karpenter-azure": [
        {},
        {"region": "eastus", "zones": ["1"], "capacity": ["on-demand", "spot"], "bootDiskGib": 2000},
    ],
    "gke-compute-class": [
        {},
        {
            "zones": ["us-central1-a"], "placementGroup": "close",
            "capacity": [{"reservation": "projects/p/reservations/r/reservationBlocks/b"}, "flex-start", "spot"],
        },
        {"capacity": [{"reservation": "any"}]},
    ],
    "coreweave": [{}, {"capacity": "spot", "warmSpares": 1}],
    "cluster-api": [
        {"cluster": "demo", "infrastructure": REFERENCE, "bootstrap": BOOTSTRAP},
        {
            "cluster": "demo", "infrastructure": REFERENCE, "bootstrap": BOOTSTRAP, "kubernetesVersion": "v1.34.1",
            "zones": ["rack-1"], "gpuAllocation": "dra",
        },
    ],
    "gke": [{"region": "us-central1"}],
    "eks": [{}],
    "aks": [{}],
}  # fmt: skip


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The unpacked Go modules that carry providers' definitions, each as its pinned hash has it."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "go.mod").write_text("module definitions\n\ngo 1.25.0\n")
    go = golang.find(Layout.of(ROOT).cache / "toolchain", print)
    found = {}
    for row in documents.read_file(DEFINITIONS / "modules.yaml"):
        said = json.loads(go.run(["mod", "download", "-json", f"{row['module']}@{row['version']}"], folder))
        assert said["Sum"] == row["sum"]
        found[row["module"]] = Path(said["Dir"])
    return found


@pytest.fixture(scope="session")
def served(running: Checkout, modules: dict[str, Path]) -> Cluster:
    """The embedded cluster with every provider's kinds beside its own."""
    rows = {row["module"]: row for row in documents.read_file(DEFINITIONS / "modules.yaml")}
    files = [modules[name] / file for name, row in rows.items() for file in row["files"]]
    files += sorted(DEFINITIONS.glob("*_*.yaml"))
    for file in files:
        running.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(file))
    # Their files are called <group>_<plural>.yaml.
    names = [f"{file.stem.partition('_')[2]}.{file.stem.partition('_')[0]}" for file in files]
    running.kubectl("wait", "--for=condition=Established", "--timeout=60s", *(f"crd/{name}" for name in names))
    return Cluster.connect(running.exports["KUBECONFIG"], None, None)


def decide(stack: str, cloud: dict[str, Any]) -> Plan:
    """The plan of a shipped stack with another cloud."""
    asked = stackfile.parse_file(stackfile.stack_file(ROOT, stack), CATALOG, overlay={"cloud": cloud})
    return plan(asked, CATALOG, stack=stack, thorough=False)


def carried(decided: Plan, kind: str) -> bool:
    """The cloud has the stack's GPU; the only reason that may keep a stack from a kind."""
    codes = {refusal.code for refusal in decided.refusals}
    assert codes <= {"machine-unavailable"}, decided.refusal_lines
    here = CATALOG.clouds[kind].prices_of
    has = any(m.cloud == here and m.kubernetes for m in decided.choice.gpu.machines)
    assert not codes or not has or decided.spec.cloud is None or decided.spec.cloud.capacity, decided.refusal_lines
    return not codes


@pytest.mark.parametrize("kind", CLOUDS)
def test_every_stack_is_accepted_on_every_cloud(kind: str, served: Cluster, running: Checkout) -> None:
    """Strict fields and the definitions' own rules for objects, the namespace's security level for pods."""
    assert set(CLOUDS) == set(CATALOG.clouds)
    seen: set[str] = set()
    levels: dict[str, str] = {}
    for options in CLOUDS[kind]:
        tried = 0
        for stack in STACKS:
            decided = decide(stack, {"kind": kind, **options})
            if not carried(decided, kind):
                continue
            tried += 1
            manifests = render.render(decided, CATALOG)
            assert any(render.is_pool(m) for m in manifests) == (
                CATALOG.clouds[kind].makes_nodes and CATALOG.clouds[kind].package is None
            )
            (namespace,) = [m for m in manifests if m["kind"] == "Namespace"]
            level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
            trial = levels.setdefault(level, f"trial-{kind}-{level}")
            _apply_once(served, {**namespace, "metadata": {**namespace["metadata"], "name": trial}}, seen, dry=False)
            for manifest in manifests:
                if manifest["kind"] != "Namespace":
                    _apply_once(served, _placed(manifest, trial), seen)
            for manifest in manifests:
                for _, _, template in pod_templates(manifest):
                    _admit(served, template, trial, seen)
        assert tried >= 30
    for trial in levels.values():
        running.kubectl("delete", "namespace", trial, "--wait=false")


def _placed(manifest: Manifest, namespace: str) -> Manifest:
    """The object under another name in the trial namespace; one of another namespace stays there."""
    metadata = dict(manifest["metadata"])
    # Beside the objects of stacks that run here, and not over them.
    metadata["name"] = f"trial-{metadata['name']}"
    if "namespace" in metadata and not render.is_pool(manifest):
        metadata["namespace"] = namespace
    return {**manifest, "metadata": metadata}


def _apply_once(cluster: Cluster, manifest: Manifest, seen: set[str], *, dry: bool = True) -> None:
    """Server-side apply with strict fields; objects that differ in their names alone are tried once."""
    body = {key: value for key, value in manifest.items() if key != "metadata"}
    named = manifest["metadata"] if manifest["kind"] == "Namespace" else manifest["metadata"].get("namespace")
    key = json.dumps([body, named])
    if key not in seen:
        seen.add(key)
        cluster.apply(manifest, "trial", dry_run=dry, force=True)


def _admit(cluster: Cluster, template: Manifest, namespace: str, seen: set[str]) -> None:
    """The pod itself, as the namespace's Pod Security level and the API server take it."""
    pod = trial_pod(template, namespace)
    key = json.dumps(["pod", namespace, pod["spec"]])
    if key not in seen:
        seen.add(key)
        path = cluster.path(Kind("v1", "Pod"), namespace)
        cluster.request("POST", path, {"dryRun": "All", "fieldValidation": "Strict"}, pod)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_of_weights_is_admitted(place: str, served: Cluster, running: Checkout) -> None:
    """Servers, init containers and the fetching Job under the level that the namespace enforces."""
    asked = {"model": "llama-3.1-8b", "gpu": "l4", "acceptedLicense": "llama3.1", "weights": PLACES[place]}
    decided = plan(spec.parse(asked, CATALOG, source="test"), CATALOG, stack="weights", thorough=False)
    manifests = render.render(decided, CATALOG)
    (namespace,) = [m for m in manifests if m["kind"] == "Namespace"]
    trial = f"trial-{place}"
    seen: set[str] = set()
    _apply_once(served, {**namespace, "metadata": {**namespace["metadata"], "name": trial}}, seen, dry=False)
    for manifest in manifests:
        if manifest["kind"] != "Namespace":
            _apply_once(served, _placed(manifest, trial), seen)
        if manifest["kind"] in ("Deployment", "Job"):
            _admit(served, manifest["spec"]["template"], trial, seen)
    running.kubectl("delete", "namespace", trial, "--wait=false")


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
def test_an_autoscaled_stack_is_accepted(engine: str, served: Cluster, running: Checkout) -> None:
    """KEDA's own definition, and a Deployment that leaves its replicas to it."""
    overlay = {"cloud": {"kind": "existing"}, "engine": engine, "autoscale": {"min": 2, "max": 4}, "replicas": None}
    if engine == "tgi":
        overlay["quantization"] = "bf16"
        overlay["gpu"] = "l40s"
    path = stackfile.stack_file(ROOT, "llama-3.1-8b")
    values = {k: v for k, v in {**stackfile.stack_values(path), **overlay}.items() if v is not None}
    decided = plan(spec.parse(values, CATALOG, source="test"), CATALOG, stack="llama-3.1-8b", thorough=False)
    assert decided.runs, decided.refusal_lines
    manifests = {m["kind"]: m for m in render.render(decided, CATALOG)}
    assert "replicas" not in manifests["Deployment"]["spec"]
    running.kubectl("create", "namespace", f"trial-scaled-{engine}")
    for kind in ("ScaledObject", "Deployment"):
        served.apply(_placed(manifests[kind], f"trial-scaled-{engine}"), "trial", dry_run=True)
    running.kubectl("delete", "namespace", f"trial-scaled-{engine}", "--wait=false")


def test_pools_pass_the_rules_of_the_aws_build_too(
    running: Checkout, modules: dict[str, Path], served: Cluster
) -> None:
    """Karpenter for AWS ships NodePool with rules of its own, of a newer version than the embedded one."""
    (row,) = [r for r in documents.read_file(DEFINITIONS / "modules.yaml") if "later" in r]
    (file,) = row["later"]
    definition = documents.read_file(modules[row["module"]] / file)
    # Under another group, so that the cluster's own definition stays what its Karpenter serves.
    group = "aws-build.example.com"
    definition["metadata"]["name"] = f"nodepools.{group}"
    definition["spec"]["group"] = group
    definition["spec"]["names"].pop("categories", None)
    running.kubectl("apply", "--server-side", "-f", "-", text=documents.write(definition))
    running.kubectl("wait", "--for=condition=Established", "--timeout=60s", f"crd/nodepools.{group}")
    seen: set[str] = set()
    for options in CLOUDS["karpenter-aws"]:
        for stack in STACKS:
            decided = decide(stack, {"kind": "karpenter-aws", **options})
            for manifest in render.render(decided, CATALOG):
                if manifest["kind"] == "NodePool":
                    _apply_once(served, {**manifest, "apiVersion": f"{group}/v1"}, seen)
    assert len(seen) > 20
    running.kubectl("delete", "crd", f"nodepools.{group}")


@pytest.mark.parametrize(
    ("kind", "break_it", "says"),
    [
        ("karpenter-aws", lambda m: m["spec"].update(limit={"nvidia.com/gpu": "1"}), "limit"),
        ("gke-compute-class", lambda m: m["spec"]["priorities"][0].update(spot=True, machineFamily="a3"), "machine"),
        ("coreweave", lambda m: m["spec"].update(computeClass="reserved"), "computeClass"),
        ("karpenter-azure", lambda m: m["spec"]["template"]["spec"].update(startupTaint=[]), "startupTaint"),
        ("cluster-api", lambda m: m["spec"]["template"]["spec"]["infrastructureRef"].pop("apiGroup"), "apiGroup"),
    ],
)
def test_a_wrong_field_would_be_noticed(kind: str, break_it: Any, says: str, served: Cluster) -> None:
    """The definitions really judge: each kind with one mistake is refused by name."""
    decided = decide("llama-3.1-70b", {"kind": kind, **CLOUDS[kind][0]})
    (pool,) = [m for m in render.render(decided, CATALOG) if render.is_pool(m) and "NodeClass" not in m["kind"]]
    broken = json.loads(json.dumps(pool))
    break_it(broken)
    with pytest.raises(Exception, match=says):
        served.apply(broken, "trial", dry_run=True)
