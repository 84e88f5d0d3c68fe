"""GGUF out and in without llama.cpp: against the gguf package's own reader, and round trips."""

import dataclasses
import itertools
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from broken import change_metadata
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGUFValueType
from gguf.gguf_writer import GGUFValue
from helpers import ODD, ROOT, random_adapter, random_llama, shared
from tokenizers import Tokenizer

from minibule.core.lora import Adapter, lora_name
from minibule.core.shapes import LoraConfig
from minibule.errors import InputError
from minibule.export import main
from minibule.files import embedded_folder, write_json
from minibule.models import gguf_file
from minibule.models.chat_files import load_chat
from minibule.models.gguf_file import Gguf, gguf_name, permute, read_gguf, unpermute
from minibule.models.gguf_read import gguf_config
from minibule.models.gguf_write import GGUF_TYPES, export_gguf, export_gguf_lora
from minibule.models.load import load_model
from minibule.models.peft import load_adapter, save_adapter

TEXTS = [
    "hello",
    "Hello world! 123",
    "  two  spaces   and\ttabs\n\nnewlines\r\n",
    "3.14159 and 2026-11-20",
    "日本語 и кириллица مرحبا",
    "🙂👩‍👩‍👧‍👦 emoji",
    "def f(x):\n    return x**2  # code",
    "don't we'll I'VE",
    "\x00\x01\x7f control",
    "",
]


@pytest.fixture(scope="module")
def embedded():
    return load_model(embedded_folder()), load_chat(embedded_folder())


@pytest.fixture
def written(tmp_path, embedded):
    export_gguf(*embedded, tmp_path / "model.gguf", "f32")
    return tmp_path / "model.gguf"


# -- out -------------------------------------------------------------------------------------------


