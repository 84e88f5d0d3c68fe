"""Losses of pairs: their formulas in plain loops, their kinks and limits."""

import math

import numpy as np
import pytest
from helpers import each_pair, random_adapter, random_answers, random_llama

from minibule.core.counts import Example
from minibule.core.loss import Answers
from minibule.core.step import gradients
from minibule.methods.pairs import DPO, Hinge, SLiC, pairs

PAIR = Answers(np.array([3, 5]), np.ones(2), np.array([0.0, 1.0]), np.zeros(2, int))


def pair(loss, m):
    """The loss of one pair of margin m, and its slope by the accepted answer's log p."""
    value, (rejected, accepted) = loss.answers(PAIR, np.array([-m / 4, 3 * m / 4]))
    assert rejected == -accepted
    return value, accepted


FORMULAS = {
    "dpo": (DPO(), lambda w, k: -math.log(1 / (1 + math.exp(-0.1 * (w - k))))),
    "rso": (DPO(0.05), lambda w, k: -math.log(1 / (1 + math.exp(-0.05 * (w - k))))),
    "rso-hinge": (Hinge(), lambda w, k: max(0, 1 - 0.05 * (w - k))),
    "hinge, beta 1": (Hinge(1.0), lambda w, k: max(0, 1 - (w - k))),
    "slic": (SLiC(), lambda w, k: max(0, 1 - w + k) - 0.1 * w),
    "slic, delta 3": (SLiC(3.0, 0.0), lambda w, k: max(0, 3 - w + k)),
}


@pytest.mark.parametrize(("loss", "f"), FORMULAS.values(), ids=FORMULAS)
def test_it_is_the_mean_over_pairs(loss, f):
    answers, logp = random_answers("both")
    value, _ = loss.answers(answers, logp)
    values = [f(logp[w], logp[k]) for w, k in each_pair(answers)]
    assert value == pytest.approx(sum(values) / len(values), rel=1e-12)


def test_pairs_are_of_one_record_and_weigh_as_often_as_they_were_given():
    answers = Answers(
        np.ones(5, int),
        np.array([2.0, 3.0, 1.0, 1.0, 4.0]),
        np.array([0.0, 1.0, 1.0, 0.0, 1.0]),
        np.array([0, 0, 0, 1, 1]),
    )
    accepted, rejected, weight = pairs(answers)
    found = {(w, k): x for w, k, x in zip(accepted, rejected, weight, strict=True)}
    assert found == {(1, 0): 6 / 12, (2, 0): 2 / 12, (4, 3): 4 / 12}


def test_dpo_begins_and_ends():
    value, slope = pair(DPO(0.1), 0.0)
    assert value == pytest.approx(math.log(2)) and slope == pytest.approx(-0.1 / 2)
    value, slope = pair(DPO(0.1), 1e5)  # no number is too large
    assert value == slope == 0
    value, slope = pair(DPO(0.1), -1e5)
    assert value == pytest.approx(1e4) and slope == pytest.approx(-0.1)


def test_dpo_of_little_beta_pulls_all_margins_alike():
    for m in (-20.0, 0.0, 20.0):
        value, slope = pair(DPO(1e-6), m)
        assert value == pytest.approx(math.log(2), abs=1e-4)
        assert slope / 1e-6 == pytest.approx(-1 / 2, rel=1e-4)


def test_dpo_of_much_beta_asks_only_which_is_likelier():
    assert pair(DPO(1e4), 0.1)[0] == pytest.approx(0, abs=1e-100)
    assert pair(DPO(1e4), -0.1)[0] / 1e4 == pytest.approx(0.1)


@pytest.mark.parametrize(("loss", "kink", "steep"), [(Hinge(), 20.0, 0.05), (SLiC(sft=0), 1.0, 1)])
def test_the_kink_of_a_hinge(loss, kink, steep):
    value, slope = pair(loss, kink - 0.5)
    assert value == pytest.approx(0.5 * steep) and slope == -steep
    for m in (kink, kink + 1e-9, kink + 1e5):
        assert pair(loss, m) == (0, 0)


def test_slic_that_is_content_goes_on_with_sft_alone():
    value, dlogp = SLiC().answers(PAIR, np.array([-9.0, -2.0]))
    assert value == pytest.approx(0.1 * 2)
    np.testing.assert_allclose(dlogp, [0, -0.1])


@pytest.mark.parametrize("loss", [DPO(), Hinge()], ids=["dpo", "hinge"])
def test_the_same_text_on_both_sides_cancels(loss):
    """An answer that was both accepted and rejected: its pair with itself teaches nothing."""
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    a, b = np.array([3, 4, 5]), np.array([3, 6])
    same = Example(np.array([1, 2]), (a, a), (2, 1), 3, rewards=(0.0, 1.0))
    grads, metrics, _ = gradients(model, [same], loss, 10**6)
    assert metrics["loss"] == pytest.approx(pair(loss, 0.0)[0])
    assert all(np.abs(grad).max() < 1e-12 for grad in grads.values())
    # Beside another answer, what is left of it is that pair alone: half of all.
    both = same._replace(answers=(b, a, a), counts=(1, 1, 1), rewards=(0.0, 0.0, 1.0))
    other = same._replace(answers=(b, a), counts=(1, 1), rewards=(0.0, 1.0))
    (both, _, _), (other, _, _) = (gradients(model, [e], loss, 10**6) for e in (both, other))
    for name, grad in other.items():
        assert np.abs(grad).max() > 1e-6
        np.testing.assert_allclose(both[name], grad / 2, rtol=1e-9, atol=1e-12)
