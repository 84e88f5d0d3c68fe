"""Losses sum_k c_k log p(y_k) whose c follows from the rewards: policy gradient and its kin.

Sums run over an answer's tokens, its end of turn included; an answer given five times counts five
times. `GRPO` and its kin are the update right after sampling, where the ratio of new to old policy
is 1 and no clip acts: records are taken as sampled from the model as it is.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from minibule.core.loss import Answers, LinearLoss
from minibule.machine.matrix import Array
from minibule.methods.pairs import pairs

EPSILON = 1e-4  # the TRL library's


@dataclass(frozen=True)
class SFT(LinearLoss):
    """Fine-tuning on the accepted answers (RFT, RAFT): the mean of -log p over their tokens."""

    kl: float = 0.0
    uses = "accepted"
    end_token = True

    def weights(self, answers: Answers) -> Array:
        return -answers.times / (answers.times @ answers.length)


@dataclass(frozen=True)
class Reinforce(LinearLoss):
    """REINFORCE: the mean of -r log p over the tokens of all answers, with r as it is given.

    r: a reward, or the advantage that a selection made of it. Source: Williams 1992, "Simple
    Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning".
    """

    kl: float = 0.0
    uses = "any"
    graded = True
    end_token = True

    def weights(self, answers: Answers) -> Array:
        return -answers.reward * answers.times / (answers.times @ answers.length)


@dataclass(frozen=True)
class WReinforce(LinearLoss):
    """W-REINFORCE: reward `positive` for an accepted answer and -1 for a rejected one.

    The mean over the tokens of all answers, so that the rejected ones weigh more as they are more.
    Source: Zhu et al. 2025, "The Surprising Effectiveness of Negative Reinforcement in LLM
    Reasoning", which recommends .1.
    """

    positive: float = 0.1
    kl: float = 0.0
    uses = "any"
    end_token = True

    def weights(self, answers: Answers) -> Array:
        reward = np.where(answers.accepted, self.positive, -1.0)
        return -reward * answers.times / (answers.times @ answers.length)


@dataclass(frozen=True)
class REDI(LinearLoss):
    """Of a pair, -log p(accepted) / |accepted| + alpha log p(rejected) / |rejected|.

    Unbounded below; alpha under 1 is what keeps it steady. Source: Xu et al. 2025, "Harnessing
    Negative Signals: Reinforcement Distillation from Teacher Data for LLM Reasoning"; .8 is theirs.
    """

    alpha: float = 0.8
    kl: float = 0.0
    uses = "both"
    end_token = True

    def weights(self, answers: Answers) -> Array:
        accepted, rejected, weight = pairs(answers)
        c = np.zeros(len(answers.times))
        np.add.at(c, accepted, -weight / answers.length[accepted])
        np.add.at(c, rejected, self.alpha * weight / answers.length[rejected])
        return c


@dataclass(frozen=True)
class GRPO(LinearLoss):
    """Group-relative policy optimisation: the advantage A = r - mean r, of a record's answers.

    per: what the sum of A log p is divided by. "answer": each answer's by its own length, then the
    mean (GRPO); "token": the tokens of all (DAPO); "budget": answers times `budget` (Dr. GRPO).
    scaled: whether A is also divided by the standard deviation of the record's rewards (with
    n - 1), plus `EPSILON`.

    Records whose rewards are all the same, whose A is 0, are left out beforehand, as DAPO does:
    they count nowhere.

    Sources: Shao et al. 2024, "DeepSeekMath"; Yu et al. 2025, "DAPO"; Liu et al. 2025,
    "Understanding R1-Zero-Like Training". The budget is that of the TRL library.
    """

    per: Literal["answer", "token", "budget"] = "answer"
    scaled: bool = True
    budget: int = 512
    kl: float = 0.0
    uses = "both"
    graded = True
    end_token = True

    def weights(self, answers: Answers) -> Array:
        count = answers.times.sum()
        divisor = {
            "answer": count * answers.length,
            "token": answers.times @ answers.length,
            "budget": count * self.budget,
        }[self.per]
        return -self.advantages(answers) * answers.times / divisor

    def advantages(self, answers: Answers) -> Array:
        """A (A,)."""
        return advantages(answers.reward, answers.times, answers.record, self.scaled)


def advantages(rewards: Array, times: Array, record: Array, scaled: bool = True) -> Array:
    """r - mean r of the record's answers, over their deviation plus EPSILON where `scaled`: (A,).

    rewards, times, record (A,): as in `Answers`. The deviation is that of n - 1, and 0 of one.
    """
    size = np.bincount(record, times)
    mean = np.bincount(record, times * rewards) / np.maximum(size, 1)  # a record may have none
    advantage = rewards - mean[record]
    if not scaled:
        return advantage
    variance = np.bincount(record, times * advantage**2) / np.maximum(size - 1, 1)
    return advantage / (np.sqrt(variance) + EPSILON)[record]