def test_permutation_is_that_of_the_two_rotations():
    """Rotating neighbours after `permute` is rotating halves before it."""
    rng = np.random.default_rng(0)
    heads, hd = 3, 8
    W = rng.normal(size=(heads * hd, 5))
    P = permute(W, heads)
    for head in range(heads):
        for i in range(hd // 2):
            np.testing.assert_array_equal(P[head * hd + 2 * i], W[head * hd + i])
            np.testing.assert_array_equal(P[head * hd + 2 * i + 1], W[head * hd + hd // 2 + i])
    np.testing.assert_array_equal(unpermute(P, heads), W)


def test_the_gguf_package_reads_it(written, embedded):
    model, chat = embedded
    reader = GGUFReader(written)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = model.config
    expected = {
        "general.architecture": "llama",
        "general.file_type": 0,
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": chat.template,
    }
    assert {key: fields[key] for key in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert fields["tokenizer.ggml.token_type"][:5] == [3, 3, 3, 1, 1]
    vocab = chat.tokenizer.get_vocab()
    assert fields["tokenizer.ggml.tokens"] == sorted(vocab, key=vocab.get)
    assert all(" " in merge for merge in fields["tokenizer.ggml.merges"])

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == {gguf_name(name) for name in model.weights}
    assert "output.weight" not in tensors  # tied
    for name, W in model.weights.items():
        found = tensors[gguf_name(name)].data
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2], 0)
        np.testing.assert_array_equal(found, permute(W, heads) if heads else W)


@pytest.mark.parametrize("dtype", GGUF_TYPES)
def test_norms_stay_f32(dtype, tmp_path, embedded):
    export_gguf(*embedded, tmp_path / "model.gguf", dtype)
    for tensor in GGUFReader(tmp_path / "model.gguf").tensors:
        expected = "F32" if tensor.name.endswith("norm.weight") else dtype.upper()
        assert tensor.tensor_type.name == expected


def test_the_adapter_is_merged_before_quantising(tmp_path, embedded):
    model, chat = embedded
    adapted = dataclasses.replace(model, adapter=random_adapter(model.config))
    export_gguf(adapted, chat, tmp_path / "model.gguf", "f32")
    ids = np.arange(3, 30)
    expected = adapted.logits(ids)
    again = load_model(tmp_path / "model.gguf").logits(ids)
    np.testing.assert_allclose(again, expected, atol=1e-5 * np.abs(expected).max())


def effective(reader, name, heads):
    """What llama.cpp adds to a weight: alpha / r * B A, the rows of B put back in order."""
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    A, B = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
    alpha = reader.fields["adapter.lora.alpha"].contents()
    return alpha / len(A) * ((unpermute(B, heads) if heads else B) @ A)


@pytest.mark.parametrize("rslora", [False, True])
def test_lora_files_carry_any_scaling(tmp_path, rslora):
    model = random_llama()
    adapter = random_adapter(rslora=rslora, targets=("q_proj", "k_proj", "up_proj"))
    r5 = "model.layers.1.self_attn.k_proj"
    rng = np.random.default_rng(0)
    params = adapter.params | {
        lora_name(r5, "A"): rng.normal(size=(5, 10)).astype(np.float32),
        lora_name(r5, "B"): rng.normal(size=(8, 5)).astype(np.float32),
    }
    config = LoraConfig(
        3, 5.0, adapter.config.modules, rslora, {"layers.1.self_attn.k_proj": 5}, {"up_proj": 9.0}
    )
    model.adapter = Adapter(config, params)
    export_gguf_lora(model, tmp_path / "adapter.gguf")
    reader = GGUFReader(tmp_path / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    for module in config.modules:
        A, B, scaling = model.adapter.pair(module)
        heads = {"q_proj": 6, "k_proj": 2}.get(module.split(".")[-1], 0)
        found = effective(reader, gguf_name(module + ".weight"), heads)
        np.testing.assert_allclose(found, scaling * B @ A, rtol=1e-5, atol=1e-6)


def test_lora_that_cannot_be_expressed(tmp_path):
    model = random_llama()
    with pytest.raises(InputError, match="no adapter"):
        export_gguf_lora(model, tmp_path / "a.gguf")
    model.adapter = random_adapter()
    model.adapter.config = dataclasses.replace(model.adapter.config, lora_alpha=0.0)
    with pytest.raises(InputError, match="lora_alpha is 0"):
        export_gguf_lora(model, tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


# -- in --------------------------------------------------------------------------------------------


def test_weights_shapes_and_logits_come_back_to_the_bit(written, embedded):
    model, _ = embedded
    again = load_model(written)
    assert again.config == model.config
    for name, W in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], W)
    np.testing.assert_array_equal(again.logits([1, 2, 3]), model.logits([1, 2, 3]))


def test_tokenizer_and_template_come_back(written, embedded):
    _, chat = embedded
    again = load_chat(written)
    assert (again.template, again.stop, again.end_of_turn) == (
        chat.template,
        chat.stop,
        chat.end_of_turn,
    )
    assert again.special_texts == chat.special_texts
    for text in TEXTS:
        assert again.encode_prompt(text).tolist() == chat.encode_prompt(text).tolist()
        (ids,), (expected,) = again.encode_answers([text]), chat.encode_answers([text])
        assert ids.tolist() == expected.tolist()
        assert again.decode(ids) == chat.decode(ids) == text


def test_the_real_tokenizer_comes_back(tmp_path):
    chat = load_chat(shared("data/smollm2-360m-instruct/tokenizer.json").parent)
    config = dataclasses.replace(ODD, vocab_size=49152, tie_word_embeddings=True)
    export_gguf(random_llama(config), chat, tmp_path / "model.gguf", "f16")
    again = load_chat(tmp_path / "model.gguf")
    lines = shared("data/rejections/vicuna80.rejections.jsonl").read_text().splitlines()
    texts = [text for line in lines for text in json.loads(line)["rejected_responses"]] + TEXTS
    for ids, expected in zip(again.encode_answers(texts), chat.encode_answers(texts), strict=True):
        np.testing.assert_array_equal(ids, expected)
    assert again.template == chat.template


@pytest.mark.parametrize("dtype", GGUF_TYPES)
def test_read_back_and_written_again_it_is_the_same_bytes(dtype, tmp_path, embedded):
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    export_gguf(*embedded, first, dtype)
    export_gguf(load_model(first), load_chat(first), second, dtype)
    assert first.read_bytes() == second.read_bytes()


def test_every_command_takes_a_gguf_as_the_base(tmp_path, monkeypatch, capsys, written):
    from minibule.generate.__main__ import main as generate
    from minibule.train.__main__ import main as train

    monkeypatch.chdir(tmp_path)
    data = str(embedded_folder() / "records.jsonl")
    train(
        f"--model {written} --data {data} --steps 2 --output run --eval-fraction 0 --lr 0.01 "
        "--export hf,gguf:q8_0,gguf-lora".split()
    )
    out = capsys.readouterr().out
    for name in ("merged", "model-q8_0.gguf", "adapter.gguf"):
        assert (tmp_path / "run" / name).exists() and f"run/{name}" in out
    generate(["--model", str(written), "--prompt", "hello"])
    assert capsys.readouterr().out.strip() == "hello"
    # The merged folder made of a GGUF base is a whole Hugging Face folder.
    adapted = load_model(written, "run/adapter")
    ids = load_chat("run/merged").encode_prompt("hello")
    assert ids.tolist() == load_chat(written).encode_prompt("hello").tolist()
    expected = adapted.logits(ids)
    atol = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(load_model("run/merged").logits(ids), expected, atol=atol)
    main(
        f"--model {written} --adapter run/adapter --format gguf --dtype f32 "
        "--output again.gguf".split()
    )
    np.testing.assert_allclose(load_model("again.gguf").logits(ids), expected, atol=atol)
    main(["--adapter", "run/adapter", "--format", "hf", "--output", "hf", "--dtype", "bf16"])
    assert load_model("hf").config == adapted.config


# -- bad input -------------------------------------------------------------------------------------


def test_truncated_files(written, tmp_path):
    data = written.read_bytes()
    lengths = [0, 3, 4, 8, 20, 24, 100, 1000, 9000, len(data) // 2, len(data) - 1]
    for length in lengths:
        (tmp_path / "cut.gguf").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.gguf"):
            load_model(tmp_path / "cut.gguf")


def test_a_file_cut_short_while_it_is_read(written):
    """As by a download begun anew: the system ends a program that reads such a file by a map."""
    file = read_gguf(written)
    os.truncate(written, 2_000)
    with written.open("rb") as opened, pytest.raises(ValueError, match="cut short"):
        gguf_file._parse(written, gguf_file._Cursor(opened, 10**6))
    with pytest.raises(InputError, match="became shorter while it was read"):
        file.array("output_norm.weight")


def test_lengths_that_claim_to_be_huge(written, tmp_path):
    """A count of 2^60 in any place ends in words at once, not in memory or hours."""
    data = bytearray(written.read_bytes())
    for at in (8, 16, 24):
        changed = bytearray(data)
        changed[at : at + 8] = struct.pack("<Q", 2**60)
        (tmp_path / "huge.gguf").write_bytes(changed)
        with pytest.raises(InputError, match="not a whole GGUF file"):
            read_gguf(tmp_path / "huge.gguf")


def test_tensors_that_overlap(written, tmp_path):
    data = bytearray(written.read_bytes())
    name = b"blk.0.attn_q.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8 + 4  # after its dimensions and type: its offset
    data[at : at + 8] = struct.pack("<Q", 32)
    (tmp_path / "lies.gguf").write_bytes(data)
    with pytest.raises(InputError, match="its numbers begin within those of"):
        read_gguf(tmp_path / "lies.gguf")


def test_an_array_that_claims_to_be_huge(written, tmp_path):
    """As many items as the file has bytes for: each would become an object of Python's."""
    data = bytearray(written.read_bytes()) + bytes(2**22)
    key = b"tokenizer.ggml.token_type"
    at = data.index(key) + len(key)
    data[at + 4 : at + 16] = struct.pack("<IQ", 0, 2**22)
    (tmp_path / "huge.gguf").write_bytes(data)
    with pytest.raises(InputError, match="an array of 4,194,304 values, expected 2,097,152"):
        read_gguf(tmp_path / "huge.gguf")


ALIGNMENTS = {
    "add_uint32": [0, 1, 31, 2**20],
    "add_int32": [-32],
    "add_float32": [32.0, float("nan"), float("inf")],
    "add_float64": [32.0],
    "add_bool": [True],
    "add_string": ["32"],
    "add_array": [[32], ["32"]],
}


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k in ALIGNMENTS for v in ALIGNMENTS[k]])
def test_an_alignment_of_another_type_or_size(tmp_path, kind, value):
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    getattr(writer, kind)("general.alignment", value)
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"x\.gguf: .*general\.alignment: found .* power of two"):
        read_gguf(tmp_path / "x.gguf")


