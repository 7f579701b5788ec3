"""Rendering: the plan's numbers are the flags, templates decide nothing, bytes never change by themselves."""

import itertools
import json
from typing import Any

import jinja2
import jinja2.nodes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve.schema import ServeDeploySchema

from modelstacks import documents, project, render, review, stackfile
from modelstacks.catalog import Catalog
from modelstacks.plan import Plan, plan
from modelstacks.render import templates

CATALOG = Catalog()
STACKS = stackfile.stack_names(project.root())
TEMPLATES = CATALOG.templates


def plan_of(stack: str, **overlay: Any) -> Plan:
    """The plan of one of the project's stacks, changed."""
    path = stackfile.stack_file(project.root(), stack)
    return plan(stackfile.parse_file(path, CATALOG, overlay=overlay), CATALOG, stack=stack)


def objects(decided: Plan) -> dict[str, dict[str, Any]]:
    """Rendered manifests by kind."""
    return {manifest["kind"]: manifest for manifest in render.render(decided, CATALOG)}


def flags(args: list[str]) -> dict[str, str]:
    """Pairs of a command line's flags and what follows each."""
    return {flag: value for flag, value in itertools.pairwise([*args, ""]) if flag.startswith("--")}


@pytest.mark.parametrize("stack", STACKS)
def test_rendered_files_are_what_the_stack_renders_to(stack: str) -> None:
    """rendered/ is the golden output; `make render` refreshes it."""
    fresh = review.files(plan_of(stack), CATALOG, stack)
    changed = review.differences(fresh, project.rendered_dir(project.root(), stack))
    assert not changed, "run `make render`\n" + "\n".join(difference.diff for difference in changed)


@pytest.mark.parametrize("stack", STACKS)
def test_rendering_twice_gives_the_same_bytes(stack: str) -> None:
    """Two independent catalogues, two renders, one result."""
    first = review.files(plan_of(stack), CATALOG, stack)
    again = Catalog()
    path = stackfile.stack_file(project.root(), stack)
    second = review.files(plan(stackfile.parse_file(path, again), again, stack=stack), again, stack)
    assert first == second


def _flags_of_their_own(stack: str) -> bool:
    choice = plan_of(stack).choice
    return choice.engine == "tgi" or choice.tier == "ray"


