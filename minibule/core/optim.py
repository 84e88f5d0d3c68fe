"""AdamW, the learning rate's schedule, and gradient clipping."""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from minibule.machine.matrix import Array

Schedule = Literal["constant", "linear", "cosine"]  # of the learning rate, after its warm-up

BETAS = (0.9, 0.999)
EPS = 1e-8


class AdamW:
    """Adam with decoupled weight decay, on a dict of arrays which it updates in place.

    m = b1 m + (1 - b1) g                  m and v are running means of the gradient and of its
    v = b2 v + (1 - b2) g^2                square; the divisors undo their start at zero
    p = p - lr * wd * p
    p = p - lr * (m / (1 - b1^n)) / (sqrt(v / (1 - b2^n)) + eps)

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization"; the order of the
    operations is that of torch.optim.AdamW.
    """

    def __init__(self, params: dict[str, Array], weight_decay: float) -> None:
        self.params = params
        self.weight_decay = weight_decay
        self.steps = 0
        self.m = {name: np.zeros_like(p) for name, p in params.items()}
        self.v = {name: np.zeros_like(p) for name, p in params.items()}

    def state(self) -> dict[str, Array]:
        """Every array that changes from step to step: "params.NAME", "m.NAME", "v.NAME"."""
        kinds = {"params": self.params, "m": self.m, "v": self.v}
        return {f"{kind}.{name}": a for kind, held in kinds.items() for name, a in held.items()}

    def restore(self, state: Mapping[str, Array], steps: int) -> None:
        """Go on from an earlier `state()`, after that many updates; the parameters too."""
        for name, array in self.state().items():
            array[...] = state[name]
        self.steps = steps

    def step(self, grads: Mapping[str, Array], lr: float) -> None:
        """One update with `grads` (same names and shapes as the parameters)."""
        self.steps += 1
        b1, b2 = BETAS
        step_size = lr / (1 - b1**self.steps)
        correction = math.sqrt(1 - b2**self.steps)
        for name, p in self.params.items():
            g, m, v = grads[name], self.m[name], self.v[name]
            m += (1 - b1) * (g - m)
            v *= b2
            v += (1 - b2) * g * g
            p *= 1 - lr * self.weight_decay
            p -= step_size * m / (np.sqrt(v) / correction + EPS)


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: Schedule) -> float:
    """The rate of step 1 ... steps: up to `peak` over the warm-up, then as the schedule says.

    Neither the first nor the last step is wasted on a rate of zero.
    """
    if step <= warmup:
        return peak * step / warmup
    left = (steps - step + 1) / (steps - warmup)  # 1 after the warm-up, 1/n last
    factor = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 - 0.5 * math.cos(math.pi * left),
    }[schedule]
    return peak * factor


def clip_gradients(grads: dict[str, Array], max_norm: float) -> float:
    """Scale all gradients down, in place, so that their common L2 norm is at most `max_norm`.

    Returns the norm before; max_norm 0 only measures it. Source: Pascanu et al. 2013, "On the
    difficulty of training recurrent neural networks".
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in grads.values()))
    if 0 < max_norm < norm:
        for g in grads.values():
            g *= max_norm / norm
    return norm