def test_many_arrays_of_a_size_that_one_may_have(tmp_path):
    """What becomes objects of Python's is counted over the whole file, texts as well as numbers."""
    n = 2**20
    key = struct.pack("<Q", 1)
    numbers = struct.pack("<IIQ", 9, 0, n) + bytes(n)
    texts = struct.pack("<IIQ", 9, 8, n) + bytes(8 * n)
    for second in (numbers, texts):
        data = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + key + b"a" + numbers + key + b"b" + second
        (tmp_path / "many.gguf").write_bytes(data)
        with pytest.raises(InputError, match="an array of 1,048,576 values, expected 2,097,152"):
            read_gguf(tmp_path / "many.gguf")
    (tmp_path / "many.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**20, 2**20 + 1))
    with pytest.raises(InputError, match="a header of 2,097,153 values"):
        read_gguf(tmp_path / "many.gguf")


@pytest.mark.parametrize("twice", ["key", "tensor"])
def test_what_is_said_is_not_as_long_as_the_file(tmp_path, twice):
    name = struct.pack("<Q", 10**6) + b"x" * 10**6
    counts, entry = {
        "key": ((0, 2), name + struct.pack("<IB", 0, 1)),
        "tensor": ((2, 0), name + struct.pack("<IQIQ", 1, 1, 0, 0)),
    }[twice]
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + 2 * entry)
    with pytest.raises(InputError, match="twice") as error:
        read_gguf(tmp_path / "x.gguf")
    assert len(str(error.value)) < 1000


