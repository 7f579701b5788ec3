"""config.json → architecture: every kind of model, and everything such a file can get wrong."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from modelstacks.catalog import Catalog
from modelstacks.catalog.models import Model
from modelstacks.catalog.row import load_row
from modelstacks.cli.commands import app
from modelstacks.errors import BadInput
from modelstacks.importer import own_model, read_config
from modelstacks.importer.reader import HubModel, read
from modelstacks.importer.template import template

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
    "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
MIXTRAL = {
    "model_type": "mixtral", "hidden_size": 6144, "num_hidden_layers": 56, "num_attention_heads": 48,
    "num_key_value_heads": 8, "intermediate_size": 16384, "vocab_size": 32768, "max_position_embeddings": 65536,
    "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128,
    "num_key_value_heads": 128, "intermediate_size": 18432, "vocab_size": 129280, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": 256,
    "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3,
    "num_nextn_predict_layers": 1, "max_position_embeddings": 163840,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}  # fmt: skip
GEMMA3 = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 5376, "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
        "head_dim": 128, "intermediate_size": 21504, "vocab_size": 262208, "sliding_window": 1024,
        "max_position_embeddings": 131072,
    },
    "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27, "intermediate_size": 4304, "patch_size": 14},
}  # fmt: skip
HYBRID = {
    "model_type": "qwen3_5_text", "hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 24,
    "num_key_value_heads": 4, "head_dim": 256, "intermediate_size": 17408, "vocab_size": 248320,
    "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 48,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144,
}  # fmt: skip
MAMBA = {
    "model_type": "nemotron_h", "hidden_size": 2688, "num_attention_heads": 32, "num_key_value_heads": 2,
    "head_dim": 128, "hybrid_override_pattern": "ME*E", "vocab_size": 131072, "intermediate_size": 1856,
    "mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4,
    "n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1856, "n_shared_experts": 1,
    "mlp_hidden_act": "relu2", "mamba_ssm_cache_dtype": "float32", "max_position_embeddings": 262144,
}  # fmt: skip


def hub(data: dict[str, Any]) -> HubModel:
    """What a config says."""
    return read(data, "test")


@pytest.mark.parametrize(
    ("data", "billions", "active"),
    [
        # Parameters as the publishers' index files and model cards have them.
        (LLAMA, 70.55, 70.55),
        (MIXTRAL, 140.63, 39.16),
        (DEEPSEEK, 671.03, 37.55),
        ({**LLAMA, "hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128,
          "intermediate_size": 53248}, 405.85, 405.85),
    ],
)  # fmt: skip
def test_parameters_are_those_of_the_model(data: dict[str, Any], billions: float, active: float) -> None:
    """Within a fifth of a percent: vectors are not counted."""
    architecture = hub(data).architecture
    assert architecture.parameters / 1e9 == pytest.approx(billions, rel=0.002)
    assert architecture.active_parameters / 1e9 == pytest.approx(active, rel=0.002)


def test_latent_attention_and_layers_that_predict_ahead() -> None:
    """DeepSeek: one compressed row, 13.46B parameters that stay on disk, context already stretched."""
    model = hub(DEEPSEEK)
    architecture = model.architecture
    assert architecture.mla is not None
    assert (architecture.mla.kv_lora_rank, architecture.mla.qk_rope_head_dim) == (512, 64)
    assert architecture.unloaded_parameters / 1e9 == pytest.approx(13.46, abs=0.01)
    assert architecture.max_context == 163840
    assert model.weights.quantization == "fp8"


def test_windows_nested_text_and_a_vision_tower() -> None:
    """Gemma 3: five local layers for each global one, tied embeddings by default, SigLIP beside it."""
    architecture = hub(GEMMA3).architecture
    assert [(window.tokens, window.layers) for window in architecture.windows] == [(1024, 52)]
    assert architecture.full_layers == 10
    assert architecture.tied_embeddings
    assert architecture.encoder is not None
    assert architecture.encoder.parameters / 1e9 == pytest.approx(0.42, abs=0.02)
    assert architecture.parameters / 1e9 == pytest.approx(27.4, abs=0.1)


def test_linear_attention_keeps_a_state() -> None:
    """Three of four layers keep 128 × 128 per value head in 32 bits, and the tail of a convolution."""
    recurrent = hub(HYBRID).architecture.recurrent
    assert recurrent is not None
    assert (recurrent.layers, recurrent.kind) == (48, "gated-delta-net")
    assert recurrent.page_bytes(1) == 48 * 128 * 128 * 4 + 10240 * 3 * 2


def test_letters_say_what_each_layer_is() -> None:
    """Nemotron-H: M keeps a state, * attends, E and - keep nothing."""
    architecture = hub(MAMBA).architecture
    assert architecture.layers == 4
    assert (architecture.full_layers, architecture.cacheless_layers) == (1, 2)
    assert architecture.recurrent is not None
    assert architecture.recurrent.page_bytes(2) == (64 * 64 * 128 * 4 + (4096 + 2 * 8 * 128) * 3 * 2) / 2
    assert architecture.moe is not None
    assert architecture.moe.layers == 2


def test_chunks_and_windows_of_other_families() -> None:
    """Llama 4 knows its pattern by itself; gpt-oss lists it; Qwen 2.5 turns its window off."""
    scout = {**MIXTRAL, "model_type": "llama4_text", "num_hidden_layers": 48, "attention_chunk_size": 8192}
    assert [(w.kind, w.layers) for w in hub(scout).architecture.windows] == [("chunked", 36)]
    listed = {**LLAMA, "num_hidden_layers": 2, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    assert hub(listed).architecture.full_layers == 1
    assert not hub({**LLAMA, "sliding_window": 4096, "use_sliding_window": False}).architecture.windows
    assert not hub({**LLAMA, "sliding_window": 262144}).architecture.windows


@pytest.mark.parametrize(
    ("stored", "name", "cache"),
    [
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}}},
         "fp8", None),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}},
         "int8", None),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": {"num_bits": 8, "type": "float"}},
         "nvfp4", "fp8"),
        ({"quant_method": "awq", "bits": 4}, "awq", None),
        ({"quant_method": "gptq", "bits": 8}, "int8", None),
        ({"quant_method": "mxfp4"}, "mxfp4", None),
    ],
)  # fmt: skip
def test_how_weights_are_stored(stored: dict[str, Any], name: str, cache: str | None) -> None:
    """Each publisher's way to say it."""
    weights = hub({**LLAMA, "quantization_config": stored}).weights
    assert (weights.quantization, weights.kv_cache_dtype) == (name, cache)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": "8192"}, 'hidden_size: is "8192"'),
        ({"hidden_size": -1}, "hidden_size: is -1"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers: is a number of more than 15 digits"),
        ({"num_hidden_layers": 80.5}, "num_hidden_layers: is 80.5"),
        ({"num_attention_heads": True}, "num_attention_heads: is true"),
        ({"num_attention_heads": None}, "num_attention_heads: is missing"),
        ({"vocab_size": None}, "vocab_size: is missing"),
        ({"num_key_value_heads": 7}, "is no multiple of kv_heads"),
        ({"layer_types": ["full_attention"]}, "has 1 entries"),
        ({"layer_types": ["full_attention", "quantum"] * 40}, "'quantum'"),
        ({"text_config": []}, None),
        ({"quantization_config": "fp8"}, "quantization_config: is text"),
        ({"compress_ratios": [4]}, "cannot be read: compressed attention"),
        ({"sparse_attention_config": {"a": 1}}, "cannot be read: block-sparse"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"num_local_experts": 8}, "num_experts_per_tok: is missing"),
        ({"head_dim": None, "hidden_size": 8191}, "does not divide hidden_size"),
        ({"architectures": ["A\nengine_flags: {vllm: [--trust-remote-code]} #LMHead"]}, "which generates no text"),
        ({"architectures": ["\x1b[2JLlamaForCausalLM"]}, "'\\x1b[2JLlama"),
        ({"model_type": "llama\nname: x"}, "model_type: is"),
    ],
)
def test_each_impossible_value_is_named(change: dict[str, Any], says: str | None) -> None:
    """With its place; never a traceback."""
    if says is None:
        hub({**LLAMA, **change})
        return
    with pytest.raises(BadInput) as error:
        hub({**LLAMA, **change})
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not valid JSON"),
        ('{"hidden_size": 8192, "num_hid', "the file ends too early"),
        ("[1, 2]", "holds a list"),
        ('"text"', "holds text"),
        ("{}", "has no hidden_size"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "is not valid JSON"),
        ("\ufeff{}", "has no hidden_size"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, says: str) -> None:
    """Empty, truncated, something else, or made to hurt."""
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as error:
        read_config(path)
    assert says in str(error.value)


