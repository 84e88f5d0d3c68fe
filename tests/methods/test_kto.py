"""KTO by its published formula, what z does, and its limits."""

import math

import numpy as np
import pytest
from helpers import GRADIENT_TOLERANCE, each_time, gradient_error, random_answers

from minibule.core.loss import Answers
from minibule.methods.kto import KTO

ONE_OF_EACH = Answers(np.array([3, 5]), np.ones(2), np.array([0.0, 1.0]), np.arange(2))


def kto(answers, d, z, beta, desirable, undesirable):
    """Every sample by itself: w (1 - sigmoid(beta (d - z))), or (z - d) where it was rejected."""
    each, total = each_time(answers), 0.0
    for k in each:
        if answers.reward[k]:
            total += desirable * (1 - 1 / (1 + math.exp(-beta * (d[k] - z))))
        else:
            total += undesirable * (1 - 1 / (1 + math.exp(-beta * (z - d[k]))))
    return total / len(each)


@pytest.mark.parametrize("uses", ["any", "rejected", "accepted"])
@pytest.mark.parametrize("numbers", [(0.1, 1.0, 1.0), (0.5, 1.3, 0.7)])
@pytest.mark.parametrize("mismatched", [None, -3.0, 0.0, 2.5])
def test_the_published_formula(uses, numbers, mismatched):
    answers, d = random_answers(uses)
    value, dlogp = KTO(*numbers).answers(answers, d, mismatched)
    z = mismatched if mismatched and mismatched > 0 else 0.0
    assert value == pytest.approx(kto(answers, d, z, *numbers), rel=1e-12)
    error = gradient_error(lambda: KTO(*numbers).answers(answers, d, mismatched)[0], d, dlogp)
    assert error < GRADIENT_TOLERANCE


def test_it_begins_with_a_quarter_of_beta_and_vanishes_both_ways():
    value, dlogp = KTO(0.1).answers(ONE_OF_EACH, np.zeros(2), 0.0)
    assert value == pytest.approx(1 / 2)
    np.testing.assert_allclose(dlogp, np.array([1, -1]) * 0.1 / 4 / 2)
    for far in (1e5, -1e5):  # no number is too large
        _, dlogp = KTO(0.1).answers(ONE_OF_EACH, np.full(2, far), 0.0)
        np.testing.assert_allclose(dlogp, 0, atol=1e-100)


def test_without_z_the_rejected_half_is_a_sigmoid():
    """sigmoid(beta d): the rejected half of APO-zero, bounded by 1 where NPO's is by nothing."""
    rejected = Answers(np.array([3]), np.ones(1), np.zeros(1), np.zeros(1, int))
    for d in (-30.0, -1.0, 0.0, 4.0, 200.0):
        value, _ = KTO(0.1).answers(rejected, np.array([d]), 0.0)
        assert value == pytest.approx(1 / (1 + math.exp(-0.1 * d)), rel=1e-9)


def test_z_is_what_an_answer_is_compared_with():
    """At d = z every slope is largest; a z below 0 is none."""
    d, slopes = np.array([5.0, 5.0]), {}
    for z in (-7.0, 0.0, 5.0, 20.0):
        _, dlogp = KTO(0.1).answers(ONE_OF_EACH, d, z)
        assert dlogp[0] > 0 > dlogp[1]
        slopes[z] = dlogp[0]
    assert slopes[-7.0] == slopes[0.0]
    assert max(slopes, key=slopes.get) == 5.0
    assert slopes[5.0] == pytest.approx(0.1 / 4 / 2)


def test_the_sorts_have_weights_of_their_own():
    d = np.array([1.0, 1.0])
    whole, plain = KTO().answers(ONE_OF_EACH, d)
    value, weighed = KTO(desirable=2.0, undesirable=0.0).answers(ONE_OF_EACH, d)
    np.testing.assert_allclose(weighed, [0, 2 * plain[1]])
    one, _ = KTO(desirable=0.0).answers(ONE_OF_EACH, d)
    assert value == pytest.approx(2 * (whole - one))


def test_of_little_beta_all_slopes_are_alike():
    answers, d = random_answers()
    _, dlogp = KTO(1e-7).answers(answers, d, 1.0)
    sign = np.where(answers.accepted, -1, 1)
    expected = sign * answers.times / answers.times.sum() / 4
    np.testing.assert_allclose(dlogp / 1e-7, expected, rtol=1e-5)
