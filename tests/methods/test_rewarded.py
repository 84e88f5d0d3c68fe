"""Losses whose weights follow from the rewards: formulas in plain loops, and what they ignore."""

import statistics

import numpy as np
import pytest
from helpers import (
    each_pair,
    each_time,
    random_adapter,
    random_answers,
    random_examples,
    random_llama,
)

from minibule.core.counts import Example
from minibule.core.loss import Answers
from minibule.core.step import gradients
from minibule.methods.rewarded import EPSILON, GRPO, REDI, SFT, Reinforce, WReinforce
from minibule.methods.tokens import NSR


def group(rewards, times=None, lengths=None, record=None):
    n = len(rewards)
    return Answers(
        np.full(n, 2) if lengths is None else np.array(lengths),
        np.ones(n) if times is None else np.array(times, float),
        np.array(rewards, float),
        np.zeros(n, int) if record is None else np.array(record),
    )


def test_sft_is_the_mean_of_minus_log_p_over_tokens():
    """Of a model's own numbers, token by token."""
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    examples = [e._replace(rewards=(1.0,) * len(e.answers)) for e in random_examples()]
    nll = []
    for example in examples:
        for answer, times in zip(example.answers, example.counts, strict=True):
            z = model.logits([*example.prompt, *answer[:-1]])[len(example.prompt) - 1 :]
            for row, token in zip(z, answer, strict=True):
                nll += [np.log(np.exp(row).sum()) - row[token]] * times
    for pass_tokens in (10**6, 5):
        _, metrics, _ = gradients(model, examples, SFT(), pass_tokens)
        assert metrics["loss"] == pytest.approx(np.mean(nll), rel=1e-9)
        assert "rejected_mass" not in metrics


def test_reinforce_takes_rewards_as_they_are():
    answers, logp = random_answers()
    graded = np.random.default_rng(3).normal(size=len(logp))
    answers = answers._replace(reward=graded)
    each = each_time(answers)
    loss = sum(-graded[k] * logp[k] for k in each) / sum(answers.length[k] for k in each)
    assert Reinforce().answers(answers, logp)[0] == pytest.approx(loss, rel=1e-12)
    signs = answers._replace(reward=np.where(answers.accepted, 0.1, -1))
    c = Reinforce().weights(signs)
    np.testing.assert_allclose(c, WReinforce(0.1).weights(answers), rtol=1e-12)


@pytest.mark.parametrize("positive", [0.1, 1.0])
def test_w_reinforce_is_the_mean_over_all_tokens(positive):
    answers, logp = random_answers()
    each = each_time(answers)
    loss = sum(-(positive if answers.reward[k] else -1) * logp[k] for k in each)
    loss /= sum(answers.length[k] for k in each)
    assert WReinforce(positive).answers(answers, logp)[0] == pytest.approx(loss, rel=1e-12)


def test_w_reinforce_of_rejected_answers_alone_is_nsr():
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    examples = [e._replace(counts=(1,) * len(e.answers)) for e in random_examples()]
    grads, metrics, _ = gradients(model, examples, WReinforce(), 10**6)
    nsr, of_nsr, _ = gradients(model, examples, NSR(), 10**6)
    assert metrics["loss"] == pytest.approx(of_nsr["loss"], rel=1e-9)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, nsr[name], rtol=1e-9, atol=1e-12)


def test_w_reinforce_that_pays_nothing_leaves_accepted_answers_alone():
    answers, _ = random_answers()
    c = WReinforce(0.0).weights(answers)
    assert (c[answers.accepted] == 0).all() and (c[~answers.accepted] > 0).all()


@pytest.mark.parametrize("alpha", [0.8, 1.0])
def test_redi_is_the_mean_over_pairs(alpha):
    answers, logp = random_answers("both")
    terms = [
        -logp[w] / answers.length[w] + alpha * logp[k] / answers.length[k]
        for w, k in each_pair(answers)
    ]
    value, _ = REDI(alpha).answers(answers, logp)
    assert value == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_redi_without_its_negative_half_trains_accepted_answers_alone():
    answers, _ = random_answers("both")
    c = REDI(0.0).weights(answers)
    assert (c[~answers.accepted] == 0).all() and (c[answers.accepted] < 0).all()


# -- groups ----------------------------------------------------------------------------------------


