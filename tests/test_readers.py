"""Every reader, by properties: what was written comes back, and any other input is read or refused.

tools/mutate.py damages good files of every kind; here hypothesis makes them up.
"""

import dataclasses
import json
import math
import string
from functools import partial

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="needs pip install '.[dev]'")

from broken import change_json, model_folder
from gguf import GGUFValueType, GGUFWriter
from helpers import ODD, random_adapter
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from minibule.core.optim import AdamW
from minibule.errors import InputError
from minibule.files import embedded_folder, write_json
from minibule.models.chat_files import load_chat
from minibule.models.gguf_file import read_gguf
from minibule.models.huggingface import config_json, load_config
from minibule.models.peft import load_adapter, save_adapter
from minibule.models.safetensors import (
    NUMPY_DTYPE,
    TORCH_DTYPE,
    narrowed,
    read_tensors,
    stored_tensors,
    write_safetensors,
)
from minibule.records.records import Record, read_records, write_records
from minibule.runs.checkpoint import Identity, Progress, newest_checkpoint, save_checkpoint
from minibule.runs.metrics import read_metrics, write_line
from minibule.runs.settings import FIELDS, TrainConfig, read_settings
from minibule.settings import to_toml

# The same cases every time, and nothing written beside the tests; a folder may serve them all.
examples = partial(
    settings,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
few = examples(max_examples=25)
many = examples(max_examples=50)

texts = st.text(max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**65) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def read_or_refused(read, *arguments):
    """What a reader makes of anything; any exception but InputError is a bug."""
    try:
        return read(*arguments)
    except InputError as error:
        assert str(error).strip()
        return None


# -- records and metrics ---------------------------------------------------------------------------

said = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter(str.strip)
turns = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": said}), min_size=1)
records = st.builds(
    lambda prompt, answers, more: Record(
        prompt, tuple(answers), tuple(answers.values()), sum(answers.values()) + more
    ),
    said | turns,
    st.dictionaries(said, st.integers(1, 99), min_size=1, max_size=3),
    st.integers(0, 9),
)


@many
@given(st.lists(records, min_size=1, max_size=3, unique_by=lambda record: str(record.prompt)))
def test_records_come_back(tmp_path, written):
    write_records(written, tmp_path / "records.jsonl")
    assert read_records(tmp_path / "records.jsonl") == written


FIELD_NAMES = ["prompt", "chosen", "rejected", "completion", "label", "messages", "conversations"]
FIELD_NAMES += ["instruction", "completions", "rejected_responses", "rejection_counts"]


@many
@given(st.dictionaries(st.sampled_from(FIELD_NAMES) | texts, values | turns, max_size=5))
def test_any_row_of_records(tmp_path, row):
    for name, text in (("r.jsonl", json.dumps(row)), ("r.json", json.dumps([row]))):
        (tmp_path / name).write_text(text)
        for record in read_or_refused(read_records, tmp_path / name) or []:
            assert record.rejected and len(record.rejected) == len(record.counts)


@many
@given(
    st.sampled_from(["r.jsonl", "r.json", "r.jsonl.gz", "r.parquet", "m.toml", "m.gguf"]),
    st.binary(max_size=60) | texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
)
def test_any_bytes(tmp_path, name, data):
    file = tmp_path / name
    file.write_bytes(data)
    read = {"m.toml": read_settings, "m.gguf": read_gguf}.get(name, read_records)
    read_or_refused(read, file)
    read_or_refused(read_metrics, file)
    read_or_refused(stored_tensors, [file])


@few
@given(
    st.dictionaries(st.integers(0, 2**53 - 1), st.dictionaries(texts, st.floats()), max_size=4),
    st.binary(max_size=20),
)
def test_metrics_come_back_and_half_a_line_is_left_out(tmp_path, steps, half):
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as log:
        for step, measured in steps.items():
            write_line(log, {**measured, "step": step})
    whole = read_metrics(path)
    assert [line["step"] for line in whole] == sorted(steps)
    for line in whole:
        for name, value in steps[line["step"]].items():
            if name != "step":
                assert line[name] == (value if math.isfinite(value) else None)
    path.write_bytes(path.read_bytes() + b"{" + half.replace(b"\n", b""))
    assert read_or_refused(read_metrics, path) in (whole, None)


# -- tensors ---------------------------------------------------------------------------------------

shapes = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
names = st.text(string.ascii_letters + "._é", min_size=1, max_size=6).filter("__metadata__".__ne__)


@few
@given(st.dictionaries(names, shapes, min_size=1, max_size=4), st.sampled_from([*NUMPY_DTYPE]))
def test_safetensors_come_back(tmp_path, wanted, dtype):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(-9, 9, shape).astype("f4") for name, shape in wanted.items()}
    path = tmp_path / "t.safetensors"
    stored = {name: narrowed(array, dtype) for name, array in arrays.items()}
    write_safetensors(path, stored, TORCH_DTYPE[dtype])
    found = read_tensors(stored_tensors([path]), wanted, path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F4", ""]),
        "shape": st.lists(st.integers(-1, 2**63), max_size=3) | values,
        "data_offsets": st.lists(st.integers(0, 2**64), min_size=2, max_size=2) | values,
    }
)


@many
@given(st.dictionaries(texts, entry | values, max_size=3), st.integers(-2, 2), st.binary())
def test_any_header_of_safetensors(tmp_path, header, off, numbers):
    text = json.dumps(header).encode()
    path = tmp_path / "t.safetensors"
    path.write_bytes((len(text) + off).to_bytes(8, "little", signed=True) + text + numbers)
    for name, tensor in (read_or_refused(stored_tensors, [path]) or {}).items():
        read_or_refused(read_tensors, {name: tensor}, {name: tensor.shape}, path)


