"""Negative preference optimisation: DPO with its rejected half alone.

    L_k = -(2 / beta) log sigmoid(-beta d_k)          d_k = log p(y_k) - log p_ref(y_k)

with log p of the whole answer. dL/dlog p = 2 sigmoid(beta d): 1 at the start, where model and base
agree, falling to 0 as the answer becomes unlikely, which is what keeps it from diverging as plain
descent on log p does (the limit of beta -> 0, where it stays 1).

Source: Zhang et al. 2024, "Negative Preference Optimization: From Catastrophic Collapse to
Effective Unlearning"; beta .1 is theirs.
"""

from dataclasses import dataclass

import numpy as np

from minibule.core.loss import AnswerLoss, Answers, Values
from minibule.machine.matrix import Array


@dataclass(frozen=True)
class NPO(AnswerLoss):
    """beta: above 0; how soon an answer that has become unlikely is left alone."""

    beta: float = 0.1
    needs_reference = True

    def answers(self, answers: Answers) -> tuple[Values, Array]:
        assert answers.ref_logp is not None  # noqa: S101 - as it asks for
        x = self.beta * (answers.logp - answers.ref_logp)
        # Weighted by counts, and still a mean: the same answer five times is five answers.
        weight = answers.times / answers.times.mean()
        loss = weight * (2 / self.beta) * np.logaddexp(0, x)
        return {"loss": loss}, weight * 2 / (1 + np.exp(-x))
