"""Which complement distribution is the target, and how rejected tokens are pushed down."""

from typing import Literal, NamedTuple

from minibule.core.counts import Counts

Prior = Literal["uniform", "reference", "rate"]
Contrast = Literal["plain", "choice", "ratio"]

# No token's acceptance rate is estimated below this, so that P of the rate prior stays positive.
MIN_RATE = 0.05


class Objective(NamedTuple):
    """Which complement distribution to pull towards, and how to push rejected tokens down.

    prior     what the complement is built on: the uniform distribution, the frozen base model's,
              or the base model's times each token's estimated rate of acceptance
    counts    whether v counts all answers at the row's position, or those that begin as this row
              does
    contrast  unlikelihood weighted by v/T alone, or also by 1 - p_ref(i): by how much choice the
              base model had; or a bounded function of the ratio p/p_ref, weighted by v/T, whose
              gradient does not fade where p is small
    alpha     the share of KL(P || p); 1 - alpha is the contrast's
    """

    prior: Prior
    counts: Counts
    contrast: Contrast
    alpha: float

    def __str__(self) -> str:
        return (
            f"prior {self.prior}, counts {self.counts}, contrast {self.contrast}, "
            f"alpha {self.alpha:g}"
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the loss asks for the frozen base model's logits."""
        return self.prior != "uniform" or self.contrast != "plain"


# alpha: the published one for `literal`; for the others the larger of .3 and .7 whose mean over the
# seeds of `tools/experiments.py objectives` has greedy acceptance > .9, noise <= .03 and
# KL(base, p) <= .02.
OBJECTIVES = {
    "literal": Objective("uniform", "position", "plain", 0.7),
    "reference": Objective("reference", "prefix", "choice", 0.3),
    "rate": Objective("rate", "prefix", "choice", 0.7),
}
