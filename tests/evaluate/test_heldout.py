"""Held-out records are measured by the loss that is trained, and by what has a meaning for it."""

import dataclasses

import numpy as np
import pytest
from helpers import random_adapter, random_examples, random_llama

from minibule.core.fused import TargetLoss
from minibule.core.loss import RowLoss
from minibule.core.step import gradients
from minibule.evaluate.heldout import OF_THE_OBJECTIVE, evaluate, mean_entropy_and_kl
from minibule.methods.table import LOSSES

ALWAYS = {"rejected_mass", "first_rejected_mass", "kl_to_base", "entropy"}
OF_REJECTED = {name: loss for name, loss in LOSSES.items() if loss.uses == "rejected"}


def model_of():
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    return model


@pytest.mark.parametrize("name", OF_REJECTED)
@pytest.mark.parametrize("kl", [0.0, 0.4])
@pytest.mark.parametrize("pass_tokens", [10**6, 9])
def test_the_loss_is_the_one_that_is_trained(name, kl, pass_tokens):
    loss, model = dataclasses.replace(OF_REJECTED[name], kl=kl), model_of()
    measured = evaluate(model, random_examples(), loss, pass_tokens)
    _, trained, _ = gradients(model, random_examples(), loss, 10**6)
    assert ("anchor" in measured) == (kl > 0)
    of_rows = set(trained) if isinstance(loss, RowLoss) else set()
    for measure in of_rows | {"loss"} | ({"anchor"} if kl else set()):
        assert measured[measure] == pytest.approx(trained[measure], rel=1e-9), measure


@pytest.mark.parametrize("name", LOSSES)
def test_only_what_has_a_meaning_is_measured(name):
    loss = LOSSES[name]
    expected = set(ALWAYS)
    if loss.uses == "rejected":
        expected |= {"loss", "anchor"} if loss.kl else {"loss"}
    if isinstance(loss, TargetLoss):
        expected |= set(OF_THE_OBJECTIVE)
    assert set(evaluate(model_of(), random_examples(), loss, 1000)) == expected


def test_what_is_no_loss_of_its_own_is_the_same_under_all():
    model, examples = model_of(), random_examples()
    none = evaluate(model, examples, None, 1000)
    assert set(none) == ALWAYS
    for name in ("reference", "complement", "npo"):
        measured = evaluate(model, examples, LOSSES[name], 1000)
        assert {n: measured[n] for n in ALWAYS} == pytest.approx(none, rel=1e-9)


def log_softmax(z):
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


@pytest.mark.parametrize("pass_tokens", [10**6, 9])
def test_entropy_and_kl_are_means_over_all_tokens_of_all_answers(pass_tokens):
    model, examples = model_of(), random_examples()
    entropy, kl = [], []
    for example in examples:
        for answer in example.answers:
            ids, start = np.concatenate([example.prompt, answer]), len(example.prompt) - 1
            for z, z_ref in zip(model.logits(ids), model.base.logits(ids), strict=True):
                logp = log_softmax(z)
                entropy.append(-(np.exp(logp) @ logp))
                kl.append(np.exp(logp) @ (logp - log_softmax(z_ref)))
            del entropy[-1], kl[-1]  # after the last token
            first = len(entropy) - (len(ids) - 1)
            del entropy[first : first + start], kl[first : first + start]
    found = mean_entropy_and_kl(model, examples, pass_tokens)
    assert found == pytest.approx({"entropy": np.mean(entropy), "kl": np.mean(kl)}, rel=1e-9)
    assert mean_entropy_and_kl(model.base, examples, pass_tokens)["kl"] == pytest.approx(
        0, abs=1e-12
    )
