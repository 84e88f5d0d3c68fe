"""How the next token is chosen."""

from dataclasses import dataclass

import numpy as np

from minibule.machine.matrix import Array
from minibule.settings import setting

SAMPLING = "sampling"  # the heading in --help

TINY = float(np.finfo(np.float64).tiny)  # the least number with all its digits


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the same seed and prompt give the same answer."""

    temperature: float = setting(
        0.0, "0 = always the likeliest token, 1 = sample from the model itself", 0, group=SAMPLING
    )
    top_k: int = setting(0, "sample among the K likeliest tokens only; 0 = all", 0, group=SAMPLING)
    top_p: float = setting(
        1.0,
        "sample among the likeliest tokens that together have this probability; 1 = all",
        0,
        1,
        above=True,
        group=SAMPLING,
    )
    seed: int = setting(0, "of the draws", 0, group=SAMPLING)


def choose(logits: Array, sampling: Sampling, u: Array) -> Array:
    """The next token of each row: logits (B, V), u (B,) uniform in [0, 1) -> (B,) ints."""
    if sampling.temperature == 0:
        return logits.argmax(axis=1)
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)  # first: a small temperature makes large numbers infinite
    with np.errstate(over="ignore"):  # a temperature below TINY may count as 0, and 0 / 0 is none
        z /= max(sampling.temperature, TINY)
    p = np.exp(z, out=z)
    if sampling.top_k == 0 and sampling.top_p == 1:
        return np.array([_drawn(row, x) for row, x in zip(p, u, strict=True)], np.int64)
    order = np.argsort(-p, axis=1, kind="stable")  # (B, V), the likeliest first
    p = np.take_along_axis(p, order, axis=1)
    if sampling.top_k:
        p[:, sampling.top_k :] = 0
    p /= p.sum(axis=1, keepdims=True)
    # Nucleus: keep a token if those before it do not yet make up top_p (so always the first).
    p[p.cumsum(axis=1) - p >= sampling.top_p] = 0
    rank = np.array([_drawn(row, x) for row, x in zip(p, u, strict=True)])
    return order[np.arange(len(order)), rank]


def _drawn(p: Array, u: float) -> int:
    """Where u of the way through p lies; p (V,) need not sum to 1."""
    cumulative = p.cumsum()
    place = int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))
    return min(place, int(np.flatnonzero(p)[-1]))  # u near 1, rounded up
