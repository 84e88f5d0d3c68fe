"""A step's gradients: every example forward, its loss, and back."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from minibule.core.counts import (
    Example,
    RowCounts,
    path_log_probs,
    path_log_probs_backward,
    row_count,
)
from minibule.core.forest import Batch, pack
from minibule.core.head import (
    add_metrics,
    entry_log_probs,
    entry_log_probs_backward,
    head_loss,
    summed,
)
from minibule.core.llama import Llama, backward, forward_base, forward_batch
from minibule.core.loss import AnswerLoss, Answers, LinearLoss, Loss, RowLoss, SeparableLoss
from minibule.machine.matrix import Array, Matrix
from minibule.machine.ranks import world
from minibule.machine.threads import side_by_side, threads

# The base's final hidden states (R, D) of a batch of the examples, where they are known already.
Known = Callable[[Batch, Sequence[Example]], Array]

Sums = dict[str, float]
Share = tuple[dict[str, Array], Sums, int]  # of a pass or a step: gradients, metrics, tokens


def gradients(
    model: Llama,
    examples: Sequence[Example],
    loss: Loss,
    pass_tokens: int,
    recompute: bool = False,
    known: Known | None = None,
) -> Share:
    """Gradients of the mean loss over all rows or answers, the metrics, and the tokens.

    Returns (gradients, metrics, tokens): an array of the parameter's shape for each of the
    adapter's; numbers by name, "loss" in nats; how many tokens were computed. Every pass divides by
    the rows or answers of the whole step, so however the step is cut into passes of at most
    `pass_tokens` tokens, their sum is the same. `recompute` is `llama.forward`'s. `known`: what the
    base says of the examples; None: it is asked here.
    """
    if isinstance(loss, RowLoss):
        return _row_gradients(model, examples, loss, pass_tokens, recompute, known)
    return _answer_gradients(model, examples, loss, pass_tokens, recompute, known)


def _row_gradients(
    model: Llama,
    examples: Sequence[Example],
    loss: RowLoss,
    pass_tokens: int,
    recompute: bool,
    known: Known | None,
) -> Share:
    count = row_count(examples)

    def one_pass(batch: Batch) -> Share:
        """Forward, loss and backward of one packed stream."""
        hidden, cache = forward_batch(model, batch, keep=True, recompute=recompute)
        ref_hidden = None
        if loss.asks_base:
            ref_hidden = known(batch, examples) if known else forward_base(cache)
        metrics, dhidden = head_loss(
            hidden, model.head, batch.rows, loss, ref_hidden, total_rows=count
        )
        return backward(dhidden, cache), metrics, len(batch.ids)

    batches = pack(examples, loss.counts, pass_tokens, threads(), world())
    return _sum(model, side_by_side(one_pass, batches))


def _answer_gradients(
    model: Llama,
    examples: Sequence[Example],
    loss: AnswerLoss,
    pass_tokens: int,
    recompute: bool,
    known: Known | None,
) -> Share:
    """As `_row_gradients`; a row's dz is the sum of c (onehot - p) over its tokens, c = dL/dlog p.

    c is that of all answers that go on with the token there.
    """
    batches = list(pack(examples, "prefix", pass_tokens, threads(), world()))
    answers = answers_of(examples)
    count, value, c, own = row_count(examples), 0.0, np.empty(0), None
    if isinstance(loss, LinearLoss):
        c = loss.weights(answers)
    elif isinstance(loss, SeparableLoss):
        own = loss
    else:  # answers in other passes count, so forward comes first
        mismatched = _mismatched(model, examples, loss, pass_tokens)
        logp = _log_probs(model, batches, examples, loss.needs_reference, known)
        value, c = loss.answers(answers, logp, mismatched)
    # With `c` given, the base has been asked before: here only the anchor asks it.
    in_passes = loss.asks_base if own else loss.kl > 0

    def one_pass(batch: Batch) -> Share:
        """Forward, and back from log p of the answers that this stream completes."""
        hidden, cache = forward_batch(model, batch, keep=True, recompute=recompute)
        ref_hidden = None
        if in_passes:
            ref_hidden = known(batch, examples) if known else forward_base(cache)
        places = places_of(batch, examples)
        if own:
            base = ref_hidden if own.needs_reference else None
            x = completed_log_probs(batch, hidden, model.head, base)
            share, dlogp = own.part(answers, places, x)
        else:
            share, dlogp = 0.0, c[places]
        dpath = np.zeros(len(batch.rows.entry_id))
        np.add.at(dpath, batch.answer_entry, dlogp)
        dentry = path_log_probs_backward(dpath, batch.rows)
        sums, dhidden, entries = entry_log_probs_backward(
            dentry, hidden, model.head, batch.rows, loss.kl, ref_hidden, total_rows=count
        )
        logp = _completed(batch, entries)
        if isinstance(loss, LinearLoss):
            share = float(dlogp @ logp)
        add_metrics(sums, {"loss": share})
        add_metrics(sums, _answer_metrics(answers, places, logp))
        add_metrics(sums, _rejected_mass(batch.rows, entries, answers))
        return backward(dhidden, cache), sums, len(batch.ids)

    grads, metrics, tokens = _sum(model, side_by_side(one_pass, batches))
    add_metrics(metrics, {"loss": value})
    return grads, metrics, tokens


def _sum(model: Llama, passes: Iterable[Share]) -> Share:
    """The shares of a step's passes, added up: first those of this rank, then of all ranks."""
    passes = iter(passes)
    grads, metrics, tokens = next(passes, None) or _nothing(model)
    for more_grads, more_metrics, more_tokens in passes:
        for name, grad in more_grads.items():
            grads[name] += grad
        add_metrics(metrics, more_metrics)
        tokens += more_tokens
    world().all_reduce(grads)
    shares = world().all_gather((metrics, tokens))
    return grads, summed(metrics for metrics, _ in shares), sum(tokens for _, tokens in shares)


