"""Words about what comes from outside: what was expected, what may be meant, how wide it shows."""

import reprlib  # values of a damaged file may be as long as the file
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

LIMIT = 2**63  # no count is as large, and NumPy's whole numbers end here


@dataclass(frozen=True)
class Number:
    """A number as it is expected: of which kind, and in which range.

    kind    int for a whole number, float for any, among them whole ones
    low     the least, or with `above` the one that it must exceed
    high    the greatest; None: anything below LIMIT

    >>> str(Number(int, 1, 1000)), str(Number(float, 0)), str(Number(float, 0, 1, above=True))
    ('a whole number from 1 to 1,000', 'a number of at least 0', 'a number above 0 and at most 1')
    """

    kind: type[int] | type[float]
    low: float = 0
    high: float | None = None
    above: bool = False

    def __str__(self) -> str:
        what = "a whole number" if self.kind is int else "a number"
        low, high = _shown(self.low), None if self.high is None else _shown(self.high)
        if self.above:
            return f"{what} above {low}" + (f" and at most {high}" if high else "")
        return f"{what} from {low} to {high}" if high else f"{what} of at least {low}"

    def check(self, value: object) -> Any:
        """The value as it is; ValueError says what was expected, if it is none of these numbers.

        True is no number here, nor are NaN and the infinities, and 2.0 is no whole one.
        """
        if isinstance(value, bool) or not isinstance(value, (int, self.kind)):
            raise ValueError(f"expected {self}")
        most = float("inf") if self.high is None else self.high
        in_range = self.low <= value <= most and not (self.above and value == self.low)
        if not in_range or value == float("inf"):
            raise ValueError(f"expected {self}")
        if value >= LIMIT:
            raise ValueError("expected less than 2^63")
        return value

    def noted(self, value: object, name: str, problems: list[str]) -> Any:
        """The value as `check` gives it; or 1, and a line of what is wrong among the problems."""
        try:
            return self.check(value)
        except ValueError as error:
            problems.append(f"{name}: found {reprlib.repr(value)}, {error}")
            return 1


def _shown(x: float) -> str:
    """A bound as people write it: 1,000, but 1e+12 and 0.9."""
    return f"{x:,}" if isinstance(x, int) else f"{x:g}"


def printable(text: str) -> str:
    r"""Text from a file, or its name, as it may be sent to a terminal: one line, no commands to it.

    >>> printable("caf\u00e9\x1b[2J\n") == "caf\u00e9" + r"\x1b[2J\n"
    True
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


# Characters that say in which direction those after them are written.
BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))

# What a terminal takes for a command (the control characters but for the tab and the end of a line,
# which are text) or for the order to show a text in another order than it has.
_COMMANDS = {
    code: chr(code).encode("unicode_escape").decode("ascii")
    for code in (*range(32), *range(127, 160), *BIDI)
    if chr(code) not in "\n\t"
}


def harmless(text: str) -> str:
    r"""Any text as it may be sent to a terminal: in lines, in any language, and no commands to it.

    >>> harmless("caf\u00e9\x1b[2J\n") == "caf\u00e9" + r"\x1b[2J" + "\n"
    True
    """
    return text.translate(_COMMANDS)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean NAME?", or nothing where no known name is like it.

    >>> did_you_mean("trian", ["train", "export"])
    '; did you mean train?'
    """
    import difflib  # only needed on this way out

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: some characters take two, some none."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )
