"""Every key of every format is used, known to change nothing, or refused by name."""

import dataclasses
import json
from pathlib import Path

import pytest
from broken import adapter_folder, change_json, model_folder
from gguf.constants import GGUFValueType
from gguf.gguf_writer import GGUFValue
from helpers import ODD

from minibule.errors import InputError
from minibule.files import embedded_folder, write_json
from minibule.models.chat_files import load_chat
from minibule.models.gguf_file import Gguf
from minibule.models.gguf_metadata import model_metadata
from minibule.models.gguf_read import GgufModel, gguf_config
from minibule.models.huggingface import load_config
from minibule.models.keys import (
    ADAPTER_CONFIG,
    CONFIG_JSON,
    GGUF,
    ROPE,
    TOKENIZER_JSON,
    Keys,
)
from minibule.models.load import load_model
from minibule.models.peft import load_adapter

TABLES = [CONFIG_JSON, ROPE, TOKENIZER_JSON, ADAPTER_CONFIG, GGUF]


@pytest.mark.parametrize("keys", TABLES)
def test_no_key_is_on_two_lists(keys):
    assert not keys.used & keys.free
    assert not keys.values.keys() & (keys.used | keys.free)


def test_what_becomes_of_a_key():
    keys = Keys(frozenset(["r"]), {"scale": (1, 2), "bias": (False,), "odd": ()}, frozenset(["by"]))
    fine = {"r": "x", "scale": 2.0, "bias": False, "by": 3, "new": None, "odd": None}
    assert keys.problems(fine) == []
    wrong = {"scale": True, "bias": 0, "odd": {}, "new": "x" * 10**6, "Bias": False}
    lines = keys.problems(wrong, "file.")
    assert lines[:3] == [
        "file.scale: found True, minibule computes only 1 or 2",
        "file.bias: found 0, minibule computes only False",
        "file.odd: found {}, minibule computes only without it",
    ]
    assert [line.partition(":")[0] for line in lines[3:]] == ["file.new", "file.Bias"]
    assert all("does not know this key" in line and len(line) < 200 for line in lines[3:])
    notes = dataclasses.replace(keys, own=("model.",))
    assert notes.problems({"author": "x", "model": 1, "r.": 1}) == []
    assert len(notes.problems({"model.r": 3})) == 1


# -- Hugging Face ----------------------------------------------------------------------------------

# Of a config.json, what says nothing of the model.
HARMLESS = {
    "transformers_version": "5.23.0",
    "_name_or_path": "/somewhere",
    "torch_dtype": "float16",
    "dtype": "float16",
    "auto_map": {"AutoModel": "modeling_x.X"},
    "transformers.js_config": {"dtype": "q4"},
    "pad_token_id": -1,
    "initializer_range": 0.02,
    "use_cache": False,
    "pretraining_tp": 2,
    "temperature": 0.6,
    "quantization_config": None,
    "rope_interleaved": False,
    "attention_dropout": 0.0,
    "an_unknown_one": None,
}


def test_harmless_keys_of_a_config_are_passed_over(tmp_path):
    folder = model_folder(tmp_path)
    change_json(folder / "config.json", **HARMLESS)
    assert load_model(folder).config == ODD


@pytest.mark.parametrize("value", [0, 1.5, True, False, "x", [1], {"a": 1}], ids=repr)
@pytest.mark.parametrize(
    "key", ["layer_types", "embedding_multiplier", "Rope_Theta", "", "x" * 999]
)
def test_a_key_of_a_config_that_nobody_knows_is_refused(tmp_path, key, value):
    folder = model_folder(tmp_path)
    change_json(folder / "config.json", **{key: value})
    with pytest.raises(InputError, match=f"{key[:9]}.*does not know this key.*remove it"):
        load_model(folder)


@pytest.mark.parametrize("key", CONFIG_JSON.values)
def test_a_config_that_computes_something_else_is_refused(tmp_path, key):
    folder = model_folder(tmp_path)
    for value in ("another", 17, {"a": [1]}):
        change_json(folder / "config.json", **{key: value})
        with pytest.raises(InputError, match=rf"{key}: found .* minibule computes only"):
            load_model(folder)


