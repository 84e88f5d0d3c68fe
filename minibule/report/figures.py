"""The report's pictures, drawn by matplotlib as SVG that lives inside an HTML page.

A picture takes its colours from the page's CSS variables, so it follows light and dark; its texts
stay texts in the page's own font, and its coordinates keep two decimals. Legends and captions are
the page's.
"""

import importlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from minibule.machine.matrix import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 360, 200  # points of a line chart; the page scales it
MOST_POINTS = 300  # drawn of a line: more could not be told apart
SMOOTHED_FROM = 40  # points from which a running mean is drawn, and the points themselves faintly

_ROUND = (1, 2, 2.5, 5, 10)  # ticks lie at multiples of these

# Colours that stand for the page's CSS variables until the SVG is done.
_COLOURS = {
    "#000001": "ink",
    "#000002": "muted",
    "#000003": "line",
    "#000004": "blue",
    "#000005": "orange",
    "#000006": "green",
    "#000007": "grey",
    "#000008": "paper",
}
_CODE = {name: code for code, name in _COLOURS.items()}

_RC = {
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "minibule",  # the same picture, the same file
    "text.parse_math": False,  # a token may hold dollar signs
    "path.simplify": False,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": _CODE["line"],
    "axes.labelcolor": _CODE["muted"],
    "axes.axisbelow": True,
    "grid.color": _CODE["line"],
    "grid.linewidth": 0.7,
    "xtick.color": _CODE["line"],
    "ytick.color": _CODE["line"],
    "xtick.labelcolor": _CODE["muted"],
    "ytick.labelcolor": _CODE["muted"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.linewidth": 1.6,
}


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
    target: float
    optimum: float | None


def available() -> bool:
    """Whether matplotlib is installed, and works."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    return True


def line_chart(
    name: str, alt: str, series: Sequence[Series], level: Level | None, from_zero: bool
) -> str:
    """Lines over the steps of a run, as an SVG element. `name` is unique on its page."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((48 / WIDTH, 26 / HEIGHT, 1 - 60 / WIDTH, 1 - 36 / HEIGHT))
        for line in reversed(series):  # the first on top
            _draw(axes, line)
        if level:
            axes.axhline(level.value, color=_CODE["ink"], linewidth=1, dashes=(4, 3), alpha=0.7)
        axes.margins(x=0.02, y=0.08)
        if from_zero:
            heights = [*(line.values.max() for line in series), level.value if level else 0]
            axes.set_ylim(min(0, *(line.values.min() for line in series)), 1.08 * max(heights) or 1)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, steps=_ROUND))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=_ROUND))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.yaxis.set_major_formatter(lambda y, _: short(y))
        return _svg(figure, name, alt)


def _draw(axes: "Axes", line: Series) -> None:
    colour, n = _CODE[line.colour], len(line.steps)
    if line.kind == "points" or n == 1:
        # Nothing is known between the measurements: the line only leads the eye.
        axes.plot(line.steps, line.values, color=colour, linewidth=1, alpha=0.5)
        axes.plot(line.steps, line.values, "o", color=colour, markersize=4.5)
        return
    steps, values = line.steps, line.values
    if line.kind == "noisy" and n >= SMOOTHED_FROM:
        some = spread(n)
        # A dot is a stroke of no length with round ends: one path holds them all.
        gaps = np.full(len(some), np.nan)
        x = np.stack([steps[some], steps[some], gaps], axis=1).ravel()
        y = np.stack([values[some], values[some], gaps], axis=1).ravel()
        axes.plot(x, y, color=colour, linewidth=3, alpha=0.3)
        values = running_mean(values)
    some = spread(n)
    axes.plot(steps[some], values[some], color=colour)


