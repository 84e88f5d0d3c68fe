"""Losses of single rejected tokens: each a function f of log p of the token, and of log p_ref.

A row's loss is the sum over its rejected tokens of v f, divided by the answers that pass through
it, each once: the mean over rows is one over the tokens of distinct answers, in which an answer
rejected five times weighs five times as much.

Rejected answers that were sampled from the model carry p once: a token is in them as often as p
says. The gradient of f = log p, summed over sampled rejections, is then an estimate of the gradient
of the expected number of rejections. The gradients of KL(P || p) and of -log(1 - p) carry p a
second time, which pushes sure tokens most and rare nonsense hardly.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minibule.core.counts import Counts, RowCounts
from minibule.core.loss import RowLoss, Values
from minibule.core.softmax import log_probs_backward, per_row, split_softmax
from minibule.machine.matrix import Array
from minibule.methods.rejected import scaled_softplus

LEAST_REST = 1e-5  # 1 - p is clamped there by Welleck et al., which bounds the gradient


class TokenLoss(RowLoss):
    """sum_e v(e) f(e) / (answers through the row), over the row's rejected tokens e.

    f, df: f and df/dlog p as they are written, with r = p / p_ref.
    """

    f: ClassVar[str]
    df: ClassVar[str]

    @property
    def counts(self) -> Counts:
        return "prefix"

    @abstractmethod
    def token(self, logp: Array, log_rest: Array, ref_logp: Array) -> tuple[Array, Array]:
        """f and its derivative by log p, (E,) each, from log p, log(1 - p) and log p_ref, (E,)."""

    def of_rows(self, z: Array, z_ref: Array | None, rows: RowCounts) -> tuple[Values, Array]:
        row, n = rows.entry_row, len(z)
        p = split_softmax(z, rows)
        ref_logp = p.logp if z_ref is None else split_softmax(z_ref, rows).logp
        f, df = self.token(p.logp, p.log_rest, ref_logp)
        share = rows.entry_count / rows.alike[row]
        mean_p = per_row(rows.entry_count / rows.total[row] * np.exp(p.logp), row, n)
        values = {"loss": per_row(share * f, row, n), "rejected_mass": mean_p}
        return values, log_probs_backward(share * df, p, rows)


@dataclass(frozen=True)
class Ratio(TokenLoss):
    """NPO's loss for each token: f = (2 / beta) log(1 + (p / p_ref)^beta), bounded below by 0.

    df/dlog p = 2 sigmoid(beta (log p - log p_ref)): 1 at the start, as `NSR`'s, and falling to 0 as
    the token goes, so that what is gone is left alone. beta: above 0; how soon.
    """

    beta: float = 1.0
    kl: float = 0.3
    f = "(2 / beta) log(1 + r^beta)"
    df = "2 r^beta / (1 + r^beta)"
    needs_reference = True

    def token(self, logp: Array, log_rest: Array, ref_logp: Array) -> tuple[Array, Array]:
        return scaled_softplus(logp - ref_logp, self.beta)


@dataclass(frozen=True)
class NSR(TokenLoss):
    """Negative sample reinforcement: f = log p, unbounded below.

    Source: Zhu et al. 2025, "The Surprising Effectiveness of Negative Reinforcement in LLM
    Reasoning", which takes the mean over the tokens of the wrong answers as here.
    """

    kl: float = 0.0
    f = "log p"
    df = "1"
    needs_reference = False

    def token(self, logp: Array, log_rest: Array, ref_logp: Array) -> tuple[Array, Array]:
        return logp, np.ones_like(logp)


@dataclass(frozen=True)
class Unlikelihood(TokenLoss):
    """f = -log(1 - p), with derivative p / (1 - p).

    Source: Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training".
    """

    kl: float = 0.0
    f = "-log(1 - p)"
    df = "p / (1 - p)"
    needs_reference = False

    def token(self, logp: Array, log_rest: Array, ref_logp: Array) -> tuple[Array, Array]:
        clamped = log_rest < np.log(LEAST_REST)
        rest = np.where(clamped, np.log(LEAST_REST), log_rest)
        return -rest, np.where(clamped, 0, np.exp(logp - rest))
