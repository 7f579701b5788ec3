"""The Pulumi program under mocks: it registers what rendered/ holds, and what plan.md lists by name, nothing else."""

import asyncio
import json
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pulumi
import pulumi.runtime
import pytest
import yaml
from pulumi.runtime import mocks

from modelstacks import program, project, registration, stackfile
from modelstacks.catalog import Catalog
from modelstacks.cluster import operators

ROOT = project.root()
CATALOG = Catalog()
STACKS = stackfile.stack_names(ROOT)
COMPONENTS = "modelstacks:index:"


@dataclass
class Recorder(pulumi.runtime.Mocks):
    """Keeps every registration as the engine would see it."""

    resources: list[mocks.MockResourceArgs] = field(default_factory=list)

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.resources.append(args)
        return f"{args.name}-id", dict(args.inputs)

    def call(self, args: mocks.MockCallArgs) -> dict[str, Any]:
        raise AssertionError(f"the program calls {args.token}")


def run_program(
    stack: str, config: dict[str, str], monkeypatch: pytest.MonkeyPatch, recorder: Recorder | None = None
) -> Recorder:
    """`__main__.py` as the language host runs it, against mocks and without any cluster."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(program.OFFLINE, "1")
    recorder = recorder or Recorder()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        pulumi.runtime.set_mocks(recorder, project="modelstacks", stack=stack, preview=False)
        pulumi.runtime.set_all_config(config, [key for key in config if key.endswith("hubToken")])

        @pulumi.runtime.test
        def settled() -> None:
            runpy.run_path(str(ROOT / "__main__.py"), run_name="__main__")

        settled()
    finally:
        loop.close()
        asyncio.set_event_loop(None)
    return recorder


def config_of(stack: str) -> dict[str, str]:
    """A stack file's config as the engine hands it over: every value as text."""
    data = yaml.safe_load(stackfile.stack_file(ROOT, stack).read_text())["config"]
    structured = (dict, list, bool)
    return {key: json.dumps(value) if isinstance(value, structured) else str(value) for key, value in data.items()}


def plain(value: Any) -> Any:
    """Inputs as plain data: secrets unwrapped, whole floats as the integers they were."""
    if isinstance(value, dict):
        if "4dabf18193072939515e22adb298388d" in value:
            return plain(value["value"])
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def objects(recorder: Recorder) -> list[mocks.MockResourceArgs]:
    """Registered Kubernetes objects."""
    return [r for r in recorder.resources if r.typ.startswith("kubernetes:")]


