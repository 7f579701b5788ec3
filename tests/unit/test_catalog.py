"""The data folders: every file is loaded, sourced and consistent, and one that contradicts itself cannot be."""

from pathlib import Path

import pytest

from modelstacks import documents, project
from modelstacks.catalog import Catalog, Gpu, Model
from modelstacks.catalog.models import MissingModels
from modelstacks.catalog.row import load_row
from modelstacks.errors import BadInput

CATALOG = Catalog()
ROOT = project.data_root()


@pytest.mark.parametrize("model_id", CATALOG.model_ids)
def test_every_model_loads_with_a_profile_that_names_known_things(model_id: str) -> None:
    """A new model is one file; this proves that it is complete."""
    model = CATALOG.model(model_id)
    for profile in model.profiles:
        assert profile.gpu in CATALOG.gpus
        assert profile.engine in CATALOG.versions.engines
    assert set(model.engine_flags) | set(model.engine_refusals) <= set(CATALOG.versions.engines)


@pytest.mark.parametrize("gpu_id", CATALOG.gpu_ids)
def test_every_gpu_loads_with_machines_and_a_price(gpu_id: str) -> None:
    """A new GPU type is one file."""
    gpu = CATALOG.gpus[gpu_id]
    assert gpu.machines
    assert any(machine.prices for machine in gpu.machines) or not gpu.is_to_be_had
    assert gpu.memory_gib.value < int("".join(ch for ch in gpu.name.split()[-1] if ch.isdigit())), (
        "a card never shows more"
    )


@pytest.mark.parametrize("cloud", [path.stem for path in (ROOT / "templates" / "clouds").glob("*.yaml")])
def test_every_cloud_has_its_pool_and_known_options(cloud: str) -> None:
    """A new cloud is one declaration, and one template or one module for its pool."""
    from modelstacks.cloudspec import CloudSpec
    from modelstacks.fields import camel

    kind = CATALOG.clouds[cloud]
    template = bool(kind.pool_parts) or (ROOT / "templates" / "clouds" / f"{cloud}.yaml.j2").is_file()
    module = kind.package is not None and (ROOT / "modelstacks" / "pools" / f"{kind.package}.py").is_file()
    assert kind.makes_nodes == (template != module)
    assert set(CATALOG.clouds[cloud].options) <= {camel(name) for name in CloudSpec.model_fields}


def test_every_engine_form_has_its_template_and_every_tier_its_form() -> None:
    """Registries are folders: nothing is registered twice, nothing is left out."""
    versions = CATALOG.versions
    templates = {form.template for forms in versions.engines.values() for form in forms.values()}
    assert templates == {path.name.removesuffix(".yaml.j2") for path in (ROOT / "templates" / "engines").glob("*.j2")}
    tiers = [form for forms in versions.tiers.values() for form in forms.values()]
    assert {tier.template for tier in tiers} == {
        path.name.removesuffix(".yaml.j2") for path in (ROOT / "templates" / "tiers").glob("*.j2")
    }
    for tier in tiers:
        assert any(tier.form in forms for forms in versions.engines.values())
        assert tier.operator is None or tier.operator in CATALOG.operators


@pytest.mark.parametrize(
    ("kind", "source", "change", "says"),
    [
        (Model, "models/mistral-nemo-12b", ("layers: 40", "layers: -1"), r"line \d+, architecture.layers"),
        (Model, "models/mistral-nemo-12b", ("kv_heads: 8", "kv_heads: 7"), "no multiple of kv_heads"),
        (Model, "models/mistral-nemo-12b", ("size_gib: 22.81", "size_gib: 22810"), "plausible"),
        (Model, "models/mistral-nemo-12b", ("context: 32768", "context: 999999"), "exceeds the model's 131072"),
        (Model, "models/mistral-nemo-12b", ("hidden: 5120", "hiden: 5120"), r"line \d+, architecture.*hiden"),
        (Model, "models/gemma-2-27b", ("must_accept: true", "must_accept: false"), "must be accepted"),
        (Gpu, "../hardware/l4", ("usd_per_hour: 0.8048", "usd_per_hour: 0"), r"line \d+, machines.0.prices.0"),
        (Gpu, "../hardware/l4", ("usd_per_hour: 0.8048", "usd_per_hour: -3"), "greater than 0"),
        (Gpu, "../hardware/l4", ("name: g6.2xlarge", "name: g6.xlarge"), "listed twice"),
        (Gpu, "../hardware/l4", ("fp8: 242, ", ""), "tflops gives no fp8"),
        (Gpu, "../hardware/l4", ("value: 21.95", "value: 2195"), r"line \d+, memory_gib.value.*the name"),
        (Gpu, "../hardware/l4", ("{bf16: native", "{bf17: native"), "weight_formats.bf17 is no format"),
    ],
)  # fmt: skip
def test_data_that_contradicts_itself_is_refused_with_its_line(
    tmp_path: Path, kind: type[Model] | type[Gpu], source: str, change: tuple[str, str], says: str
) -> None:
    """One damaged number at a time."""
    text = (ROOT / "templates" / f"{source}.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "row.yaml"
    path.write_text(text.replace(*change, 1))
    with pytest.raises(BadInput, match=says) as caught:
        load_row(kind, path, id="row")
    assert str(path) in str(caught.value)


def test_names_that_never_existed_get_the_real_ones() -> None:
    """The article's invented names are answered, not searched for."""
    for name, row in documents.read_file(ROOT / "templates" / "missing-models.yaml")["models"].items():
        assert name not in CATALOG.model_ids
        assert set(row["instead"]) <= set(CATALOG.model_ids)
        with pytest.raises(BadInput) as refused:
            CATALOG.model(name)
        assert all(model_id in str(refused.value) for model_id in row["instead"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models:\n  llama-9: {anser: no}\n", r"line \d+, models.llama-9.*anser"),
        ("models:\n  llama-9: no\n", "models.llama-9"),
        ("models:\n  llama-9: {answer: gone, instead: []}\n", "models.llama-9.instead"),
        ("models:\n  llama-9: {answer: gone, instead: [llama-8]}\n", "names llama-8, which the catalogue has not"),
        ("models:\n  phi-4: {answer: gone, instead: [llama-3.1-8b]}\n", "phi-4 is in the catalogue"),
        ("- llama-9\n", "must hold a mapping"),
    ],
)
def test_the_list_of_missing_models_is_held_against_the_catalogue(tmp_path: Path, text: str, says: str) -> None:
    """A mistake in it is named with its place, not met by the next unknown name."""
    path = tmp_path / "missing-models.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=says):
        load_row(MissingModels, path, in_catalogue=CATALOG.model_ids)