def test_a_huge_or_missing_or_binary_file(tmp_path: Path) -> None:
    """A hundred megabytes are refused before they are read."""
    path = tmp_path / "config.json"
    with pytest.raises(BadInput, match="is not there"):
        read_config(path)
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(BadInput, match="which no config"):
        read_config(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        read_config(path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([LLAMA, MIXTRAL, DEEPSEEK, GEMMA3, HYBRID, MAMBA]), st.data())
def test_any_value_anywhere_is_read_or_named(base: dict[str, Any], data: st.DataObject) -> None:
    """No config, however damaged, ends in anything but a model or a list of problems."""
    more = ("layer_types", "sliding_window", "head_dim", "rope_scaling", "vision_config", "block_configs",
        "architectures", "quantization_config", "num_kv_shared_layers", "linear_attn_config", "mlp_only_layers",
    )  # fmt: skip
    known = st.sampled_from(sorted({*base, *more}))
    damaged = {**base, **{data.draw(known): data.draw(_JSON) for _ in range(2)}}
    with contextlib.suppress(BadInput):
        assert read(damaged, "test").architecture.parameters > 0


def test_an_imported_template_is_a_model_of_the_catalogue(tmp_path: Path) -> None:
    """What is written is read back as the same architecture and plans."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DEEPSEEK), encoding="utf-8")
    model, read_hub = own_model(path, weights_gib=641.3, repo="acme/Big-R1", revision="a" * 40)
    assert model.id == "big-r1"
    written = tmp_path / "big-r1.yaml"
    written.write_text(template(model, read_hub), encoding="utf-8")
    again = load_row(Model, written, id="big-r1")
    assert again.architecture == model.architecture
    assert again.checkpoints["fp8"].revision == "a" * 40


def test_import_writes_once_and_never_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user does it: import, plan, and import again."""
    (tmp_path / "Pulumi.yaml").write_text("name: x\nruntime: python\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("modelstacks.project.root", lambda: tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    arguments = ["model", "import", "--repo", "acme/Own-70B", "--config", "config.json", "--weights-gib", "131.4"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    target = tmp_path / "templates" / "models" / "own-70b.yaml"
    text = target.read_text()
    assert "acme/Own-70B" in text
    second = CliRunner().invoke(app, arguments)
    assert isinstance(second.exception, BadInput)
    assert target.read_text() == text


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (0.0, "above 0"),
        (-3.0, "above 0"),
        (float("nan"), "above 0"),
        (0.1314, "bits per weight"),
        (70_000.0, "bits per weight"),
    ],
)
def test_a_size_that_cannot_be(tmp_path: Path, size: float, says: str) -> None:
    """Zero, negative, off by a thousand."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA), encoding="utf-8")
    with pytest.raises(BadInput, match=says):
        own_model(path, weights_gib=size)


def test_the_reader_agrees_with_the_templates() -> None:
    """Templates that were written by hand say what the reader would."""
    own = hub(DEEPSEEK).architecture
    template_row = Catalog().model("deepseek-r1").architecture
    assert own.parameters == pytest.approx(template_row.parameters, rel=1e-4)
    assert own.unloaded_parameters == pytest.approx(template_row.unloaded_parameters, rel=1e-3)


def test_an_unknown_way_to_store_weights_must_be_named(tmp_path: Path) -> None:
    """Nothing is assumed of it; with the user's word for it there is a plan."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**LLAMA, "quantization_config": {"quant_method": "zzz"}}))
    with pytest.raises(BadInput, match="'zzz' is not known here"):
        own_model(config, weights_gib=40)
    model, _ = own_model(config, weights_gib=40, quantization="int4")
    assert list(model.checkpoints) == ["int4"]


def test_layers_that_predict_ahead_are_not_in_minimax_checkpoints() -> None:
    """Its configs name some; 214.3 GiB are 228.7 billion weights of 8 bits, the ends of 16, and no more."""
    config = {**MIXTRAL, "model_type": "minimax_m2", "use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1}
    assert hub(config).architecture.unloaded_parameters == 0
