"""What the tables of `experiments.py` and `real.py` share."""

import io
import signal
import sys
from collections.abc import Sequence

import numpy as np


def cell(numbers: Sequence[float], form: str) -> str:
    """[.1, .2, .3] -> ".200 (.100-.300)": mean, and the spread where any is seen."""
    if not numbers:
        return ""
    shown = (np.mean(numbers), min(numbers), max(numbers))
    mean, low, high = (f"{number:{form}}".removeprefix("0") for number in shown)
    return mean if low == high else f"{mean} ({low}-{high})"


def quiet() -> None:
    """In a worker: no progress bars among each other, and Ctrl-C is for the one that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr = io.StringIO()