def test_a_part_of_a_tokenizer_that_nobody_knows(tmp_path):
    tokenizer = json.loads((embedded_folder() / "tokenizer.json").read_text())
    assert set(tokenizer) <= TOKENIZER_JSON.used | TOKENIZER_JSON.free | set(TOKENIZER_JSON.values)
    write_json(tmp_path / "tokenizer.json", tokenizer | {"detokenizer": {"type": "x"}})
    with pytest.raises(InputError, match=r"detokenizer: found .* does not know this key"):
        load_chat(tmp_path)


# -- PEFT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1.5, True, False, "x", [1], {"a": 1}], ids=repr)
@pytest.mark.parametrize("key", ["use_newlora", "rank_Pattern", "lora_scale", "r "])
def test_a_key_of_an_adapter_that_nobody_knows_is_refused(tmp_path, key, value):
    folder = adapter_folder(tmp_path)
    change_json(folder / "adapter_config.json", **{key: value})
    with pytest.raises(InputError, match=f"{key}: found .* does not know this key"):
        load_adapter(folder, ODD)


@pytest.mark.parametrize("key", ADAPTER_CONFIG.values)
def test_an_adapter_that_computes_something_else_is_refused(tmp_path, key):
    folder = adapter_folder(tmp_path)
    for value in ("another", 1, {"a": [1]}, True if key != "use_rslora" else 0):
        if value is True and True in ADAPTER_CONFIG.values[key]:
            continue
        change_json(folder / "adapter_config.json", **{key: value})
        with pytest.raises(InputError, match=rf"{key}: found .* minibule computes only"):
            load_adapter(folder, ODD)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_whose_start_changes_the_base_is_refused(tmp_path, start):
    folder = adapter_folder(tmp_path)
    change_json(folder / "adapter_config.json", init_lora_weights=start)
    with pytest.raises(InputError, match=f"init_lora_weights: found '{start}'"):
        load_adapter(folder, ODD)


# -- GGUF ------------------------------------------------------------------------------------------

U32, F32, TEXT, BOOL, ARRAY = (
    GGUFValueType.UINT32,
    GGUFValueType.FLOAT32,
    GGUFValueType.STRING,
    GGUFValueType.BOOL,
    GGUFValueType.ARRAY,
)
# A value of each kind: of another type than expected, or of the right one and of no sense.
ODD_VALUES = [
    GGUFValue(3, U32),
    GGUFValue(-1, GGUFValueType.INT32),
    GGUFValue(2**64 - 1, GGUFValueType.UINT64),
    GGUFValue(32.0, F32),
    GGUFValue(float("nan"), F32),
    GGUFValue(True, BOOL),
    GGUFValue("x", TEXT),
    GGUFValue(["x"], ARRAY, TEXT),
    GGUFValue([1, 2], ARRAY, U32),
]


@pytest.fixture(scope="module")
def metadata():
    """Those of the embedded model."""
    return model_metadata(load_config(embedded_folder()), load_chat(embedded_folder()))


def file_of(metadata):
    return Gguf(Path("x.gguf"), metadata, {})


def test_harmless_metadata_are_passed_over(metadata):
    notes = {
        "general.author": GGUFValue("who", TEXT),
        "general.tags": GGUFValue(["a", "b"], ARRAY, TEXT),
        "general.base_model.0.name": GGUFValue("it", TEXT),
        "general.a_new_one": GGUFValue(3, U32),
        "general.quantization_version": GGUFValue(2, U32),
        "quantize.imatrix.file": GGUFValue("x.dat", TEXT),
        "somebody.note": GGUFValue(1.5, F32),
        "tokenizer.chat_template.tool_use": GGUFValue("x", TEXT),
        "tokenizer.ggml.scores": GGUFValue([0.0], ARRAY, F32),
        "tokenizer.ggml.fim_pre_token_id": GGUFValue(3, U32),
        "llama.rope.scaling.type": GGUFValue("linear", TEXT),
        "llama.rope.scaling.factor": GGUFValue(1.0, F32),
        "llama.rope.scaling.original_context_length": GGUFValue(512, U32),
        "llama.expert_count": GGUFValue(0, U32),
        "split.count": GGUFValue(1, U32),
    }
    assert gguf_config(file_of(metadata | notes)) == gguf_config(file_of(metadata))


