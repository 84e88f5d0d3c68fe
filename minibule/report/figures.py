"""The report's pictures, written as SVG by hand: lines over the steps, bars of probabilities.

A picture names its colours by class, and style.css gives them their values in light and dark. Its
texts are texts in the page's own font. The same numbers give the same bytes.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Literal, NamedTuple

import numpy as np

from minibule.machine.matrix import Array

WIDTH, HEIGHT = 360, 200  # of a line chart; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 50, 8, 12, 26  # its margins
NAMES, ROW = 118, 30  # of a bar chart: the width of its labels, the height of a row
MOST_POINTS = 300  # drawn of a line: more could not be told apart
SMOOTHED_FROM = 40  # points from which a running mean is drawn, and the points themselves faintly
FEWEST = 4  # points that make a line: fewer stand in the table, or as marks beside another line

# Of a noisy series so much decides how high the axis is, unless it is little less than all.
USUAL = 98.0
MUCH_HIGHER = 1.5

Kind = Literal["noisy", "exact", "points"]


class Series(NamedTuple):
    """A line: steps and finite values, of one length >= 1.

    `kind` is how it is drawn: "noisy" as faint dots and their running mean where there are many,
    "exact" as it is, "points" with a mark at each of a few measurements.
    """

    label: str
    colour: str
    steps: Array
    values: Array
    kind: Kind = "noisy"

    @property
    def smoothed(self) -> bool:
        return self.kind == "noisy" and len(self.values) >= SMOOTHED_FROM


class Level(NamedTuple):
    """A value to compare with: a dashed line across."""

    label: str
    value: float


class Bars(NamedTuple):
    """A token's row in the bar chart: probabilities, and marks to compare them with."""

    label: str
    bold: bool
    before: float | None
    after: float | None
    target: float | None
    optimum: float | None


class Axis(NamedTuple):
    """Numbers from `low` to `high`, laid out from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> str:
        share = (value - self.low) / ((self.high - self.low) or 1)
        return number(self.start + share * (self.stop - self.start))

    def ticks(self, most: int) -> list[float]:
        """At most so many round numbers on the axis: multiples of 1, 2, 2.5 or 5 times 10^n."""
        span = self.high - self.low
        step = 10.0 ** math.floor(math.log10(span / most))
        step *= next(m for m in (1, 2, 2.5, 5, 10, 20) if span / (m * step) <= most - 1)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def number(x: float) -> str:
    """A coordinate, with at most one decimal."""
    return f"{x:.1f}".removesuffix(".0")


# -- lines -----------------------------------------------------------------------------------------


def line_chart(alt: str, series: Sequence[Series], level: Level | None, from_zero: bool) -> str:
    """Lines over the steps of a run, as an SVG element with `alt` as its text alternative."""
    low, high = value_range(series, level, from_zero)
    steps = [step for line in series for step in (line.steps[0], line.steps[-1])]
    x = Axis(float(min(steps)), float(max(steps)) or 1.0, LEFT + 5, WIDTH - RIGHT - 5)
    y = Axis(low, high, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<path class="grid" d="M{LEFT} {y(tick)}H{WIDTH - RIGHT}"/>'
        f'<text class="tick end" x="{LEFT - 6}" y="{y(tick)}" dy=".35em">{short(tick)}</text>'
        for tick in y.ticks(6)
    ]
    parts += [
        f'<text class="tick middle" x="{x(tick)}" y="{HEIGHT - 6}">{tick:,.0f}</text>'
        for tick in (x.ticks(6) if x.high > x.low else [x.low])
        if tick == round(tick)
    ]
    if level:
        parts.append(f'<path class="level" d="M{LEFT} {y(level.value)}H{WIDTH - RIGHT}"/>')
    for line in reversed(series):  # the first on top
        parts += _drawn(line, x, y)
    return _svg(WIDTH, HEIGHT, alt, parts)


def value_range(
    series: Sequence[Series], level: Level | None, from_zero: bool
) -> tuple[float, float]:
    """The lowest and highest value on the axis: a few dots far out do not flatten all others."""
    ranges = [_usual_range(line) for line in series]
    if level:
        ranges.append((level.value, level.value))
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if from_zero:
        low = min(0.0, low)
    if high - low <= 1e-9 * max(abs(high), abs(low)):  # all the same: it lies in the middle
        return low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    room = 0.06 * (high - low)
    return (low if from_zero and low == 0 else low - room), high + room


def _usual_range(line: Series) -> tuple[float, float]:
    low, high = float(line.values.min()), float(line.values.max())
    if line.smoothed:
        usual_low, middle, usual_high = np.percentile(line.values, (100 - USUAL, 50, USUAL))
        mean = running_mean(line.values)
        if high - middle > MUCH_HIGHER * (usual_high - middle):
            high = float(max(usual_high, mean.max()))
        if middle - low > MUCH_HIGHER * (middle - usual_low):
            low = float(min(usual_low, mean.min()))
    return low, high


def beyond(line: Series, low: float, high: float) -> Array:
    """The places of a series' values that lie off its axis."""
    return np.flatnonzero((line.values < low) | (line.values > high))


