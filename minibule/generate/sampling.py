"""How the next token is chosen."""

from typing import NamedTuple

import numpy as np

from minibule.machine.matrix import Array


class Sampling(NamedTuple):
    """How the next token is chosen.

    temperature   0 takes the likeliest token (greedy); 1 samples from the model itself
    top_k         sample among the k likeliest tokens only; 0 = all
    top_p         sample among the likeliest tokens that together have this probability
    seed          the draw; the same seed and prompt give the same answer
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def choose(logits: Array, sampling: Sampling, u: Array) -> Array:
    """The next token of each row: logits (B, V), u (B,) uniform in [0, 1) -> (B,) ints."""
    if sampling.temperature == 0:
        return logits.argmax(axis=1)
    z = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-z, axis=1, kind="stable")  # likeliest first
    z = np.take_along_axis(z, order, axis=1)
    p = np.exp(z - z[:, :1])
    if sampling.top_k:
        p[:, sampling.top_k :] = 0
    p /= p.sum(axis=1, keepdims=True)
    cumulative = p.cumsum(axis=1)
    # Nucleus: keep a token if those before it do not yet make up top_p (so always the first).
    p[cumulative - p >= sampling.top_p] = 0
    cumulative = p.cumsum(axis=1)
    rank = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(axis=1)
    return order[np.arange(len(order)), np.minimum(rank, (p > 0).sum(axis=1) - 1)]
