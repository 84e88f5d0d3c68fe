"""Forward passes in plain NumPy, float64, written a second time: what the exercises are marked by.

No backward pass is here, and nothing of core/ is called. A pass names its values as it goes, and
can be run again with one of them moved; the gradient with respect to a value is what the loss then
says, on both sides of each of its numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minibule.machine.matrix import Array

STEP = 1e-5  # h of the central differences: their error is some 1e-10 of the gradient

Segments = Sequence[tuple[slice, Array]]  # own tokens, and the keys that they attend to


class Notes:
    """The values of one forward pass by name; the one called `moved` is changed as it is noted."""

    def __init__(self, moved: str = "", by: Array | float = 0.0) -> None:
        self.values: dict[str, Array] = {}
        self.moved, self.by = moved, by

    def __call__(self, name: str, value: Any) -> Array:
        """Note a value, and give back what the pass is to go on with."""
        noted = value + self.by if name == self.moved else value
        self.values[name] = noted
        return noted


Forward = Callable[[Notes], float]  # a pass, and the scalar that it ends in


def values(forward: Forward) -> dict[str, Array]:
    """Every value that the pass names."""
    notes = Notes()
    forward(notes)
    return notes.values


def gradient(forward: Forward, name: str) -> Array:
    """The gradient of the pass's scalar with respect to a named value, by central differences."""
    slope = np.zeros(np.shape(values(forward)[name]))
    for index in np.ndindex(slope.shape):
        by = np.zeros(slope.shape)
        by[index] = STEP
        slope[index] = (forward(Notes(name, by)) - forward(Notes(name, -by))) / (2 * STEP)
    return slope


# -- layers ----------------------------------------------------------------------------------------


def softmax(score: Array) -> Array:
    e = np.exp(score - score.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def root_mean_square(x: Array, eps: float) -> Array:
    """(T, D) -> (T, 1)."""
    return np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def rotated(x: Array, angle: Array) -> Array:
    """x (T, heads, hd): each pair (i, i + hd/2) as a complex number, times exp(i angle)."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def rope_angle(positions: Array, hd: int, theta: float) -> Array:
    """(T, 1, hd/2): the position times theta^(-2i/hd)."""
    return positions[:, None, None] * theta ** (-np.arange(0, hd, 2) / hd)


def attended(
    q: Array, k: Array, val: Array, segments: Segments, notes: Notes | None = None
) -> Array:
    """Attention of q (T, H, hd) over k, val (T, K, hd), one head of one segment after another.

    notes: gets each reader's own copy of the keys and values, as "k 1 0" of segment 1 and head 0.
    """
    notes, out, G = notes or Notes(), np.zeros_like(q), q.shape[1] // k.shape[1]
    for segment, (own, keys) in enumerate(segments):
        unseen = keys > np.arange(own.start, own.stop)[:, None]  # (t, S)
        for head in range(q.shape[1]):
            read = notes(f"k {segment} {head}", k[keys, head // G])  # (S, hd)
            score = q[own, head] @ read.T / np.sqrt(q.shape[-1])
            att = softmax(np.where(unseen, -np.inf, score))
            out[own, head] = att @ notes(f"val {segment} {head}", val[keys, head // G])
    return out


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def block(
    notes: Notes,
    x: Array,
    layer: Mapping[str, Array],
    angle: Array,
    hd: int,
    segments: Segments,
    eps: float,
) -> Array:
    """One transformer block; the projections are those of `layer`, the names the exercise's.

    What several ways lead from is named once more on each of them, to tell their shares apart.
    """

    def by_head(name: str) -> Array:
        y = notes(f"x1, {name}", x1) @ layer[name].T
        return notes(f"{name}, out", y).reshape(len(x), -1, hd)

    x = notes("x", x)
    x1 = notes("x1", layer["input_layernorm"] * x / root_mean_square(x, eps))
    q = notes("q", rotated(by_head("q_proj"), angle))
    k = notes("k", rotated(by_head("k_proj"), angle))
    val = notes("val", by_head("v_proj"))
    o = notes("o", attended(q, k, val, segments).reshape(len(x), -1))
    mid = notes("mid", notes("x, around", x) + o @ layer["o_proj"].T)
    x2 = notes("x2", layer["post_attention_layernorm"] * mid / root_mean_square(mid, eps))
    gate = notes("gate", notes("x2, gate", x2) @ layer["gate_proj"].T)
    up = notes("up", notes("x2, up", x2) @ layer["up_proj"].T)
    h = notes("h", silu(gate) * up)
    return notes("y", notes("mid, around", mid) + h @ layer["down_proj"].T)


def complement(v: Array) -> Array:
    """P of counts v (n, V)."""
    left = v.sum(axis=-1, keepdims=True) - v + 1
    return left / left.sum(axis=-1, keepdims=True)


def complement_loss(notes: Notes, z: Array, v: Array, alpha: float) -> float:
    """Mean over rows of alpha KL(P || p) + (1 - alpha) contrast, z and v (n, V)."""
    P, w = complement(v), notes("w", v / v.sum(axis=-1, keepdims=True))
    p = notes("p", softmax(z))
    logp = notes("log p", np.log(p))
    notes("P", P)
    kl = notes("kl", (P * (np.log(P) - logp)).sum(axis=-1))
    contrast = notes("contrast", -(w * np.log(1 - np.exp(logp))).sum(axis=-1))
    return float(notes("loss", np.mean(alpha * kl + (1 - alpha) * contrast)))
