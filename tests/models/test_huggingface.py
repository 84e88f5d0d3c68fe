"""Models as Hugging Face folders, and every way in which one can be broken."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
from broken import change_json, change_tensors, model_folder
from helpers import ODD, random_llama
from safetensors.numpy import load_file, save_file

from minibule.errors import InputError
from minibule.files import embedded_folder, write_json
from minibule.models.chat_files import load_chat
from minibule.models.huggingface import COMPANIONS
from minibule.models.load import load_model
from minibule.models.peft import load_adapter
from minibule.models.safetensors import read_tensors, stored_tensors
from minibule.models.save import save_model, save_weights
from minibule.models.source import open_source


@pytest.fixture
def folder(tmp_path):
    return model_folder(tmp_path)


def test_what_is_written_is_read_back_to_the_bit(folder):
    weights = load_model(folder).weights
    for name, w in random_llama().weights.items():
        np.testing.assert_array_equal(weights[name], w)
        assert weights[name].dtype == np.float32


def test_a_tied_head_and_derived_buffers_in_the_file_are_passed_over(folder):
    def change(tensors):
        tensors["model.rotary_emb.inv_freq"] = np.ones(2, np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    change_json(folder / "config.json", tie_word_embeddings=True)
    change_tensors(folder / "model.safetensors", change)
    model = load_model(folder)
    assert model.config.tie_word_embeddings
    assert model.head is model.weights["model.embed_tokens.weight"]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_head_of_other_numbers_is_not_tied(folder, tmp_path, dtype):
    """As in transformers 5, whatever config.json says; and what is written says it is not."""
    save_weights(random_llama(), folder, dtype)
    expected = load_model(folder)
    change_json(folder / "config.json", tie_word_embeddings=True)
    model = load_model(folder)
    assert model.config == expected.config
    np.testing.assert_array_equal(model.head, expected.weights["lm_head.weight"])
    save_model(model, tmp_path / "merged", folder)
    assert json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"] is False
    np.testing.assert_array_equal(load_model(tmp_path / "merged").head, model.head)


@pytest.mark.parametrize(
    ("found", "theta"),
    [
        ({"rope_theta": 5000.0}, 5000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}, 5000.0),
        ({"rope_theta": 7.0, "rope_parameters": {"rope_theta": 5000.0}}, 5000.0),
        ({"rope_theta": 5000.0, "rope_parameters": {"rope_type": "default"}}, 5000.0),
        ({"rope_scaling": {"rope_theta": 5000.0}, "rope_parameters": {"rope_theta": 7.0}}, 5000.0),
        ({"rope_scaling": None, "rope_parameters": {"rope_theta": 5000.0}}, 5000.0),
        ({}, 10000.0),
    ],
)
def test_where_rope_theta_may_stand(folder, found, theta):
    change_json(
        folder / "config.json", **{"rope_theta": "absent", "rope_scaling": "absent"} | found
    )
    assert load_model(folder).config.rope_theta == theta


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM.*expected LlamaForCausal"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_scaling.rope_type: found 'llama3'",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type: found 'linear'"),
        (
            {"rope_scaling": {"type": "linear"}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling.type: found 'linear'",
        ),
        ({"rope_parameters": {"rope_type": "default", "factor": 4}}, "rope_parameters.factor: "),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": "true"}, "tie_word_embeddings: found 'true', .* True or False"),
        ({"model_type": "mistral"}, "model_type: found 'mistral', minibule computes only 'llama'"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act: found 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": "absent"}, "hidden_size: found None, expected a whole number"),
        ({"hidden_size": 10.5}, "hidden_size: found 10.5"),
        ({"num_attention_heads": 0}, "num_attention_heads: found 0"),
        ({"num_key_value_heads": 4}, "multiple of num_key_value_heads"),
        ({"head_dim": 3}, "head_dim: found 3, expected an even"),
        ({"rms_norm_eps": True}, "rms_norm_eps: found True"),
        ({"vocab_size": "37"}, "vocab_size: found '37', expected a whole number from 1"),
        ({"vocab_size": 1}, "vocab_size: found 1, expected at least 2"),
        (
            {"num_hidden_layers": 2**31 - 1},
            "num_hidden_layers: found 2147483647, .* to 1,000",
        ),
        ({"rope_theta": 1e-30}, "rope_theta: found 1e-30, expected a number from 1 to"),
        ({"rms_norm_eps": 1e-300}, "rms_norm_eps: found 1e-300"),
    ],
)
def test_configs_that_are_not_supported_are_refused_by_name(folder, changes, message):
    change_json(folder / "config.json", **changes)
    with pytest.raises(InputError, match=message) as error:
        load_model(folder)
    assert "config.json" in str(error.value)
    assert str(error.value).count("found") == 1  # what follows from it is no mistake of its own


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


def test_weights_cut_short_while_they_are_read(folder):
    """The system ends a program that reads such a file by a map."""
    file = folder / "model.safetensors"
    stored = stored_tensors([file])
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(InputError, match="became shorter while it was read"):
        read_tensors(stored, ODD.tensor_shapes(), folder)


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


# -- companions: the files beside the weights ------------------------------------------------------


def complete(folder):
    """The embedded model's folder, every companion among its files."""
    shutil.copytree(embedded_folder(), folder)
    for name in COMPANIONS:
        if not (folder / name).exists():
            (folder / name).write_text("{{ messages[0].content }}" if name[-1] == "a" else "{}")
    return folder


