"""A learner's functions run and marked, value by value. What goes wrong in them is theirs to hear.

A function returns its values in the order in which they are worked out. If it stops on the way,
those it has assigned by then are marked all the same, by their names.
"""

import copy
import inspect
import linecache
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from minibule.check.case import Case
from minibule.check.exercises import FUNCTIONS, case_of, number_of
from minibule.check.verdict import UNFILLED, Verdict, judge
from minibule.errors import InputError, shortened
from minibule.wording import did_you_mean, printable


class Outcome(NamedTuple):
    """The values that a function worked out, by name, and what stopped it, if anything did."""

    values: Mapping[str, Any]
    stopped: str = ""


class Marked(NamedTuple):
    """A verdict on each value in order, up to the first that is not right.

    stopped    what stopped the function, or why it could not be run
    unlooked   the values after the first that is not right
    """

    name: str
    verdicts: Sequence[tuple[str, Verdict]]
    stopped: str = ""
    unlooked: Sequence[str] = ()

    @property
    def right(self) -> bool:
        return not self.stopped and all(verdict.right for _, verdict in self.verdicts)

    @property
    def unfilled(self) -> bool:
        """Whether nothing was written yet."""
        return not self.stopped and self.verdicts[0][1] == UNFILLED

    def lines(self) -> Iterator[str]:
        title = f"{number_of(self.name):>2}  {self.name}"
        if self.unfilled:
            yield f"{title}: {UNFILLED.words}"
            return
        yield title
        width = max((len(name) for name, _ in self.verdicts), default=0)
        for name, verdict in self.verdicts:
            yield f"      {name:<{width}}   {verdict.words}"
        if self.stopped:
            yield f"      {self.stopped}"
        if self.unlooked:
            yield f"      not looked at: {', '.join(self.unlooked)}"


def check(function: Callable[..., Any]) -> None:
    """Print the verdicts on one function, which is known by its name: for notebooks."""
    name = getattr(function, "__name__", repr(function))
    if name not in FUNCTIONS:
        raise InputError(f"{name}: no exercise{did_you_mean(name, FUNCTIONS)}")
    for line in mark(function, name).lines():
        print(line)


def mark(function: object, name: str) -> Marked:
    """Run a function on its exercise's inputs, and mark what it returns."""
    if not isinstance(function, FunctionType):
        return Marked(name, (), f"no function of this name: expected `def {name}(...)`")
    case = case_of(name)
    values, stopped = _run(function, case)
    verdicts: list[tuple[str, Verdict]] = []
    names = list(case.answers)
    for place, value in enumerate(names):
        if value not in values:
            return Marked(name, verdicts, stopped, names[place:] if verdicts else ())
        verdict = judge(values[value], case.answers[value], case.factors)
        verdicts.append((value, verdict))
        if not verdict.right:
            return Marked(name, verdicts, stopped, names[place + 1 :])
    return Marked(name, verdicts, stopped)


def _run(function: FunctionType, case: Case) -> Outcome:
    file = function.__code__.co_filename
    inputs = copy.deepcopy(dict(case.inputs))
    wanted = list(inspect.signature(function).parameters)
    if wanted != list(inputs):
        return Outcome(
            {}, f"its arguments are ({', '.join(wanted)}), expected ({', '.join(inputs)})"
        )
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # an infinite or missing number gets its verdict
            returned = function(**inputs)
    except KeyboardInterrupt as error:
        print(f"{function.__name__}, {where(error, file)}")
        raise
    except (Exception, SystemExit) as error:
        return Outcome(_assigned(function, error, case), said(error, file))
    outcome = _returned(returned, list(case.answers))
    changed = [name for name, value in inputs.items() if not _equal(value, case.inputs[name])]
    if changed and not outcome.stopped:
        why = f"it changes its argument {changed[0]}; expected a new array: others still need it"
        return outcome._replace(stopped=why)
    return outcome


def _returned(returned: Any, names: Sequence[str]) -> Outcome:
    expected = f"expected `return {', '.join(names)}`"
    if returned is None:
        return Outcome({}, f"it returns nothing; {expected}")
    values = (returned,) if len(names) == 1 and not isinstance(returned, tuple) else returned
    if not isinstance(values, (tuple, list)) or len(values) != len(names):
        found = len(values) if isinstance(values, (tuple, list)) else 1
        return Outcome({}, f"it returns {found} value{'s' * (found != 1)}; {expected}")
    return Outcome(dict(zip(names, values, strict=True)))


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, Mapping):
        return x.keys() == y.keys() and all(_equal(x[name], y[name]) for name in x)
    if isinstance(x, tuple):
        return all(map(_equal, x, y))
    return isinstance(x, slice) or np.array_equal(x, y)


# -- what stopped it -------------------------------------------------------------------------------


def _frames(error: BaseException, file: str) -> list[tuple[Any, int]]:
    """The frames of an error's traceback that are in the learner's file, and their lines."""
    return [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == file
    ]


def _assigned(function: FunctionType, error: BaseException, case: Case) -> dict[str, Any]:
    """The values that the function had assigned when it was stopped."""
    for frame, _ in _frames(error, function.__code__.co_filename):
        if frame.f_code is function.__code__:
            return {name: x for name, x in frame.f_locals.items() if name in case.answers}
    return {}


def where(error: BaseException, file: str) -> str:
    """The learner's own line that an error came from: "line 12: `dx = dy @ W`"."""
    frames = _frames(error, file)
    if not frames:
        return "before its first line"
    line = frames[-1][1]
    text = printable(shortened(linecache.getline(file, line).strip(), 100))
    return f"line {line}: `{text}`"


def said(error: BaseException, file: str) -> str:
    """The line that an error came from, and what it says."""
    if isinstance(error, TypeError) and "ellipsis" in str(error):
        return f"{where(error, file)} uses a value that is not filled in yet"
    if isinstance(error, SystemExit):
        return f"{where(error, file)} ends the program"
    message = printable(shortened(str(error), 300))
    return f"{where(error, file)}: {type(error).__name__}" + (f": {message}" if message else "")
