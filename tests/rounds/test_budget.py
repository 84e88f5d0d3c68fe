"""Budgets: how many samples each prompt gets, against the formulas and their traps."""

import itertools
import math

import numpy as np
import pytest

from minibule.rounds.budget import BUDGETS, GVM, Adaptive, Fixed, allocated, gvm_weights

NAN = math.nan


def rewards(right, n=8, unknown=0):
    return np.array([1.0] * right + [0.0] * (n - right - unknown) + [NAN] * unknown)


def drawn_by(budget, chances, seed=0, norms=None):
    """All rewards that a budget draws of prompts that are solved with these chances."""
    rng, drawn = np.random.default_rng(seed), [np.zeros(0) for _ in chances]
    for _ in range(100):
        more = budget(drawn, norms)
        assert more.shape == (len(chances),) and more.dtype.kind == "i" and (more >= 0).all()
        if not more.any():
            return drawn
        drawn = [
            np.append(one, rng.random(n) < p)
            for one, n, p in zip(drawn, more, chances, strict=True)
        ]
    raise AssertionError("no end")


@pytest.mark.parametrize("name", BUDGETS)
def test_every_budget_comes_to_an_end(name):
    chances = [0, 0.01, 0.2, 0.5, 0.99, 1]
    for seed in range(10):
        drawn = drawn_by(BUDGETS[name], chances, seed)
        assert min(map(len, drawn)) >= 8 and sum(map(len, drawn)) <= 4 * 8 * 6
    assert drawn_by(BUDGETS[name], [0, 0, 0])
    assert BUDGETS[name]([], None).shape == (0,)


def test_fixed_draws_as_many_of_each_also_where_the_judge_cannot_tell():
    assert Fixed(5)([rewards(0, 0), rewards(1, 3), rewards(0, 5, unknown=5)]).tolist() == [5, 2, 0]


# -- GVM -------------------------------------------------------------------------------------------


def test_the_weights_are_the_formula():
    p, norms = np.array([0.5, 0.125, 0.0, 1.0]), np.array([2.0, 1.0, 5.0, 0.0])
    expected = [
        2 / math.sqrt(0.5 + 1e-3 / 0.5**1.5),
        1 / math.sqrt(0.125 + 1e-3 / 0.125**1.5),
        0,
        0,
    ]
    assert gvm_weights(p, norms, 1e-3, 2.5).tolist() == pytest.approx(expected)


def test_the_weights_are_largest_at_the_root_of_alpha_and_fall_as_the_root_of_p():
    p = np.linspace(0.001, 1, 100_000)
    weights = gvm_weights(p, np.ones(len(p)), 1e-3, 2.0)
    assert p[weights.argmax()] == pytest.approx(math.sqrt(1e-3), abs=1e-4)
    late = gvm_weights(np.array([0.4, 0.8]), np.ones(2), 1e-3, 2.0)
    assert late[0] / late[1] == pytest.approx(math.sqrt(2), rel=0.01)


def test_without_alpha_the_variance_is_least():
    rng = np.random.default_rng(0)
    p, norms = rng.uniform(0.05, 1, 5), rng.uniform(0.5, 3, 5)

    def variance(n):
        return (norms**2 / (p * n)).sum()

    best = gvm_weights(p, norms, 0.0, 2.0)
    best /= best.sum()
    for _ in range(200):
        other = best * np.exp(rng.normal(scale=0.1, size=5))
        assert variance(other / other.sum()) > variance(best)


def test_the_total_is_what_it_is_to_be_and_no_one_is_off_by_more_than_one():
    rng = np.random.default_rng(1)
    short = over = 0
    for total in range(1, 200):
        weights = rng.uniform(size=7) * (rng.random(7) < 0.8)
        weights[0] = 1
        found = allocated(weights, total)
        exact = total * weights / weights.sum()
        assert found.sum() == total and found.min() >= 0 and (found[weights == 0] == 0).all()
        assert np.abs(found - exact).max() < 1
        lacking = total - np.round(exact).sum()
        short, over = short + (lacking > 0), over + (lacking < 0)
        changed = found != np.round(exact)
        assert changed.sum() == abs(lacking)
        if lacking:  # those furthest from what they were to get
            off = (exact - np.round(exact)) * np.sign(lacking)
            assert off[changed].min() >= off[~changed].max() - 1e-12
    assert short > 20 and over > 20