def moved_and_linked(file, place, link=None):
    """Move a file to another place, and leave a link to it behind."""
    place.parent.mkdir(parents=True, exist_ok=True)
    file.rename(place)
    file.symlink_to(link or place)


@pytest.mark.parametrize("name", COMPANIONS)
def test_a_companion_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    folder = complete(tmp_path / "model")
    model = load_model(folder)
    moved_and_linked(folder / name, tmp_path / "private" / name)
    with pytest.raises(InputError, match=rf"model/{name}: found a link that leads out"):
        save_model(model, tmp_path / "merged", folder)
    if name != "special_tokens_map.json":  # which is only copied
        with pytest.raises(InputError, match=rf"model/{name}: found a link that leads out"):
            load_chat(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "private"}


@pytest.mark.parametrize("name", COMPANIONS)
@pytest.mark.parametrize("make", ["folder", "device", "pipe"])
def test_a_companion_that_is_no_file_is_refused(tmp_path, name, make):
    folder = complete(tmp_path / "model")
    (folder / name).unlink()
    if make == "folder":
        (folder / name).mkdir()
    elif make == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"{name}: (expected a file|found a link)"):
        open_source(folder).companions()


def test_links_within_the_folder_and_into_a_hub_caches_blobs(tmp_path):
    hub = tmp_path / "hub/models--who--what"
    folder = complete(hub / "snapshots/0123abc")
    for i, name in enumerate(COMPANIONS):
        moved_and_linked(folder / name, hub / f"blobs/{i}f", f"../../blobs/{i}f")
    moved_and_linked(folder / "config.json", hub / "blobs/cf", "../../blobs/cf")
    (tmp_path / "by-name").symlink_to(folder)
    for path in (folder, tmp_path / "by-name"):
        assert load_chat(path).template == "{{ messages[0].content }}"
        assert [file.name for file in open_source(path).companions()] == list(COMPANIONS)
    plain = complete(tmp_path / "plain")
    moved_and_linked(plain / "tokenizer.json", plain / "files/tokenizer.json")
    assert len(open_source(plain).companions()) == len(COMPANIONS)
    (plain / "tokenizer_config.json").unlink()  # another model's blobs are none of this folder's
    (plain / "tokenizer_config.json").symlink_to(hub / "blobs/1f")
    with pytest.raises(InputError, match=r"tokenizer_config\.json: found a link that leads out"):
        open_source(plain).companions()


# -- what is said is short -------------------------------------------------------------------------


def header(**tensors):
    """A safetensors file of nothing but a header: each tensor a shape, of no numbers."""
    entries = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in tensors.items()
    }
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.norm.weight": [0] * 10**6},
        {"x" * 10**6: [0]},
        {f"{i}" * 1000: [0] for i in range(1000)},
        {f"model.layers.{i}.mlp.up_proj.weight": [0] for i in range(3, 10**4)},
    ],
    ids=["dimensions", "a long name", "long names", "many names"],
)
def test_an_error_is_not_as_long_as_the_file(folder, tensors):
    (folder / "model.safetensors").write_bytes(header(**tensors))
    with pytest.raises(InputError, match="its tensors do not fit") as error:
        load_model(folder)
    assert len(str(error.value)) < 30_000 and str(error.value).count("\n") <= 50
