"""What a loss is: what it needs, and one method that gives values and gradients; in two shapes.

A `RowLoss` looks at one position at a time: the logits there, those of the frozen base, and what
was rejected. An `AnswerLoss` looks at whole answers, accepted ones among them where it asks for
these: log p of each, and which of them belong together; all its gradients have the form
c (onehot - p), with one c = dL/dlog p for an answer. In a `SeparableLoss` an answer's share depends
on no other answer, in a `LinearLoss` its c not even on p.

A loss of any shape may be anchored: `kl` times KL(p || p_ref) of every row is added to it.

`head` and `step` run both. `methods/table.py` lists them by name.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from minibule.core.counts import Counts, RowCounts
from minibule.core.objective import Prior
from minibule.machine.matrix import Array

# Which answers of a record a loss learns from: of one sort alone, whatever there is, or both sorts:
# a record that lacks either says nothing to it.
Uses = Literal["rejected", "accepted", "any", "both"]

Values = dict[str, Array]  # "loss" and other metrics, a number for each row or answer


class _Loss(ABC):
    """kl: how strongly p is held to p_ref; 0: not at all.

    graded: whether it goes by how good an answer is, and not only by whether it was accepted.
    end_token: whether the end of the turn is trained as the last token of an answer that came to
    its own end. A loss of rejected answers never trains it: that would teach the model not to stop.
    """

    kl: float = 0.0
    uses: ClassVar[Uses] = "rejected"
    graded: ClassVar[bool] = False
    end_token: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether its method is given what the base model says."""

    @property
    def asks_base(self) -> bool:
        """Whether its gradients need what the base model says: its method, or its anchor."""
        return self.needs_reference or self.kl > 0

    @property
    def prior(self) -> Prior | None:
        """What its target distribution P is built on; None: it has no target."""
        return None

    def __str__(self) -> str:
        """The numbers of a loss that is a dataclass, as "beta 1, kl 0.3"."""
        return ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in vars(self).items()
        )


class RowLoss(_Loss):
    """A loss of a row."""

    @property
    @abstractmethod
    def counts(self) -> Counts:
        """Which answers a row counts: those at its position, or those with its prefix."""

    @property
    def needs_attempts(self) -> bool:
        """Whether the counts that `rows` is given have `attempts`."""
        return False

    @abstractmethod
    def of_rows(self, z: Array, z_ref: Array | None, rows: RowCounts) -> tuple[Values, Array]:
        """Values (n,) and the gradient dz (n, V) of each row's loss.

        z, z_ref: (n, V) logits of the model and of its base, which may be overwritten.
        """


class Answers(NamedTuple):
    """The A answers of a step.

    length (A,) int                its trained tokens
    times (A,) float64             how often it was given
    reward (A,) float64            how good it is: above 0 where it was accepted
    record (A,) int                which of the step's records it belongs to, in order
    """

    length: Array
    times: Array
    reward: Array
    record: Array

    @property
    def accepted(self) -> Array:
        """(A,) bool."""
        accepted: Array = self.reward > 0
        return accepted


class AnswerLoss(_Loss):
    """A loss of answers."""

    @property
    def counts(self) -> Counts:
        """How the forest counts: here only log p along each answer is asked for."""
        return "prefix"

    @property
    def needs_mismatched(self) -> bool:
        """Whether `answers` is given `mismatched`."""
        return False

    @abstractmethod
    def answers(
        self, answers: Answers, logp: Array, mismatched: float | None = None
    ) -> tuple[float, Array]:
        """The step's loss, and dlogp (A,), its gradient by log p of each answer.

        logp (A,) float64: log p of each answer's tokens together, less log p_ref for a loss that
        needs the reference. mismatched: the mean of the same over the answers of the record before,
        put to each record's prompt where that is another; 0 in a step of one prompt.
        """


class SeparableLoss(AnswerLoss):
    """sum_k w_k f(x_k), with x_k log p of an answer: a single forward pass gives its gradients.

    formula, share: f and w as they are written, of an answer y; w times the rows of a step.
    """

    formula: ClassVar[str] = "log p(y)"
    share: ClassVar[str] = "w(y)"

    @abstractmethod
    def weights(self, answers: Answers) -> Array:
        """w (A,), known before the pass."""

    @abstractmethod
    def f(self, logp: Array, length: Array) -> tuple[Array, Array]:
        """f and its derivative by logp, (n,) each, of n answers with this logp and length (n,)."""

    def part(self, answers: Answers, places: Array, logp: Array) -> tuple[float, Array]:
        """What the answers at `places` add to the loss, and its gradient by their logp, (n,)."""
        w, (f, df) = self.weights(answers)[places], self.f(logp, answers.length[places])
        return float(w @ f), w * df

    def answers(
        self, answers: Answers, logp: Array, mismatched: float | None = None
    ) -> tuple[float, Array]:
        return self.part(answers, np.arange(len(logp)), logp)


class LinearLoss(SeparableLoss):
    """sum_k c_k log p(y_k): the weights are the coefficients, below 0 where log p is to rise."""

    needs_reference = False

    def f(self, logp: Array, length: Array) -> tuple[Array, Array]:
        return logp, np.ones_like(logp)


Loss = RowLoss | AnswerLoss