def _drawn(line: Series, x: Axis, y: Axis) -> list[str]:
    colour, n = line.colour, len(line.steps)
    if line.kind == "points" or n < FEWEST:
        # Nothing is known between the measurements: the line only leads the eye.
        marks = "".join(
            f'<circle class="{colour} mark" cx="{x(s)}" cy="{y(v)}" r="3.2"/>'
            for s, v in zip(line.steps, line.values, strict=True)
        )
        lead = [_path(line.steps, line.values, x, y, f"{colour} lead")] if n >= FEWEST else []
        return [*lead, marks]
    parts, values = [], line.values
    if line.smoothed:
        out = beyond(line, y.low, y.high)
        some = np.setdiff1d(spread(n), out)
        # A dot is a stroke of no length with round ends: one path holds them all.
        dots = "".join(f"M{x(line.steps[i])} {y(values[i])}h0" for i in some)
        parts.append(f'<path class="{colour} dots" d="{dots}"/>')
        for i in out[spread(len(out), 50)] if len(out) else []:
            top = values[i] > y.high
            tip, to = (TOP - 9, 7) if top else (HEIGHT - BOTTOM, -7)
            parts.append(
                f'<path class="{colour} mark" d="M{x(line.steps[i])} {number(tip)}l-4 {to}h8z"/>'
            )
        values = running_mean(values)
    some = spread(n)
    parts.append(_path(line.steps[some], values[some], x, y, f"{colour} line"))
    return parts


def _path(steps: Array, values: Array, x: Axis, y: Axis, kind: str) -> str:
    points = "L".join(f"{x(s)} {y(v)}" for s, v in zip(steps, values, strict=True))
    return f'<path class="{kind}" d="M{points}"/>'


def small_line(alt: str, line: Series) -> str:
    """A line without axes, a word's height."""
    width, height = 240, 44
    some = spread(len(line.steps), 120)
    low, high = float(line.values.min()), float(line.values.max())
    x = Axis(float(line.steps[0]), float(line.steps[-1]), 3, width - 3)
    y = Axis(low, high, height - 4, 4) if high > low else Axis(low - 1, low + 1, height - 4, 4)
    path = _path(line.steps[some], line.values[some], x, y, f"{line.colour} line")
    return _svg(width, height, alt, [path])


# -- bars ------------------------------------------------------------------------------------------


def bar_chart(alt: str, rows: Sequence[Bars]) -> str:
    """Probabilities of tokens before and after, with what is wanted marked, as an SVG element."""
    bottom = ROW * len(rows) + 4
    shown = [p for row in rows for p in (row.before, row.after, row.target, row.optimum) if p]
    x = Axis(0, 1.05 * max(shown, default=1.0), NAMES, WIDTH - RIGHT)
    parts = [
        f'<path class="grid" d="M{x(tick)} 0V{bottom}"/>'
        f'<text class="tick middle" x="{x(tick)}" y="{bottom + 18}">{short(tick)}</text>'
        for tick in x.ticks(5)
    ]
    for i, row in enumerate(rows):
        top = 4 + ROW * i
        bold = " bold" if row.bold else ""
        parts.append(
            f'<text class="name end{bold}" x="{NAMES - 8}" y="{top + 13}" dy=".35em">'
            f"{escape(row.label)}</text>"
        )
        for value, shift, colour in ((row.before, 3, "grey"), (row.after, 13, "blue")):
            width = number(float(x(value or 0)) - NAMES)
            parts.append(
                f'<rect class="{colour}" x="{NAMES}" y="{top + shift}" width="{width}" height="9"/>'
            )
        if row.target is not None:
            parts.append(f'<path class="orange target" d="M{x(row.target)} {top + 1}v24"/>')
        if row.optimum is not None:
            parts.append(
                f'<path class="orange diamond" d="M{x(row.optimum)} {top + 8}l5 5l-5 5l-5 -5z"/>'
            )
    return _svg(WIDTH, bottom + 24, alt, parts)


def _svg(width: int, height: int, alt: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(alt)}">'
        f"{''.join(parts)}</svg>"
    )


# -- numbers ---------------------------------------------------------------------------------------


def short(value: float) -> str:
    """A number in few letters: 12,300  0.025  1e-05."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time in few letters: 7.3 s  12 min  3 h 05 min."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def spread(n: int, most: int = MOST_POINTS) -> Array:
    """Indices of at most `most` of n points, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def running_mean(values: Array) -> Array:
    """The mean of each value and those before it, a tenth of them all: it knows nothing ahead."""
    n = len(values)
    total = np.concatenate([[0.0], values.cumsum()])
    last = np.arange(1, n + 1)
    first = np.maximum(last - max(1, n // 10), 0)
    return (total[last] - total[first]) / (last - first)
