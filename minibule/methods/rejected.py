"""Losses of whole rejected answers.

Negative preference optimisation is DPO with its rejected half alone. With its d_k = log p(y_k) -
log p_ref(y_k), or in SimNPO x_k = gamma + log p(y_k) / |y_k|:

    NPO      L_k = -(2 / beta) log sigmoid(-beta d_k)          dL/dlog p = 2 sigmoid(beta d)
    SimNPO   L_k = -(2 / beta) log sigmoid(-beta x_k)          dL/dlog p = 2 sigmoid(beta x) / |y|

NPO starts with 1 where model and base agree and falls to 0 as the answer becomes unlikely, which is
what keeps it from diverging as plain descent on log p does (the limit of beta -> 0, where it stays
1). SimNPO has no reference: an answer's length takes its place.

Sources: Zhang et al. 2024, "Negative Preference Optimization: From Catastrophic Collapse to
Effective Unlearning", whose beta is .1; Fan et al. 2024, "Simplicity Prevails: Rethinking Negative
Preference Optimization for LLM Unlearning", of which 4.5 and 0 are the setting forget10.
"""

from dataclasses import dataclass

import numpy as np

from minibule.core.loss import AnswerLoss, Answers
from minibule.core.ops import sigmoid
from minibule.machine.matrix import Array


@dataclass(frozen=True)
class NPO(AnswerLoss):
    """beta: above 0; how soon an answer that has become unlikely is left alone."""

    beta: float = 0.1
    kl: float = 0.0
    needs_reference = True

    def answers(
        self, answers: Answers, logp: Array, mismatched: float | None = None
    ) -> tuple[float, Array]:
        value, slope = bounded(logp, self.beta)
        share = answers.times / answers.times.sum()
        return float(share @ value), share * slope


@dataclass(frozen=True)
class SimNPO(AnswerLoss):
    """beta: above 0; gamma: added to an answer's mean log p."""

    beta: float = 4.5
    gamma: float = 0.0
    kl: float = 0.0
    needs_reference = False

    def answers(
        self, answers: Answers, logp: Array, mismatched: float | None = None
    ) -> tuple[float, Array]:
        value, slope = bounded(self.gamma + logp / answers.length, self.beta)
        share = answers.times / answers.times.sum()
        return float(share @ value), share * slope / answers.length


def bounded(x: Array, beta: float) -> tuple[Array, Array]:
    """(2 / beta) log(1 + exp(beta x)), which is never below 0, and its derivative by x."""
    return 2 / beta * np.logaddexp(0, beta * x), 2 * sigmoid(beta * x)
