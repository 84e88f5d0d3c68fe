"""Matrices multiplied in 16-bit numbers, where the optional library numkong is installed.

Nothing here is needed to understand the model. A `Packed` stands where a weight matrix stands; it
has W packed once, in the order in which the processor reads it, for x W^T and for dy W apart. A
bfloat16 has 8 significant bits, a float32 has 24; sums are float32 in every case.

    float32      NumPy's own products
    bfloat16     x and W each rounded to a bfloat16
    bfloat16x2   x = x1 + x2 and W = W1 + W2, all of them bfloat16, with about 17 significant bits:
                 x W^T = x1 W1^T + x2 W1^T + x1 W2^T, the smallest product being left out
    bfloat16x3   likewise of three terms, as exact as float32

A W that is made of bfloat16 numbers, as published models are, has no second term. How far a product
is from the exact one, and the gradients of SmolLM2-135M from those of float32 (float32's own from
exact ones), as a share of their length:

                 a product       gradients
    float32      3e-7            1e-6 to 5e-6
    bfloat16     2e-3            1e-2
    bfloat16x2   2e-6 to 4e-6    1e-5 to 5e-5
    bfloat16x3   1e-7            not measured

A row of a product is the same to the last bit whatever other rows stand beside it.
"""

import functools
import importlib
import math
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from minibule.errors import InputError
from minibule.machine.matrix import Array, Matrix, Transposed, for_few_rows
from minibule.machine.threads import in_parallel

Mode = Literal["auto", "float32", "bfloat16", "bfloat16x2", "bfloat16x3"]
HELP = (
    "how matrices are multiplied: float32 by NumPy; bfloat16x3 as exactly, bfloat16x2 nearly so, "
    "or bfloat16 roughly, by numkong (pip install '.[fast]'); auto = bfloat16x2 where it is faster"
)
# How many bfloat16 numbers there are whose sum stands for a float32.
TERMS = {"bfloat16": 1, "bfloat16x2": 2, "bfloat16x3": 3}

# What numkong 7.8 is given at once: a block of x, of so many rows with all its terms, and a panel
# of W. On an AMD EPYC with AVX512-BF16 it multiplies 64 rows of x together, those left over at half
# the rate, and by a panel of 128 rows or more all at half the rate. What is left over is filled up
# where that takes no longer.
BLOCK_ROWS, TOGETHER = 128, 64
PANEL_ROWS = 112
MOST_SPLIT = 2**22  # numbers of x that are split before they are multiplied

# `auto` multiplies so often each way, and asks for so much of a gain.
TRIALS, GAIN = 5, 1.2


class Packed:
    """A weight (out, in) as what `x @ W.T` and `dy @ W` need of it.

    W      float32, or what stands for it
    mode   one of TERMS
    again  loads W once more, where its rows themselves are asked for: W is then not kept
    keep   whether to keep what is packed; else W is kept, and packed for each product: half the
           memory, some more time, the same numbers
    """

    __array_ufunc__ = None  # NumPy shall leave x @ W to this class
    dtype = np.dtype(np.float32)  # what it acts as

    def __init__(
        self, W: Matrix, mode: Mode, again: Callable[[], Matrix] | None = None, keep: bool = True
    ) -> None:
        self.shape, self.size, self.mode = W.shape, W.size, mode
        self._lock, self._kept = threading.Lock(), dict[str, "_Product"]()
        self._again: Callable[[], Matrix] = lambda: W
        self._keep = keep
        if keep:
            self._product("x @ W.T")
            self._again = again or self._again

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        return self._again()[rows]

    def __rmatmul__(self, x: Array) -> Array:
        """x @ W; x (T, out) -> (T, in)."""
        return self._product("x @ W").of(x)

    @property
    def T(self) -> "_Transposed":  # noqa: N802 - as NumPy calls it
        return _Transposed(self)

    def _product(self, way: str) -> "_Product":
        """One of the two products: "x @ W" is first asked for where something learns."""
        if not self._keep:
            return self._made(way)
        with self._lock:  # one thread makes it, the others wait for it
            if way not in self._kept:
                self._kept[way] = self._made(way)
            return self._kept[way]

    def _made(self, way: str) -> "_Product":
        W, terms = self._again(), TERMS[self.mode]
        if way == "x @ W.T":
            return _Product(lambda part: _split(W[part], terms), len(W), terms)
        return _Product(lambda part: _split(W[:, part], terms).swapaxes(1, 2), W.shape[1], terms)


class _Transposed:
    """W.T of a `Packed` W."""

    __array_ufunc__ = None

    def __init__(self, matrix: Packed) -> None:
        self.matrix = matrix

    def __rmatmul__(self, x: Array) -> Array:
        """x @ W.T; x (T, in) -> (T, out)."""
        return self.matrix._product("x @ W.T").of(x)


