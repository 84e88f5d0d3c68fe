"""How many samples each prompt gets: the published budgets by name.

A budget is asked again and again what to draw next, with the rewards of all that was drawn in this
round so far, and says 0 everywhere once it is enough:

    fixed       as many of each prompt
    gvm         a first stage of as many, from which a second one of as many in all is divided
    balance     until a prompt has accepted and rejected ones enough
    positive    until a prompt has an accepted one

With all but `fixed` the accepted share of what was drawn is no measure of the model: a prompt that
is left once it was solved is counted as better than it is, and what is drawn more of counts more.
Accuracy is for held-out prompts, or for the first draws of each, which depend on nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minibule.machine.matrix import Array

# How long the gradient of each prompt's accepted answers is, (P,): asked for where it is needed,
# because it takes long.
Norms = Callable[[], Array]


@dataclass(frozen=True)
class Budget(ABC):
    """samples: drawn of each prompt; by a budget that asks several times, each time it asks."""

    samples: int = 8

    @abstractmethod
    def __call__(self, drawn: Sequence[Array], norms: Norms | None = None) -> Array:
        """How many more to draw of each of the P prompts, (P,) int.

        drawn: for each its rewards so far, above 0 where accepted, NaN where the judge could not
        tell. norms: None: all alike.
        """


@dataclass(frozen=True)
class Fixed(Budget):
    """`samples` of each prompt."""

    def __call__(self, drawn: Sequence[Array], norms: Norms | None = None) -> Array:
        return np.array([max(0, self.samples - len(rewards)) for rewards in drawn], int)


@dataclass(frozen=True)
class GVM(Budget):
    """GVM-RAFT: `samples` of each prompt, and as many in all to where they tell most.

    least: what each prompt gets in the second stage, whatever the first one said; 0 is published.
    A prompt of which none of 8 was accepted gets nothing, though one in six of those that are
    solved every fifth time looks like that.

    Source: Yao et al. 2025, "Optimizing Chain-of-Thought Reasoners via Gradient Variance
    Minimization", arXiv:2505.02391; there the norms are those of the embedding's gradient, here of
    the adapter's: see `norms`.
    """

    alpha: float = 1e-3
    beta: float = 2.0
    least: int = 0

    def __call__(self, drawn: Sequence[Array], norms: Norms | None = None) -> Array:
        first = Fixed(self.samples)(drawn)
        if first.any():
            return first
        n = len(drawn)
        if sum(map(len, drawn)) > n * self.samples:  # the second stage is drawn
            return np.zeros(n, int)
        p = np.array([_accepted(rewards) / max(1, _told(rewards)) for rewards in drawn])
        weights = gvm_weights(p, norms() if norms else np.ones(n), self.alpha, self.beta)
        return self.least + allocated(weights, n * max(0, self.samples - self.least))


@dataclass(frozen=True)
class Adaptive(Budget):
    """Reinforce-Ada: `samples` of each prompt that is not yet done, at most `times` times.

    A prompt is done with `accepted` accepted and `rejected` rejected samples; the selection
    `balanced` keeps as many of these. Source: Xiong et al. 2025, "Reinforce-Ada", arXiv:2510.04996.
    """

    accepted: int = 2
    rejected: int = 2
    times: int = 4

    def __call__(self, drawn: Sequence[Array], norms: Norms | None = None) -> Array:
        return np.array([0 if self._done(r) else self.samples for r in drawn], int)

    def _done(self, rewards: Array) -> bool:
        accepted = _accepted(rewards)
        enough = accepted >= self.accepted and _told(rewards) - accepted >= self.rejected
        return enough or len(rewards) >= self.times * self.samples


def _told(rewards: Array) -> int:
    return int(np.count_nonzero(~np.isnan(rewards)))


def _accepted(rewards: Array) -> int:
    return int(np.count_nonzero(rewards > 0))


def gvm_weights(p: Array, norms: Array, alpha: float, beta: float) -> Array:
    """G / sqrt(p + alpha / p^(beta - 1)), (P,); 0 where p is.

    It rises up to p = sqrt(alpha), for beta = 2, and falls as p^(-1/2) from there: what is accepted
    often needs few samples, and alpha keeps from wasting them on what is hardly ever accepted.
    With alpha = 0 it is the division for which the sum of G^2 / (p n), the variance, is least.
    """
    known = p > 0
    q = np.where(known, p, 1.0)
    return np.where(known, norms / np.sqrt(q + alpha / q ** (beta - 1)), 0.0)


def allocated(weights: Array, total: int) -> Array:
    """`total` samples divided by weight, (P,) int: rounded, and what this lacks or has too much of
    is made up where rounding changed most. Nothing where all weights are 0."""
    if not weights.any():
        return np.zeros(len(weights), int)
    exact = total * weights / weights.sum()
    rounded = np.round(exact).astype(int)
    lacking = total - int(rounded.sum())
    most_changed = np.argsort(np.sign(lacking) * (rounded - exact), kind="stable")
    rounded[most_changed[: abs(lacking)]] += np.sign(lacking)
    return rounded


BUDGETS: dict[str, Budget] = {
    "fixed": Fixed(),
    "gvm": GVM(),
    "balance": Adaptive(),
    "positive": Adaptive(accepted=1, rejected=0),
}
