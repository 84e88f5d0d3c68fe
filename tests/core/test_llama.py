"""The whole model: gradients in float64, and the ways to the same result agree."""

import numpy as np
import pytest
from helpers import (
    ODD,
    SLOPE_TOLERANCE,
    gradient_error,
    random_adapter,
    random_examples,
    random_llama,
    slope_error,
)

from minibule.core import llama, ops
from minibule.core.counts import Example, row_count
from minibule.core.forest import MAX_SEGMENT, pack
from minibule.core.fused import TargetLoss
from minibule.core.head import head_loss
from minibule.core.llama import backward, forward_batch
from minibule.core.objective import OBJECTIVES, Objective
from minibule.core.step import gradients
from minibule.errors import InputError

CHOICES = [*OBJECTIVES.values(), Objective("reference", "position", "plain", 0.3)]


def step_loss(model, examples, objective):
    return gradients(model, examples, TargetLoss(objective), 10**6)[1]["loss"]


@pytest.mark.parametrize("objective", CHOICES, ids=lambda o: "-".join(map(str, o)))
def test_adapter_gradients_are_the_gradient_of_the_loss(objective):
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    examples = random_examples()
    grads, _, _ = gradients(model, examples, TargetLoss(objective), 10**6)
    params = model.adapter.params
    assert list(grads) and set(grads) == set(params)
    for name, p in params.items():
        error = slope_error(lambda: step_loss(model, examples, objective), [p], [grads[name]])
        assert error < SLOPE_TOLERANCE, name


def test_base_gradients_are_the_gradient_of_the_loss():
    model = random_llama(dtype=np.float64)
    ids = np.array([3, 1, 4, 1, 5, 9])
    rows = np.array([1, 3, 4])
    targets = np.array([2, 6, 5])
    positions, attend = llama.one_sequence(len(ids))

    def run(keep=False):
        hidden, cache = llama.forward(model, ids, positions, attend, rows, keep)
        logits, head_cache = ops.linear(hidden, model.head)
        loss, loss_cache = ops.cross_entropy(logits, targets)
        return loss, cache, head_cache, loss_cache

    _, cache, head_cache, loss_cache = run(keep=True)
    dhidden, dhead = ops.linear_backward(ops.cross_entropy_backward(loss_cache), head_cache)
    grads = backward(dhidden, cache) | {"lm_head.weight": dhead}
    assert set(grads) == set(model.weights)
    for name, w in model.weights.items():
        assert gradient_error(lambda: run()[0], w, grads[name], entries=6) < 1e-6, name


@pytest.mark.parametrize("layers", [range(2, 3), range(1, 3)])
def test_upper_layers_alone_learn_the_same(layers):
    """Backward stops below the lowest adapted layer; what it gives is the full run's share."""
    model = random_llama()
    model.adapter = random_adapter()
    for name, p in model.adapter.params.items():
        if int(name.split(".")[2]) not in layers and ".lora_B." in name:
            p[...] = 0  # these layers' adapters do nothing
    examples = random_examples()
    full, _, _ = gradients(model, examples, TargetLoss(OBJECTIVES["literal"]), 10**6)
    upper = random_adapter(layers=layers)
    upper.params = {name: model.adapter.params[name] for name in upper.params}
    model.adapter = upper
    grads, _, _ = gradients(model, examples, TargetLoss(OBJECTIVES["literal"]), 10**6)
    assert set(grads) == set(upper.params)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, full[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("targets", [("q_proj",), ("down_proj", "k_proj"), ("v_proj", "up_proj")])
def test_any_subset_of_the_projections_learns_its_own_gradient(targets):
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64, targets=targets, rslora=True)
    examples = random_examples()
    grads, _, _ = gradients(model, examples, TargetLoss(OBJECTIVES["reference"]), 10**6)
    assert set(grads) == set(model.adapter.params)
    for name, p in model.adapter.params.items():
        error = slope_error(
            lambda: step_loss(model, examples, OBJECTIVES["reference"]), [p], [grads[name]]
        )
        assert error < SLOPE_TOLERANCE, name


def test_logits_of_a_prefix_do_not_depend_on_what_follows():
    model = random_llama()
    ids = np.arange(12) * 3 % ODD.vocab_size
    np.testing.assert_allclose(model.logits(ids)[:7], model.logits(ids[:7]), rtol=1e-4, atol=1e-5)


