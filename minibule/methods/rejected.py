"""Losses of whole rejected answers.

Negative preference optimisation is DPO with its rejected half alone. With its d_k = log p(y_k) -
log p_ref(y_k), or in SimNPO x_k = gamma + log p(y_k) / |y_k|:

    NPO      L_k = -(2 / beta) log sigmoid(-beta d_k)          dL/dlog p = 2 sigmoid(beta d)
    SimNPO   L_k = -(2 / beta) log sigmoid(-beta x_k)          dL/dlog p = 2 sigmoid(beta x) / |y|

NPO starts with 1 where model and base agree and falls to 0 as the answer becomes unlikely, which is
what keeps it from diverging as plain descent on log p does (the limit of beta -> 0, where it stays
1). SimNPO has no reference: an answer's length takes its place. `Complement`, the default, is NPO
that lets go ten times as soon, held to the complement distribution.

Sources: Zhang et al. 2024, "Negative Preference Optimization: From Catastrophic Collapse to
Effective Unlearning", whose beta is .1; Fan et al. 2024, "Simplicity Prevails: Rethinking Negative
Preference Optimization for LLM Unlearning", of which 4.5 and 0 are the setting forget10.
"""

from dataclasses import dataclass

import numpy as np

from minibule.core.counts import RowCounts
from minibule.core.loss import Answers, SeparableLoss
from minibule.core.objective import Prior
from minibule.core.ops import sigmoid
from minibule.machine.matrix import Array


@dataclass(frozen=True)
class NPO(SeparableLoss):
    """beta: above 0; how soon an answer that has become unlikely is left alone."""

    beta: float = 0.1
    kl: float = 0.0
    needs_reference = True
    formula = "(2 / beta) log(1 + r(y)^beta)"
    share = "v(y) R / sum of v"

    def weights(self, answers: Answers) -> Array:
        return answers.times / answers.times.sum()

    def f(self, logp: Array, length: Array) -> tuple[Array, Array]:
        return bounded(logp, self.beta)


@dataclass(frozen=True)
class SimNPO(SeparableLoss):
    """beta: above 0; gamma: added to an answer's mean log p."""

    beta: float = 4.5
    gamma: float = 0.0
    kl: float = 0.0
    needs_reference = False
    formula = "(2 / beta) log(1 + exp(beta (gamma + log p(y) / |y|)))"
    share = "v(y) R / sum of v"

    def weights(self, answers: Answers) -> Array:
        return answers.times / answers.times.sum()

    def f(self, logp: Array, length: Array) -> tuple[Array, Array]:
        value, slope = bounded(self.gamma + logp / length, self.beta)
        return value, slope / length


@dataclass(frozen=True)
class Complement(NPO):
    """NPO, held to the complement distribution P: kl KL(p || P), the mean over tokens.

    P(i) is proportional to p_ref(i) (T - v(i) + 1), the target of the objective `reference`. There
    the loss has KL(P || p), under which p must keep something of all that P has; reversed, it need
    not.

    With beta 1 an answer is left alone when it is a few nats less likely than it was, however many
    tokens it has: each of ten has to lose a third of a nat, each of three hundred a hundredth. Who
    wrote the answer then matters little. Pushed down token by token (`tokens.Ratio`), a long one
    costs the model all that is in it: what is fluent and right, too.

    Where answers are single tokens, rejected v times each of N in all, the optimum of their row is

        p*(i) proportional to P(i) exp(-(2 / kl) s(i) / (p_ref(i) + p*(i)))         s = v / N

    for beta 1. What was not rejected keeps its share of P, and a rejected token loses the more of
    it, the less the base gave it.
    """

    beta: float = 1.0
    kl: float = 0.3
    held = "P"
    share = "v(y) R / sum of v |y|"

    @property
    def prior(self) -> Prior | None:
        return "reference" if self.kl else None

    def held_to(self, z_ref: Array, counts: RowCounts) -> Array:
        total, log_P = counts.total[counts.entry_row], z_ref.copy()
        kept = np.log((total - counts.entry_count + 1) / (total + 1))
        log_P[counts.entry_row, counts.entry_id] += kept.astype(z_ref.dtype)
        return log_P  # but for a number of the row, which a softmax does not see

    def weights(self, answers: Answers) -> Array:
        return answers.times / (answers.times @ answers.length)


def bounded(x: Array, beta: float) -> tuple[Array, Array]:
    """(2 / beta) log(1 + exp(beta x)), which is never below 0, and its derivative by x."""
    return 2 / beta * np.logaddexp(0, beta * x), 2 * sigmoid(beta * x)
