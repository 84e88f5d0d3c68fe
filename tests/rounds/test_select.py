"""Selections: each against its published formula, in plain loops, and what goes wrong with it."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from minibule.rounds.groups import Group, best_first, distinct
from minibule.rounds.select import (
    D3S,
    PAR,
    PFPPO,
    RFT,
    RSO,
    SELECTIONS,
    Balanced,
    Majority,
    accept_reject,
    max_variance,
)


def group(*rewards, answers=None, says=(), usual=None):
    answers = [f"answer {i}" for i in range(len(rewards))] if answers is None else list(answers)
    usual = None if usual is None else np.array(usual, float)
    return Group(np.array(rewards, float), answers, says or answers, usual)


def rng(seed=0):
    return np.random.default_rng(seed)


def kept(selection, *groups, seed=0, progress=0.0):
    """What is kept of each group, as plain lists."""
    found = selection(groups, rng(seed), progress)
    return [(one.group, one.samples.tolist(), one.rewards.tolist()) for one in found]


def random_groups(seed=0, n=12):
    """Of several sizes; rewards of 0 and 1, and graded ones; answers and sayings that recur."""
    g = rng(seed)
    groups = []
    for i, size in enumerate(g.integers(0, 9, n)):
        rewards = g.integers(0, 2, size) if i % 2 else np.round(g.normal(size=size), 1)
        answers = [f"{x}" for x in g.integers(0, 6, size)]
        usual = g.normal(size=5)
        groups.append(
            group(*rewards, answers=answers, says=[a < "3" for a in answers], usual=usual)
        )
    return groups


@pytest.mark.parametrize("name", SELECTIONS)
class TestEverySelection:
    def test_the_same_seed_keeps_the_same(self, name):
        groups = random_groups()
        assert kept(SELECTIONS[name], *groups) == kept(SELECTIONS[name], *groups) != []

    def test_what_is_kept_is_there(self, name):
        groups = random_groups(1)
        found = SELECTIONS[name](groups, rng(), 0.5)
        assert len(found) > 3
        for one in found:
            assert len(one.samples) == len(one.rewards) > 0
            assert set(one.samples) <= set(range(len(groups[one.group].rewards)))
            assert np.isfinite(one.rewards).all()
        assert [one.group for one in found] == sorted(one.group for one in found)

    def test_the_groups_are_left_as_they_are(self, name):
        groups = random_groups(2)
        before = [(g.rewards.copy(), list(g.answers)) for g in groups]
        SELECTIONS[name](groups, rng(), 1.0)
        for g, (rewards, answers) in zip(groups, before, strict=True):
            assert (g.rewards == rewards).all() and g.answers == answers

    def test_no_groups_and_empty_ones_keep_nothing(self, name):
        assert kept(SELECTIONS[name]) == kept(SELECTIONS[name], group(usual=[1.0]), group()) == []


@pytest.mark.parametrize("name", ["raft", "majority", "rft", "rso"])
def test_a_wrong_answer_is_not_accepted_where_all_are_wrong(name):
    for seed in range(5):
        assert kept(SELECTIONS[name], group(*[0] * 8), seed=seed) == []


def test_the_order_of_tied_rewards_is_random():
    orders = Counter(tuple(best_first(np.array([1.0, 2, 1, 0]), rng(i))) for i in range(400))
    assert set(orders) == {(1, 0, 2, 3), (1, 2, 0, 3)} and min(orders.values()) > 150


def test_where_each_answer_stands_first():
    assert distinct(["b", "a", "b", (1,), "a", (1,)]).tolist() == [0, 1, 3]


# -- all, dapo, raft -------------------------------------------------------------------------------


def test_all_keeps_all():
    assert kept(SELECTIONS["all"], group(1, -2.5), group(0)) == [
        (0, [0, 1], [1.0, -2.5]),
        (1, [0], [0.0]),
    ]


def test_dapo_leaves_out_what_is_judged_alike():
    tenths = [0.1] * 3  # whose standard deviation is not 0, as it is rounded
    assert np.std(tenths) > 0
    groups = [group(1, 1), group(0, 1, 0), group(*tenths), group(1)]
    assert kept(SELECTIONS["dapo"], *groups) == [(1, [0, 1, 2], [0.0, 1.0, 0.0])]


def test_raft_keeps_one_of_the_best_at_random():
    found = Counter(
        kept(SELECTIONS["raft"], group(0, 1, 1, 0.5, 1), seed=i)[0][1][0] for i in range(600)
    )
    assert set(found) == {1, 2, 4} and min(found.values()) > 150
    assert kept(SELECTIONS["raft"], group(-1, -0.5), group(3, 4)) == [(1, [1], [1.0])]


def test_raft_plus_keeps_all_that_are_accepted():
    assert kept(SELECTIONS["raft++"], group(-1, 0.5, 0, 2), group(0, 0)) == [
        (0, [1, 3], [0.5, 2.0])
    ]


# -- RFT -------------------------------------------------------------------------------------------


def trlx_thresholds(groups, quantile):
    """As the trlx library computes them."""
    found = np.array([np.quantile(g.rewards, quantile) for g in groups])
    return np.clip(found, found.min() + 1e-3, found.max() - 1e-3)


def hits(right, n=8):
    return group(*[1] * right, *[0] * (n - right))


def test_trlx_keeps_wrong_answers_where_all_thresholds_are_equal():
    hard = [hits(2), hits(1), hits(0), hits(2)]
    thresholds = trlx_thresholds(hard, 0.7)
    assert (thresholds < 0).all()  # lo > hi, and clip returns hi
    assert sum((g.rewards >= t).sum() for g, t in zip(hard, thresholds, strict=True)) == 32
    assert kept(RFT(), *hard) == [(0, [0, 1], [1, 1]), (1, [0], [1]), (3, [0, 1], [1, 1])]
    with_one_easier = [*hard, hits(3)]  # only then nothing but right answers passes
    thresholds = trlx_thresholds(with_one_easier, 0.7)
    assert (
        sum((g.rewards >= t).sum() for g, t in zip(with_one_easier, thresholds, strict=True)) == 8
    )


def test_rft_of_graded_rewards_is_trlx_s_but_for_the_least_of_each_prompt():
    g = rng(3)
    groups = [group(*g.normal(size=9)) for _ in range(40)]
    for progress in (0.0, 0.3, 1.0):
        quantile = 0.7 + 0.25 * progress
        thresholds = trlx_thresholds(groups, quantile)
        found = {number: samples for number, samples, _ in kept(RFT(), *groups, progress=progress)}
        same = 0
        for number, (one, threshold) in enumerate(zip(groups, thresholds, strict=True)):
            if threshold == np.quantile(one.rewards, quantile):  # one that was not cut
                same += 1
                assert found[number] == np.flatnonzero(one.rewards >= threshold).tolist()
        assert same >= 38


def test_the_quantile_grows_to_its_end():
    steps = group(*range(101))
    assert [len(kept(RFT(), steps, progress=p)[0][1]) for p in (0, 0.5, 1)] == [31, 18, 6]


def test_rft_trains_an_answer_once():
    one = group(1, 0, 1, 1, 0, answers=["a", "b", "a", "c", "b"])
    assert kept(RFT(0, 0), one) == [(0, [0, 3], [1.0, 1.0])]


# -- majority --------------------------------------------------------------------------------------


def test_majority_takes_the_best_of_what_comes_often():
    one = group(9, 5, 4, 6, 3, 2, says=[*"abbccc"])
    assert kept(Majority(least=2 / 6), one) == [(0, [3], [1.0])]
    assert kept(Majority(least=2 / 6, best=2), one) == [(0, [3, 1], [1.0, 1.0])]
    assert kept(Majority(least=0.5), one) == [(0, [3], [1.0])]
    assert kept(Majority(least=0.0), one) == [(0, [0], [1.0])]  # the best of all
    assert kept(Majority(least=1 / 6), one) == [(0, [0], [1.0])]  # as no answer comes less often


def test_where_nothing_comes_often_enough_the_most_frequent_stand_for_all():
    assert kept(Majority(least=0.9), group(5, 1, 2, 1, says=[*"abbc"])) == [(0, [2], [1.0])]
    assert kept(Majority(least=0.9), group(5, 6, 4, says=[*"abc"])) == [(0, [1], [1.0])]


def test_a_majority_that_is_wrong_is_not_trained():
    assert kept(Majority(least=0.5), group(0, 0, 0, 1, says=[*"aaab"])) == []


def test_majority_of_no_least_frequency_is_the_best_of_all():
    groups = [one for one in random_groups(4, 60) if one.rewards.max(initial=0) > 0]
    assert len(groups) > 30
    found = Majority(least=0.0)(groups, rng(), 0.0)
    for one, best in zip(groups, found, strict=True):
        assert one.rewards[best.samples].tolist() == [one.rewards.max()]


# -- RSO -------------------------------------------------------------------------------------------


def test_rso_of_beta_0_takes_the_best_and_of_a_large_one_any():
    rewards = np.array([3.0, 1, 2, 5, 4])
    for seed in range(20):
        assert set(accept_reject(rewards, 3, 0.0, rng(seed))) == {3, 4, 0}
        assert set(accept_reject(rewards, 3, 1e-3, rng(seed))) == {3, 4, 0}
    times = Counter(i for s in range(1000) for i in accept_reject(rewards, 2, 1e9, rng(s)).tolist())
    assert all(times[i] == pytest.approx(400, abs=60) for i in range(5))  # 4 standard deviations


def test_what_is_taken_is_taken_once_and_never_more_than_there_are():
    for seed, beta in itertools.product(range(10), (0.0, 0.5, 5.0)):
        taken = accept_reject(np.array([0.0, 1, 1, 0, -7]), 8, beta, rng(seed))
        assert sorted(taken) == [0, 1, 2, 3, 4]
    assert len(accept_reject(np.zeros(0), 8, 0.5, rng())) == 0


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_an_answer_is_taken_with_the_probability_of_its_reward(beta):
    """Of two, the worse one is the first where it comes first and passes: exp(-1 / beta) / 2."""
    rewards, n = np.array([0.0, 1.0]), 4000
    worse = np.mean([accept_reject(rewards, 1, beta, rng(s))[0] == 0 for s in range(n)])
    p = math.exp(-1 / beta) / 2
    assert worse == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n))


def test_the_maximum_is_of_those_that_are_left():
    """Once 1000 is taken, 2 against 1 is what counts; else both would wait for ever."""
    third = [accept_reject(np.array([1000.0, 2, 1]), 2, 0.5, rng(s))[1] for s in range(2000)]
    p = math.exp(-2) / 2
    assert np.mean(np.array(third) == 2) == pytest.approx(p, abs=4 * math.sqrt(p / 2000))


def test_rso_pairs_each_answer_once_and_drops_ties():
    one = group(0, 1, 2, 3, 3, 4, 5, 6, answers=["a", "b", "c", "d", "e", "f", "g", "a"])
    for seed in range(20):
        pairs = kept(RSO(best=6, beta=1e9), one, seed=seed)
        used = [i for _, samples, _ in pairs for i in samples]
        assert len(used) == len(set(used)) in (4, 6) and 7 not in used  # 7 says what 0 said
        for _, (first, second), rewards in pairs:
            better = one.rewards[first] > one.rewards[second]
            assert one.rewards[first] != one.rewards[second]
            assert rewards == ([1.0, 0.0] if better else [0.0, 1.0])


# -- PF-PPO ----------------------------------------------------------------------------------------


def test_the_weights_of_pf_ppo():
    half = [0.5, 0.125, 0.125, 0.125, 0.125]
    assert SELECTIONS["br"].weights(5).tolist() == half
    assert SELECTIONS["bw"].weights(5).tolist() == [0.5, 0, 0, 0, 0.5]
    assert SELECTIONS["bon"].weights(5).tolist() == [1, 0, 0, 0, 0]
    for name in ("bon", "br", "bw"):
        assert [SELECTIONS[name].weights(n).sum() for n in (1, 2, 3, 8)] == pytest.approx([1] * 4)


@pytest.mark.parametrize("name", ["bon", "br", "bw"])
def test_pf_ppo_draws_by_rank(name):
    one, times = group(5, 9, 7, 1), Counter()
    for seed in range(1000):
        ((_, samples, rewards),) = kept(SELECTIONS[name], one, seed=seed)
        assert len(samples) == 4 and rewards == one.rewards[samples].tolist()
        times.update(samples)
    shares = SELECTIONS[name].weights(4)
    for rank, sample in enumerate([1, 2, 0, 3]):
        assert times[sample] / 4000 == pytest.approx(shares[rank], abs=0.04)


def test_the_best_of_ties_is_any_of_them():
    found = Counter(kept(PFPPO(1.0, 0.0), group(1, 0, 1), seed=s)[0][1][0] for s in range(200))
    assert set(found) == {0, 2} and min(found.values()) > 60


# -- advantages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_variance_of_all_choices(seed):
    g = rng(seed)
    values = g.normal(size=8) if seed % 2 else g.integers(0, 3, 8).astype(float)
    for m in range(9):
        chosen = max_variance(values, m, g)
        assert len(set(chosen.tolist())) == m
        best = max(np.var(values[list(c)]) if m else 0 for c in itertools.combinations(range(8), m))
        assert (np.var(values[chosen]) if m else 0) == pytest.approx(best, abs=1e-12)


def test_the_largest_variance_far_from_zero():
    values = 1e6 + np.array([0.0, 1, 2, 3])
    assert set(max_variance(values, 2, rng()).tolist()) == {0, 3}


def test_d3s_looks_at_all_groups_together():
    groups = [group(0, 1, 0, 1), group(), group(1, 1, 1), group(0, 0, 0, 0, 5), group(2)]
    found = kept(D3S(share=5 / 13), *groups)
    assert sum(len(samples) for _, samples, _ in found) == 5
    by_group = {number: samples for number, samples, _ in found}
    assert by_group.keys() <= {0, 3} and 4 in by_group[3]  # 5 stands out; those alike have 0
    for number, samples, rewards in found:
        r = groups[number].rewards
        advantages = (r - r.mean()) / (np.std(r, ddof=1) + 1e-4)
        assert rewards == pytest.approx(advantages[samples])
    everything = kept(D3S(share=1.0), *groups)
    assert [len(samples) for _, samples, _ in everything] == [4, 3, 5, 1]


# -- par, balanced ---------------------------------------------------------------------------------


def test_par_is_the_mean_of_sigmoids():
    one = group(2, -1, usual=[0.5, 1, 3])
    ((_, samples, rewards),) = kept(PAR(k=2.0), one)
    assert samples == [0, 1]
    for reward, shaped in zip(one.rewards, rewards, strict=True):
        beaten = [1 / (1 + math.exp(-2 * (reward - u))) for u in one.usual]
        assert shaped == pytest.approx(sum(beaten) / 3 - 0.5)


def test_par_is_bounded_and_0_where_the_base_is():
    ((_, _, rewards),) = kept(PAR(), group(1e9, 3, -1e9, usual=[3.0]))
    assert rewards == [0.5, 0.0, -0.5]


def test_par_of_yes_and_no_changes_no_advantage():
    rewards = np.array([1.0, 0, 0, 1, 0])
    ((_, _, shaped),) = kept(PAR(), group(*rewards, usual=[1, 0, 0]))
    assert set(shaped) != {0.0, 1.0}
    plain, bounded = (r - np.mean(r) for r in (rewards, np.array(shaped)))
    np.testing.assert_allclose(plain / plain.std(), bounded / bounded.std())


def test_par_without_the_base_s_rewards():
    with pytest.raises(ValueError, match="base's own samples"):
        kept(PAR(), group(1, 0))
    assert [name for name, s in SELECTIONS.items() if getattr(s, "needs_usual", False)] == ["par"]


@pytest.mark.parametrize(
    ("rewards", "samples"),
    [
        ([1, 1, 1, 0, 0, 0], [0, 1, 3, 4]),
        ([0, 0, 0, 0, 0, 1, 0], [0, 1, 2, 5]),
        ([1, 1, 1, 0, 1, 1], [0, 1, 2, 3]),
        ([0, 1, 0], [0, 1, 2]),
    ],
)
def test_balanced_keeps_the_first_of_both_sorts(rewards, samples):
    ((_, found, advantage),) = kept(Balanced(keep=4), group(*rewards))
    assert found == samples
    mean = sum(rewards) / len(rewards)  # of all, not of the four
    assert advantage == pytest.approx([rewards[i] - mean for i in samples])


def test_balanced_leaves_out_what_has_nothing_to_say():
    assert kept(Balanced(), group(0, 0, 0), group(1, 1)) == []