def grpo(answers, logp, loss):
    """Every sample by itself, its group's standard deviation as `statistics` has it, with n - 1."""
    each = each_time(answers)
    total = 0.0
    for k in each:
        rewards = [answers.reward[j] for j in each if answers.record[j] == answers.record[k]]
        advantage = answers.reward[k] - statistics.fmean(rewards)
        if loss.scaled:
            advantage /= statistics.stdev(rewards) + 1e-4
        if loss.per == "answer":
            divisor = len(each) * answers.length[k]
        elif loss.per == "token":
            divisor = sum(answers.length[j] for j in each)
        else:
            divisor = len(each) * loss.budget
        total -= advantage * logp[k] / divisor
    return total


VARIANTS = {
    "grpo": GRPO(),
    "dapo": GRPO(per="token"),
    "dr-grpo": GRPO(per="budget", scaled=False),
    "unscaled": GRPO(scaled=False),
    "budget of 100": GRPO(per="budget", budget=100),
}


@pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS)
def test_grpo_and_its_kin(loss):
    answers, logp = random_answers("both")
    assert loss.answers(answers, logp)[0] == pytest.approx(grpo(answers, logp, loss), rel=1e-12)
    graded = answers._replace(reward=np.random.default_rng(2).normal(size=len(logp)))
    assert loss.answers(graded, logp)[0] == pytest.approx(grpo(graded, logp, loss), rel=1e-12)


def test_an_advantage_by_hand():
    """One right of four: mean 1/4, standard deviation 1/2 with n - 1."""
    assert GRPO().advantages(group([1, 0, 0, 0])) == pytest.approx(
        np.array([0.75, -0.25, -0.25, -0.25]) / (0.5 + EPSILON)
    )
    assert GRPO().advantages(group([1, 0], times=[1, 3])) == pytest.approx(
        np.array([0.75, -0.25]) / (0.5 + EPSILON)
    )
    assert GRPO(scaled=False).advantages(group([1, 0, 0, 0])) == pytest.approx(
        [0.75, -0.25, -0.25, -0.25]
    )


@pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS)
def test_a_group_of_equal_rewards_says_nothing(loss):
    equal = group([1, 1, 0, 0, 1], record=[0, 0, 1, 1, 2])  # the last is a group of one
    assert (loss.advantages(equal) == 0).all()
    beside = group([1, 1, 0, 1], record=[0, 0, 1, 1])
    assert (loss.advantages(beside)[:2] == 0).all() and (loss.advantages(beside)[2:] != 0).all()


@pytest.mark.parametrize("loss", VARIANTS.values(), ids=VARIANTS)
def test_advantages_are_about_the_group(loss):
    answers, _ = random_answers("both")
    advantages = loss.advantages(answers)
    sums = np.bincount(answers.record, answers.times * advantages)
    np.testing.assert_allclose(sums, 0, atol=1e-12)
    shifted = answers._replace(reward=answers.reward + answers.record)
    np.testing.assert_allclose(loss.advantages(shifted), advantages, atol=1e-12)


def test_only_scaled_advantages_forget_the_scale_of_the_rewards():
    answers, _ = random_answers("both")
    tenfold = answers._replace(reward=10 * answers.reward)
    scaled, plain = GRPO(), GRPO(scaled=False)
    np.testing.assert_allclose(scaled.advantages(tenfold), scaled.advantages(answers), rtol=1e-3)
    np.testing.assert_allclose(plain.advantages(tenfold), 10 * plain.advantages(answers))


def test_what_lengths_weigh():
    """Of two answers of one advantage, ten and one tokens long: what each token's log p weighs."""
    answers = group([1, 1, 0], lengths=[10, 1, 4])
    by_answer, by_token, by_budget = (
        GRPO(per=per).weights(answers) for per in ("answer", "token", "budget")
    )
    assert by_answer[0] == pytest.approx(by_answer[1] / 10)
    assert by_token[0] == pytest.approx(by_token[1])
    assert by_budget[0] == pytest.approx(by_budget[1])
    assert by_token[0] * (10 + 1 + 4) == pytest.approx(by_budget[0] * 3 * 512)


def test_a_group_that_says_nothing_only_divides():
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    prompt = np.array([1, 2])
    pair = Example(prompt, (np.array([3, 4]), np.array([5, 6])), (1, 1), 2, rewards=(0.0, 1.0))
    equal = pair._replace(prompt=np.array([7]), rewards=(1.0, 1.0))
    alone, _, _ = gradients(model, [pair], GRPO(), 10**6)
    beside, _, _ = gradients(model, [pair, equal], GRPO(), 10**6)
    for name, grad in alone.items():
        np.testing.assert_allclose(beside[name], grad / 2, rtol=1e-9, atol=1e-12)
