"""Against files that transformers, torch and PEFT wrote (tools/golden.py): no torch needed."""

import json

import numpy as np
import pytest
from helpers import ROOT

from minibule.core.counts import Example
from minibule.core.fused import TargetLoss
from minibule.core.objective import OBJECTIVES
from minibule.core.optim import AdamW
from minibule.core.step import gradients
from minibule.models.load import load_model

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def expected():
    return json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture
def model():
    return load_model(GOLDEN / "model", GOLDEN / "adapter")


@pytest.fixture
def examples(expected):
    return [
        Example(
            np.array(e["prompt"]),
            tuple(np.array(a) for a in e["answers"]),
            tuple(e["counts"]),
            e["total_rounds"],
        )
        for e in expected["examples"]
    ]


def test_logits_are_those_of_transformers_and_peft(model, expected):
    theirs = np.array(expected["logits"])
    ours = model.logits(expected["ids"])
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_adapter_gradients_are_those_of_autograd(model, expected, examples, name):
    theirs = expected["objectives"][name]
    grads, metrics, _ = gradients(model, examples, TargetLoss(OBJECTIVES[name]), 10**6)
    assert metrics["loss"] == pytest.approx(theirs["losses"][0], rel=1e-5)
    assert set(grads) == set(theirs["gradients"])
    for key, grad in grads.items():
        wanted = np.array(theirs["gradients"][key])
        assert np.abs(grad - wanted).max() <= 1e-4 * np.abs(wanted).max(), key


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ten_steps_follow_torch(model, expected, examples, name):
    optimiser = AdamW(model.adapter.params, expected["steps"]["weight_decay"])
    losses = []
    for _ in range(10):
        grads, metrics, _ = gradients(model, examples, TargetLoss(OBJECTIVES[name]), 10**6)
        optimiser.step(grads, expected["steps"]["lr"])
        losses.append(metrics["loss"])
    np.testing.assert_allclose(losses, expected["objectives"][name]["losses"], rtol=1e-3)
