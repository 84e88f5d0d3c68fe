"""A step's gradients: every example forward, its loss, and back."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from minibule.core.counts import (
    Example,
    path_log_probs,
    path_log_probs_backward,
    total_weight,
)
from minibule.core.forest import Batch, pack
from minibule.core.head import (
    add_metrics,
    entry_log_probs,
    entry_log_probs_backward,
    head_loss,
)
from minibule.core.llama import Llama, backward, forward_batch
from minibule.core.loss import AnswerLoss, Answers, Loss, RowLoss
from minibule.machine.matrix import Array
from minibule.machine.threads import side_by_side, threads

Sums = dict[str, float]
Share = tuple[dict[str, Array], Sums, int]  # of a pass or a step: gradients, metrics, tokens


def gradients(
    model: Llama,
    examples: Sequence[Example],
    loss: Loss,
    pass_tokens: int,
    recompute: bool = False,
) -> Share:
    """Gradients of the mean loss over all rows or answers, the metrics, and the tokens.

    Every pass divides by the rows or answers of the whole step, so however the step is cut into
    passes, their sum is the same. `recompute` is `llama.forward`'s.
    """
    if isinstance(loss, RowLoss):
        return _row_gradients(model, examples, loss, pass_tokens, recompute)
    return _answer_gradients(model, examples, loss, pass_tokens, recompute)


def _row_gradients(
    model: Llama, examples: Sequence[Example], loss: RowLoss, pass_tokens: int, recompute: bool
) -> Share:
    count = total_weight(examples)
    asks_base = loss.needs_reference or loss.kl > 0

    def one_pass(batch: Batch) -> Share:
        """Forward, loss and backward of one packed stream."""
        ref_hidden = forward_batch(model.base, batch)[0] if asks_base else None
        hidden, cache = forward_batch(model, batch, keep=True, recompute=recompute)
        metrics, dhidden = head_loss(hidden, model.head, batch.rows, loss, ref_hidden, count=count)
        return backward(dhidden, cache), metrics, len(batch.ids)

    return _sum(side_by_side(one_pass, pack(examples, loss.counts, pass_tokens, threads())))


def _answer_gradients(
    model: Llama, examples: Sequence[Example], loss: AnswerLoss, pass_tokens: int, recompute: bool
) -> Share:
    """Forward twice: what one answer weighs may depend on log p of others in other passes."""
    batches = list(pack(examples, "prefix", pass_tokens, threads()))
    logp = answer_log_probs(model, batches, examples)
    ref_logp = answer_log_probs(model.base, batches, examples) if loss.needs_reference else None
    answers = _answers(examples, logp, ref_logp)
    values, dlogp = loss.answers(answers)
    metrics = {name: float(np.mean(value)) for name, value in values.items()}
    dlogp = dlogp / len(dlogp)
    first, count = _first_answers(examples), total_weight(examples)

    def one_pass(batch: Batch) -> Share:
        """Forward once more, and back from log p of the answers that this stream completes."""
        hidden, cache = forward_batch(model, batch, keep=True, recompute=recompute)
        ref_hidden = forward_batch(model.base, batch)[0] if loss.kl else None
        dpath = np.zeros(len(batch.rows.entry_id))
        np.add.at(dpath, batch.answer_entry, dlogp[_places(batch, first)])
        dentry = path_log_probs_backward(dpath, batch.rows)
        sums, dhidden = entry_log_probs_backward(
            dentry, hidden, model.head, batch.rows, loss.kl, ref_hidden, count=count
        )
        return backward(dhidden, cache), sums, len(batch.ids)

    grads, sums, tokens = _sum(side_by_side(one_pass, batches))
    add_metrics(metrics, sums)
    return grads, metrics, tokens


def _sum(passes: Iterable[Share]) -> Share:
    """The shares of a step's passes, added up."""
    passes = iter(passes)
    grads, metrics, tokens = next(passes)
    for more_grads, more_metrics, more_tokens in passes:
        for name, grad in more_grads.items():
            grads[name] += grad
        add_metrics(metrics, more_metrics)
        tokens += more_tokens
    return grads, metrics, tokens


# -- answers ---------------------------------------------------------------------------------------


def answer_log_probs(model: Llama, batches: Sequence[Batch], examples: Sequence[Example]) -> Array:
    """log p of every answer's tokens together, (A,) float64; the examples' answers in order.

    batches: the examples as `pack` with counts "prefix" makes them.
    """

    def one_pass(batch: Batch) -> Array:
        hidden, _ = forward_batch(model, batch)
        _, path = path_log_probs(batch.rows, entry_log_probs(hidden, model.head, batch.rows))
        return path[batch.answer_entry]

    first = _first_answers(examples)
    logp = np.empty(sum(len(example.answers) for example in examples))
    for batch, found in zip(batches, side_by_side(one_pass, batches), strict=True):
        logp[_places(batch, first)] = found
    return logp


def _first_answers(examples: Sequence[Example]) -> Array:
    """(examples,) int: where each example's answers begin among all."""
    sizes = (len(example.answers) for example in examples)
    return np.array([0, *itertools.accumulate(sizes)])[:-1]


def _places(batch: Batch, first: Array) -> Array:
    """Where the answers that a stream completes stand among all of the step."""
    places: Array = first[batch.answer[:, 0]] + batch.answer[:, 1]
    return places


def _answers(examples: Sequence[Example], logp: Array, ref_logp: Array | None) -> Answers:
    sizes = [len(example.answers) for example in examples]
    return Answers(
        logp,
        ref_logp,
        np.array([len(answer) for example in examples for answer in example.answers]),
        np.array([count for example in examples for count in example.counts], np.float64),
        np.repeat(np.arange(len(examples)), sizes),
    )
