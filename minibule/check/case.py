"""What an exercise asks for: a function's arguments, and what it has to return."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from minibule.machine.matrix import Array


class Answer(NamedTuple):
    """What a value has to be.

    value   the answer
    terms   name -> array: what adds up to it, to say which term is missing or has the wrong sign
    slips   sentence -> array: what a known mistake gives
    """

    value: Array
    terms: Mapping[str, Array] = {}
    slips: Mapping[str, Array] = {}


class Case(NamedTuple):
    """One function of an exercise.

    inputs    its arguments by name, in order
    answers   what it returns, by name, in order
    factors   name -> number, that a value may have been multiplied with by mistake
    """

    inputs: Mapping[str, Any]
    answers: Mapping[str, Answer]
    factors: Mapping[str, float] = {}


def normal(seed: int, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape) for shape in shapes)
