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
from minibule.core.fused import TargetLoss
from minibule.core.head import entry_log_probs, entry_log_probs_backward
from minibule.core.loss import AnswerLoss
from minibule.core.step import answer_log_probs, gradients
from minibule.methods import table
from minibule.methods.kto import KTO
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
    **{name: loss for name, loss in table.LOSSES.items() if not isinstance(loss, TargetLoss)},
    "npo, beta 1": NPO(1.0),
    "npo, held": NPO(kl=0.7),
    "dpo, held": DPO(kl=0.3),
    "grpo, held": GRPO(kl=0.3),
    "within record": WithinRecord(),
    "ratio, beta .5": Ratio(0.5, kl=0.1),
    "unlikelihood, held": Unlikelihood(kl=0.3),
}


def examples_for(loss, seed=0):
    """Random records, some of whose answers are accepted where the loss learns from these."""
    if loss.uses == "rejected":
        return random_examples(seed)
    examples = []
    for example in random_examples(seed):
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


def sides_part(examples, pass_tokens):
    """Whether answers to one prompt, which a pair or a group ties together, lie in two passes."""
    passes = [set(b.answer[:, 0].tolist()) for b in pack(examples, "prefix", pass_tokens)]
    return any(sum(number in one for one in passes) > 1 for number in range(len(examples)))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("recompute", [False, True])
def test_passes_and_recomputing_change_nothing(loss, recompute, two_threads):
    model, examples = model_with_adapter(np.float32), examples_for(loss)
    assert sides_part(examples, 5)
    whole, metrics, tokens = gradients(model, examples, loss, 10**6)
    parts, other, more = gradients(model, examples, loss, 5, recompute)
    assert more > tokens and whole.keys() == parts.keys() != set()
    assert set(other) == set(metrics) >= {"loss"}
    for name, value in metrics.items():
        assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-7)
    for name, grad in whole.items():
        assert np.abs(grad - parts[name]).max() <= 1e-4 * np.abs(grad).max(), name


# -- answers put to other prompts ------------------------------------------------------------------


class Overheard(KTO):
    """KTO that remembers what it was given as `mismatched`."""

    def answers(self, answers, logp, mismatched=None):
        HEARD.append(mismatched)
        return super().answers(answers, logp, mismatched)


HEARD: list[float | None] = []


def overheard(model, examples, pass_tokens=10**6):
    gradients(model, examples, Overheard(), pass_tokens)
    return HEARD[-1]


def plain_log_p(model, prompt, answer):
    z = model.logits([*prompt, *answer[:-1]])[len(prompt) - 1 :]
    rows = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return rows[np.arange(len(answer)), answer].sum()


def plain_mismatched(model, pairs):
    """The mean of log p - log p_ref over prompts and answers, each as often as it was given."""
    d = [
        plain_log_p(model, prompt, answer) - plain_log_p(model.base, prompt, answer)
        for prompt, before in pairs
        for answer, times in zip(before.answers, before.counts, strict=True)
        for _ in range(times)
    ]
    return np.mean(d)


def test_mismatched_answers_are_those_of_the_record_before():
    model = model_with_adapter(np.float64)
    first, second, third = examples = examples_for(KTO(), seed=3)
    assert len({len(example.answers) for example in examples}) == 3
    pairs = [(first.prompt, third), (second.prompt, first), (third.prompt, second)]
    for pass_tokens in (10**6, 5):
        found = overheard(model, examples, pass_tokens)
        assert found == pytest.approx(plain_mismatched(model, pairs), rel=1e-9)


def test_of_records_with_one_answer_it_is_the_rotation_of_trl():
    """KL_completion_ids = [completion_ids[-1]] + completion_ids[:-1], the prompts as they were."""
    model = model_with_adapter(np.float64)
    examples = [
        example._replace(answers=example.answers[:1], counts=(1,), rewards=(reward,))
        for example, reward in zip(random_examples(records=4), (1.0, 0.0, 0.0, 1.0), strict=True)
    ]
    completions = [example.answers[0] for example in examples]
    d = [
        plain_log_p(model, example.prompt, answer) - plain_log_p(model.base, example.prompt, answer)
        for example, answer in zip(examples, [completions[-1], *completions[:-1]], strict=True)
    ]
    assert overheard(model, examples) == pytest.approx(np.mean(d), rel=1e-9)


def test_an_answer_to_the_same_prompt_is_not_mismatched():
    model = model_with_adapter(np.float64)
    first, second, _ = examples_for(KTO(), seed=3)
    again = second._replace(prompt=first.prompt)
    assert overheard(model, [first]) == overheard(model, [first, first, again]) == 0
    expected = plain_mismatched(model, [(first.prompt, second), (second.prompt, first)])
    assert overheard(model, [first, first, second]) == pytest.approx(expected, rel=1e-9)


def test_a_mismatched_answer_ends_where_the_context_does():
    model = model_with_adapter(np.float64)
    context = model.config.max_position_embeddings
    rng = np.random.default_rng(0)
    long = Example(rng.integers(0, 37, context - 3), (np.array([1, 2, 3]),), (1,), 1)
    short = Example(np.array([5]), (rng.integers(0, 37, context - 1),), (1,), 1)
    cut = short._replace(answers=(short.answers[0][:3],))
    expected = plain_mismatched(model, [(long.prompt, cut), (short.prompt, long)])
    assert overheard(model, [long, short]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("pass_tokens", [10**6, 5])
def test_z_is_held_fixed(pass_tokens):
    """The gradient is that of the loss with z as it was, and not of the loss whose z moves too."""
    model, examples = model_with_adapter(np.float64), examples_for(KTO(), seed=3)
    z = overheard(model, examples)
    assert z > 1  # a z of 0 would be held fixed by itself

    class Held(KTO):
        needs_mismatched = False

        def answers(self, answers, logp, mismatched=None):
            assert mismatched is None
            return super().answers(answers, logp, z)

    loss, params = KTO(), model.adapter.params
    grads, metrics, _ = gradients(model, examples, loss, pass_tokens)
    xs, dxs = list(params.values()), [grads[name] for name in params]

    def value(loss):
        return gradients(model, examples, loss, 10**6)[1]["loss"]

    assert value(Held()) == pytest.approx(metrics["loss"])
    assert slope_error(lambda: value(Held()), xs, dxs) < SLOPE_TOLERANCE
    assert slope_error(lambda: value(loss), xs, dxs) > 1000 * SLOPE_TOLERANCE


# -- log p -----------------------------------------------------------------------------------------


def test_log_p_of_answers_is_the_sum_over_their_tokens():
    model, examples = model_with_adapter(np.float64), random_examples()
    batches = list(pack(examples, "prefix", 7))
    assert len(batches) > 1
    logp = answer_log_probs(model, batches, examples)
    expected = [
        plain_log_p(model, example.prompt, answer)
        for example in examples
        for answer in example.answers
    ]
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
