"""Losses of whole rejected answers: their formulas in plain loops, and their limits."""

import math

import numpy as np
import pytest
from helpers import each_time, random_adapter, random_answers, random_examples, random_llama

from minibule.core.complement import log_softmax
from minibule.core.counts import row_count
from minibule.core.loss import Answers
from minibule.core.softmax import anchor
from minibule.core.step import gradients
from minibule.methods.rejected import NPO, Complement, SimNPO


def answers(n):
    """Rejected answers of one token, each given once."""
    return Answers(np.ones(n, int), np.ones(n), np.zeros(n), np.arange(n))


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_npo_is_the_published_formula(beta):
    """The mean of -(2 / beta) log sigmoid(-beta d)."""
    given, d = random_answers("rejected")
    each = each_time(given)
    mean = sum(-2 / beta * log_sigmoid(-beta * d[k]) for k in each) / len(each)
    assert NPO(beta).answers(given, d)[0] == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize(("beta", "gamma"), [(4.5, 0.0), (2.5, 0.0), (1.0, 0.7)])
def test_simnpo_is_the_published_formula(beta, gamma):
    """The mean of -(2 / beta) log sigmoid(beta (NLL / |y| - gamma)): gamma stands within beta."""
    given, logp = random_answers("rejected")
    each = each_time(given)
    mean = 0.0
    for k in each:
        nll = -logp[k] / given.length[k]
        mean += -2 / beta * log_sigmoid(beta * (nll - gamma)) / len(each)
    assert SimNPO(beta, gamma).answers(given, logp)[0] == pytest.approx(mean, rel=1e-12)


def test_npo_starts_as_descent_on_log_p_and_lets_go():
    _, start = NPO(0.1).answers(answers(1), np.zeros(1))
    assert start[0] == pytest.approx(1)  # 1 at the start
    _, gone = NPO(0.1).answers(answers(1), np.array([-1000.0]))
    assert 0 < gone[0] < 1e-40  # 0 as the answer becomes unlikely
    _, ascent = NPO(1e-9).answers(answers(2), np.array([-50.0, 50.0]))
    np.testing.assert_allclose(ascent, 1 / 2, rtol=1e-6)  # beta -> 0: minimise the mean of log p


def test_npo_of_much_beta_is_twice_what_exceeds_the_base():
    """beta -> inf: 2 max(0, d); and no number is too large."""
    value, dlogp = NPO(1e6).answers(answers(2), np.array([-3.0, 5.0]))
    assert value == pytest.approx((0 + 2 * 5) / 2)
    np.testing.assert_allclose(dlogp, [0, 2 / 2])


def test_simnpo_is_npo_of_the_mean_log_p():
    """Without a reference: of an answer of one token, its log p takes the place of d."""
    d = np.array([-3.0, -0.5])
    value, dlogp = SimNPO(0.3).answers(answers(2), d)
    same, slope = NPO(0.3).answers(answers(2), d)
    assert value == same
    np.testing.assert_array_equal(dlogp, slope)
    # Ten tokens as likely as the one: the same value, a tenth of the slope for each of them.
    long = answers(2)._replace(length=np.array([10, 10]))
    value, dlogp = SimNPO(0.3).answers(long, 10 * d)
    assert value == same
    np.testing.assert_allclose(dlogp, slope / 10)


# -- the default -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pass_tokens", [10**6, 5])
def test_the_complement_is_what_is_written_of_it(pass_tokens):
    """Every answer by itself: v (2 / beta) log(1 + r^beta), and kl KL(p || p_ref) of each row."""
    model, beta, kl = random_llama(dtype=np.float64), 0.7, 0.4
    model.adapter = random_adapter(dtype=np.float64)
    pushed = held = tokens = 0.0
    for example in (examples := random_examples()):
        for answer, times in zip(example.answers, example.counts, strict=True):
            ids = [*example.prompt, *answer[:-1]]
            at = slice(len(example.prompt) - 1, None)
            z, z_ref = (m.logits(ids)[at] for m in (model, model.base))
            logp, ref = log_softmax(z), log_softmax(z_ref)
            places = np.arange(len(answer)), answer
            r = np.exp((logp[places] - ref[places]).sum())
            pushed += times * 2 / beta * np.log(1 + r**beta)
            tokens += times * len(answer)
            held += (np.exp(logp) * (logp - ref)).sum()
    loss = Complement(beta, kl)
    _, metrics, _ = gradients(model, examples, loss, pass_tokens)
    expected = pushed / tokens + kl * held / row_count(examples)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-9)
    assert metrics["anchor"] == pytest.approx(held / row_count(examples), rel=1e-9)


def test_the_optimum_of_a_row_is_the_one_that_is_written_down():
    """Descent in the logits of a row, whose answers are single tokens, ends there."""
    z_ref, v = np.array([[1.0, 0.5, 0.0, -0.5, -1.0]]), np.array([3.0, 0, 1, 0, 0])
    (rejected,) = np.nonzero(v)
    given = answers(2)._replace(times=v[rejected])
    loss, z = Complement(kl=2.0), z_ref.copy()
    for _ in range(400):
        x = (log_softmax(z) - log_softmax(z_ref))[0, rejected]
        a = np.zeros(5)
        a[rejected] = loss.answers(given, x)[1]
        z -= a - a.sum() * np.exp(log_softmax(z)) + anchor(z, z_ref, loss.kl).dz
    p, p_ref = (np.exp(log_softmax(x)[0]) for x in (z, z_ref))
    weight = p_ref * np.exp(-(2 / loss.kl) * (v / v.sum()) / (p_ref + p))
    np.testing.assert_allclose(p, weight / weight.sum(), rtol=1e-8)
    assert p[0] < 0.6 * p_ref[0]  # and that is far from the base


def test_a_long_answer_is_left_alone_after_as_many_nats_as_a_short_one():
    given = answers(2)._replace(length=np.array([2, 300]))
    slope = Complement().answers(given, np.array([-6.0, -6.0]))[1]
    assert slope[0] == slope[1] < 0.006 * Complement().answers(given, np.zeros(2))[1][0]