def test_equal_weights_share_alike():
    assert sorted(allocated(np.ones(3), 8).tolist()) == [2, 3, 3]
    assert allocated(np.zeros(3), 8).tolist() == [0, 0, 0]


def test_gvm_draws_in_two_stages():
    budget = GVM(samples=8)
    assert budget([rewards(0, 0), rewards(2, 3)]).tolist() == [8, 5]
    drawn = [rewards(1), rewards(4), rewards(8), rewards(0)]
    p = np.array([1, 4, 8, 0]) / 8
    expected = allocated(gvm_weights(p, np.ones(4), 1e-3, 2.0), 32)
    assert budget(drawn).tolist() == expected.tolist()
    assert expected[0] > expected[1] > expected[2] > 0 == expected[3]
    assert budget(drawn, lambda: np.array([0.0, 0, 3, 0])).tolist() == [0, 0, 32, 0]
    drawn = [np.append(one, rewards(0, n)) for one, n in zip(drawn, expected, strict=True)]
    assert budget(drawn).tolist() == [0, 0, 0, 0]


def test_what_was_never_solved_gets_nothing_unless_each_gets_the_least():
    """Of prompts that are solved every fifth time, .8^8 = 17 % look as if they never were."""
    drawn = [rewards(0), rewards(4)]
    assert GVM()(drawn).tolist() == [0, 16]
    assert GVM(least=2)(drawn).tolist() == [2, 14]
    assert drawn_by(GVM(), [0, 0]) and len(drawn_by(GVM(), [0, 0])[0]) == 8
    unlucky = np.mean(np.random.default_rng(0).binomial(8, 0.2, 10_000) == 0)
    assert unlucky == pytest.approx(0.8**8, abs=0.02)


def test_what_the_judge_cannot_tell_is_no_failure():
    half = GVM()([rewards(2, unknown=4), rewards(4)])
    assert half[0] == half[1] == 8
    assert GVM()([rewards(0, unknown=8), rewards(4)]).tolist() == [0, 16]


# -- Reinforce-Ada ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drawn", "balance", "positive"),
    [
        (rewards(0, 0), 8, 8),
        (rewards(2), 0, 0),
        (rewards(1), 8, 0),
        (rewards(0), 8, 8),
        (rewards(7), 8, 0),
        (rewards(6), 0, 0),
        (rewards(6, unknown=1), 8, 0),
        (rewards(0, 32), 0, 0),
        (rewards(24, 24), 8, 0),
        (rewards(0, 32, unknown=32), 0, 0),
    ],
)
def test_when_a_prompt_is_done(drawn, balance, positive):
    assert BUDGETS["balance"]([drawn]).tolist() == [balance]
    assert BUDGETS["positive"]([drawn]).tolist() == [positive]


def test_what_is_drawn_is_drawn_in_rounds_of_eight():
    sizes = {len(r) for s in range(5) for r in drawn_by(BUDGETS["balance"], [0.02, 0.1, 0.9], s)}
    assert sizes == {8, 16, 24, 32}


def test_the_share_of_what_was_drawn_is_not_the_accuracy():
    """Stopping at a success counts a prompt as better than it is; its first draws do not."""
    chance, n = 0.05, 4000
    drawn = drawn_by(Adaptive(accepted=1, rejected=0), [chance] * n)
    share = np.mean([one.mean() for one in drawn])
    first = np.mean([one[:8].mean() for one in drawn])
    error = math.sqrt(chance * (1 - chance) / (8 * n))
    assert first == pytest.approx(chance, abs=4 * error)
    assert share > chance + 8 * error


def test_no_two_budgets_are_the_same():
    chances = [0.02, 0.2, 0.5, 0.95]
    for one, other in itertools.combinations(BUDGETS, 2):
        sizes = [
            [len(r) for s in range(3) for r in drawn_by(BUDGETS[name], chances, s)]
            for name in (one, other)
        ]
        assert sizes[0] != sizes[1]
