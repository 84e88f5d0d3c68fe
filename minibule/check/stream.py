"""The forest that exercises 8, 9 and 11 work on: a prompt of 3 tokens and two answers of 2."""

import numpy as np

from minibule.check.case import normal
from minibule.machine.matrix import Array

HEADS, KV_HEADS, HD = 4, 2, 4
POSITIONS = np.array([0, 1, 2, 3, 4, 3, 4])
SEGMENTS = (
    (slice(0, 3), np.array([0, 1, 2])),
    (slice(3, 5), np.array([0, 1, 2, 3, 4])),
    (slice(5, 7), np.array([0, 1, 2, 5, 6])),
)


def stream() -> tuple[Array, ...]:
    """q, k, val and dy: (T, H, hd), twice (T, K, hd), (T, H, hd)."""
    queries, keys = (len(POSITIONS), HEADS, HD), (len(POSITIONS), KV_HEADS, HD)
    return normal(8, queries, keys, keys, queries)