def test_a_token_as_long_as_a_file(written):
    tokens = read_gguf(written).metadata["tokenizer.ggml.tokens"].value
    tokens = GGUFValue([*tokens[:-1], "x" * 10**6], GGUFValueType.ARRAY, GGUFValueType.STRING)
    change_metadata(written, {"tokenizer.ggml.tokens": tokens})
    with pytest.raises(InputError, match="a token of 1,000,000 characters, expected 1,000 at most"):
        load_chat(written)


def test_flipped_bytes_end_in_words_or_load(written, tmp_path):
    """Both happen, to the model and to its chat: neither is all damage harmless, nor all fatal."""
    whole = written.read_bytes()
    outcomes = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        data = bytearray(whole)
        for at in rng.integers(0, min(len(data), 20_000), 5):
            data[at] = rng.integers(0, 256)
        (tmp_path / "flipped.gguf").write_bytes(data)
        for load in (load_model, load_chat):
            try:
                load(tmp_path / "flipped.gguf")
                outcomes.append((load, "loaded"))
            except InputError as error:
                assert "flipped.gguf" in str(error)
                outcomes.append((load, "refused"))
    assert set(outcomes) == set(itertools.product((load_model, load_chat), ("loaded", "refused")))


def small_gguf(path, architecture="llama", **metadata):
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_another_architecture(tmp_path):
    path = small_gguf(tmp_path / "other.gguf", "qwen2")
    with pytest.raises(InputError, match="architecture 'qwen2', expected 'llama'"):
        load_model(path)


def test_a_gguf_that_is_no_model(tmp_path):
    with pytest.raises(InputError, match="embedding_length: found None"):
        load_model(small_gguf(tmp_path / "empty.gguf"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"vocab_size": 1}, "vocab_size: found 1, expected at least 2"),
        ({"attention.head_count_kv": 4}, "num_attention_heads: found 6, expected a multiple of"),
        ({"attention.key_length": 3}, "head_dim: found 3, expected an even number"),
        ({"block_count": 1001}, "llama.block_count: found 1001, expected a whole number from"),
        (
            {"rope.freq_base": 1e-9},
            "llama.rope.freq_base: found 1e-09, expected a number from",
        ),
        ({"context_length": True}, "llama.context_length: found True"),
    ],
)
def test_shapes_that_no_model_has(written, changes, says):
    """What a Hugging Face folder is refused for, a GGUF file is refused for too."""
    sizes = dataclasses.asdict(ODD)
    names = {
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "feed_forward_length": "intermediate_size",
        "vocab_size": "vocab_size",
        "context_length": "max_position_embeddings",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "rope.freq_base": "rope_theta",
    }
    values = {key: sizes[name] for key, name in names.items()} | changes
    values["attention.value_length"] = values["attention.key_length"]
    values["rope.dimension_count"] = values["attention.key_length"]
    metadata = {f"llama.{key}": GGUFValue(v, GGUFValueType.UINT32) for key, v in values.items()}
    metadata["general.architecture"] = GGUFValue("llama", GGUFValueType.STRING)
    file = Gguf(Path("x.gguf"), metadata, {"output.weight": None})
    if not says:
        assert gguf_config(file) == ODD
        return
    with pytest.raises(InputError, match=re.escape(says)) as error:
        gguf_config(file)
    assert str(error.value).count("found") == 1


