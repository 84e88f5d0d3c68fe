"""Losses of pairs: an accepted and a rejected answer to the same prompt.

A record's pairs are each of its accepted answers with each of its rejected ones, weighted by how
often the two were given; the step's loss is the mean over its pairs. With m the margin, log p of
the accepted answer less that of the rejected one, and in all but SLiC less the same of the base:

    DPO     -log sigmoid(beta m)
    RSO     the same with its own beta, or the hinge max(0, 1 - beta m)
    SLiC    max(0, delta - m) - sft log p(accepted)

Sums run over an answer's tokens, its end of turn included.

Sources: Rafailov et al. 2023, "Direct Preference Optimization"; Liu et al. 2023, "Statistical
Rejection Sampling Improves Preference Optimization", which calls its beta gamma; Zhao et al. 2023,
"SLiC-HF". SLiC's delta and sft are those of the HALOs library.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from minibule.core.loss import AnswerLoss, Answers
from minibule.core.ops import sigmoid
from minibule.machine.matrix import Array


def pairs(answers: Answers) -> tuple[Array, Array, Array]:
    """The accepted and the rejected answer of each pair, and its weight, (P,) each; sums to 1."""
    same = answers.record[:, None] == answers.record
    accepted, rejected = np.nonzero(same & answers.accepted[:, None] & ~answers.accepted)
    weight = answers.times[accepted] * answers.times[rejected]
    return accepted, rejected, weight / weight.sum()


class PairLoss(AnswerLoss):
    """The mean of f(m) over pairs."""

    uses = "both"
    end_token = True

    @abstractmethod
    def margin(self, m: Array) -> tuple[Array, Array]:
        """f and df/dm, (P,) each, of the margins m."""

    def answers(
        self, answers: Answers, logp: Array, mismatched: float | None = None
    ) -> tuple[float, Array]:
        accepted, rejected, weight = pairs(answers)
        f, df = self.margin(logp[accepted] - logp[rejected])
        dlogp = np.zeros(len(logp))
        np.add.at(dlogp, accepted, weight * df)
        np.add.at(dlogp, rejected, -weight * df)
        return float(weight @ f), dlogp


@dataclass(frozen=True)
class DPO(PairLoss):
    """beta: above 0; how far apart the two are to come, before a pair is left alone."""

    beta: float = 0.1
    kl: float = 0.0
    needs_reference = True

    def margin(self, m: Array) -> tuple[Array, Array]:
        return np.logaddexp(0, -self.beta * m), -self.beta * sigmoid(-self.beta * m)


@dataclass(frozen=True)
class Hinge(PairLoss):
    """RSO's other loss. beta: above 0; a pair is left alone at a margin of 1 / beta."""

    beta: float = 0.05
    kl: float = 0.0
    needs_reference = True

    def margin(self, m: Array) -> tuple[Array, Array]:
        return hinge(m, 1.0, self.beta)


@dataclass(frozen=True)
class SLiC(PairLoss):
    """delta: the margin at which a pair is left alone; sft: the weight of -log p(accepted)."""

    delta: float = 1.0
    sft: float = 0.1
    kl: float = 0.0
    needs_reference = False

    def margin(self, m: Array) -> tuple[Array, Array]:
        return hinge(m, self.delta)

    def answers(
        self, answers: Answers, logp: Array, mismatched: float | None = None
    ) -> tuple[float, Array]:
        value, dlogp = super().answers(answers, logp)
        accepted, _, weight = pairs(answers)
        np.add.at(dlogp, accepted, -self.sft * weight)
        return value - self.sft * float(weight @ logp[accepted]), dlogp


def hinge(m: Array, target: float, slope: float = 1.0) -> tuple[Array, Array]:
    """max(0, target - slope m) and its derivative by m."""
    short = target - slope * m
    return np.maximum(0, short), np.where(short > 0, -slope, 0)