def _nothing(model: Llama) -> Share:
    """The share of a rank that has no pass."""
    params = model.adapter.params if model.adapter else {}
    return {name: np.zeros_like(p) for name, p in params.items()}, {}, 0


# -- answers ---------------------------------------------------------------------------------------


def answer_log_probs(
    model: Llama,
    batches: Sequence[Batch],
    examples: Sequence[Example],
    known: Known | None = None,
) -> Array:
    """log p of every answer's tokens together, (A,) float64; the examples' answers in order.

    batches: the examples as `pack` with counts "prefix" makes them, of each rank its own.
    known: what the model says of the examples, where that has been computed.
    """

    def one_pass(batch: Batch) -> Array:
        hidden = known(batch, examples) if known else forward_batch(model, batch)[0]
        return completed_log_probs(batch, hidden, model.head)

    logp = np.zeros(sum(len(example.answers) for example in examples))
    for batch, found in zip(batches, side_by_side(one_pass, batches), strict=True):
        logp[places_of(batch, examples)] = found
    everywhere: Array = np.sum(world().all_gather(logp), axis=0)
    return everywhere


def completed_log_probs(
    batch: Batch, hidden: Array, head: Matrix, ref_hidden: Array | None = None
) -> Array:
    """log p of each answer that a stream completes, from its rows' hidden states (R, D).

    Less log p_ref, where the base's are given.
    """
    logp = _completed(batch, entry_log_probs(hidden, head, batch.rows))
    if ref_hidden is not None:
        logp -= _completed(batch, entry_log_probs(ref_hidden, head, batch.rows))
    return logp


def _completed(batch: Batch, logp: Array) -> Array:
    """From log p of each entry (E,) to log p of each answer that the stream completes."""
    path: Array = path_log_probs(batch.rows, logp)[1][batch.answer_entry]
    return path


def places_of(batch: Batch, examples: Sequence[Example]) -> Array:
    """Where the answers that a stream completes stand among all of the examples; int."""
    sizes = (len(example.answers) for example in examples)
    first = np.array([0, *itertools.accumulate(sizes)])
    places: Array = first[batch.answer[:, 0]] + batch.answer[:, 1]
    return places


def _log_probs(
    model: Llama,
    batches: Sequence[Batch],
    examples: Sequence[Example],
    relative: bool,
    known: Known | None = None,
) -> Array:
    """`answer_log_probs`, less the base's where they are to be relative."""
    logp = answer_log_probs(model, batches, examples)
    if relative:
        logp -= answer_log_probs(model.base, batches, examples, known)
    return logp


def _mismatched(
    model: Llama, examples: Sequence[Example], loss: AnswerLoss, pass_tokens: int
) -> float | None:
    """Mean of log p - log p_ref over prompts with the answers of the record before them.

    A record before of the same prompt is none, and what exceeds the model's context is cut off.
    """
    if not loss.needs_mismatched:
        return None
    context = model.config.max_position_embeddings
    rotated = [
        before._replace(
            prompt=example.prompt,
            answers=tuple(answer[: context - len(example.prompt)] for answer in before.answers),
        )
        for example, before in zip(examples, [examples[-1], *examples[:-1]], strict=True)
        if not np.array_equal(example.prompt, before.prompt)
    ]
    if not rotated:
        return 0.0
    batches = list(pack(rotated, "prefix", pass_tokens, threads(), world()))
    logp = _log_probs(model, batches, rotated, loss.needs_reference)
    return float(np.average(logp, weights=answers_of(rotated).times))


def answers_of(examples: Sequence[Example]) -> Answers:
    """All answers of the examples, in their order."""
    sizes = [len(example.answers) for example in examples]
    return Answers(
        np.array([len(answer) for example in examples for answer in example.answers]),
        np.array([count for example in examples for count in example.counts], np.float64),
        np.concatenate([example.rewards or [0.0] * len(example.answers) for example in examples]),
        np.repeat(np.arange(len(examples)), sizes),
    )


def _answer_metrics(answers: Answers, places: Array, logp: Array) -> Sums:
    """Some answers' share of the means of log p, over the accepted ones and over the rejected."""
    sums = {}
    for name, sort in (("accepted", answers.accepted), ("rejected", ~answers.accepted)):
        weight = np.where(sort, answers.times, 0)
        if weight.any():
            sums[f"{name}_logp"] = float(weight[places] @ logp / weight.sum())
    return sums


def _rejected_mass(rows: RowCounts, logp: Array, answers: Answers) -> Sums:
    """These rows' share of the mean p of a rejected token; logp (E,). Nothing if there is none."""
    count = float(np.where(answers.accepted, 0, answers.times) @ answers.length)
    share = (rows.weight / rows.alike)[rows.entry_row] * rows.entry_count
    return {"rejected_mass": float(share @ np.exp(logp)) / count} if count else {}
