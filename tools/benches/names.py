"""What the names of minibule's engines say: "minibule-rate", "minibule-bfloat16x2", "minibule-2x1".

An engine is called by one such word at most, and in all else is plain "minibule"; an objective's
may have KNOWN behind it.
"""

from minibule.core.objective import OBJECTIVES
from minibule.machine.matmul import TERMS, Mode

KNOWN = "-known"  # what the base says is computed beforehand, as it is for a later epoch
RANKS = {"1x1": (1, 1), "1x2": (1, 2), "2x1": (2, 1), "4x1": (4, 1)}  # and the threads of each


def objective_of(engine: str) -> str:
    """ "minibule-rate" -> "rate": what it minimises."""
    word = engine.removesuffix(KNOWN)
    return next((name for name in OBJECTIVES if word == f"minibule-{name}"), "literal")


def matmul_of(engine: str) -> Mode:
    """ "minibule-bfloat16x2" -> "bfloat16x2": what it multiplies in."""
    return next((mode for mode in TERMS if engine == f"minibule-{mode}"), "float32")


def ranks_of(engine: str) -> tuple[int, int] | None:
    """ "minibule-2x1" -> (2, 1): its ranks, and the threads of each; None: no ranks."""
    return RANKS.get(engine.removeprefix("minibule-"))
