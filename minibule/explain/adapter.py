"""One row of a record on its way through the model: into a LoRA pair, and what one step does.

The passes are those of training, with a weight of 1 for this row and 0 for all others. The check of
the adapter's gradient runs the same functions in float64.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minibule.core.complement import log_softmax
from minibule.core.forest import Batch, Example, Rows, pack
from minibule.core.head import expected_attempts, head_loss
from minibule.core.llama import ForwardCache, Llama, backward, forward_batch
from minibule.core.lora import Adapter, lora_name
from minibule.core.objective import Objective
from minibule.core.optim import AdamW, clip_gradients
from minibule.explain.row import (
    Row,
    central_difference,
    decimals,
    decimals_for,
    heading,
    prose,
    table,
    verdict,
)
from minibule.machine.matrix import Array
from minibule.runs.settings import TrainConfig


class Place(NamedTuple):
    """Which row: its record in the file, the rejected answer it lies on, the token it predicts.

    All three count from 1.
    """

    record: int = 1
    answer: int = 1
    position: int = 1


class Subject(NamedTuple):
    """One record packed as training packs it, and one row of it.

    batch    the record up to the row in one stream: what follows the row cannot change it
    row      which of the batch's rows it is
    """

    example: Example
    batch: Batch
    row: int
    place: Place
    objective: Objective

    @property
    def counts(self) -> Rows:
        """The row alone."""
        return self.batch.rows.part(slice(self.row, self.row + 1))

    @property
    def alone(self) -> Rows:
        """All rows of the batch, of which none but this one counts."""
        weight = np.zeros(len(self.batch.stream))
        weight[self.row] = 1
        return self.batch.rows._replace(weight=weight)


def subject_of(example: Example, place: Place, objective: Objective) -> Subject:
    """Pack the example up to the row at `place`."""
    answers = tuple(answer[: place.position] for answer in example.answers)
    size = len(example.prompt) + sum(map(len, answers))
    (batch,) = pack([example._replace(answers=answers)], objective.counts, pass_tokens=size)
    row = batch.rows.entry_row[batch.answer_entry[place.answer - 1]]  # its last token's
    return Subject(example, batch, int(row), place, objective)


def row_attempts(subject: Subject, ref_logp: Array) -> Array | None:
    """How many of the sampled answers are expected to have come by the row, (1,), for `rate`."""
    if subject.objective.prior != "rate":
        return None
    return expected_attempts(subject.batch.rows, ref_logp)[[subject.row]]


class Pass(NamedTuple):
    """What a forward pass and the loss of the row leave for `backward`."""

    hidden: Array
    cache: ForwardCache
    loss: float
    dhidden: Array


def one_pass(model: Llama, adapter: Adapter, subject: Subject, ref_hidden: Array) -> Pass:
    """Forward and loss of a step that consists of this row."""
    hidden, cache = forward_batch(model, subject.batch, adapter, keep=True)
    objective = subject.objective
    metrics, dhidden = head_loss(hidden, model.head, subject.alone, objective, ref_hidden, count=1)
    return Pass(hidden, cache, metrics["loss"], dhidden)


# -- into the adapter ------------------------------------------------------------------------------


class _Float64(dict[str, Array]):
    """Weights widened one by one as they are asked for: twice the model need not fit in memory."""

    def __getitem__(self, name: str) -> Array:
        return super().__getitem__(name).astype(np.float64)


class AdapterCheck:
    """The gradient of one LoRA pair against central differences, the whole model in float64."""

    def __init__(self, model: Llama, subject: Subject, module: str) -> None:
        self.model, self.subject, self.module = model, subject, module
        self.wide = Llama(model.config, _Float64(model.weights))
        self.ref_hidden, _ = forward_batch(self.wide, subject.batch, None)

    def lines(
        self, adapter: Adapter, matrices: str, above: Sequence[Sequence[str]] = ()
    ) -> Iterator[str]:
        """A table of dB and dA, as `matrices` says, below the rows `above`, and the verdict."""
        # Backward goes down to the lowest module of the config, here the one that is looked at.
        config = dataclasses.replace(adapter.config, modules=(self.module,))
        wide = Adapter(config, {n: p.astype(np.float64) for n, p in adapter.params.items()})

        def again() -> Pass:
            return one_pass(self.wide, wide, self.subject, self.ref_hidden)

        now = again()
        grads = backward(now.dhidden, now.cache)
        body, pairs = list(above), []
        for matrix in matrices:
            name = lora_name(self.module, matrix)
            grad = grads[name]
            index = tuple(int(i) for i in np.unravel_index(np.abs(grad).argmax(), grad.shape))
            pair = (
                central_difference(lambda: again().loss, wide.params[name], index),
                float(grad[index]),
            )
            show = decimals_for(np.array(pair), 6)
            norm = f"{np.linalg.norm(grad):.3g}"
            place = f"[{index[0]}, {index[1]}]" if grad.any() else ""
            body.append([f"d{matrix}", str(grad.shape), norm, place, show(pair[1]), show(pair[0])])
            pairs.append(pair)
        numeric, gradient = np.array(pairs).T
        yield from table(["", "shape", "norm", "largest at", "there", "numeric"], body)
        z = now.hidden[self.subject.row] @ self.wide.head.T
        yield from prose(verdict(numeric, gradient, z))


def explain_lora(
    adapter: Adapter, module: str, row: Row, dh: Array, check: AdapterCheck
) -> Iterator[str]:
    """How the gradient comes to one LoRA pair, and what it is there."""
    yield from heading(6, "On into LoRA")
    yield from prose(
        "The head W takes the gradient to the model's last hidden state: dh = dz W. From there it "
        "runs down through the layers to the output y of every adapted projection, as dy. The "
        "uppermost is"
    )
    yield f"     {module}"
    yield f"     y  = x W^T + s (x A^T) B^T          s = {adapter.config.scaling(module):g}"
    yield "     dB = s dy^T (x A^T)          dA = s (dy B)^T x          no dW: W is frozen"
    yield from prose(
        "Where each is largest, the loss is asked again: that entry of B or A moved up and down, "
        "the whole model run in float64."
    )
    yield from check.lines(adapter, "BA", [_sizes("dz", row.loss(row.z)[1]), _sizes("dh", dh)])
    if not np.any(adapter.params[lora_name(module, "B")]):
        yield from prose(
            "A fresh adapter has B = 0, so that it changes nothing yet. Then dA = s (dy B)^T x is "
            "0 too: the first step moves B alone."
        )


def _sizes(name: str, x: Array) -> list[str]:
    return [name, f"({len(x)},)", f"{np.linalg.norm(x):.3g}", "", "", ""]


# -- one step --------------------------------------------------------------------------------------


def one_step(adapter: Adapter, grads: Mapping[str, Array], config: TrainConfig) -> float:
    """The first step of a training, in place; the change of the loss that `grads` predict for it.

    That is sum_i dL/dtheta_i (theta_i after - theta_i before), the loss being straight. The step
    itself is made of clipped gradients, which are no longer those of the loss: a copy is clipped.
    """
    before = {n: p.copy() for n, p in adapter.params.items()}
    clipped = {n: g.copy() for n, g in grads.items()}
    clip_gradients(clipped, config.max_grad_norm)
    AdamW(adapter.params, config.weight_decay).step(clipped, config.lr)
    return sum(float(np.vdot(grads[n], p - before[n])) for n, p in adapter.params.items())


def explain_step(
    config: TrainConfig, row: Row, z: Array, losses: tuple[float, float], predicted: float
) -> Iterator[str]:
    """What the step did: p of the tokens that matter, and the loss, before and after."""
    before, after = np.exp(log_softmax(row.z)), np.exp(log_softmax(z))
    yield from heading(7, "One step")
    yield from prose(
        f"One step of AdamW on this row alone, all pairs, learning rate {config.lr:g}. A first "
        "step moves every entry by about the learning rate, whatever the size of its gradient."
    )
    share = decimals(6)
    rest = np.ones(len(before), bool)
    shown = row.shown(before, before)
    rest[shown] = False
    body = [
        [
            row.name(i),
            decimals(0)(row.v[i]),
            *map(share, (before[i], after[i], after[i] - before[i])),
        ]
        for i in shown
    ]
    was, now = before[rest].sum(), after[rest].sum()
    body.append([f"all others ({rest.sum():,})", "0", *map(share, (was, now, now - was))])
    yield from table(["token", "v", "p before", "p after", "change"], body)
    show = decimals_for(np.array(losses), 6)
    yield from prose(
        f"The row's loss: {show(losses[0])} -> {show(losses[1])}, a change of "
        f"{show(losses[1] - losses[0])}. The gradient times the change of every entry predicted "
        f"{show(predicted)}; the rest is curvature."
    )
