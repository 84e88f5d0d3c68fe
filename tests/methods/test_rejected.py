"""Losses of whole rejected answers: their formulas in plain loops, and their limits."""

import math

import numpy as np
import pytest
from helpers import each_time, random_answers

from minibule.core.loss import Answers
from minibule.methods.rejected import NPO, SimNPO


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