def separate_runs(model, examples, objective):
    """The loss and gradients of every (prompt, answer) alone, added up: nothing shared."""
    count = row_count(examples)
    grads, loss = {}, 0.0
    for example in examples:
        for k in range(len(example.answers)):
            alone = Example(example.prompt, (example.answers[k],), (1,), 1)
            (batch,) = pack([alone], "position", 10**6)
            rows = batch.rows
            # The counts are the record's, not the lone answer's.
            entries = [[], [], []]
            for t, token in enumerate(example.answers[k]):
                v = {}
                for other, c in zip(example.answers, example.counts, strict=True):
                    begins_alike = np.array_equal(other[:t], example.answers[k][:t])
                    if len(other) > t and (objective.counts == "position" or begins_alike):
                        v[other[t]] = v.get(other[t], 0) + c
                assert token in v
                for token_id, c in v.items():
                    for column, value in zip(entries, (t, token_id, c), strict=True):
                        column.append(value)
            row, ids, counts = (np.array(column) for column in entries)
            rows = rows._replace(
                entry_row=row,
                entry_id=ids,
                entry_count=counts.astype(float),
                total=np.bincount(row, counts),
            )
            ref, _ = forward_batch(model.base, batch)
            hidden, cache = forward_batch(model, batch, keep=True)
            metrics, dhidden = head_loss(
                hidden, model.head, rows, TargetLoss(objective), ref, total_rows=count
            )
            loss += metrics["loss"]
            for name, grad in backward(dhidden, cache).items():
                grads[name] = grads.get(name, 0) + grad
    return loss, grads


@pytest.mark.parametrize("objective", [OBJECTIVES["literal"], OBJECTIVES["reference"]])
def test_packed_and_shared_equals_separate_runs(objective):
    model = random_llama()
    model.adapter = random_adapter()
    examples = random_examples()
    grads, metrics, tokens = gradients(model, examples, TargetLoss(objective), 10**6)
    loss, expected = separate_runs(model, examples, objective)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    apart = sum(len(e.prompt) + len(a) - 1 for e in examples for a in e.answers)
    assert tokens < apart  # something was shared
    assert grads.keys() == expected.keys() != set()
    for name, grad in grads.items():
        assert np.abs(grad - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_step_cut_into_passes_has_the_gradient_of_the_whole(objective):
    model = random_llama()
    model.adapter = random_adapter()
    examples = random_examples()
    whole, metrics, tokens = gradients(model, examples, TargetLoss(objective), 10**6)
    parts, other, more = gradients(model, examples, TargetLoss(objective), 5)
    assert more > tokens  # some prompts were computed again
    assert whole.keys() == parts.keys() != set()
    assert other["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    for name, grad in whole.items():
        assert np.abs(grad - parts[name]).max() <= 1e-5 * np.abs(grad).max(), name


def test_a_long_sequence_is_a_chain_of_segments():
    """Cutting a long segment into a chain changes nothing."""
    config = ODD
    model = random_llama(config)
    model.adapter = random_adapter(config)
    rng = np.random.default_rng(0)
    answers = tuple(rng.integers(0, config.vocab_size, n) for n in (MAX_SEGMENT + 50, 20))
    example = Example(rng.integers(0, config.vocab_size, MAX_SEGMENT + 3), answers, (1, 2), 3)
    (batch,) = pack([example], "position", 10**6)
    assert len(batch.segments) == 5
    assert max(s.tokens.stop - s.tokens.start for s in batch.segments) == MAX_SEGMENT
    hidden, _ = forward_batch(model, batch)
    ids = np.concatenate([example.prompt, answers[0][:-1]])
    expected = model.logits(ids)[len(example.prompt) - 1 :]
    depth = batch.rows.depth
    first = np.flatnonzero(depth == 0)[0]
    np.testing.assert_allclose(
        hidden[first] @ model.head.T, expected[0], atol=1e-4 * np.abs(expected).max()
    )
    longest = np.flatnonzero(depth == len(answers[0]) - 1)[0]
    np.testing.assert_allclose(
        hidden[longest] @ model.head.T, expected[-1], atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "at least one"),
        ([[1, 2]], "one sequence"),
        ([[1, 2], [3]], "different lengths, expected one"),
        ([1.5], "whole number"),
        ([37], "0 to 36"),
        ([-1], "0 to 36"),
    ],
)
def test_bad_token_ids_are_named(ids, message):
    with pytest.raises(InputError, match=message):
        random_llama().logits(ids)
