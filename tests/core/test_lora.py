"""LoRA: the detour's gradients, its scale, and that it starts as nothing."""

import numpy as np
import pytest
from helpers import (
    GRADIENT_TOLERANCE,
    ODD,
    backward_errors,
    normal,
    random_adapter,
    random_llama,
)

from minibule.core import lora
from minibule.core.llama import Llama
from minibule.core.lora import lora_linear, lora_linear_backward
from minibule.core.shapes import LoraConfig, module_name

x, W, A, B = normal((5, 3), (7, 3), (2, 3), (7, 2))
PAIR = ((x, A, B), lambda x, A, B: lora_linear(x, W, A, B, 1.7), lora_linear_backward)


@pytest.mark.parametrize("rows", [64, 2], ids=["one block", "several blocks"])
def test_backward_is_the_gradient(rows, monkeypatch):
    monkeypatch.setattr(lora, "BLOCK_ROWS", rows)  # worked on at once, the last block a short one
    assert max(backward_errors(*PAIR)) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("forgets", [0, 1, 2], ids=["dx", "dA", "dB"])
def test_the_check_rejects_a_gradient_off_by_the_scaling(forgets):
    inputs, forward, backward = PAIR

    def wrong(dy, cache):
        grads = list(backward(dy, cache))
        grads[forgets] = grads[forgets] / 1.7
        return grads

    errors = backward_errors(inputs, forward, wrong)
    assert [error > 100 * GRADIENT_TOLERANCE for error in errors] == [
        i == forgets for i in range(3)
    ]


def test_backward_leaves_its_cache_alone():
    y, cache = lora_linear(x, W, A, B, 1.7)
    first = [g.copy() for g in lora_linear_backward(np.ones_like(y), cache)]
    assert len(first) == 3
    for a, b in zip(first, lora_linear_backward(np.ones_like(y), cache), strict=True):
        np.testing.assert_array_equal(a, b)


def test_float32_stays_float32():
    y, cache = lora_linear(*(a.astype(np.float32) for a in (x, W, A, B)), 1.7)
    grads = lora_linear_backward(np.ones_like(y), cache)
    assert [a.dtype for a in (y, *grads)] == [np.float32] * 4


def test_the_detour_is_the_merged_weight():
    y, _ = lora_linear(x, W, A, B, 1.7)
    np.testing.assert_allclose(y, x @ (W + 1.7 * B @ A).T, rtol=1e-12)
    np.testing.assert_allclose(y, x @ lora.merged_weight(W, (A, B, 1.7)).T, rtol=1e-12)


def test_scaling_is_alpha_over_r_or_over_its_root():
    module = module_name(0, "q_proj")
    assert LoraConfig(4, 6.0, (module,), False).scaling(module) == 1.5
    assert LoraConfig(4, 6.0, (module,), True).scaling(module) == 3


def test_merged_weights_act_like_the_adapter():
    model = random_llama()
    ids = np.array([5, 6, 7, 8, 9, 10])
    model.adapter = random_adapter()
    adapted = model.logits(ids)
    merged = {
        name: lora.merged_weight(w, model.adapter.pair(name.removesuffix(".weight")))
        for name, w in model.weights.items()
    }
    np.testing.assert_allclose(
        Llama(ODD, merged).logits(ids), adapted, rtol=1e-3, atol=1e-4 * np.abs(adapted).max()
    )
    model.adapter = None
    assert np.abs(model.logits(ids) - adapted).max() > 0.1  # the adapter does something


def test_an_untrained_adapter_changes_nothing():
    model = random_llama()
    ids = np.array([5, 6, 7])
    base = model.logits(ids)
    model.adapter = lora.init_adapter(random_adapter().config, ODD, seed=0)
    np.testing.assert_array_equal(model.logits(ids), base)
    params = model.adapter.params
    assert any(".lora_A." in name for name in params)
    for name, p in params.items():
        if ".lora_A." in name:  # U(-1/sqrt(in), 1/sqrt(in)), never zero as a whole
            assert 0 < np.abs(p).max() <= 1 / np.sqrt(p.shape[1])
        else:
            assert not p.any()
