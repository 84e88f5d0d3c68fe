"""How the next token is chosen."""

from dataclasses import dataclass

import numpy as np

from minibule.machine.matrix import Array
from minibule.settings import setting

SAMPLING = "sampling"  # the heading in --help

TINY = float(np.finfo(np.float32).tiny)  # the least number with all its digits
MANY = 2048  # tokens: of more than that, only those about the quantile are sorted


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
    return np.array([_draw(z, sampling, x) for z, x in zip(logits, u, strict=True)], np.int64)


def _draw(z: Array, sampling: Sampling, u: float) -> int:
    """The token at quantile u of softmax(z / temperature), the likeliest counted first; z (V,).

    Nucleus, top_p: a token counts if those before it do not yet make up top_p (so always the
    first). A few tokens have nearly all of the probability: only where u lies beyond these, or
    top_k or top_p need more of them, are all looked at.
    """
    z = z - z.max()  # first: a small temperature makes large numbers infinite
    with np.errstate(over="ignore"):  # a temperature below TINY may count as 0, and 0 / 0 is none
        z /= max(sampling.temperature, TINY)
    p = np.exp(z)
    total = p.sum(dtype=np.float64)
    for least in (1e-4, 0.0):
        likely = np.flatnonzero(p > least)
        if len(likely) > MANY and not sampling.top_k and sampling.top_p == 1:
            return _at_quantile(z, p, u * total)
        order = likely[np.argsort(-z[likely], kind="stable")]
        if sampling.top_k:
            if least and len(order) < sampling.top_k:
                continue
            order = order[: sampling.top_k]
        cumulative = p[order].cumsum(dtype=np.float64)
        whole = cumulative[-1] if sampling.top_k else total
        if sampling.top_p < 1:
            nucleus = 1 + int(cumulative.searchsorted(sampling.top_p * whole))
            if least and nucleus > len(order):
                continue
            whole = cumulative[min(nucleus, len(order)) - 1]
        rank = int(cumulative.searchsorted(u * whole, side="right"))
        if rank < len(order):
            break
    return int(order[min(rank, len(order) - 1)])


def _at_quantile(z: Array, p: Array, mass: float) -> int:
    """The token with which p (V,), the largest first, adds up to more than `mass`.

    Only tokens about as likely as that one are sorted; z (V,): log p, at most 0.
    """
    bucket = np.minimum(-16 * z, 4096).astype(np.int64)  # of a sixteenth of a nat each
    up_to = np.bincount(bucket, weights=p).cumsum()
    mass = min(mass, float(np.nextafter(up_to[-1], 0)))
    there = int(up_to.searchsorted(mass, side="right"))
    tokens = np.flatnonzero(bucket == there)
    order = tokens[np.argsort(-z[tokens], kind="stable")]
    cumulative = p[order].cumsum(dtype=np.float64)
    rank = int(cumulative.searchsorted(mass - up_to[there] + cumulative[-1], side="right"))
    return int(order[min(rank, len(order) - 1)])
