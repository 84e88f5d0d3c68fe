"""What a loss is: what it needs, and one method that gives values and gradients; in two shapes.

A `RowLoss` looks at one position at a time: the logits there, those of the frozen base, and what
was rejected. An `AnswerLoss` looks at whole answers, accepted ones among them where it asks for
these: log p of each, and which of them belong together; all its gradients have the form
c (p - onehot), with one c for an answer. A `LinearLoss` is one whose c does not depend on p.

A loss of any shape may be anchored: `kl` times KL(p || p_ref) of every row is added to it. A
`RowLoss` may say what else p is held to.

`head` and `step` run both. `methods/table.py` lists them by name.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

from minibule.core.counts import Counts, RowCounts
from minibule.core.objective import Prior
from minibule.machine.matrix import Array

# Which answers of a record a loss learns from: of one sort alone, whatever there is, or both sorts,
# without which a record says nothing to it.
Uses = Literal["rejected", "accepted", "any", "both"]

Values = dict[str, Array]  # "loss" and other metrics, a number for each row or answer


class _Loss(ABC):
    """kl: how strongly p is held to p_ref; 0: not at all.

    held: what it is held to, in a word: the base, or the target P.
    graded: whether it goes by how good an answer is, and not only by whether it was accepted.
    end_token: whether the end of the turn is trained as the last token of an answer that came to
    its own end. A loss of rejected answers never trains it: that would teach the model not to stop.
    """

    kl: float = 0.0
    held: ClassVar[Literal["base", "P"]] = "base"
    uses: ClassVar[Uses] = "rejected"
    graded: ClassVar[bool] = False
    end_token: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether its method is given what the base model says."""

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

    def held_to(self, z_ref: Array, counts: RowCounts) -> Array:
        """Logits (n, V) of what `kl` holds p to: those of the base."""
        return z_ref

    @abstractmethod
    def rows(self, z: Array, z_ref: Array | None, counts: RowCounts) -> tuple[Values, Array]:
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


class LinearLoss(AnswerLoss):
    """sum_k c_k log p(y_k), with c_k from the rewards: known before the first forward pass."""

    needs_reference = False

    @abstractmethod
    def weights(self, answers: Answers) -> Array:
        """c (A,): below 0 where log p is to rise."""

    def answers(
        self, answers: Answers, logp: Array, mismatched: float | None = None
    ) -> tuple[float, Array]:
        c = self.weights(answers)
        return float(c @ logp), c


Loss = RowLoss | AnswerLoss
