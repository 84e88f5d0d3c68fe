"""What the model asks of a weight: `x @ W.T`, `dy @ W` and `W[ids]`, and nothing else.

Whatever answers these three is a weight. An array is one; `half.Narrow` keeps the same numbers in
half the memory, and `FewRows` multiplies the same numbers faster where x has few rows.
"""

from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

# Rows of x, at most, that `FewRows` takes for few: sequences decoded at once.
FEW = 32


class Transposed(Protocol):
    """W.T of a `Matrix` W (out, in)."""

    def __rmatmul__(self, x: Array, /) -> Array:
        """x @ W.T; x (T, in) -> (T, out)."""


class Matrix(Protocol):
    """A weight (out, in), or a vector (n,) of which only `W[:]` is asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...
    @property
    def dtype(self) -> "np.dtype[Any]": ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Array:
        """Rows as an array; all of them for `W[:]`."""

    def __rmatmul__(self, x: Array, /) -> Array:
        """x @ W; x (T, out) -> (T, in)."""

    @property
    def T(self) -> Transposed: ...  # noqa: N802 - as NumPy calls it


class FewRows:
    """A weight for few rows at a time: x W^T as (W x^T)^T.

    BLAS first copies one of the two matrices into an order it likes: here the small one.
    """

    __array_ufunc__ = None  # NumPy shall leave x @ W to this class

    def __init__(self, W: Array) -> None:
        self.W = W
        self.shape, self.size, self.dtype = W.shape, W.size, W.dtype

    def __len__(self) -> int:
        return len(self.W)

    def __getitem__(self, rows: Any) -> Array:
        return self.W[rows]

    def __rmatmul__(self, x: Array) -> Array:
        return x @ self.W

    @property
    def T(self) -> "_FewRowsTransposed":  # noqa: N802
        return _FewRowsTransposed(self.W)


class _FewRowsTransposed:
    __array_ufunc__ = None

    def __init__(self, W: Array) -> None:
        self.W = W

    def __rmatmul__(self, x: Array) -> Array:
        if 1 < len(x) <= FEW:
            return np.ascontiguousarray((self.W @ x.T).T)
        return x @ self.W.T


def for_few_rows(W: Matrix) -> Matrix:
    """W as decoding uses it: an array goes into `FewRows`, any other weight stays as it is."""
    return FewRows(W) if isinstance(W, np.ndarray) and W.ndim == 2 else W