class _Product:
    """x -> x M^T of a matrix M (n, depth), packed in panels of its rows.

    split: rows -> the bfloat16 terms of these rows of M, (terms, rows, depth)
    """

    def __init__(self, split: Callable[[slice], Array], n: int, terms: int) -> None:
        self.n, self.terms = n, terms
        panels = (slice(i, min(i + PANEL_ROWS, n)) for i in range(0, n, PANEL_ROWS))
        self.panels = [
            # Of a further term that is zero, nothing is kept.
            (rows, [_pack(term) for i, term in enumerate(split(rows)) if i == 0 or term.any()])
            for rows in panels
        ]

    def of(self, x: Array) -> Array:
        """x (T, depth) -> (T, n)."""
        y = np.empty((len(x), self.n), np.float32)
        step = BLOCK_ROWS // self.terms
        many = step * max(1, MOST_SPLIT // (step * x.shape[1]))
        for start in range(0, len(x), many):
            rows = slice(start, start + many)
            self._multiply(x[rows], y[rows], step)
        return y

    def _multiply(self, x: Array, y: Array, step: int) -> None:
        """x (T, depth) -> y (T, n), by blocks of so many rows."""
        starts = range(0, len(x), step)
        tensors = dict[int, list[Any]]()

        def split(start: int) -> None:
            """A term of M goes with so many terms of x: their rows one under the other."""
            terms = _split(_filled_up(x[start : start + step]), self.terms)
            stacked = [terms[: self.terms - k].reshape(-1, x.shape[1]) for k in range(self.terms)]
            tensors[start] = [_tensor(rows) for rows in stacked]

        def multiply(panel: tuple[slice, list[Any]]) -> None:
            rows, packs = panel
            for start in starts:
                block = y[start : start + step, rows]
                products = [
                    product
                    for k, pack in enumerate(packs)
                    for product in _dots(tensors[start][k], pack, self.terms - k)
                ]
                _add(products, block)

        in_parallel(split, starts)
        in_parallel(multiply, self.panels)


def _add(products: list[Array], y: Array) -> None:
    """Their sum into y (T, n); rows that were filled up come to nothing."""
    first, *others = (product[: len(y)] for product in products)
    if not others:
        np.copyto(y, first)
        return
    np.add(first, others[0], out=y)
    for product in others[1:]:
        y += product


def _filled_up(x: Array) -> Array:
    """x (T, depth) with rows of zeros up to TOGETHER, if that takes no longer."""
    missing = -len(x) % TOGETHER
    return np.pad(x, ((0, missing), (0, 0))) if 0 < missing < TOGETHER // 2 else x


# -- numkong ---------------------------------------------------------------------------------------


@functools.cache
def _numkong() -> Any:
    """The library, or None where it is not installed."""
    try:
        return importlib.import_module("numkong")
    except ImportError:
        return None


def _tensor(bits: Array) -> Any:
    """bfloat16 numbers, given by their bits, as numkong knows them: where they lie."""
    return _numkong().from_pointer(bits.ctypes.data, bits.shape, "bf16", owner=bits)


def _split(x: Array, terms: int) -> Array:
    """x (...) as a sum of bfloat16 numbers, the largest first: (terms, ...) uint16, their bits."""
    split = np.empty((terms, *x.shape), np.uint16)
    for i, term in enumerate(split):
        _numkong().astype(x, "bf16", out=_tensor(term))  # to nearest, ties to even
        if i + 1 < terms:
            x = x - np.left_shift(term, 16, dtype=np.uint32).view(np.float32)  # exact
    return split


def _pack(M: Array) -> Any:
    """bfloat16 M (n, depth) as numkong multiplies it."""
    return _numkong().dots_pack(_tensor(np.ascontiguousarray(M)), dtype="bf16")


def _dots(x: Any, pack: Any, terms: int) -> Array:
    """x M^T, float32 (terms, T, n), of a bfloat16 tensor x (terms T, depth) and of packed M."""
    return np.asarray(_numkong().dots_packed(x, pack)).reshape(terms, -1, pack.width)


# -- which of them ---------------------------------------------------------------------------------


def check_installed(mode: Mode) -> None:
    """InputError where there is no such mode, or the library that it asks for is missing."""
    if mode not in get_args(Mode):
        raise InputError(f"matmul: found {mode!r}, expected one of {', '.join(get_args(Mode))}.")
    if mode in TERMS and _numkong() is None:
        raise InputError(
            f"--matmul {mode}: needs numkong: pip install '.[fast]'. Without it: --matmul float32."
        )


def is_installed() -> bool:
    return _numkong() is not None


def mode_of(W: Matrix) -> Mode:
    """How a matrix is multiplied."""
    return W.mode if isinstance(W, Packed) else "float32"


def faster(W: Matrix, rows: int) -> Mode:
    """What `auto` comes to: the faster of bfloat16x2 and float32, tried on so many rows of x."""
    if not is_installed():
        return "float32"
    ways: dict[Mode, Transposed] = {
        "float32": for_few_rows(W).T,
        "bfloat16x2": Packed(W, "bfloat16x2").T,
    }
    x = np.random.default_rng(0).standard_normal((rows, W.shape[1]), np.float32)
    least = dict.fromkeys(ways, math.inf)
    for _ in range(TRIALS):  # in turn, on a machine that may have other work
        for mode, transposed in ways.items():
            started = time.perf_counter()
            x @ transposed
            least[mode] = min(least[mode], time.perf_counter() - started)
    return "bfloat16x2" if least["float32"] > GAIN * least["bfloat16x2"] else "float32"
