"""Losses of whole rejected answers.

Negative preference optimisation is DPO with its rejected half alone. With its d_k = log p(y_k) -
log p_ref(y_k), or in SimNPO x_k = gamma + log p(y_k) / |y_k|:

    NPO      L_k = -(2 / beta) log sigmoid(-beta d_k)          dL/dlog p = 2 sigmoid(beta d)
    SimNPO   L_k = -(2 / beta) log sigmoid(-beta x_k)          dL/dlog p = 2 sigmoid(beta x) / |y|

NPO's slope is 1 where model and base agree and falls to 0 as the answer becomes unlikely, which is
what keeps it from diverging as plain descent on log p does (the limit of beta -> 0, where it stays
1). SimNPO has no reference: an answer's length takes its place. `Complement` is the default.

Sources: Zhang et al. 2024, "Negative Preference Optimization: From Catastrophic Collapse to
Effective Unlearning", whose beta is .1; Fan et al. 2024, "Simplicity Prevails: Rethinking Negative
Preference Optimization for LLM Unlearning", of which 4.5 and 0 are the setting forget10.
"""

from dataclasses import dataclass

import numpy as np

from minibule.core.loss import Answers, SeparableLoss
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
        return scaled_softplus(logp, self.beta)


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
        value, slope = scaled_softplus(self.gamma + logp / length, self.beta)
        return value, slope / length


@dataclass(frozen=True)
class Complement(NPO):
    """NPO that lets go ten times as soon, held to the base by kl KL(p || p_ref): means over tokens.

    An answer is left alone when it is a few nats less likely than it was, however many tokens it
    has: each of ten has to lose a third of a nat, each of three hundred a hundredth. Pushed down
    token by token (`tokens.Ratio`), a long one costs the model all that is in it, also what is
    fluent and right, and so rejected answers that another model wrote do harm.

    Where answers are single tokens and s(y) = v(y) / sum of v, the optimum for beta 1 is

        p*(y) proportional to p_ref(y) exp(-(2 / kl) s(y) / (p_ref(y) + p*(y)))

    which is the base on the complement of what was rejected: what was not rejected keeps its share,
    and a rejected answer loses the more of it, the less the base gave it.
    """

    beta: float = 1.0
    kl: float = 0.05
    share = "v(y) R / sum of v |y|"

    def weights(self, answers: Answers) -> Array:
        return answers.times / (answers.times @ answers.length)


def scaled_softplus(x: Array, beta: float) -> tuple[Array, Array]:
    """(2 / beta) log(1 + exp(beta x)), never below 0, and its derivative by x, of any shape."""
    return 2 / beta * np.logaddexp(0, beta * x), 2 * sigmoid(beta * x)
