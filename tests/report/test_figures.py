"""The report's pictures: what is drawn lies where its numbers are, and nothing far out hides it."""

import itertools
import re

import numpy as np
import pytest

from minibule.report import figures
from minibule.report.charts import Chart, _figure, sparkline


def test_running_mean_and_spread():
    values = np.random.default_rng(0).normal(size=100)
    naive = [values[max(0, i - 9) : i + 1].mean() for i in range(100)]
    np.testing.assert_allclose(figures.running_mean(values), naive)
    late = np.zeros(100)
    late[80] = 1
    assert not figures.running_mean(late)[:80].any()  # it does not know what is to come
    assert figures.spread(5).tolist() == [0, 1, 2, 3, 4]
    some = figures.spread(10_000)
    assert len(some) == 300 and some[0] == 0 and some[-1] == 9999


def test_one_step_far_out_does_not_flatten_all_others():
    values = np.random.default_rng(0).uniform(0.01, 0.03, 200)
    values[150] = 1.0
    line = figures.Series("loss", "blue", np.arange(1, 201), values)
    low, high = figures.value_range([line], None, from_zero=True)
    assert low == 0 and 0.03 < high < 0.12
    assert figures.beyond(line, low, high).tolist() == [150]
    chart = Chart("loss", "Loss", "What it is.", "core.step.gradients", [line])
    html = _figure(chart, "Loss")
    assert html.count('class="blue mark"') == 1
    assert "A triangle marks a step off the axis: 1 at step 151." in html
    calm = line._replace(values=np.minimum(values, 0.03))
    assert figures.value_range([calm], None, True)[1] > 0.03  # all of it, where nothing is far
    assert not len(figures.beyond(calm, *figures.value_range([calm], None, True)))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0.143), (0, 1), (0.8, 0.88), (-3.0, 12345), (1e-9, 3e-9), (5, 5.0001)]
)
def test_ticks_are_round_numbers_on_the_axis(low, high):
    for most in (5, 6):
        ticks = figures.Axis(low, high, 0, 100).ticks(most)
        assert 2 <= len(ticks) <= most
        assert all(low - 1e-9 * high <= tick <= high * (1 + 1e-9) for tick in ticks)
        (step,) = {round(b - a, 12) for a, b in itertools.pairwise(ticks)} or {0}
        assert float(f"{step:.1e}") == pytest.approx(step, rel=1e-6)  # two digits say it


def test_lines_lie_where_their_numbers_are():
    steps, values = np.array([0, 10, 20, 30, 40]), np.array([0.0, 1.0, 2.0, 1.0, 4.0])
    svg = figures.line_chart("x", [figures.Series("a", "blue", steps, values)], None, True)
    path = re.search(r'class="blue line" d="M(.*?)"', svg)[1]
    points = [[float(x) for x in point.split()] for point in path.split("L")]
    (x0, y0), *_, (x4, y4) = points
    for (x, y), step, value in zip(points, steps, values, strict=True):
        assert x == pytest.approx(x0 + step / 40 * (x4 - x0), abs=0.06)
        assert y == pytest.approx(y0 + value / 4 * (y4 - y0), abs=0.06)
    assert x4 > x0 and y4 < y0  # upwards
    ticks = re.findall(r'class="grid" d="M\d+ ([\d.]+)H.*?">([\d.]+)</text>', svg)
    for y, value in ticks:
        assert float(y) == pytest.approx(y0 + float(value) / 4 * (y4 - y0), abs=0.06)
    assert len(ticks) >= 3


def test_sparklines():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5]) == "▁▁" and len(sparkline(range(1000))) == 24
