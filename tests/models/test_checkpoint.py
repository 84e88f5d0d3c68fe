"""Folders in and out, and every way in which one can be broken."""

import dataclasses
import json
import struct

import numpy as np
import pytest
from helpers import ODD, random_adapter, random_llama
from safetensors.numpy import load_file, save_file

from minibule.errors import InputError, Terminated
from minibule.files import native_parser, write_json
from minibule.models.huggingface import config_json, save_model, save_weights
from minibule.models.load import load_model
from minibule.models.peft import load_adapter, save_adapter


@pytest.fixture
def folder(tmp_path):
    """A model folder of the ODD shapes, in F32."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "config.json", config_json(ODD, "F32"))
    save_weights(random_llama(), folder, "F32")
    return folder


@pytest.fixture
def adapter_folder(tmp_path):
    save_adapter(random_adapter(), ODD, tmp_path / "adapter", "base")
    return tmp_path / "adapter"


def change_json(path, **changes):
    value = json.loads(path.read_text())
    write_json(path, {k: v for k, v in (value | changes).items() if v != "absent"})


def change_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


# -- models ----------------------------------------------------------------------------------------


def test_what_is_written_is_read_back_to_the_bit(folder):
    weights = load_model(folder).weights
    for name, w in random_llama().weights.items():
        np.testing.assert_array_equal(weights[name], w)
        assert weights[name].dtype == np.float32


@pytest.mark.parametrize(("dtype", "digits"), [("F16", 11), ("BF16", 8)])
def test_sixteen_bits_round_to_the_nearest(folder, dtype, digits):
    save_weights(random_llama(), folder, dtype)
    weights = load_model(folder).weights
    for name, w in random_llama().weights.items():
        # Half a unit in the last of `digits` binary digits.
        assert (np.abs(weights[name] - w) <= np.abs(w) * 2.0**-digits).all()
        again = weights[name]
        assert dtype != "BF16" or not (again.view(np.uint32) & 0xFFFF).any()


def test_shards_and_their_index(folder, monkeypatch):
    monkeypatch.setattr("minibule.models.huggingface.MAX_SHARD_BYTES", 3000)
    (folder / "model.safetensors").unlink()
    save_weights(random_llama(), folder, "F32")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    ids = np.arange(9)
    np.testing.assert_array_equal(load_model(folder).logits(ids), random_llama().logits(ids))


def test_a_merged_folder_acts_like_model_and_adapter(folder, tmp_path):
    model = load_model(folder)
    model.adapter = random_adapter()
    (folder / "tokenizer.json").write_text('{"kept": true}')
    save_model(model, tmp_path / "merged", folder)
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == '{"kept": true}'
    ids = np.arange(9)
    merged, adapted = load_model(tmp_path / "merged").logits(ids), model.logits(ids)
    np.testing.assert_allclose(merged, adapted, atol=1e-4 * np.abs(adapted).max())


def test_a_tied_head_and_derived_buffers_in_the_file_are_passed_over(folder):
    change_json(folder / "config.json", tie_word_embeddings=True)
    change_tensors(
        folder / "model.safetensors",
        lambda t: t.update({"model.rotary_emb.inv_freq": np.ones(2, np.float32)}),
    )
    model = load_model(folder)
    assert model.head is model.weights["model.embed_tokens.weight"]


def test_rope_theta_in_the_newer_place(folder):
    change_json(
        folder / "config.json",
        rope_theta="absent",
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    assert load_model(folder).config.rope_theta == 5000.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM.*expected LlamaForCausal"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope scaling: found 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling: found 'linear'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act: found 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "absent"}, "hidden_size: found None, expected a whole number"),
        ({"hidden_size": 10.5}, "hidden_size: found 10.5"),
        ({"num_attention_heads": 0}, "num_attention_heads: found 0"),
        ({"num_key_value_heads": 4}, "multiple of num_key_value_heads"),
        ({"head_dim": 3}, "head_dim: found 3, expected an even"),
        ({"rms_norm_eps": True}, "rms_norm_eps: found True"),
        ({"vocab_size": "37"}, "vocab_size: found '37'"),
        ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers: found 2147483647.*at most 1,000"),
        ({"rope_theta": 1e-30}, "rope_theta: found 1e-30, expected a number from 1.0"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps: found 1e-300"),
    ],
)
def test_configs_that_are_not_supported_are_refused_by_name(folder, changes, message):
    change_json(folder / "config.json", **changes)
    with pytest.raises(InputError, match=message) as error:
        load_model(folder)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "null", "[" * 100_000, '"x"', '{"a": "\\ud800"}', "9" * 5000]
)
def test_a_config_that_is_no_json_object(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json"):
        load_model(folder)


def test_all_wrong_tensors_are_listed_at_once(folder):
    def change(tensors):
        del tensors["model.norm.weight"]
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.9.mlp.up_proj.weight"] = np.ones((2, 2), np.float32)
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1]

    change_tensors(folder / "model.safetensors", change)
    with pytest.raises(InputError) as error:
        load_model(folder)
    for line in (
        "model.norm.weight: missing",
        "model.layers.1.mlp.up_proj.weight: missing",
        "model.layers.9.mlp.up_proj.weight: unknown",
        "lm_head.weight: found shape (36, 10), expected (37, 10)",
    ):
        assert line in str(error.value)


def test_numbers_of_another_kind(folder):
    def change(tensors):
        tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((13, 10), np.int32)

    change_tensors(folder / "model.safetensors", change)
    with pytest.raises(InputError, match=r"up_proj\.weight: found I32 numbers, expected F32, F16"):
        load_model(folder)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(folder, broken):
    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = broken

    change_tensors(folder / "model.safetensors", change)
    with pytest.raises(InputError, match=r"up_proj\.weight: 1 numbers are NaN or infinite"):
        load_model(folder)


def test_a_number_no_model_has(folder):
    """A flipped bit of an exponent: finite, but the forward pass would not be."""

    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 2.0**120

    change_tensors(folder / "model.safetensors", change)
    with pytest.raises(InputError, match=r"up_proj\.weight: 1 numbers are .*larger than 65,504"):
        load_model(folder)


@pytest.mark.parametrize("length", [0, 4, 8, 200, -1000, -1])
def test_a_truncated_safetensors_file(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_model(folder)


def test_a_header_that_claims_to_be_huge(folder):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        load_model(folder)


OUTSIDE = ["../model.safetensors", "/etc/passwd", "..", ".", "", "a/b", "C:b", "a\\b", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE, "x" * 300, 3, None, ["a"]])
def test_an_index_cannot_reach_outside_its_folder(folder, name):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": name}}
    write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(InputError, match="expected plain file names"):
        load_model(folder)


def test_a_tensor_in_two_shards(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name in ("one.safetensors", "two.safetensors"):
        save_file(tensors, folder / name)
    names = ("one.safetensors", "two.safetensors")
    write_json(
        folder / "model.safetensors.index.json",
        {"weight_map": dict(zip(tensors, names * len(tensors), strict=False))},
    )
    with pytest.raises(InputError, match=r"two\.safetensors: .* is in one\.safetensors too"):
        load_model(folder)


def test_missing_folders_and_files(tmp_path, folder):
    with pytest.raises(InputError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"config\.json: not a whole GGUF file"):
        load_model(folder / "config.json")
    with pytest.raises(InputError, match="found a file, expected a folder"):
        load_adapter(folder / "config.json", ODD)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="expected the model's weights there"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_model(folder)


def test_a_folder_that_fails_midway_leaves_nothing(folder, tmp_path, monkeypatch):
    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minibule.models.safetensors.serialize_file", full_disk)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space"):
        save_model(load_model(folder), tmp_path / "merged", folder)
    with pytest.raises(OSError, match="No space"):
        save_adapter(random_adapter(), ODD, tmp_path / "out", "base")
    assert set(tmp_path.iterdir()) == before


# -- adapters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [range(3), range(1, 3)], ids=["all", "upper"])
@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), ("v_proj",)])
def test_adapters_round_trip(tmp_path, layers, targets):
    adapter = random_adapter(layers=layers, targets=targets, rslora=True)
    save_adapter(adapter, ODD, tmp_path / "adapter", "base")
    again = load_adapter(tmp_path / "adapter", ODD)
    assert again.config == adapter.config
    assert list(again.params) == list(adapter.params)
    for name, p in adapter.params.items():
        np.testing.assert_array_equal(again.params[name], p)


def test_adapter_files_have_the_names_of_peft(adapter_folder):
    tensors = load_file(adapter_folder / "adapter_model.safetensors")
    assert "base_model.model.model.layers.2.self_attn.o_proj.lora_A.weight" in tensors
    assert "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight" in tensors
    assert len(tensors) == 2 * 7 * 3
    config = json.loads((adapter_folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert config["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: found 'IA3'"),
        ({"use_dora": True}, "use_dora: found True"),
        ({"bias": "all"}, "bias: found 'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 0}, "r: found 0, expected a whole number"),
        ({"r": "absent"}, "r: found None"),
        ({"r": True}, "r: found True"),
        ({"lora_alpha": "x"}, "lora_alpha: found 'x'"),
        ({"rank_pattern": {"q_proj": -1}}, r"rank_pattern\[q_proj\]: found -1"),
        ({"rank_pattern": [1]}, r"rank_pattern: found \[1\], expected an object"),
        ({"alpha_pattern": {"(a+)+": 2}}, "expected a module's name"),
        ({"target_modules": ["c_attn"]}, "none of which this model has"),
        ({"layers_to_transform": "0"}, "layers_to_transform: found '0', expected a list"),
    ],
)
def test_adapter_settings_that_are_not_supported(adapter_folder, changes, message):
    change_json(adapter_folder / "adapter_config.json", **changes)
    with pytest.raises(InputError, match=message):
        load_adapter(adapter_folder, ODD)


def test_an_adapter_for_another_model_lists_every_mismatch(adapter_folder):
    other = dataclasses.replace(ODD, hidden_size=12, num_hidden_layers=2)
    with pytest.raises(InputError) as error:
        load_adapter(adapter_folder, other)
    message = str(error.value)
    assert "layers.2.self_attn.q_proj.lora_A.weight: unknown" in message
    assert "q_proj.lora_A.weight: found shape (3, 10), expected (3, 12)" in message
    # Both matrices of layer 2's modules, and of the others' the one that touches hidden_size.
    assert message.count("\n") == 2 * 7 + 2 * 7


def test_an_adapter_with_another_rank_or_half_a_pair(adapter_folder):
    def change(tensors):
        del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]

    change_tensors(adapter_folder / "adapter_model.safetensors", change)
    change_json(adapter_folder / "adapter_config.json", rank_pattern={"k_proj": 5})
    with pytest.raises(InputError) as error:
        load_adapter(adapter_folder, ODD)
    assert "layers.0.mlp.up_proj.lora_B.weight: missing" in str(error.value)
    assert "k_proj.lora_A.weight: found shape (3, 10), expected (5, 10)" in str(error.value)


def test_rank_and_alpha_patterns(adapter_folder):
    def change(tensors):
        for name in list(tensors):
            if "layers.1.self_attn.q_proj.lora_A" in name:
                tensors[name] = np.ones((5, 10), np.float32)
            if "layers.1.self_attn.q_proj.lora_B" in name:
                tensors[name] = np.ones((24, 5), np.float32)

    change_tensors(adapter_folder / "adapter_model.safetensors", change)
    change_json(
        adapter_folder / "adapter_config.json",
        rank_pattern={"layers.1.self_attn.q_proj": 5},
        alpha_pattern={"q_proj": 20},
    )
    adapter = load_adapter(adapter_folder, ODD)
    assert adapter.pair("model.layers.1.self_attn.q_proj")[2] == 20 / 5
    assert adapter.pair("model.layers.0.self_attn.q_proj")[2] == 20 / 3
    assert adapter.pair("model.layers.0.self_attn.k_proj")[2] == 5 / 3


def test_a_signal_inside_a_native_parser_is_no_bad_input():
    """SIGTERM while tokenizers or safetensors read must end the program, not blame the file."""
    with pytest.raises(Terminated), native_parser("refused"):
        raise Terminated
