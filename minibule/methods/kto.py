"""Kahneman-Tversky optimisation: single judged answers, each against what is usual.

    accepted   1 - sigmoid(beta (d - z))          rejected   1 - sigmoid(beta (z - d))

with d = log p(y) - log p_ref(y), and z = max(0, the mean of d over answers of other prompts): an
estimate of KL(p || p_ref), which is held fixed. An answer counts as often as it was given. The
slope is at most beta / 4 and vanishes both ways, so that with beta .1 it begins with a fortieth of
NPO's.

Source: Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization"; the
defaults are those of the TRL library, which puts to each prompt the answer of the row before.
"""

from dataclasses import dataclass

import numpy as np

from minibule.core.loss import AnswerLoss, Answers
from minibule.core.ops import sigmoid
from minibule.machine.matrix import Array


@dataclass(frozen=True)
class KTO(AnswerLoss):
    """beta: above 0; desirable, undesirable: weights of the accepted and of the rejected answers.

    Learns from rejected answers alone, too. Then a low learning rate is advised.
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0
    kl: float = 0.0
    uses = "any"
    end_token = True
    needs_reference = True
    needs_mismatched = True

    def answers(
        self, answers: Answers, logp: Array, mismatched: float | None = None
    ) -> tuple[float, Array]:
        z = max(0.0, mismatched or 0.0)
        sign = np.where(answers.accepted, 1.0, -1.0)
        weight = np.where(answers.accepted, self.desirable, self.undesirable)
        weight = weight * answers.times / answers.times.sum()
        s = sigmoid(self.beta * sign * (logp - z))
        return float(weight @ (1 - s)), -weight * self.beta * sign * s * (1 - s)
