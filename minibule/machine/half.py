"""Matrices kept in 16 bits and widened where they are used: half the memory, the same numbers.

Nothing here is needed to understand the model. A `Narrow` stands where a float32 weight matrix
stands, in `x @ W.T`, `dy @ W` and `E[ids]`, and gives exactly what the widened matrix would: every
bfloat16 and every float16 is a float32.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from minibule.machine.matrix import Array, Matrix

# Numbers from which a matrix is kept narrow: smaller ones take little memory, and time to widen.
LEAST_SIZE = 2**18

# Rows widened at once. A layer's matrix is one block, the vocabulary head several.
BLOCK_ROWS = 4096


class Narrow:
    """A matrix (out, in) kept as float16, or as uint16: the upper halves of float32, bfloat16."""

    __array_ufunc__ = None  # NumPy shall leave x @ W to this class
    dtype = np.dtype(np.float32)  # what it acts as

    def __init__(self, words: Array) -> None:
        self.words = words
        self.shape, self.size = words.shape, words.size

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, rows: Any) -> Array:
        """The rows, as float32."""
        words = self.words[rows]
        if words.dtype == np.float16:
            return words.astype(np.float32)
        return np.left_shift(words, 16, dtype=np.uint32).view(np.float32)

    def __rmatmul__(self, x: Array) -> Array:
        """x @ W; x (T, out) -> (T, in)."""
        blocks = self._blocks()
        rows = next(blocks)
        y = x[:, rows] @ self[rows]
        for rows in blocks:
            y += x[:, rows] @ self[rows]
        return y

    @property
    def T(self) -> "_Transposed":  # noqa: N802 - as NumPy calls it
        return _Transposed(self)

    def _blocks(self) -> Iterator[slice]:
        return (slice(i, i + BLOCK_ROWS) for i in range(0, len(self), BLOCK_ROWS))


class _Transposed:
    """W.T of a `Narrow` W."""

    __array_ufunc__ = None

    def __init__(self, matrix: Narrow) -> None:
        self.matrix = matrix

    def __rmatmul__(self, x: Array) -> Array:
        """x @ W.T; x (T, in) -> (T, out)."""
        y = np.empty((len(x), len(self.matrix)), x.dtype)
        for rows in self.matrix._blocks():
            np.matmul(x, self.matrix[rows].T, out=y[:, rows])
        return y


def widened(W: Matrix) -> Array:
    """W as a float32 array; itself if it is one."""
    return W if isinstance(W, np.ndarray) else W[:]
