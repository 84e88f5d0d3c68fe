"""NPO by its published formula, and its limits."""

import numpy as np
import pytest

from minibule.core.loss import AnswerLoss, Answers, RowLoss
from minibule.methods.npo import NPO
from minibule.methods.table import LOSSES


def answers(d, times=None):
    d = np.asarray(d, float)
    times = np.ones(len(d)) if times is None else np.asarray(times, float)
    return Answers(d - 7, np.full(len(d), -7.0), np.full(len(d), 3), times, np.arange(len(d)))


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_the_published_formula(beta):
    """-(2 / beta) log sigmoid(-beta d), written out with the sigmoid itself."""
    d = np.array([-30.0, -1.0, 0.0, 0.5, 8.0])
    values, dlogp = NPO(beta).answers(answers(d))
    sigmoid = 1 / (1 + np.exp(beta * d))  # of -beta d; 1 less it would lose the digits of d = -30
    np.testing.assert_allclose(values["loss"], -2 / beta * np.log(sigmoid), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dlogp, 2 * np.exp(beta * d) * sigmoid, rtol=1e-12)
    h = 1e-5
    up, down = (NPO(beta).answers(answers(d + s * h))[0]["loss"] for s in (1, -1))
    np.testing.assert_allclose((up - down) / (2 * h), dlogp, rtol=1e-6, atol=1e-10)


def test_its_limits():
    _, start = NPO(0.1).answers(answers([0.0]))
    assert start[0] == pytest.approx(1)  # 1 at the start
    _, gone = NPO(0.1).answers(answers([-1000.0]))
    assert gone[0] < 1e-40  # 0 as the answer becomes unlikely
    _, ascent = NPO(1e-9).answers(answers([-50.0, 50.0]))
    np.testing.assert_allclose(ascent, 1, rtol=1e-6)  # beta -> 0: minimise log p


def test_counts_weigh():
    values, dlogp = NPO().answers(answers([1.0, 1.0, 2.0], times=[3, 1, 2]))
    assert dlogp[0] == pytest.approx(3 * dlogp[1])
    assert values["loss"].mean() == pytest.approx(
        np.average(NPO().answers(answers([1.0, 1.0, 2.0]))[0]["loss"], weights=[3, 1, 2])
    )


def test_every_loss_of_the_table_has_one_of_two_shapes():
    assert {"literal", "reference", "rate", "npo"} <= set(LOSSES)
    for loss in LOSSES.values():
        assert isinstance(loss, RowLoss) != isinstance(loss, AnswerLoss)
