"""What is said of a value: exact, within so much, or in which way and where it is wrong."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minibule.check.case import Answer
from minibule.machine.matrix import Array

# Of the largest entry. The answers are central differences, right to some 1e-9, or right to the
# last digit; a value worked out in float32, where an exercise hands that out, to some 1e-7.
TOLERANCE = 1e-6


class Verdict(NamedTuple):
    right: bool
    words: str


UNFILLED = Verdict(False, "not filled in yet")


def judge(found: Any, answer: Answer, factors: Mapping[str, float] | None = None) -> Verdict:
    """The verdict on a value that a learner computed.

    factors: name -> number that it may have been multiplied with by mistake, such as {"s": 1.7}.
    """
    if found is ...:
        return UNFILLED
    right = np.asarray(answer.value)
    x = _as_numbers(found)
    if x is None:
        return Verdict(False, f"found {_kind(found)}, expected an array {right.shape} of numbers")
    if x.shape != right.shape:
        return Verdict(False, _of_shape(x, right))
    if np.array_equal(x, right):
        return Verdict(True, "exact")
    if _same(x, right):
        error = np.abs(x - right).max() / _size(right)
        return Verdict(True, f"within {error:.0e}")
    return Verdict(False, _wrong(x, answer, factors or {}))


def _as_numbers(found: Any) -> Array | None:
    try:
        x = np.asarray(found)
        return x.astype(np.float64) if x.dtype.kind in "fiub" else None
    except (TypeError, ValueError):  # rows of different lengths, and the like
        return None


def _kind(found: Any) -> str:
    if isinstance(found, np.ndarray):
        return f"an array {found.shape} of {found.dtype}"
    return "nothing (None)" if found is None else f"a {type(found).__name__}"


def _size(x: Array) -> float:
    """The largest entry, which errors are relative to."""
    return float(np.abs(x).max()) or 1.0


def _same(x: Array, y: Array) -> bool:
    return bool(np.all(np.abs(x - y) <= TOLERANCE * _size(y)))  # NaN is the same as nothing


def _of_shape(x: Array, right: Array) -> str:
    said = f"shape {x.shape}, expected {right.shape}"
    if x.T.shape == right.shape:
        return f"{said}: transposed" + (
            "; its transpose would be right" if _same(x.T, right) else ""
        )
    if x.size == right.size and _same(x.reshape(right.shape), right):
        return f"{said}; the numbers are right" + (
            " (keepdims=True keeps a summed axis)" if x.ndim < right.ndim else ""
        )
    return said


def _wrong(x: Array, answer: Answer, factors: Mapping[str, float]) -> str:
    """In which way x (of the right shape) differs from the answer, and where."""
    right = answer.value
    if not np.isfinite(x).all():
        index = _first(~np.isfinite(x))
        return f"{x[index]}{_at(index)}, expected {_number(right[index])}"
    for sentence, value in answer.slips.items():
        if value.shape == right.shape and not _same(value, right) and _same(x, value):
            return sentence
    if x.ndim == 2 and x.T.shape == x.shape and _same(x.T, right):
        return "transposed: its transpose would be right"
    return (
        _multiple(x, right, factors)
        or _of_terms(x, answer)
        or _constant(x, right)
        or _places(x, right, factors)
    )


def _multiple(x: Array, right: Array, factors: Mapping[str, float]) -> str:
    """The one factor between x and the answer, if there is one; of a single number a known one."""
    if not x.any():
        return "0 everywhere" if x.ndim else f"0, expected {_number(right)}"
    factor = float(np.vdot(x, right) / (np.vdot(right, right) or 1))
    if factor and _same(x / factor, right):
        everywhere = " everywhere" if x.ndim else ""
        if _near(factor, -1):
            return f"the sign is wrong{everywhere}"
        named = _named(factor, factors)
        if not x.ndim and "=" not in named:  # any number is some multiple of another
            return f"{_number(x)}, expected {_number(right)}"
        return f"off by a factor {named}{everywhere}"
    return ""


def _named(factor: float, factors: Mapping[str, float]) -> str:
    """A factor, and what it may be: "0.588235 = 1 / s"."""
    written = f"{factor:.6g}"
    for name, value in factors.items():
        known = {name: value, f"1 / {name}": 1 / value, f"{name}^2": value**2}
        for words, number in known.items():
            if _near(abs(factor), number):
                return f"{written} = {'-' if factor < 0 else ''}{words}"
    return written


def _near(x: float, y: float) -> bool:
    return abs(x - y) <= 1e-5 * abs(y)


def _of_terms(x: Array, answer: Answer) -> str:
    """The one term that x has less or more of than the answer: rather none of it than too much."""
    error = x - answer.value
    times = {}
    for name, term in answer.terms.items():
        share = float(np.vdot(error, term) / (np.vdot(term, term) or 1))
        if np.abs(error - share * term).max() <= TOLERANCE * _size(answer.value):
            times[name] = 1 + share
    missing = [name for name, share in times.items() if abs(share) < 1e-5]
    opposite = [name for name, share in times.items() if _near(share, -1)]
    if missing:
        return f"the term {missing[0]} is missing"
    if opposite:
        return f"the term {opposite[0]} has the wrong sign"
    return next(
        (f"the term {name} is there {share:.6g} times" for name, share in times.items()), ""
    )


def _constant(x: Array, right: Array) -> str:
    error = x - right
    if x.size > 1 and _same(error, np.full(x.shape, error.mean())):
        return f"{abs(error.mean()):.6g} too {'large' if error.mean() > 0 else 'small'} everywhere"
    return ""


def _places(x: Array, right: Array, factors: Mapping[str, float]) -> str:
    """Where x is wrong: how often, in which rows, and the first place with its numbers."""
    wrong = np.abs(x - right) > TOLERANCE * _size(right)
    index = _first(wrong)
    numbers = f"found {_number(x[index])}, expected {_number(right[index])}"
    if not x.ndim:
        return numbers
    ratios = x[wrong] / np.where(right[wrong], right[wrong], np.nan)
    if wrong.sum() > 1 and _near(ratios.min(), ratios.max()) and not wrong.all():
        numbers = f"off by a factor {_named(float(ratios[0]), factors)}; {numbers}"
    rows = np.flatnonzero(wrong.reshape(len(x), -1).any(axis=1))
    if x.ndim > 1 and len(rows) < len(x):
        listed = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        where = f"wrong in row{'s' * (len(rows) > 1)} {listed} of {len(x)}"
    else:
        where = f"wrong in {wrong.sum():,} of {x.size:,} entries"
    return f"{where}, first{_at(index)}: {numbers}"


def _first(wrong: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(wrong)[0])


def _at(index: tuple[int, ...]) -> str:
    return f" at [{', '.join(map(str, index))}]" if index else ""


def _number(x: Any) -> str:
    return f"{float(x):.6g}"
