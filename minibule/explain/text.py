"""How the explanation is written: headings, sentences, tables and numbers, 100 columns wide."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from minibule.machine.matrix import Array
from minibule.wording import columns_of

WIDTH = 100  # columns of the text
LONG = 1e5  # from here on a number with six decimals is too long for a table

Show: TypeAlias = Callable[[float], str]


def heading(number: int, title: str) -> Iterator[str]:
    """A section's title; no other line begins with a digit."""
    yield ""
    yield f"{number}. {title}"


def prose(sentences: str) -> Iterator[str]:
    """Sentences, broken into lines."""
    yield from textwrap.wrap(
        sentences, WIDTH, initial_indent="   ", subsequent_indent="   ", break_on_hyphens=False
    )


def table(header: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Lines of a table: its first `left` columns to the left, all others to the right."""
    lines = [header, *body]
    widths = [max(columns_of(line[i]) for line in lines) for i in range(len(header))]
    gap = 3 if sum(widths) + 3 * len(widths) + 2 <= WIDTH else 2
    for line in lines:
        cells = [" " * (5 - gap)]
        for i, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - columns_of(cell))
            cells.append(cell + space if i < left else space + cell)
        yield (" " * gap).join(cells).rstrip()


def decimals(digits: int) -> Show:
    """Numbers with so many decimals; those of eight digits and more as powers of ten."""
    return lambda x: f"{x:z,.{digits}f}" if abs(x) < 1e7 else f"{x:.3g}"  # z: no -0.000


def decimals_for(x: Array, digits: int) -> Show:
    """As `decimals`, but with powers of ten where the largest of x is too long or would keep less
    than two.
    """
    largest = np.abs(x).max()
    if largest >= LONG or 0 < largest < 100 * 10.0**-digits:
        return lambda number: f"{number:.2e}"
    return decimals(digits)


def shortened(text: str, width: int) -> str:
    """The text in at most `width` columns, its middle left out where it has more."""
    if columns_of(text) <= width:
        return text
    half = (width - 5) // 2
    begin, end = text[:half], text[-half:]
    while columns_of(begin) > half:
        begin = begin[:-1]
    while columns_of(end) > half:
        end = end[1:]
    return f"{begin} ... {end}"
