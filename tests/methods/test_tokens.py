"""Losses of single tokens: their formulas in plain loops, their limits, and what they count."""

import re

import numpy as np
import pytest
from helpers import random_adapter, random_examples, random_llama

from minibule.core.counts import Example, row_count
from minibule.core.step import gradients
from minibule.methods.tokens import NSR, Ratio, Unlikelihood


def log_softmax(z):
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def plain_loss(model, examples, f, kl):
    """Every rejected answer by itself: the mean over its tokens of v f + kl KL(p || p_ref)."""
    total, count = 0.0, row_count(examples)
    for example in examples:
        for answer, times in zip(example.answers, example.counts, strict=True):
            ids = [*example.prompt, *answer[:-1]]
            at = slice(len(example.prompt) - 1, None)
            logp, ref = (log_softmax(m.logits(ids)[at]) for m in (model, model.base))
            for t, token in enumerate(answer):
                total += times * f(logp[t, token], ref[t, token])
                total += kl * np.exp(logp[t]) @ (logp[t] - ref[t])
    return total / count


FORMULAS = {
    "ratio": (Ratio(), lambda lp, r: 2 * np.log(1 + np.exp(lp - r)), 0.3),
    "ratio, beta .5": (Ratio(0.5, kl=0.1), lambda lp, r: 4 * np.log(1 + np.exp((lp - r) / 2)), 0.1),
    "nsr": (NSR(), lambda lp, r: lp, 0.0),
    "unlikelihood": (Unlikelihood(kl=1.0), lambda lp, r: -np.log(1 - np.exp(lp)), 1.0),
}


@pytest.mark.parametrize(("loss", "f", "kl"), FORMULAS.values(), ids=FORMULAS)
@pytest.mark.parametrize("pass_tokens", [10**6, 5])
def test_it_is_the_mean_over_rejected_tokens(loss, f, kl, pass_tokens):
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    examples = random_examples()
    _, metrics, _ = gradients(model, examples, loss, pass_tokens)
    assert metrics["loss"] == pytest.approx(plain_loss(model, examples, f, kl), rel=1e-9)


def evaluated(formula, **values):
    """A formula as people write it, "2 r^beta / (1 + r)", worked out."""
    code = re.sub(r"log (\w)", r"log(\1)", formula)
    code = re.sub(r"(?<=[\d)]) (?=[a-z(])", " * ", code).replace("^", "**")
    return eval(code, {"log": np.log}, values)  # noqa: S307 - our own text


@pytest.mark.parametrize("loss", [Ratio(beta=0.5), NSR(), Unlikelihood()])
def test_what_is_written_of_it_is_what_it_computes(loss):
    p, p_ref = np.array([0.9, 0.3, 1e-3]), np.array([0.5, 0.6, 1e-2])
    values = {"p": p, "r": p / p_ref, "beta": getattr(loss, "beta", None)}
    f, df = loss.token(np.log(p), np.log1p(-p), np.log(p_ref))
    np.testing.assert_allclose(evaluated(loss.f, **values), f)
    np.testing.assert_allclose(evaluated(loss.df, **values) * np.ones(3), df)


def test_the_ratio_starts_as_nsr_and_lets_go():
    logp = np.array([-2.0, -40.0])
    _, start = Ratio(beta=1.0).token(logp, logp, logp)
    np.testing.assert_allclose(start, 1)
    _, gone = Ratio(beta=1.0).token(logp - 50, logp, logp)
    assert (gone < 1e-20).all()
    _, ascent = Ratio(beta=1e-9).token(logp - 50, logp, logp)
    np.testing.assert_allclose(ascent, 1, rtol=1e-6)


def test_unlikelihood_is_bounded_by_its_clamp():
    log_rest = np.log([0.5, 2e-5, 1e-9])
    f, df = Unlikelihood().token(np.log1p(-np.exp(log_rest)), log_rest, log_rest)
    np.testing.assert_allclose(f, [np.log(2), -np.log(2e-5), -np.log(1e-5)])
    assert df[1] == pytest.approx(1 / 2e-5, rel=1e-4) and df[2] == 0


def test_an_answer_of_count_two_is_two_answers():
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    prompt, a, b = np.array([1, 2]), np.array([3, 4]), np.array([3, 5, 6])
    once = [Example(prompt, (a, b), (2, 1), 3)]
    twice = [Example(prompt, (a, a, b), (1, 1, 1), 3)]
    loss = Ratio(kl=0.0)
    (g, _, _), (h, _, _) = (gradients(model, e, loss, 10**6) for e in (once, twice))
    scale = row_count(twice) / row_count(once)  # the mean is over answers' tokens
    for name, grad in g.items():
        np.testing.assert_allclose(grad, scale * h[name], rtol=1e-9, atol=1e-12)
