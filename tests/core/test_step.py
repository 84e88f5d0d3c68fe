"""A step with a loss of answers: its gradient, and that packing and passes change nothing."""

import numpy as np
import pytest
from helpers import (
    SLOPE_TOLERANCE,
    gradient_error,
    random_adapter,
    random_examples,
    random_llama,
    slope_error,
)

from minibule.core.counts import Example, path_log_probs, path_log_probs_backward
from minibule.core.forest import pack
from minibule.core.fused import ComplementLoss
from minibule.core.head import entry_log_probs, entry_log_probs_backward
from minibule.core.loss import AnswerLoss
from minibule.core.step import answer_log_probs, gradients
from minibule.methods import table
from minibule.methods.pairs import DPO
from minibule.methods.rejected import NPO
from minibule.methods.rewarded import GRPO
from minibule.methods.tokens import Ratio, Unlikelihood


class WithinRecord(AnswerLoss):
    """A loss that ties the answers of a record together, as pairs and groups do."""

    needs_reference = True

    def answers(self, answers, logp, mismatched=None):
        same = answers.record[:, None] == answers.record
        score = logp / answers.length
        mean = same @ score / same.sum(axis=1)
        pull = 2 * answers.times * (score - mean)
        dscore = pull - same @ (pull / same.sum(axis=1))
        return float(answers.times @ (score - mean) ** 2), dscore / answers.length


LOSSES = {
    **{name: loss for name, loss in table.LOSSES.items() if not isinstance(loss, ComplementLoss)},
    "npo, beta 1": NPO(1.0),
    "npo, held": NPO(kl=0.7),
    "dpo, held": DPO(kl=0.3),
    "grpo, held": GRPO(kl=0.3),
    "within record": WithinRecord(),
    "ratio, beta .5": Ratio(0.5, kl=0.1),
    "unlikelihood, held": Unlikelihood(kl=0.3),
}


def examples_for(loss):
    """Random records, some of whose answers are accepted where the loss learns from these."""
    if loss.uses == "rejected":
        return random_examples()
    examples = []
    for example in random_examples():
        n = len(example.answers)
        rewards = (1.0,) * n if loss.uses == "accepted" else tuple(np.arange(n) % 2.0)
        examples.append(example._replace(rewards=rewards))
    return examples


def model_with_adapter(dtype):
    model = random_llama(dtype=dtype)
    model.adapter = random_adapter(dtype=dtype)
    return model


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("pass_tokens", [10**6, 5])
def test_the_gradient_is_that_of_the_loss(loss, pass_tokens):
    model, examples = model_with_adapter(np.float64), examples_for(loss)
    grads, _, _ = gradients(model, examples, loss, pass_tokens)
    params = model.adapter.params
    assert grads and set(grads) == set(params)
    error = slope_error(
        lambda: gradients(model, examples, loss, 10**6)[1]["loss"],
        list(params.values()),
        [grads[name] for name in params],
    )
    assert error < SLOPE_TOLERANCE


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("recompute", [False, True])
def test_passes_and_recomputing_change_nothing(loss, recompute):
    model, examples = model_with_adapter(np.float32), examples_for(loss)
    whole, metrics, tokens = gradients(model, examples, loss, 10**6)
    parts, other, more = gradients(model, examples, loss, 5, recompute)
    assert more > tokens and whole.keys() == parts.keys() != set()
    assert set(other) == set(metrics) >= {"loss"}
    for name, value in metrics.items():
        assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    for name, grad in whole.items():
        assert np.abs(grad - parts[name]).max() <= 1e-4 * np.abs(grad).max(), name


def test_log_p_of_answers_is_the_sum_over_their_tokens():
    model, examples = model_with_adapter(np.float64), random_examples()
    batches = list(pack(examples, "prefix", 7))
    assert len(batches) > 1
    logp = answer_log_probs(model, batches, examples)
    expected = []
    for example in examples:
        for answer in example.answers:
            z = model.logits([*example.prompt, *answer[:-1]])[len(example.prompt) - 1 :]
            rows = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
            expected.append(rows[np.arange(len(answer)), answer].sum())
    np.testing.assert_allclose(logp, expected, rtol=1e-10)


def test_log_probs_backward():
    """Both backward functions of log p, with a random cotangent."""
    rng, model = np.random.default_rng(3), random_llama(dtype=np.float64)
    (batch,) = pack(random_examples(), "position", 10**6)
    counts = batch.rows
    logp = rng.normal(size=len(counts.entry_id))
    dpath = rng.normal(size=logp.shape)
    assert (counts.parent_entry >= 0).any()
    error = gradient_error(
        lambda: dpath @ path_log_probs(counts, logp)[1],
        logp,
        path_log_probs_backward(dpath, counts),
    )
    assert error < 1e-6

    hidden = rng.normal(size=(len(counts.weight), model.config.hidden_size))
    error = gradient_error(
        lambda: dpath @ entry_log_probs(hidden, model.head, counts),
        hidden,
        entry_log_probs_backward(dpath, hidden, model.head, counts)[1],
    )
    assert error < 1e-6


def test_an_answer_given_twice_counts_twice():
    """Two equal answers of one count are one answer of two: the packed forest merges neither."""
    model = model_with_adapter(np.float64)
    prompt, a, b = np.array([1, 2]), np.array([3, 4]), np.array([3, 5, 6])
    twice = [Example(prompt, (a, a, b), (1, 1, 1), 3)]
    once = [Example(prompt, (a, b), (2, 1), 3)]
    (grads, _, _), (other, _, _) = (gradients(model, e, NPO(), 10**6) for e in (twice, once))
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, other[name], rtol=1e-9, atol=1e-12)
