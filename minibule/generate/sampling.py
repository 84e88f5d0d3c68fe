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
    if not sampling.top_k and sampling.top_p == 1:
        return np.array([_draw(row, x) for row, x in zip(z, u, strict=True)], np.int64)
    order = np.argsort(-z, axis=1, kind="stable")  # (B, V), the likeliest first
    z = np.take_along_axis(z, order, axis=1)
    p = np.exp(z - z[:, :1])  # (B, V), falling
    if sampling.top_k:
        p[:, sampling.top_k :] = 0
    p /= p.sum(axis=1, keepdims=True)
    cumulative = p.cumsum(axis=1)
    # Nucleus: keep a token if those before it do not yet make up top_p (so always the first).
    p[cumulative - p >= sampling.top_p] = 0
    cumulative = p.cumsum(axis=1)
    rank = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(axis=1)  # (B,)
    return order[np.arange(len(order)), np.minimum(rank, (p > 0).sum(axis=1) - 1)]


def _draw(z: Array, u: float) -> int:
    """The token at quantile u of softmax(z), the likeliest counted first; z (V,) at most 0.

    A few tokens have nearly all of the probability: only where u lies beyond these are all sorted.
    """
    p = np.exp(z)
    target = u * p.sum()
    for least in (1e-4, 0.0):
        likely = np.flatnonzero(p > least)
        order = likely[np.argsort(-z[likely], kind="stable")]
        rank = int(p[order].cumsum().searchsorted(target, side="right"))
        if rank < len(order):
            break
    return int(order[min(rank, len(order) - 1)])
