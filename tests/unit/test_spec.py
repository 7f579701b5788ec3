"""Stack files: every mistake is reported at once, with its path, the value and what is allowed."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelstacks import spec, stackfile
from modelstacks.catalog import Catalog
from modelstacks.errors import BadInput

CATALOG = Catalog()
GOOD: dict[str, Any] = {"model": "mistral-nemo-12b"}


def problems(values: dict[str, Any]) -> dict[str, str]:
    """Path → message of everything wrong with `values`."""
    with pytest.raises(BadInput) as caught:
        spec.parse(values, CATALOG, source="test")
    return {problem.path.removeprefix("modelstacks:"): str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("replicas", "two", "whole number"),
        ("replicas", 2.5, "whole number"),
        ("replicas", True, "whole number"),
        ("replicas", -1, "greater than or equal to 0"),
        ("context", "128k", "131072"),
        ("context", 0, "greater than or equal to 1"),
        ("quantization", "fp9", "did you mean fp8"),
        ("gpu", "h100", "did you mean h100-"),
        ("engine", "vlm", "did you mean vllm"),
        ("gpuMemoryUtilization", 1.5, "less than or equal to 1"),
        ("gpuMemoryUtilization", float("nan"), "nan"),
        ("budgetUsdPerMonth", 0, "greater than 0"),
        ("namespace", "Not_A_Name", "lower case letters"),
        ("cloud", "aws", "must be a mapping"),
        ("cloud", {"kind": "kwock"}, "did you mean kwok"),
        ("cloud", {"kind": "kwok", "zoness": []}, "did you mean zones"),
        ("cloud", {"kind": "kwok", "nodeSelector": {"a": "b"}}, "not an option of kind kwok"),
        ("hubTokenSecret", 5, "text"),
        ("model", "qwen-2.5-70b", "qwen-2.5-72b?"),
        ("model", "llama-4-70b", "Llama 4 has no 70B"),
        ("model", ["x"], "text"),
        ("replica", 1, "did you mean replicas"),
        ("apiKey", 0, "true or false"),
        ("apiKey", "off", "true or false"),
        ("api_key", False, "did you mean apiKey"),
        ("rollout", [[["deep"] * 99] * 99] * 99, "is not known"),
        ("namespace", "", "lower case letters, digits and '-', at most 63"),
        ("gpu", "", "is empty"),
        ("priorityClass", "a..b", "no usable name"),
        ("apiKeySecret", "team/key", "no usable name"),
        ("registry", "mirror.example.com/..", "HOST or HOST/PATH"),
        ("registry", "-.-:99999/a", "HOST or HOST/PATH"),
        ("weights", {"image": "docker://x"}, "an image, such as"),
        ("weights", {"image": "a::b//c"}, "an image, such as"),
        ("weights", {"hostPath": "//"}, "a folder from the root on"),
        ("weights", {"hostPath": "/./"}, "a folder from the root on"),
        ("weights", {"uri": "s3://bucket/$(VLLM_API_KEY)"}, "s3://BUCKET/FOLDER"),
        ("weights", {"claim": "a", "path": "$(HF_TOKEN)"}, "a folder inside the volume"),
        ("weights", {"storageClass": "x", "prefetch": False}, "a volume of its own"),
        ("weights", {"storage_class": "x"}, "did you mean storageClass"),
        ("loraModules", {"one": "$(VLLM_API_KEY)"}, "must not hold $"),
        ("autoscale", {"max": 2, "prometheus": "http://user:pass@p:9090"}, "must not hold a password"),
        ("autoscale", {"max": 2, "prometheus": "http://[x"}, "http://HOST:PORT"),
        ("monitoring", {"labels": {"a" * 64: "b"}}, "no usable name"),
        ("cloud", {"kind": "existing", "nodeSelector": {"..-/x": "b"}}, "no usable name"),
        ("cloud", {"kind": "existing", "tolerations": [{}]}, "needs a key"),
        ("cloud", {"kind": "existing", "tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "no value"),
        ("cloud", {"kind": "existing", "tolerations": [{"key": "a", "tolerationSeconds": 5}]}, "NoExecute"),
    ],
)
def test_each_mistake_names_its_place_and_the_way_out(key: str, value: object, says: str) -> None:
    """One wrong key at a time."""
    found = problems({**GOOD, key: value})
    assert len(found) == 1, found
    ((path, message),) = found.items()
    assert path.split(".")[0] == key
    assert says in message


def test_all_mistakes_are_reported_at_once() -> None:
    """A user corrects a file once, not once per mistake."""
    found = problems({"modle": "x", "replicas": "two", "gpu": "h900", "context": -5, "cloud": {"kind": "moon"}})
    assert set(found) == {"modle", "model", "replicas", "gpu", "context", "cloud.kind"}


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"gpus": 8, "tensorParallel": 3}, "tensorParallel"),
        ({"gpus": 8, "tensorParallel": 4, "pipelineParallel": 4}, "gpus"),
        ({"gpu": "h100-sxm", "gpus": 12}, "gpus"),
        ({"maxNumSeqs": 1024, "maxNumBatchedTokens": 512}, "maxNumBatchedTokens"),
        ({"maxNumSeqs": 4, "concurrency": 8}, "maxNumSeqs"),
        ({"namespace": "kube-system"}, "namespace"),
        ({"namespace": "default"}, "namespace"),
        ({"namespace": "monitoring"}, "namespace"),
        ({"namespace": "keda"}, "namespace"),
        ({"namespace": "prom", "monitoring": {"namespace": "prom"}}, "namespace"),
        ({"weights": {"claim": "a", "storageClass": "b"}}, "weights"),
    ],
)
def test_contradictions_are_bad_input(values: dict[str, Any], path: str) -> None:
    """Counts that cannot all be true are not refused by arithmetic: they are mistakes."""
    assert path in problems({**GOOD, **values})


def test_a_wrong_number_hides_no_contradiction_of_a_section() -> None:
    """Nobody corrects a file twice: what is wrong within autoscale and weights is told with the rest."""
    asked = {
        "model": "qwen-2.5-72b", "drainSeconds": -5, "autoscale": {"min": 0, "max": 3},
        "weights": {"claim": "w", "uri": "s3://bucket/model"},
    }  # fmt: skip
    with pytest.raises(BadInput) as caught:
        spec.parse(asked, CATALOG, source="test")
    assert [problem.path for problem in caught.value.problems] == [
        "modelstacks:autoscale.activationQuery",
        "modelstacks:autoscale.coldStartSeconds",
        "modelstacks:drainSeconds",
        "modelstacks:weights",
    ]


def test_numbers_may_be_text_as_pulumi_writes_them() -> None:
    """`pulumi config set` stores every value as text."""
    parsed = spec.parse({**GOOD, "replicas": "2", "context": "8192"}, CATALOG, source="test")
    assert (parsed.replicas, parsed.context) == (2, 8192)


def test_engine_config_and_stack_file_mean_the_same(tmp_path: Path) -> None:
    """What the engine hands to the program is what the file says."""
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text(
        "encryptionsalt: v1:x\nconfig:\n  aws:region: us-east-1\n  pulumi:disable-default-providers: ['*']\n"
        "  modelstacks:model: mistral-nemo-12b\n  modelstacks:cloud: {kind: kwok, zones: [local-a]}\n"
        "  modelstacks:gpuMemoryUtilization: 0.9\n  modelstacks:requireReviewed: true\n"
    )
    config = {
        "aws:region": "us-east-1",
        "modelstacks:model": "mistral-nemo-12b",
        "modelstacks:cloud": '{"kind":"kwok","zones":["local-a"]}',
        "modelstacks:gpuMemoryUtilization": "0.9",
        "modelstacks:requireReviewed": "true",
    }
    from_engine = spec.parse(stackfile.config_values(config), CATALOG, source="engine")
    assert stackfile.parse_file(path, CATALOG) == from_engine


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("config: 5", "must be a mapping"),
        ("- a", "must be a mapping"),
        ("config:\n  model: x\n", "modelstacks:model"),
        ("config:\n  modelstacks:model: phi-4\nmodelstacks:apiKey: false\n", "stands beside config"),
        ("config:\n  modelstacks:model: phi-4\n  modelstacks:hubToken: hf_abc\n", "config set --secret"),
        ("config: {a: [", "not valid YAML"),
        ("config:\n  modelstacks:model: a\n  modelstacks:model: b\n", "duplicate key"),
    ],
)
def test_files_that_are_no_stack_files_say_why(tmp_path: Path, text: str, says: str) -> None:
    """The message names the file and the place."""
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=says) as caught:
        stackfile.parse_file(path, CATALOG)
    assert str(path) in str(caught.value)


def test_two_files_of_one_stack_are_refused(tmp_path: Path) -> None:
    """Pulumi would read one of them; which one is not something to guess."""
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.a.yaml").touch()
    (tmp_path / "Pulumi.a.yaml").touch()
    with pytest.raises(BadInput, match="two files have the name a"):
        stackfile.stack_file(tmp_path, "a")


def test_stacks_that_would_own_the_same_objects_are_refused(tmp_path: Path) -> None:
    """A dot and a dash become the same object name; a shared namespace would be deleted with the first stack."""
    (tmp_path / "stacks").mkdir()
    for name in ("a.1", "a-1"):
        (tmp_path / "stacks" / f"Pulumi.{name}.yaml").write_text("config: {modelstacks:model: mistral-nemo-12b}")
    with pytest.raises(BadInput, match="same objects"):
        stackfile.stack_file(tmp_path, "a.1")
    shared = spec.parse({**GOOD, "namespace": "chat"}, CATALOG, source="test")
    with pytest.raises(BadInput, match="namespace of one too"):
        stackfile.check_namespaces({"one": shared, "two": shared})


def test_a_small_file_with_a_huge_value_is_refused_at_once(tmp_path: Path) -> None:
    """Aliases of aliases: the value is never written out in full."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path = tmp_path / "Pulumi.x.yaml"
    path.write_text("\n".join([*lines, "config: {modelstacks:model: *a11, modelstacks:context: *a11}"]))
    with pytest.raises(BadInput, match="must be text"):
        stackfile.parse_file(path, CATALOG)


