"""16-bit weights and recomputed blocks: less memory, the same numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import ODD, random_adapter, random_llama

from minibule.core import ops
from minibule.core.counts import Example
from minibule.core.fused import TargetLoss
from minibule.core.objective import OBJECTIVES
from minibule.core.step import gradients
from minibule.files import embedded_folder, write_json
from minibule.machine import half as narrow
from minibule.machine.half import Narrow, widened
from minibule.models import safetensors as tensors
from minibule.models.huggingface import config_json
from minibule.models.load import load_model
from minibule.models.safetensors import narrowed
from minibule.models.save import save_weights
from minibule.train.__main__ import main

EXAMPLES = [
    Example(np.array([1, 2, 3]), (np.array([4, 5, 6]), np.array([4, 7])), (2, 1), 4),
    Example(np.array([5, 1]), (np.array([9]),), (1,), 1),
]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("block_rows", [3, 7, 100])
def test_a_narrow_matrix_multiplies_as_the_wide_one(dtype, block_rows, monkeypatch):
    monkeypatch.setattr(narrow, "BLOCK_ROWS", block_rows)
    rng = np.random.default_rng(0)
    W = Narrow(narrowed(rng.standard_normal((7, 5), dtype=np.float32), dtype))
    wide = widened(W)
    assert wide.dtype == np.float32 and narrowed(wide, dtype).tobytes() == W.words.tobytes()
    x, dy = rng.standard_normal((4, 5)), rng.standard_normal((4, 7))
    np.testing.assert_allclose(x @ W.T, x @ wide.T, rtol=1e-12)
    np.testing.assert_allclose(dy @ W, dy @ wide, rtol=1e-12)
    np.testing.assert_array_equal(W[[6, 0, 6]], wide[[6, 0, 6]])
    assert (len(W), W.shape, W.size) == (7, (7, 5), 35)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_a_model_loaded_narrow_is_the_same_model(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "LEAST_SIZE", 20)
    save_weights(random_llama(ODD), tmp_path, dtype)
    write_json(tmp_path / "config.json", config_json(ODD, dtype))
    models = [load_model(tmp_path, narrow=narrow) for narrow in (False, True)]
    kept = [isinstance(W, Narrow) for W in models[1].weights.values()]
    assert any(kept) == (dtype != "F32")
    for name, W in models[0].weights.items():
        np.testing.assert_array_equal(W, widened(models[1].weights[name]))
    ids = np.arange(9)
    np.testing.assert_allclose(models[1].logits(ids), models[0].logits(ids), rtol=1e-4, atol=1e-6)
    steps = []
    for model in models:
        model.adapter = random_adapter(model.config)
        steps.append(gradients(model, EXAMPLES, TargetLoss(OBJECTIVES["reference"]), 512))
    for name, grad in steps[0][0].items():
        scale = np.abs(grad).max()
        np.testing.assert_allclose(steps[1][0][name], grad, rtol=1e-4, atol=1e-5 * scale)


@pytest.fixture
def attentions(monkeypatch):
    """A list that grows whenever attention is computed: once a block and pass, or once more."""
    calls, attention = [], ops.attention

    def counted(*arguments):
        calls.append(len(arguments[0]))
        return attention(*arguments)

    monkeypatch.setattr(ops, "attention", counted)
    return calls


@pytest.mark.parametrize("pass_tokens", [4, 512])
def test_recomputed_blocks_give_the_same_bits(pass_tokens, attentions):
    model = random_llama(ODD)
    model.adapter = random_adapter(model.config)
    loss, done, computed = TargetLoss(OBJECTIVES["reference"]), [], []
    for recompute in (False, True):
        attentions.clear()
        done.append(gradients(model, EXAMPLES, loss, pass_tokens, recompute))
        computed.append(len(attentions) / ODD.num_hidden_layers)
    assert computed[1] / computed[0] == 3 / 2  # base, model, and the model once more
    kept, again = done
    assert kept[1] == again[1] and kept[0].keys() == again[0].keys() != set()
    for name, grad in kept[0].items():
        assert grad.tobytes() == again[0][name].tobytes(), name


def test_a_run_with_little_memory_is_the_same_run(tmp_path, monkeypatch, attentions):
    """The same losses to the last bit; its adapter and merged model are written as usual."""
    monkeypatch.chdir(tmp_path)
    records = str(embedded_folder() / "records.jsonl")
    common = ["--data", records, "--steps", "3", "--eval-fraction", "0", "--probe", ""]
    common += ["--lora-layers", "3"]
    computed = []
    for memory in ("full", "low"):
        main([*common, "--memory", memory, "--output", memory])
        computed.append(len(attentions))
    assert computed[1] - computed[0] > computed[0] > 0  # blocks were computed once more
    lines = [
        [
            json.loads(line)["loss"]
            for line in Path(memory, "metrics.jsonl").read_text().splitlines()
        ]
        for memory in ("full", "low")
    ]
    assert lines[1] == lines[0] and len(lines[0]) == 3
    assert Path("low/merged/model.safetensors").stat().st_size > 0
