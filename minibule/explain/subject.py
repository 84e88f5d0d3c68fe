"""Which row is explained, the stream it lies in, and its loss on the way through the model.

The passes are those of training, with a weight of 1 for this row and 0 for all others.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minibule.core.counts import (
    Counts,
    Example,
    RowCounts,
    expected_attempts,
    path_log_probs_backward,
    row_count,
)
from minibule.core.forest import Batch, pack
from minibule.core.head import head_loss
from minibule.core.llama import ForwardCache, Llama, forward_batch
from minibule.core.lora import Adapter
from minibule.core.loss import RowLoss, SeparableLoss, Values
from minibule.core.softmax import log_probs_backward, per_row, split_softmax
from minibule.core.step import answer_log_probs, answers_of
from minibule.machine.matrix import Array


class Place(NamedTuple):
    """Which row: its record in the file, the rejected answer it lies on, the token it predicts.

    All three count from 1.
    """

    record: int = 1
    answer: int = 1
    position: int = 1


class MeanLoss(NamedTuple):
    """The mean of a loss over some rows of a packed stream; a row of weight 0 does not count."""

    batch: Batch
    rows: RowCounts
    loss: RowLoss


class Pushed(RowLoss):
    """A loss of whole answers as a row sees it: sum_i slope(i) log p(i), and its anchor.

    The slopes are those of the answers through the row, and stand still.
    """

    needs_reference = False

    def __init__(self, loss: SeparableLoss) -> None:
        self.of, self.kl = loss, loss.kl

    @property
    def counts(self) -> Counts:
        return self.of.counts

    def of_rows(self, z: Array, z_ref: Array | None, rows: RowCounts) -> tuple[Values, Array]:
        p, slope = split_softmax(z, rows), np.asarray(rows.slope)
        loss = per_row(slope * p.logp, rows.entry_row, len(z))
        return {"loss": loss}, log_probs_backward(slope, p, rows)


class WorkedAnswers(NamedTuple):
    """The answers of a record under a loss of answers; (A,) each.

    x          log p, less log p_ref for a loss that needs the reference
    f, df      of the loss, at x
    slope      of the mean loss over the record's rows, times these rows: by log p of each answer
    """

    x: Array
    f: Array
    df: Array
    slope: Array


def worked(loss: SeparableLoss, example: Example, x: Array) -> WorkedAnswers:
    """A step of this record alone; x as in `WorkedAnswers`."""
    answers = answers_of([example])
    f, df = loss.f(x, answers.length)
    return WorkedAnswers(x, f, df, row_count([example]) * loss.weights(answers) * df)


def worked_by(model: Llama, loss: SeparableLoss, example: Example) -> WorkedAnswers:
    """The same, of what a model says."""
    size = len(example.prompt) + sum(map(len, example.answers))
    batches = list(pack([example], loss.counts, pass_tokens=size))
    x = answer_log_probs(model, batches, [example])
    if loss.needs_reference:
        x -= answer_log_probs(model.base, batches, [example])
    return worked(loss, example, x)


class Subject(NamedTuple):
    """One record packed as training packs it, and one row of it.

    batch      the record up to the row in one stream: what follows the row cannot change it
    row        which of the batch's rows it is
    answers    of a loss of whole answers, whose `loss` here is `Pushed`
    """

    example: Example
    batch: Batch
    row: int
    place: Place
    loss: RowLoss
    answers: WorkedAnswers | None = None

    @property
    def counts(self) -> RowCounts:
        """The row alone."""
        return self.batch.rows.part(slice(self.row, self.row + 1))

    @property
    def alone(self) -> MeanLoss:
        """The row's loss: of all rows of the batch none but this one counts."""
        weight = np.zeros(len(self.batch.rows_at))
        weight[self.row] = 1
        return MeanLoss(self.batch, self.batch.rows._replace(weight=weight), self.loss)

    @property
    def around(self) -> MeanLoss:
        """The loss of all rows up to this one's place and one token on, where answers branch off.

        Training adds up gradients there that come back from several branches.
        """
        batch = _packed(self.example, self.place.position + 1, self.loss, self.answers)
        return MeanLoss(batch, batch.rows, self.loss)


def subject_of(
    example: Example, place: Place, loss: RowLoss, answers: WorkedAnswers | None = None
) -> Subject:
    """Pack the example up to the row at `place`."""
    batch = _packed(example, place.position, loss, answers)
    row = batch.rows.entry_row[batch.answer_entry[place.answer - 1]]  # its last token's
    return Subject(example, batch, int(row), place, loss, answers)


def subject_under(
    loss: RowLoss | SeparableLoss,
    example: Example,
    place: Place,
    work: Callable[[SeparableLoss], WorkedAnswers],
) -> Subject:
    """`subject_of`, and for a loss of whole answers with these as `work` gives them."""
    if isinstance(loss, RowLoss):
        return subject_of(example, place, loss)
    return subject_of(example, place, Pushed(loss), work(loss))


def _packed(example: Example, length: int, loss: RowLoss, whole: WorkedAnswers | None) -> Batch:
    """The example in one stream, its answers cut to `length` tokens; whole: as they were before."""
    answers = tuple(answer[:length] for answer in example.answers)
    size = len(example.prompt) + sum(map(len, answers))
    (batch,) = pack([example._replace(answers=answers)], loss.counts, pass_tokens=size)
    if whole is None:
        return batch
    slope = np.zeros(len(batch.rows.entry_id))
    np.add.at(slope, batch.answer_entry, whole.slope)
    slope = path_log_probs_backward(slope, batch.rows)
    slope /= batch.rows.weight[batch.rows.entry_row]  # which the mean over rows multiplies with
    return batch._replace(rows=batch.rows._replace(slope=slope))


def row_counts(subject: Subject, ref_logp: Array) -> RowCounts:
    """The row alone, with its attempts where the loss needs them; ref_logp (E,) of the batch."""
    if not subject.loss.needs_attempts:
        return subject.counts
    attempts = expected_attempts(subject.batch.rows, ref_logp)[[subject.row]]
    return subject.counts._replace(attempts=attempts)


class RowPass(NamedTuple):
    """What a forward pass and a loss leave for `backward`."""

    hidden: Array
    cache: ForwardCache
    loss: float
    dhidden: Array


def one_pass(
    model: Llama, adapter: Adapter, mean: MeanLoss, ref_hidden: Array, recompute: bool = False
) -> RowPass:
    """Forward and loss of a step that consists of these rows."""
    model = dataclasses.replace(model, adapter=adapter)
    hidden, cache = forward_batch(model, mean.batch, keep=True, recompute=recompute)
    total = mean.rows.weight.sum()
    metrics, dhidden = head_loss(
        hidden, model.head, mean.rows, mean.loss, ref_hidden, total_rows=total
    )
    return RowPass(hidden, cache, metrics["loss"], dhidden)