@pytest.mark.parametrize("name", ["", "A", "-a", "a/b", "../a", "a" * 41, "a_b"])
def test_unusable_stack_names_are_refused(tmp_path: Path, name: str) -> None:
    """The name becomes part of object names."""
    with pytest.raises(BadInput, match="no usable stack name"):
        stackfile.stack_file(tmp_path, name)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_ANYTHING = _SCALARS | st.lists(_SCALARS, max_size=2) | st.dictionaries(st.text(max_size=5), _SCALARS, max_size=2)


@given(st.dictionaries(st.sampled_from(spec.KEYS) | st.text(max_size=8), _ANYTHING, max_size=6))
def test_no_input_gives_anything_but_a_spec_or_bad_input(values: dict[str, Any]) -> None:
    """Whatever stands in the file, no other exception escapes."""
    with contextlib.suppress(BadInput):
        assert spec.parse(values, CATALOG, source="fuzz").model in CATALOG.model_ids


def test_what_is_wrong_on_the_command_line_is_named_as_an_option(tmp_path: Path) -> None:
    """The stack file is not blamed for it, and it is when its own keys are wrong."""
    path = tmp_path / "Pulumi.a.yaml"
    path.write_text("config:\n  modelstacks:model: llama-3.1-8b\n  modelstacks:gpu: l4\n")
    with pytest.raises(BadInput, match=r"command line, over Pulumi.a.yaml(.|\n)*--tensor-parallel: 3 does not divide"):
        stackfile.parse_file(path, CATALOG, overlay={"tensorParallel": 3, "gpus": 8})
    path.write_text("config:\n  modelstacks:model: llama-3.1-8b\n  modelstacks:gpu: l5\n")
    with pytest.raises(BadInput, match=r"Pulumi.a.yaml: 1 problem(.|\n)*modelstacks:gpu: 'l5'"):
        stackfile.parse_file(path, CATALOG, overlay={"gpus": 8})


def test_a_broken_data_file_answers_for_itself(tmp_path: Path) -> None:
    """Not the stack file that happened to be read."""
    for folder in ("hardware", "templates"):
        shutil.copytree(Path(__file__).parents[2] / folder, tmp_path / folder)
    broken = tmp_path / "templates" / "clouds" / "kwok.yaml"
    broken.write_text("x: [")
    path = tmp_path / "Pulumi.a.yaml"
    path.write_text("config:\n  modelstacks:model: llama-3.1-8b\n  modelstacks:cloud: {kind: kwok}\n")
    with pytest.raises(BadInput) as caught:
        stackfile.parse_file(path, Catalog(tmp_path))
    assert str(caught.value).startswith(str(broken))
