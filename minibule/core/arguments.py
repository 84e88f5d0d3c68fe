"""The checks at the public door: what `complement` may be given, and the words where it is not.

Behind the door arrays are finite, of a float type (float64 but for logits), and of the shapes that
the docstrings say.
"""

from collections.abc import Sequence
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike

from minibule.errors import InputError
from minibule.machine.matrix import Array


def numbers(value: ArrayLike, name: str) -> Array:
    """`value` as an array of finite numbers; whole numbers become float64."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        raise InputError(f"{name}: found rows of different lengths, expected an array.") from None
    if array.dtype.kind not in "iufb":
        raise InputError(f"{name}: found {array.dtype}, expected numbers.")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: found NaN or infinite numbers, expected finite ones.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def rejection_counts(value: ArrayLike) -> Array:
    """Counts (..., V), V >= 1, each 0 to 1e15, as float64."""
    v = numbers(value, "counts").astype(np.float64)
    if v.ndim == 0 or v.shape[-1] == 0:
        raise InputError(f"counts: found shape {v.shape}, expected (..., V) with V >= 1.")
    if (v < 0).any() or (v > 1e15).any():  # whole numbers are exact in a float64 up to there
        raise InputError(f"counts: found {v.min()} to {v.max()}, expected 0 to 1e15.")
    return v


def required(
    value: ArrayLike | None, name: str, why: str | None, shape: tuple[int, ...]
) -> Array | None:
    """`value` as float64 of that shape, where `why` says what needs it; None where nothing does."""
    if why is None:
        return None
    if value is None:
        raise InputError(f"{why} needs {name}.")
    array = numbers(value, name).astype(np.float64)
    if array.shape != shape:
        raise InputError(f"{name}: found shape {array.shape}, expected {shape}.")
    return array


def share(value: float, name: str) -> float:
    """A number from 0 to 1."""
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise InputError(f"{name} = {value!r}, expected 0 to 1.")
    return value


def one_of(value: str, name: str, known: Sequence[str]) -> None:
    """InputError unless `value` is one of the known words."""
    if value not in known:
        raise InputError(f"{name}: found {value!r}, expected one of {tuple(known)}.")