def bar_chart(name: str, alt: str, rows: Sequence[Bars]) -> str:
    """Probabilities of tokens before and after, with the target's marked, as an SVG element."""
    from matplotlib import ticker
    from matplotlib.figure import Figure

    row_height = 30
    height = row_height * len(rows) + 34
    with _style():
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes((108 / WIDTH, 24 / height, 1 - 124 / WIDTH, 1 - 30 / height))
        place = np.arange(len(rows))
        for shift, colour, values in (
            (-0.17, "grey", [row.before or 0 for row in rows]),
            (0.17, "blue", [row.after or 0 for row in rows]),
        ):
            axes.barh(place + shift, values, height=0.3, color=_CODE[colour])
        for y, row in enumerate(rows):
            axes.plot(
                [row.target, row.target],
                [y - 0.38, y + 0.38],
                color=_CODE["orange"],
                linewidth=2.2,
                solid_capstyle="butt",
            )
        best = [(row.optimum, y) for y, row in enumerate(rows) if row.optimum is not None]
        if best:
            axes.plot(
                *zip(*best, strict=True), "D", color=_CODE["orange"], markersize=5, mew=1,
                mec=_CODE["paper"],
            )  # fmt: skip
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, steps=_ROUND))
        axes.xaxis.set_major_formatter(lambda x, _: short(x))
        axes.set_yticks(place, [row.label for row in rows], fontfamily="monospace")
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(_CODE["ink" if row.bold else "muted"])
            label.set_fontweight("bold" if row.bold else "normal")
        return _svg(figure, name, alt)


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
    """The mean of each value and its neighbours, a tenth of them all; at the ends, of one side."""
    n = len(values)
    reach = max(1, n // 20)
    total = np.concatenate([[0.0], values.cumsum()])
    place = np.arange(n)
    first, last = np.maximum(place - reach, 0), np.minimum(place + reach + 1, n)
    return (total[last] - total[first]) / (last - first)


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's settings; its warnings kept quiet.

    It warns of characters that its own font lacks, but only measures with that font: the page's
    font draws them.
    """
    import matplotlib

    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_RC}
    del settings["backend"]
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_ATTRIBUTE = re.compile(r' (id|d|x|y|transform|style)="([^"]*)"')
_LONG_NUMBER = re.compile(r"(\.\d\d)\d+")
_REFERENCE = re.compile(r'(xlink:href="|url\()#')


def _svg(figure: "Figure", name: str, alt: str) -> str:
    """The figure as an SVG element with `alt` as its text alternative, fit for an HTML page."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    size = re.search(r'viewBox="[^"]*"', svg)
    # What is left out: the XML's head, and a style that would hold for the whole page.
    body = svg[svg.index("</defs>") + len("</defs>") :]
    body = _REFERENCE.sub(rf"\1#{name}-", _ATTRIBUTE.sub(lambda m: _attribute(m, name), body))
    body = re.sub(r">\s+<", "><", body)
    return (
        f'<svg {size[0] if size else ""} role="img" aria-label="{escape(alt)}" '
        f'xmlns:xlink="http://www.w3.org/1999/xlink">{body.strip()}'
    )


def _attribute(match: re.Match[str], name: str) -> str:
    """An attribute as the page wants it: short, and of its own page-wide name."""
    key, value = match.groups()
    if key == "id":
        used = re.fullmatch(r"[mp][0-9a-f]{10}", value)  # a marker's shape or a clipping path
        return f' id="{name}-{value}"' if used else ""
    if key == "style":
        value = re.sub(r"#0000\d\d", lambda m: f"var(--{_COLOURS[m[0]]})", value)
        value = re.sub(r"font-family: [^;]*'DejaVu Sans'[^;]*;? ?", "", value)
        value = re.sub(
            r"font-family: [^;]*'DejaVu Sans Mono'[^;]*", "font-family: var(--mono)", value
        )
        return f' style="{value}"'
    if value.startswith("rotate(-0"):
        return ""
    return f' {key}="{_LONG_NUMBER.sub(chr(92) + "1", value).replace(chr(10), "")}"'