def test_unknown_pre_tokenizer_in(tmp_path):
    metadata = {"tokenizer__ggml__model": "gpt2", "tokenizer__ggml__pre": "martian"}
    with pytest.raises(InputError, match="pre-tokenizer 'martian', expected 'gpt2' with one of"):
        load_chat(small_gguf(tmp_path / "x.gguf", **metadata))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("pre_tokenizer", {"type": "Whitespace"}, "none of the known: smollm, gpt-2"),
        ("normalizer", {"type": "NFC"}, "normalizer: found NFC, expected none"),
    ],
)
def test_unknown_tokenizer_out(tmp_path, embedded, part, value, message):
    model, _ = embedded
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((embedded_folder() / name).read_bytes())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    write_json(tmp_path / "tokenizer.json", tokenizer | {part: value})
    with pytest.raises(InputError, match=message):
        export_gguf(model, load_chat(tmp_path), tmp_path / "model.gguf", "f32")
    assert not (tmp_path / "model.gguf").exists()


def test_rows_that_do_not_divide_into_blocks(tmp_path, embedded):
    _, chat = embedded
    config = dataclasses.replace(ODD, vocab_size=512)
    with pytest.raises(InputError, match="blocks of 32 numbers, which do not divide"):
        export_gguf(random_llama(config), chat, tmp_path / "model.gguf", "q4_0")
    export_gguf(random_llama(config), chat, tmp_path / "model.gguf", "f16")
    assert load_model(tmp_path / "model.gguf").config == config  # untied, hd != D / H


def test_vocabulary_smaller_than_the_tokenizers(tmp_path, embedded):
    _, chat = embedded
    with pytest.raises(InputError, match="less than the model's vocab_size of 37"):
        export_gguf(random_llama(), chat, tmp_path / "model.gguf", "f32")


def test_vocabulary_larger_than_the_tokenizers(tmp_path, embedded):
    _, chat = embedded
    config = dataclasses.replace(ODD, vocab_size=520)
    export_gguf(random_llama(config), chat, tmp_path / "model.gguf", "f32")
    again = load_chat(tmp_path / "model.gguf")
    assert read_gguf(tmp_path / "model.gguf").get("tokenizer.ggml.token_type")[-8:] == [5] * 8
    assert isinstance(again.tokenizer, Tokenizer)
    assert again.encode_prompt("[PAD515]").tolist() == chat.encode_prompt("[PAD515]").tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "gguf", "--dtype", "q3_k"], "--dtype q3_k: gguf is written as one of f32"),
        (["--format", "gguf-lora"], "no adapter to write"),
        (["--format", "hf", "--dtype", "q8_0"], "hf is written as one of f32, f16, bf16"),
    ],
)
def test_export_arguments(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        main([*arguments, "--output", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(tmp_path, embedded, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    (tmp_path / "model.gguf").write_text("the earlier one")
    monkeypatch.setattr("minibule.models.gguf_write.GGUFWriter.write_tensor_data", full)
    with pytest.raises(InputError, match="No space left"):
        export_gguf(*embedded, tmp_path / "model.gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_text() == "the earlier one"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("honest", [True, False], ids=["seen before", "met while writing"])
def test_a_full_disk(tmp_path, embedded, monkeypatch, honest):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        if not honest:
            monkeypatch.setattr(
                "minibule.models.gguf_write.shutil.disk_usage",
                lambda _: type("Usage", (), {"free": 10**12}),
            )
        with pytest.raises(InputError, match="are free" if honest else "Is the disk full"):
            export_gguf(*embedded, disk / "model.gguf", "f32")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_adapter_for_the_gguf_base_is_the_same_adapter(tmp_path, written, embedded):
    model, _ = embedded
    adapter = random_adapter(model.config)
    save_adapter(adapter, model.config, tmp_path / "adapter", "base")
    again = load_adapter(tmp_path / "adapter", load_model(written).config)
    assert again.config == adapter.config


def test_no_traceback_from_the_program(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\xff" * 40)
    done = subprocess.run(
        [sys.executable, *f"-m minibule.generate --model {tmp_path}/bad.gguf --prompt x".split()],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and "bad.gguf" in done.stderr
    assert "Traceback" not in done.stderr
