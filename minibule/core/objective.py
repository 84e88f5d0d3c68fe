"""Which complement distribution is the target, and how rejected tokens are pushed down."""

from typing import Literal, NamedTuple

import numpy as np

from minibule.core.counts import Counts
from minibule.machine.matrix import Array

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
              base model had; or 2 log(1 + p/p_ref), weighted by v/T: at p = p_ref its slope by
              log p is v/T, however small both are, and it falls to 0 as the token goes
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
# KL(base, p) <= .02. None of them is the default: see `methods.rejected.Complement`.
OBJECTIVES = {
    "literal": Objective("uniform", "position", "plain", 0.7),
    "reference": Objective("reference", "prefix", "choice", 0.3),
    "rate": Objective("rate", "prefix", "choice", 0.7),
}


def needed(value: Array | None, name: str) -> Array:
    """`value`, for an objective that cannot do without it."""
    if value is None:
        raise ValueError(f"this objective needs {name}")
    return value


def optimal_p(lam: Array, aP: Array, c: Array, p_ref: Array | None) -> Array:
    """The stationary p for the multiplier lambda; aP = alpha P, c = (1 - alpha) w; all broadcast.

    Unlikelihood    lam p^2 - (lam + c + aP) p + aP = 0
    the ratio's     lam p^2 + (lam p_ref + 2 c - aP) p - aP p_ref = 0       lam > 0

    each solved in the form that does not subtract what is nearly equal.
    """
    p: Array
    if p_ref is None:
        b = lam + c + aP
        p = 2 * aP / (b + np.sqrt(np.maximum(b * b - 4 * lam * aP, 0)))
    else:
        lam = np.maximum(lam, np.finfo(np.float64).tiny)
        b = lam * p_ref + 2 * c - aP
        s = np.sqrt(b * b + 4 * lam * aP * p_ref)
        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.where(b > 0, 2 * aP * p_ref / (b + s), (s - b) / (2 * lam))
    return p
