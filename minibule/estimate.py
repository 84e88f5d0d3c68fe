"""What a run will take, found out by trying its largest and its usual steps in memory."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from minibule.config import Counts
from minibule.forest import Example, pack
from minibule.llama import Llama

USUAL_STEPS = 3  # tried at most,
USUAL_SECONDS = 20.0  # and no further one after so long

Step = Sequence[Sequence[Example]]


class Estimate(NamedTuple):
    """Tokens of every step, and how many the usual steps compute a second."""

    tokens: list[int]
    tokens_per_s: float


def rehearse(
    plan: Sequence[Step], counts: Counts, pass_tokens: int, one_step: Callable[[Step], float]
) -> Estimate:
    """Try the step with the largest pass, then some about the median; `one_step` gives seconds.

    The largest is tried for the memory it takes, and first, so that the others, tried for the time
    they take, find the process warm.
    """
    tokens, largest = [], []
    for step in tqdm(plan, desc="packing", unit="step", delay=1, leave=False):
        passes = [len(b.ids) for examples in step for b in pack(examples, counts, pass_tokens)]
        tokens.append(sum(passes))
        largest.append(max(passes))
    one_step(plan[int(np.argmax(largest))])
    usual = np.argsort(np.abs(np.array(tokens) - np.median(tokens)), kind="stable")[:USUAL_STEPS]
    seconds, computed, started = 0.0, 0, time.perf_counter()
    for step in usual:
        seconds += one_step(plan[step])
        computed += tokens[step]
        if time.perf_counter() - started > USUAL_SECONDS:
            break
    return Estimate(tokens, computed / seconds)


def merged_gb(model: Llama) -> float:
    """GB that merging takes: a second copy of every weight that the adapter changes."""
    modules = model.adapter.config.modules if model.adapter else ()
    return sum(model.weights[f"{module}.weight"].nbytes for module in modules) / 1e9
