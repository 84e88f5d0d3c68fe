"""Models out: rounded to 16 bits, in shards, merged, and whole or not there."""

import os

import numpy as np
import pytest
from broken import model_folder
from helpers import ODD, random_adapter, random_llama

from minibule.core.llama import Llama
from minibule.core.lora import init_adapter
from minibule.core.shapes import LoraConfig
from minibule.errors import InputError
from minibule.explain.__main__ import main as explain
from minibule.files import embedded_folder
from minibule.machine.half import Narrow
from minibule.models.chat_files import load_chat
from minibule.models.gguf_write import GGUF_TYPES, export_gguf, export_gguf_lora
from minibule.models.load import load_model
from minibule.models.peft import save_adapter
from minibule.models.safetensors import LARGEST
from minibule.models.save import merged_bytes, save_model, save_weights


@pytest.fixture
def folder(tmp_path):
    return model_folder(tmp_path)


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
    monkeypatch.setattr("minibule.models.save.MAX_SHARD_BYTES", 3000)
    (folder / "model.safetensors").unlink()
    save_weights(random_llama(), folder, "F32")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    ids = np.arange(9)
    np.testing.assert_array_equal(load_model(folder).logits(ids), random_llama().logits(ids))


@pytest.mark.parametrize("form", ["hf", "shards", "gguf"])
def test_an_adapter_does_not_count_twice(form, tmp_path, monkeypatch):
    """On top of the model it was merged into it is refused; another one is not."""
    tiny = embedded_folder()
    model = load_model(tiny)
    places = {}
    for seed in (1, 2):
        places[seed] = tmp_path / f"adapter-{seed}"
        save_adapter(random_adapter(model.config, seed), model.config, places[seed], "base")
    model = load_model(tiny, places[1])
    merged = tmp_path / ("merged.gguf" if form == "gguf" else "merged")
    if form == "gguf":
        export_gguf(model, load_chat(tiny), merged, "q8_0")
    else:
        if form == "shards":
            monkeypatch.setattr("minibule.models.save.MAX_SHARD_BYTES", 500_000)
        save_model(model, merged, tiny, "BF16")
    assert form != "shards" or len(list(merged.glob("model-*.safetensors"))) > 2
    assert load_model(merged, places[2]).adapter
    with pytest.raises(InputError, match=r"is merged into .* already, and would"):
        load_model(merged, places[1])
    with pytest.raises(InputError, match=r"is merged into .* already, and would"):
        explain([f"--model={merged}", f"--data={tiny / 'records.jsonl'}", f"--adapter={places[1]}"])


def test_a_merged_folder_acts_like_model_and_adapter(folder, tmp_path):
    model = load_model(folder)
    model.adapter = random_adapter()
    (folder / "tokenizer.json").write_text('{"kept": true}')
    save_model(model, tmp_path / "merged", folder)
    assert (tmp_path / "merged" / "tokenizer.json").read_text() == '{"kept": true}'
    ids = np.arange(9)
    merged, adapted = load_model(tmp_path / "merged").logits(ids), model.logits(ids)
    np.testing.assert_allclose(merged, adapted, atol=1e-4 * np.abs(adapted).max())


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


@pytest.mark.parametrize("huge", [LARGEST, 300.0, -300.0])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_merged_model_that_overflows_is_not_begun(folder, tmp_path, monkeypatch, dtype, huge):
    """In words, without a warning, and with every weight's name."""
    model = load_model(folder)
    model.adapter = random_adapter(targets=("q_proj", "v_proj"))
    for name, p in model.adapter.params.items():
        if "layers.1.self_attn.v_proj" in name:
            p[...] = huge
    before = set(tmp_path.iterdir())
    monkeypatch.setattr("minibule.models.save.whole_folder", None)
    with pytest.raises(InputError, match="not written, as the merged model") as error:
        save_model(model, tmp_path / "merged", folder, dtype)
    assert "layers.1.self_attn.v_proj.weight: 80 numbers are NaN" in str(error.value)
    assert str(error.value).count("\n") == 1 and set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("dtype", GGUF_TYPES)
def test_nor_is_its_gguf_file(tmp_path, monkeypatch, dtype):
    model = load_model(embedded_folder())
    model.adapter = random_adapter(model.config)
    for p in model.adapter.params.values():
        p[...] = LARGEST
    monkeypatch.setattr("minibule.models.gguf_write._write", None)
    with pytest.raises(InputError, match="not written, as the merged model would have broken"):
        export_gguf(model, load_chat(embedded_folder()), tmp_path / "model.gguf", dtype)


def test_a_merged_model_at_the_edge_is_written(folder, tmp_path):
    """LARGEST is one that float16 has."""
    model = load_model(folder)
    module = "model.layers.0.mlp.up_proj"
    model.weights[f"{module}.weight"][...] = LARGEST / 2
    lora = LoraConfig(r=1, lora_alpha=1.0, modules=(module,), use_rslora=False)
    model.adapter = init_adapter(lora, model.config, seed=0)
    model.adapter.params[f"{module}.lora_A.weight"][...] = 1
    model.adapter.params[f"{module}.lora_B.weight"][...] = LARGEST / 2
    save_model(model, tmp_path / "merged", folder, "F16")
    assert (load_model(tmp_path / "merged").weights[f"{module}.weight"] == LARGEST).all()


def test_merging_takes_a_copy_of_what_is_changed_or_narrow():
    model = random_llama()
    module = "model.layers.1.self_attn.q_proj"
    lora = LoraConfig(r=2, lora_alpha=2.0, modules=(module,), use_rslora=False)
    model.adapter = init_adapter(lora, model.config, seed=0)
    embedding = model.weights["model.embed_tokens.weight"]
    model.weights["model.embed_tokens.weight"] = Narrow(embedding.astype(np.float16))
    copied = embedding.size + model.weights[f"{module}.weight"].size
    assert merged_bytes(model) == 4 * copied


@pytest.mark.skipif(os.name == "nt", reason="permissions are Unix's")
def test_files_are_readable_to_whom_new_ones_are(folder, tmp_path):
    """Whatever the model's own files or the safetensors library would have them be."""
    (folder / "generation_config.json").write_text("{}")
    (folder / "generation_config.json").chmod(0o444)
    before = os.umask(0o027)
    try:
        save_model(random_llama(), tmp_path / "merged", folder)
        save_adapter(random_adapter(), ODD, tmp_path / "adapter", "base")
        export_gguf_lora(Llama(ODD, random_llama().weights, random_adapter()), tmp_path / "a.gguf")
    finally:
        os.umask(before)
    made = [
        *(tmp_path / "merged").iterdir(),
        *(tmp_path / "adapter").iterdir(),
        tmp_path / "a.gguf",
    ]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o640} and len(made) > 5
    assert (tmp_path / "merged").stat().st_mode & 0o777 == 0o750
