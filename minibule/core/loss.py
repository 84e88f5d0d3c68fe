"""What a loss is: what it needs, and one method that gives values and gradients; in two shapes.

A `RowLoss` looks at one position at a time: the logits there, those of the frozen base, and what
was rejected. An `AnswerLoss` looks at whole answers: log p of each, log p_ref, and which of them
belong together; all its gradients have the form c (p - onehot), with one c for an answer.

A loss of either shape may be anchored: `kl` times KL(p || p_ref) of every row is added to it.

`head` and `step` run both. `methods/table.py` lists them by name.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from minibule.core.counts import Counts, RowCounts
from minibule.machine.matrix import Array

Values = dict[str, Array]  # "loss" and other metrics, a number for each row or answer


class _Loss(ABC):
    """kl: how strongly p is held to p_ref; 0: not at all."""

    kl: float = 0.0

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether its method is given what the base model says."""

    def __str__(self) -> str:
        """The numbers of a loss that is a dataclass, as "beta 1, kl 0.3"."""
        return ", ".join(f"{name} {value:g}" for name, value in vars(self).items())


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
    def rows(self, z: Array, z_ref: Array | None, counts: RowCounts) -> tuple[Values, Array]:
        """Values (n,) and the gradient dz (n, V) of each row's loss.

        z, z_ref: (n, V) logits of the model and of its base, which may be overwritten.
        """


class Answers(NamedTuple):
    """The A answers of a step.

    logp, ref_logp (A,) float64    log p of each answer's tokens together; of the base, where asked
    length (A,) int                its tokens
    times (A,) float64             how often it was rejected
    record (A,) int                which of the step's records it belongs to
    """

    logp: Array
    ref_logp: Array | None
    length: Array
    times: Array
    record: Array


class AnswerLoss(_Loss):
    """A loss of answers."""

    @property
    def counts(self) -> Counts:
        """How the forest counts: here only log p along each answer is asked for."""
        return "prefix"

    @abstractmethod
    def answers(self, answers: Answers) -> tuple[Values, Array]:
        """Values (A,) and dlogp (A,), the gradient of each answer's loss by its log p.

        An answer's loss may depend on the others of its record; dlogp is that of their sum.
        """


Loss = RowLoss | AnswerLoss