@pytest.mark.parametrize("stack", STACKS)
def test_what_is_registered_is_what_was_reviewed(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs equal rendered/<stack>, object for object and field for field."""
    recorder = run_program(stack, config_of(stack), monkeypatch)
    reviewed = [yaml.safe_load(path.read_text()) for path in project.rendered_dir(ROOT, stack).glob("*.yaml")]
    registered = [plain(resource.inputs) for resource in objects(recorder)]
    # The key of the API is made by the program, and written nowhere.
    keys = [m for m in registered if m["kind"] == "Secret" and "-api-key-" in m["metadata"]["name"]]
    assert len(keys) == 1
    assert len(keys[0]["stringData"]["key"]) >= 32
    registered = [m for m in registered if m not in keys]
    by_identity = {(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]): m for m in registered}
    assert len(by_identity) == len(registered) == len(reviewed)
    for manifest in reviewed:
        key = (manifest["kind"], manifest["metadata"].get("namespace"), manifest["metadata"]["name"])
        assert by_identity[key] == manifest


@pytest.mark.parametrize("stack", STACKS)
def test_every_token_has_group_and_version_and_one_provider(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`v1:Service` instead of `core/v1:Service` would pass mocks and fail at the provider."""
    recorder = run_program(stack, config_of(stack), monkeypatch)
    providers = [r for r in recorder.resources if r.typ == "pulumi:providers:kubernetes"]
    assert len(providers) == 1
    for resource in objects(recorder):
        group_version = resource.typ.split(":")[1]
        assert "/" in group_version, resource.typ
        assert "cluster" in (resource.provider or ""), "the explicit provider"


def test_a_hub_token_becomes_a_secret_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one object that rendered/ cannot hold is the one that plan.md names."""
    plain_run = run_program("quickstart", config_of("quickstart"), monkeypatch)
    config = config_of("quickstart") | {"modelstacks:hubToken": "hf_secret"}
    with_token = run_program("quickstart", config, monkeypatch)
    before, after = ({r.name for r in objects(run)} for run in (plain_run, with_token))
    assert after - before == {"secret-quickstart-hub-token"}
    page = (project.rendered_dir(ROOT, "quickstart") / "plan.md").read_text()
    assert "Secret `hub-token`" in page
    others = [r for r in objects(with_token) if r.typ != "kubernetes:core/v1:Secret"]
    assert "hf_secret" not in json.dumps([plain(r.inputs) for r in others])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"modelstacks:gpus": "8", "modelstacks:gpu": "h100-sxm", "modelstacks:model": "deepseek-r1"},
            "weights-too-large",
        ),
        ({"modelstacks:replicas": "many"}, "modelstacks:replicas"),
        ({"modelstacks:model": "llama-4-70b"}, "Llama 4 has no 70B"),
        ({"modelstacks:requireReviewed": "true", "modelstacks:replicas": "3"}, "deployment.quickstart.yaml"),
    ],
)
def test_refusals_end_the_program_with_their_message(
    change: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RunError is what the language host prints without a stack trace."""
    config = config_of("quickstart") | change
    if "deepseek" in str(change):
        config.pop("modelstacks:quantization")
    with pytest.raises(pulumi.RunError, match=says):
        run_program("quickstart", config, monkeypatch)


def test_an_overlay_reads_the_stack_file_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded cluster's config holds only what differs."""
    path = tmp_path / "Pulumi.mine.yaml"
    path.write_text(
        "config:\n  modelstacks:model: mistral-nemo-12b\n  modelstacks:gpu: l4\n  modelstacks:replicas: 2\n"
    )
    config = {"modelstacks:stackFile": str(path), "modelstacks:cloud": '{"kind": "kwok"}'}
    recorder = run_program("mine", config, monkeypatch)
    (deployment,) = [r for r in objects(recorder) if r.typ.endswith(":Deployment")]
    assert plain(deployment.inputs)["spec"]["replicas"] == 2
    assert any(r.typ.endswith(":NodePool") and r.typ.startswith("kubernetes:") for r in recorder.resources)
    with pytest.raises(pulumi.RunError, match=r"is Pulumi\.mine\.yaml"):
        run_program("other", config, monkeypatch)


@pytest.mark.parametrize(
    ("api_version", "kind", "typed"),
    [
        ("v1", "Service", True),
        ("apps/v1", "Deployment", True),
        ("networking.k8s.io/v1", "NetworkPolicy", True),
        ("policy/v1", "PodDisruptionBudget", True),
        ("apps.example.com/v1", "Deployment", False),
        ("karpenter.sh/v1", "NodePool", False),
        ("ray.io/v1", "RayService", False),
    ],
)
def test_only_kubernetes_own_groups_are_typed(api_version: str, kind: str, typed: bool) -> None:
    """A CRD group that begins like a built-in one must not hit it."""
    assert (registration.typed_class(api_version, kind) is not None) == typed


OPERATORS = {"modelstacks:operators": '["kuberay", "keda"]'}


def claim_of(recorder: Recorder) -> Any:
    """What the stack says of the operators that it uses."""
    maps = [plain(r.inputs) for r in recorder.resources if r.typ == "kubernetes:core/v1:ConfigMap"]
    (claim,) = [one for one in maps if one["metadata"]["name"].endswith("-operators")]
    return claim["data"]


def test_operators_are_pinned_releases_that_stay_when_the_stack_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One release each, of the pinned chart, and the claim that says whose they are."""
    recorder = run_program("deepseek-r1", config_of("deepseek-r1") | OPERATORS, monkeypatch)
    releases = {plain(r.inputs)["name"]: plain(r.inputs) for r in recorder.resources if r.typ.endswith(":Release")}
    for name in ("kuberay", "keda"):
        row = CATALOG.operators[name]
        release = releases[row.release]
        assert (release["chart"], release["version"], release["namespace"]) == (row.chart, row.version, row.namespace)
        assert release["repositoryOpts"] == {"repo": row.repo}
    assert claim_of(recorder) == {"kuberay": "installed", "keda": "installed"}


def test_an_operator_that_is_there_is_used_and_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster has one of two, by another's hand."""
    kuberay = CATALOG.operators["kuberay"]
    found = {"kuberay": operators.Installation(kuberay, "1.5.1", "ray-system", True, "workload")}
    monkeypatch.setattr(
        program, "preflight", lambda *_: SimpleNamespace(items=lambda *_, **__: [], get=lambda *_: None)
    )
    monkeypatch.setattr(program.watch, "start", lambda *_: None)
    monkeypatch.setattr(registration.operators, "find_in", lambda *_: found)
    monkeypatch.setattr(registration.operators, "own_claims", lambda *_: {})
    recorder = run_program("deepseek-r1", config_of("deepseek-r1") | OPERATORS, monkeypatch)
    assert [plain(r.inputs)["name"] for r in recorder.resources if r.typ.endswith(":Release")] == ["keda"]
    assert claim_of(recorder) == {"kuberay": "used", "keda": "installed"}


def test_shared_things_have_a_provider_that_takes_them_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace that other stacks use is found again by the stack that owns it."""
    config = config_of("quickstart") | {"modelstacks:shared": '["namespace", "pool"]'}
    recorder = run_program("quickstart", config, monkeypatch)
    (provider,) = [r for r in recorder.resources if r.typ == "pulumi:providers:kubernetes" and r.name == "shared"]
    assert plain(provider.inputs)["upsertExistingObjects"] in (True, "true")
    adopted = {r.typ.rsplit(":", 1)[1] for r in objects(recorder) if "shared" in (r.provider or "")}
    assert adopted == {"Namespace", "NodePool"}


def test_machines_of_a_management_cluster_go_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cluster API's objects live where its controllers do."""
    reference = {"apiVersion": "infrastructure.cluster.x-k8s.io/v1beta2", "kind": "AWSMachineTemplate", "name": "gpu"}
    cloud = {
        "kind": "cluster-api", "cluster": "demo", "infrastructure": reference,
        "bootstrap": reference | {"kind": "KubeadmConfigTemplate"}, "managementContext": "mgmt",
    }  # fmt: skip
    config = config_of("quickstart") | {"modelstacks:cloud": json.dumps(cloud)}
    recorder = run_program("quickstart", config, monkeypatch)
    there = {r.typ.rsplit(":", 1)[1] for r in objects(recorder) if "management" in (r.provider or "")}
    assert there == {"MachineDeployment"}
    (provider,) = [r for r in recorder.resources if r.name == "management"]
    assert plain(provider.inputs)["context"] == "mgmt"


def test_a_stack_of_several_clusters_is_made_whole_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """One provider a context, every object in each, all endpoints put out."""
    far = "arn:aws:eks:us-west-2:1:cluster/west"
    config = config_of("quickstart") | {"modelstacks:clusters": json.dumps(["east", far])}
    exported: dict[str, Any] = {}
    monkeypatch.setattr(pulumi, "export", exported.__setitem__)
    recorder = run_program("quickstart", config, monkeypatch)
    providers = {r.name: plain(r.inputs) for r in recorder.resources if r.typ == "pulumi:providers:kubernetes"}
    west = "arn-aws-eks-us-west-2-1-cluster-west"
    contexts = {name: inputs["context"] for name, inputs in providers.items()}
    assert contexts == {"east-cluster": "east", f"{west}-cluster": far}
    made = [(r.name, r.provider or "") for r in objects(recorder)]
    for prefix in ("east", west):
        own = {name.removeprefix(f"{prefix}-") for name, provider in made if f"::{prefix}-cluster::" in provider}
        assert "deployment-quickstart-quickstart" in own
        assert len(own) * 2 == len(made)
    assert exported["endpoints"] == dict.fromkeys(("east", far), exported["endpoint"])


def test_replicas_that_run_are_changed_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones start at once; of running ones the next waits for the one before, and gives its GPUs back first."""
    there = {"deepseek-r1-0", "deepseek-r1-1"}
    live = SimpleNamespace(items=lambda *_, **__: [], get=lambda _kind, _space, name: {} if name in there else None)
    monkeypatch.setattr(program, "preflight", lambda *_: live)
    monkeypatch.setattr(program.change, "changes", lambda *_: [])
    monkeypatch.setattr(program.change, "words", lambda *_: "restarts 4 pods")
    monkeypatch.setattr(program.watch, "start", lambda *_: None)
    asked: dict[str, pulumi.ResourceOptions] = {}
    register = registration.register_manifest

    def remember(manifest: dict[str, Any], options: pulumi.ResourceOptions, names: Any) -> pulumi.Resource:
        asked[f"{manifest['kind']} {manifest['metadata']['name']}"] = options
        return register(manifest, options, names)

    monkeypatch.setattr(registration, "register_manifest", remember)
    run_program("deepseek-r1", config_of("deepseek-r1") | {"modelstacks:replicas": "3"}, monkeypatch)

    def waits_for(name: str) -> set[str]:
        found = asked[f"RayService deepseek-r1-{name}"].depends_on or []
        return {one._name for one in found if isinstance(one, pulumi.Resource) and "rayservice" in one._name}

    assert waits_for("0") == waits_for("2") == set()
    assert waits_for("1") == {"rayservice-deepseek-r1-deepseek-r1-0"}
    for name in ("0", "1", "2"):
        options = asked[f"RayService deepseek-r1-{name}"]
        assert (options.replace_on_changes, options.delete_before_replace) == (["spec.rayClusterConfig"], True)
    assert asked["NetworkPolicy deepseek-r1"].replace_on_changes is None