@pytest.mark.parametrize("stack", [stack for stack in STACKS if not _flags_of_their_own(stack)])
def test_the_number_in_the_plan_is_the_number_in_vllms_flag(stack: str) -> None:
    """Every flag that the arithmetic depends on is written out."""
    decided = plan_of(stack)
    container = objects(decided)["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    given_flags = flags(container["args"])
    load, topology = decided.choice.load, decided.choice.topology
    assert given_flags["--max-model-len"] == str(load.context)
    assert given_flags["--tensor-parallel-size"] == str(topology.tensor_parallel)
    assert given_flags["--pipeline-parallel-size"] == str(topology.pipeline_parallel)
    assert given_flags["--gpu-memory-utilization"] == str(load.gpu_memory_utilization)
    assert given_flags["--max-num-seqs"] == str(load.max_num_seqs)
    assert given_flags["--max-num-batched-tokens"] == str(load.max_num_batched_tokens)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == str(topology.gpus)


def test_tgi_gets_its_own_flags_from_the_same_plan() -> None:
    """One engine is one template."""
    decided = plan_of("gemma-2-27b")
    given_flags = flags(objects(decided)["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"])
    assert given_flags["--max-total-tokens"] == "8192"
    assert given_flags["--num-shard"] == "1"
    assert int(given_flags["--max-batch-prefill-tokens"]) >= int(given_flags["--max-input-tokens"])
    assert given_flags["--cuda-memory-fraction"] == str(decided.choice.load.gpu_memory_utilization)


def test_the_ray_service_is_the_plan() -> None:
    """Workers are whole nodes, and Ray itself accepts the shape of the serve config."""
    decided = plan_of("deepseek-r1", replicas=2)
    first, second = (m for m in render.render(decided, CATALOG) if m["kind"] == "RayService")
    assert (first["metadata"]["name"], second["metadata"]["name"]) == ("deepseek-r1-0", "deepseek-r1-1")
    service = first["spec"]
    assert service["serveConfigV2"] == second["spec"]["serveConfigV2"]
    ServeDeploySchema.model_validate(documents.read(service["serveConfigV2"], source="serveConfigV2")[0])
    (workers,) = service["rayClusterConfig"]["workerGroupSpecs"]
    assert workers["replicas"] == workers["maxReplicas"] == decided.nodes_per_replica == 2
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "8"


def test_the_node_pool_can_never_hold_more_than_the_plan() -> None:
    """A runaway cannot buy a GPU more."""
    for replicas, limit in ((1, "8"), (4, "8"), (5, "16")):
        decided = plan_of("qwen-2.5-72b", replicas=replicas, cloud={"kind": "kwok"})
        assert objects(decided)["NodePool"]["spec"]["limits"] == {"nvidia.com/gpu": limit}


@pytest.mark.parametrize("stack", STACKS)
def test_only_node_pool_placement_and_await_differ_on_the_embedded_cluster(stack: str) -> None:
    """What was reviewed for a real cloud is what runs on simulated nodes, save where pods go."""

    def comparable(decided: Plan) -> dict[tuple[str, str, str], Any]:
        found = {}
        for manifest in render.render(decided, CATALOG):
            if manifest["kind"] == "NodePool":
                continue
            copy = json.loads(json.dumps(manifest))
            pod = copy.get("spec", {}).get("template")
            if manifest["kind"] == "RayService":
                # Simulated pods run no Ray, so its readiness cannot be awaited there.
                copy["metadata"]["annotations"].pop("pulumi.com/waitFor", None)
                pod = copy["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]
            if pod is not None:
                for key in ("nodeSelector", "tolerations"):
                    del pod["spec"][key]
                pod["spec"].pop("affinity", None)
                # On rented machines nothing spreads over nodes: where pods go, again. Zones are the same for both.
                rules = pod["spec"].get("topologySpreadConstraints", [])
                pod["spec"]["topologySpreadConstraints"] = [
                    rule for rule in rules if rule["topologyKey"] != "kubernetes.io/hostname"
                ]
                del pod["metadata"]["annotations"]
            found[render.identity(manifest)] = copy
        return found

    assert comparable(plan_of(stack, cloud={"kind": "existing"})) == comparable(plan_of(stack, cloud={"kind": "kwok"}))


@pytest.mark.parametrize("stack", STACKS)
def test_pods_are_restricted_or_say_why_not(stack: str) -> None:
    """Pod Security `restricted` wherever the image allows it; the page names the field otherwise."""
    decided = plan_of(stack)
    rendered = objects(decided)
    level = rendered["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    page = review.page(decided, list(rendered.values()), stack, CATALOG)
    assert level == "restricted" or "`runAsUser`" in page
    text = json.dumps(rendered)
    assert '"privileged"' not in text
    assert '"hostPath"' not in text
    assert text.count('"enableServiceLinks": false') == text.count('"serviceAccountName"')


def test_templates_decide_nothing() -> None:
    """Values, loops and plain conditions; the only filter is tojson, and no value is printed without it."""
    for path in sorted(TEMPLATES.rglob("*.j2")):
        tree = jinja2.Environment().parse(path.read_text())
        banned = (
            jinja2.nodes.BinExpr, jinja2.nodes.UnaryExpr, jinja2.nodes.Compare, jinja2.nodes.Call, jinja2.nodes.Assign,
            jinja2.nodes.Macro, jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.CondExpr, jinja2.nodes.Test,
        )  # fmt: skip
        for node in tree.find_all(banned):
            pytest.fail(f"{path.name}:{node.lineno} decides something: {type(node).__name__}")
        for output in tree.find_all(jinja2.nodes.Output):
            for node in output.nodes:
                ok = isinstance(node, jinja2.nodes.TemplateData) or (
                    isinstance(node, jinja2.nodes.Filter) and node.name == "tojson"
                )
                assert ok, f"{path.name}:{node.lineno} prints a value without tojson"


_NASTY = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(
    ["#x", "{{ x }}", "{% if %}", ": ", "- a", "&a", "*a", "'\"", "\N{ROCKET}", "null", "1e3", "\u2028"]
)


@settings(max_examples=50)
@given(_NASTY)
def test_any_text_survives_the_templates(text: str) -> None:
    """Values reach the manifest as they were, whatever they look like."""
    template = "a: {{ x | tojson }}\nb:\n  - {{ x | tojson }}\n"
    environment = templates.environment(TEMPLATES)
    (read,) = documents.read(environment.from_string(template).render(x=text), source="test")
    assert read == {"a": text, "b": [text]}


def test_an_unknown_name_in_a_template_is_an_error() -> None:
    """StrictUndefined: a typo never renders as nothing."""
    with pytest.raises((jinja2.UndefinedError, TypeError)):
        templates.environment(TEMPLATES).from_string("{{ nothing | tojson }}").render()
