"""Adapters as PEFT folders, in and out, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from broken import adapter_folder as saved_adapter
from broken import change_json, change_tensors
from helpers import ODD, random_adapter
from safetensors.numpy import load_file

from minibule.errors import InputError
from minibule.models.peft import load_adapter, save_adapter


@pytest.fixture
def adapter_folder(tmp_path):
    return saved_adapter(tmp_path)


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
        ({"target_modules": None}, "target_modules: found None, expected a list"),
        ({"layers_to_transform": "0"}, "layers_to_transform: found '0', expected a list"),
        ({"layers_to_transform": [0, "1"]}, r"layers_to_transform: found \[0, '1'\], expected"),
        ({"layers_to_transform": True}, "layers_to_transform: found True, expected a list"),
        (
            {"target_modules": ".*proj", "layers_to_transform": [0]},
            "layers_to_transform: found with a text in target_modules",
        ),
        ({"exclude_modules": ".*q_proj"}, r"exclude_modules: found '\.\*q_proj', expected a list"),
        ({"alpha_pattern": {"q.proj": 2}}, r"alpha_pattern: found 'q\.proj', expected a module's"),
        ({"alpha_pattern": {"x" * 10**6: 2}}, "expected a module's name"),
    ],
)
def test_adapter_settings_that_are_not_supported(adapter_folder, changes, message):
    change_json(adapter_folder / "adapter_config.json", **changes)
    with pytest.raises(InputError, match=message):
        load_adapter(adapter_folder, ODD)


def test_the_folder_of_a_run_is_none_of_an_adapter(adapter_folder):
    run = adapter_folder.rename(adapter_folder.parent / "moved").parent / "run"
    run.mkdir()
    (adapter_folder.parent / "moved").rename(run / "adapter")
    with pytest.raises(InputError) as error:
        load_adapter(run, ODD)
    assert str(error.value).endswith(f"did you mean {run / 'adapter'}?")
    assert load_adapter(run / "adapter", ODD).params


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


def test_modules_that_are_excluded_or_named_in_full(adapter_folder):
    """A name in full is wanted in any layer, an end of names in layers_to_transform alone."""
    full = "model.layers.2.self_attn.k_proj"
    change_json(
        adapter_folder / "adapter_config.json",
        target_modules=["q_proj", "v_proj", full],
        exclude_modules=["v_proj"],
        layers_to_transform=[0, 1],
    )
    wanted = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", full]
    with pytest.raises(InputError, match="unknown, this model has no place for it"):
        load_adapter(adapter_folder, ODD)

    def change(tensors):
        for name in list(tensors):
            if not any(f".{module}." in name for module in wanted):
                del tensors[name]

    change_tensors(adapter_folder / "adapter_model.safetensors", change)
    assert list(load_adapter(adapter_folder, ODD).config.modules) == wanted


def test_matrices_without_the_prefix_that_peft_looks_for(adapter_folder):
    """PEFT would pass them over, and the adapter would do nothing."""

    def change(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("base_model.model.")] = tensors.pop(name)

    change_tensors(adapter_folder / "adapter_model.safetensors", change)
    with pytest.raises(InputError, match=r"base_model\.model\.model\.layers\.0.*: missing"):
        load_adapter(adapter_folder, ODD)
