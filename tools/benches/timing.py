"""What a step of any engine takes, and how far what it computes is from another engine's."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from benches.turns import Result

from minibule.core.counts import Example, row_count
from minibule.machine.threads import peak_memory_gb

Gradients = Mapping[str, np.ndarray]
Step = Callable[[list[Example]], tuple[float, Gradients]]


def timed(step: Step, work: list[list[Example]]) -> Result:
    """Seconds of a step after a first that is not counted, and the peak of memory.

    All losses, the first step's among them, and its gradient as a `sketch`.
    """
    first, grads = step(work[0])
    gradient = sketch(grads)
    del grads
    started = time.perf_counter()
    losses = [first, *(step(examples)[0] for examples in work)]
    seconds = (time.perf_counter() - started) / len(work)
    return {
        "s/step": seconds,
        "tokens/s": sum(map(count_tokens, work)) / len(work) / seconds,
        "peak GB": peak_memory_gb(),
        "losses": losses,
        "gradient": gradient,
    }


def count_tokens(examples: Sequence[Example]) -> int:
    """Each prompt is counted once, for every engine."""
    return sum(len(example.prompt) for example in examples) + row_count(examples)


def sketch(grads: Gradients, size: int = 4096) -> list[float]:
    """Random signed sums of a gradient's numbers, the same sums for every engine.

    How far two sketches are apart is, to some hundredths, how far the gradients are.
    """
    rng, sums = np.random.default_rng(0), np.zeros(size)
    for name in sorted(grads):
        grad = np.asarray(grads[name], np.float64).ravel()
        signed = grad * rng.choice((-1.0, 1.0), grad.size)
        sums += np.bincount(rng.integers(0, size, grad.size), signed, size)
    return sums.tolist()


def distances(result: Result, other: Result) -> Result:
    """How far losses and gradient are from another engine's, relative to it."""
    losses, expected = np.array(result["losses"]), np.array(other["losses"])
    gradient, its = np.array(result["gradient"]), np.array(other["gradient"])
    return {
        "loss": float(np.abs(losses / expected - 1).max()),
        "gradient": float(np.linalg.norm(gradient - its) / np.linalg.norm(its)),
    }