metadata = st.dictionaries(
    st.text(string.ascii_lowercase + ".", min_size=1, max_size=9),
    st.tuples(st.just(GGUFValueType.STRING), said)
    | st.tuples(st.just(GGUFValueType.INT64), st.integers(-(2**63), 2**63 - 1))
    | st.tuples(st.just(GGUFValueType.BOOL), st.booleans())
    | st.tuples(st.just(GGUFValueType.FLOAT64), st.floats(allow_nan=False)),
    max_size=4,
)


@few
@given(metadata, shapes.filter(lambda shape: 0 not in shape), st.integers(1, 2**20))
def test_gguf_comes_back_and_no_part_of_it_does(tmp_path, held, shape, cut):
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.kv_data[0].clear()
    held = {key: value for key, value in held.items() if key != "general.alignment"}
    for key, (kind, value) in held.items():
        writer.add_key_value(key, value, kind)
    numbers = np.random.default_rng(0).normal(size=shape).astype("f4")
    writer.add_tensor("t", numbers)
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    found = read_gguf(path)
    assert {key: (value.type, value.value) for key, value in found.metadata.items()} == held
    np.testing.assert_array_equal(found.array("t"), numbers)
    data, needed = path.read_bytes(), found.tensors["t"].start + found.tensors["t"].nbytes
    path.write_bytes(data[: cut % needed])
    with pytest.raises(InputError):
        read_gguf(path)


# -- JSON of models and adapters -------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model's folder with a tokenizer, and an adapter's beside it."""
    parent = tmp_path_factory.mktemp("made")
    folder = model_folder(parent)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((embedded_folder() / name).read_bytes())
    (folder / "config.json").write_text('{"vocab_size": 512, "eos_token_id": 2}')
    save_adapter(random_adapter(), ODD, parent / "adapter", "base")
    return parent


@few
@given(st.data())
def test_shapes_come_back(tmp_path, data):
    heads = data.draw(st.sampled_from([(4, 1), (4, 2), (6, 3), (5, 5)]))
    config = dataclasses.replace(
        ODD,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=2 * data.draw(st.integers(1, 99)),
        vocab_size=data.draw(st.integers(2, 10**6)),
        rope_theta=data.draw(st.floats(1.5, 1e7)),
        tie_word_embeddings=data.draw(st.booleans()),
    )
    write_json(tmp_path / "config.json", config_json(config, "F32"))
    assert load_config(tmp_path) == config


JSON_FILES = {
    "config.json": (lambda parent: parent / "model", load_config),
    "tokenizer_config.json": (lambda parent: parent / "model", load_chat),
    "tokenizer.json": (lambda parent: parent / "model", load_chat),
    "adapter_config.json": (lambda parent: parent / "adapter", lambda p: load_adapter(p, ODD)),
}


@pytest.mark.parametrize("name", JSON_FILES)
@few
@given(data=st.data())
def test_any_value_in_the_json_of_a_model(made, name, data):
    place, read = JSON_FILES[name]
    file = place(made) / name
    good = file.read_text()
    known = sorted(config_json(ODD, "F32") if name == "config.json" else json.loads(good))
    changes = st.dictionaries(st.sampled_from(known) | texts, values, min_size=1, max_size=3)
    try:
        if name == "config.json":
            write_json(file, config_json(ODD, "F32"))
        change_json(file, **data.draw(changes))
        read_or_refused(read, place(made))
    except UnicodeEncodeError:  # half a character, which no file was written with
        assume(False)
    finally:
        file.write_text(good)


# -- runs ------------------------------------------------------------------------------------------


@few
@given(st.builds(Progress, *[st.integers(0, 10**7)] * 3, st.floats(0, 1e9)), st.data())
def test_a_checkpoint_comes_back_and_no_other_byte_does(tmp_path, progress, data):
    optimiser = AdamW({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, 0.0)
    run = Identity({"lr": 0.1}, "model", "data")
    path = save_checkpoint(tmp_path, run, progress, optimiser, keep=1)
    found, _ = newest_checkpoint(tmp_path, run, optimiser.params)
    assert found.progress == progress
    good = path.read_bytes()
    at, other = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(good[:at] + bytes([good[at] ^ other]) + good[at + 1 :])
    with pytest.raises(InputError, match="no checkpoint can be used"):
        newest_checkpoint(tmp_path, run, optimiser.params)
    path.unlink()


def of(one):
    """Any value of a setting, by what stands beside it."""
    low, high = one.about.low, one.about.high
    if one.choices:
        return st.sampled_from(one.choices)
    if one.kind is float:
        return st.floats(low, 1e3 if high is None else high, exclude_min=one.about.above)
    return {bool: st.booleans(), str: said, int: st.integers(low, high or 2**40)}[one.kind]


scalars = {n: of(one) for n, one in FIELDS.items() if one.kind is not tuple and n != "export"}
changes = st.fixed_dictionaries({}, optional=scalars)


@few
@given(changes, st.dictionaries(st.sampled_from([*FIELDS]) | texts, values, max_size=2))
def test_settings_come_back(tmp_path, given_values, others):
    path = tmp_path / "config.toml"
    try:
        config = TrainConfig(**given_values | {"model": "m"})  # without one, a preset speaks too
    except InputError:  # each can be, and not all of them together
        assume(False)
    path.write_text(to_toml(config), encoding="utf-8")
    assert read_settings(path) == config
    lines = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in others.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    read_or_refused(read_settings, path)
