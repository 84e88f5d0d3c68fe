"""Which row is explained, the stream it lies in, and its loss on the way through the model.

The passes are those of training, with a weight of 1 for this row and 0 for all others.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from minibule.core.counts import Example, RowCounts, expected_attempts
from minibule.core.forest import Batch, pack
from minibule.core.head import head_loss
from minibule.core.llama import ForwardCache, Llama, forward_batch
from minibule.core.lora import Adapter
from minibule.core.loss import RowLoss
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


class Subject(NamedTuple):
    """One record packed as training packs it, and one row of it.

    batch    the record up to the row in one stream: what follows the row cannot change it
    row      which of the batch's rows it is
    """

    example: Example
    batch: Batch
    row: int
    place: Place
    loss: RowLoss

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
        batch = _packed(self.example, self.place.position + 1, self.loss)
        return MeanLoss(batch, batch.rows, self.loss)


def subject_of(example: Example, place: Place, loss: RowLoss) -> Subject:
    """Pack the example up to the row at `place`."""
    batch = _packed(example, place.position, loss)
    row = batch.rows.entry_row[batch.answer_entry[place.answer - 1]]  # its last token's
    return Subject(example, batch, int(row), place, loss)


def _packed(example: Example, length: int, loss: RowLoss) -> Batch:
    """The example in one stream, its answers cut to `length` tokens."""
    answers = tuple(answer[:length] for answer in example.answers)
    size = len(example.prompt) + sum(map(len, answers))
    (batch,) = pack([example._replace(answers=answers)], loss.counts, pass_tokens=size)
    return batch


def row_counts(subject: Subject, ref_logp: Array) -> RowCounts:
    """The row alone, with its attempts where the loss needs them; ref_logp (E,) of the batch."""
    if not subject.loss.needs_attempts:
        return subject.counts
    attempts = expected_attempts(subject.batch.rows, ref_logp)[[subject.row]]
    return subject.counts._replace(attempts=attempts)


class Pass(NamedTuple):
    """What a forward pass and a loss leave for `backward`."""

    hidden: Array
    cache: ForwardCache
    loss: float
    dhidden: Array


def one_pass(
    model: Llama, adapter: Adapter, mean: MeanLoss, ref_hidden: Array, recompute: bool = False
) -> Pass:
    """Forward and loss of a step that consists of these rows."""
    model = dataclasses.replace(model, adapter=adapter)
    hidden, cache = forward_batch(model, mean.batch, keep=True, recompute=recompute)
    total = mean.rows.weight.sum()
    metrics, dhidden = head_loss(hidden, model.head, mean.rows, mean.loss, ref_hidden, count=total)
    return Pass(hidden, cache, metrics["loss"], dhidden)