@pytest.mark.parametrize("value", ODD_VALUES, ids=lambda v: repr(v.value))
@pytest.mark.parametrize(
    "key",
    [
        "llama.logit_scale",
        "llama.rope.scaling.alpha",
        "llama.rope.scaling.yarn_ext_factor",
        "llama.attention.sliding_window",
        "llama.",
        "tokenizer.ggml.suppress_tokens",
        "tokenizer.ggml.normalizer.lowercase",
        "adapter.type",
        "split.x",
    ],
)
def test_a_key_of_the_models_own_that_nobody_knows_is_refused(metadata, key, value):
    with pytest.raises(InputError, match=rf"{key}: found .* does not know this key"):
        gguf_config(file_of(metadata | {key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.factor", GGUFValue(4.0, F32)),
        ("llama.rope.scale_linear", GGUFValue(4.0, F32)),
        ("llama.rope.scaling.type", GGUFValue("yarn", TEXT)),
        ("llama.rope.scaling.attn_factor", GGUFValue(2.0, F32)),
        ("llama.attention.causal", GGUFValue(False, BOOL)),
        ("llama.expert_count", GGUFValue(8, U32)),
        ("tokenizer.ggml.add_bos_token", GGUFValue(True, BOOL)),
        ("tokenizer.ggml.add_space_prefix", GGUFValue(True, BOOL)),
        ("general.type", GGUFValue("adapter", TEXT)),
        ("split.count", GGUFValue(2, U32)),
    ],
)
def test_a_gguf_that_llama_cpp_computes_otherwise_is_refused(metadata, key, value):
    with pytest.raises(InputError, match=rf"{key}: found .* minibule computes only"):
        gguf_config(file_of(metadata | {key: value}))


@pytest.mark.parametrize("key", sorted({*GGUF.used, *GGUF.values} - {"general.alignment"}))
def test_a_value_of_another_type_is_refused_or_means_the_same(metadata, key):
    """No other exception than words, from the model or its chat."""
    refused = 0
    for value in ODD_VALUES:
        source = GgufModel(file_of(metadata | {key: value}))
        try:
            source.config()
            source.chat()
        except InputError as error:
            assert "x.gguf" in str(error)
            refused += 1
    assert refused >= 3


def test_whatever_ends_a_turn_ends_an_answer(metadata):
    more = {
        "tokenizer.ggml.eot_token_id": GGUFValue(7, U32),
        "tokenizer.ggml.eom_token_id": GGUFValue(9, U32),
    }
    assert GgufModel(file_of(metadata)).chat().stop == {2}
    assert GgufModel(file_of(metadata | more)).chat().stop == {2, 7, 9}


# -- all that the formats' own libraries know ------------------------------------------------------


def known(keys):
    return keys.used | keys.free | keys.values.keys()


@pytest.mark.filterwarnings("ignore")
def test_every_key_that_transformers_writes_is_known():
    transformers = pytest.importorskip("transformers", reason="needs pip install '.[oracle]'")
    pytest.importorskip("torch", reason="needs pip install '.[oracle]'")
    config = transformers.LlamaConfig()
    fields = {field.name for field in dataclasses.fields(config)}
    assert len(fields) > 20 and fields | set(config.to_dict()) <= known(CONFIG_JSON)
    generation = transformers.GenerationConfig._get_default_generation_params()
    assert set(generation) <= known(CONFIG_JSON)


@pytest.mark.filterwarnings("ignore")
def test_every_setting_of_peft_is_known():
    peft = pytest.importorskip("peft", reason="needs pip install '.[oracle]'")
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert len(fields) > 30 and fields <= known(ADAPTER_CONFIG)
