"""The course of a training in pictures, and as a table for those who cannot see or draw them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minibule.report import figures
from minibule.report.figures import Kind, Level, Series, short
from minibule.report.page import command, table, text
from minibule.runs.read import Run

PLOT_HINT = "pip install 'minibule[plot]'"
PLOT_HINT_CLONE = "pip install '.[plot]'"


class Chart(NamedTuple):
    """A picture of the training's course, and what stands around it."""

    name: str
    title: str
    caption: str
    series: list[Series]
    level: Level | None = None
    from_zero: bool = True


def charts(found: Run) -> list[Chart]:
    """Every picture that the run has numbers for."""
    config, objective = found.config, found.config.resolved_objective()
    heldout = evaluated(found, "optimal_rejected_mass")
    best = Level("at the optimum p*, held out", float(heldout.values[0])) if heldout else None
    limit = config.max_grad_norm
    made = [
        Chart(
            "loss",
            "Loss",
            f"{objective.alpha:g} KL(P || p) + {1 - objective.alpha:g} contrast, the mean over the "
            "rows of a step.",
            _present(
                series(found, "loss", "loss", "blue"),
                series(found, "kl", "KL part", "orange"),
                series(found, "contrast", "contrast part", "green"),
            ),
        ),
        Chart(
            "mass",
            "Rejected mass",
            "Probability that the model gives to what was rejected, mean over rows. Where it "
            "has no choice, as inside a word, it stays high.",
            _present(
                series(found, "rejected_mass", "a step's records", "blue"),
                evaluated(found, "rejected_mass", "held out", "orange"),
            ),
            best,
            from_zero=False,
        ),
        Chart(
            "gap",
            "Optimality gap",
            "Total variation between p and p*, the distribution that minimises the objective. "
            "Small is done, not good: read it beside the KL from the base.",
            _present(evaluated(found, "optimality_gap", "held out", "orange")),
        ),
        Chart(
            "base",
            "KL from the base",
            "KL(base || p) in nats: how far the model has moved.",
            _present(evaluated(found, "kl_to_base", "held out", "orange")),
        ),
        Chart(
            "entropy",
            "Entropy",
            "Of the model's distribution, in nats. A sharp rise is language coming apart.",
            _present(evaluated(found, "entropy", "held out", "orange")),
        ),
        Chart(
            "gradient",
            "Gradient norm",
            "Before clipping." if limit else "Without clipping.",
            _present(series(found, "grad_norm", "a step", "blue")),
            Level(f"clipped at {limit:g}", limit) if limit else None,
        ),
        Chart(
            "rate",
            "Learning rate",
            f"Schedule {config.schedule}, {config.warmup_steps:,} steps of warm-up.",
            _present(series(found, "lr", "a step", "blue", "exact")),
        ),
        Chart(
            "speed",
            "Speed",
            "Tokens a second, forward and backward.",
            _present(series(found, "tokens_per_s", "a step", "blue")),
        ),
        Chart(
            "memory",
            "Memory",
            "Resident memory of the process in GB.",
            _present(series(found, "rss_gb", "a step", "blue", "exact")),
        ),
    ]
    return [chart for chart in made if chart.series]


def _present(*series: Series | None) -> list[Series]:
    return [one for one in series if one is not None]


def course(found: Run) -> list[str]:
    made = charts(found)
    if not made:
        return []
    numbers = table(
        "First, middle and last values",
        ("", "", "first", "middle", "last"),
        (row for chart in made for row in _numbers(chart)),
        (2, 3, 4),
    )
    if figures.available():
        pictures = "".join(map(_figure, made))
        many = max(len(line.steps) for chart in made for line in chart.series)
        how = "Dots are steps, the line is their running mean. " if many >= 40 else ""
        return [
            f'<p class="muted">{how}The horizontal axis counts steps.</p>',
            f'<div class="charts">{pictures}</div>',
            f"<details><summary>The same as a table</summary>{numbers}</details>",
        ]
    return [
        '<p class="notice">The pictures need matplotlib: '
        f"<code>{text(PLOT_HINT)}</code>, or in a clone <code>{text(PLOT_HINT_CLONE)}</code>. "
        f"Then <code>{text(command('minibule.report', str(found.folder)))}</code> draws them.</p>",
        numbers,
    ]


def _figure(chart: Chart) -> str:
    keys = [f'<span><i class="key {s.colour}"></i>{text(s.label)}</span>' for s in chart.series]
    if chart.level:
        keys.append(f'<span><i class="key dashed"></i>{text(chart.level.label)}</span>')
    legend = f'<div class="legend">{"".join(keys) if len(keys) > 1 else ""}</div>'
    picture = figures.line_chart(
        chart.name, _alternative(chart), chart.series, chart.level, chart.from_zero
    )
    return (
        f"<figure><h3>{text(chart.title)}</h3>{legend}{picture}"
        f"<figcaption>{text(chart.caption)}</figcaption></figure>"
    )


def _alternative(chart: Chart) -> str:
    """What the picture shows, in words."""
    lines = []
    for s in chart.series:
        first, last = short(float(s.values[0])), short(float(s.values[-1]))
        low, high = short(float(s.values.min())), short(float(s.values.max()))
        lines.append(
            f"{s.label}: {first} at step {s.steps[0]:,}, {last} at step {s.steps[-1]:,}, "
            f"lowest {low}, highest {high}"
        )
    if chart.level:
        lines.append(f"dashed line, {chart.level.label}: {short(chart.level.value)}")
    return f"{chart.title} over the steps. {'; '.join(lines)}."


def _numbers(chart: Chart) -> list[list[str]]:
    return [
        [
            text(chart.title if len(chart.series) == 1 else f"{chart.title}: {s.label}"),
            f'<span class="spark" aria-hidden="true">{sparkline(s.values)}</span>',
            *(short(float(s.values[i])) for i in (0, len(s.values) // 2, -1)),
        ]
        for s in chart.series
    ]


def sparkline(values: Sequence[float] | np.ndarray[Any, Any], width: int = 24) -> str:
    """Values as a row of at most `width` blocks, the lowest to the highest.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7])
    '▁▂▃▄▅▆▇█'
    """
    parts = np.array_split(np.asarray(values, float), min(width, len(values)))
    means = np.array([part.mean() for part in parts])
    span = float(np.ptp(means))
    heights = np.zeros(len(means)) if span == 0 else (means - means.min()) / span * 7
    return "".join("▁▂▃▄▅▆▇█"[round(float(height))] for height in heights)


def series(
    found: Run, key: str, label: str = "", colour: str = "blue", kind: Kind = "noisy"
) -> Series | None:
    """The numbers under `key` in the steps that have one: skipped steps have none."""
    pairs = [(line["step"], float(line[key])) for line in found.lines if _is_number(line.get(key))]
    return _line(label, colour, pairs, kind)


def evaluated(found: Run, key: str, label: str = "", colour: str = "orange") -> Series | None:
    """Held-out measurements: before training (step 0), in between, and after."""
    pairs: list[tuple[int, Any]] = []
    if found.before and found.before.heldout:
        pairs.append((0, found.before.heldout.get(key)))
    pairs += [(line["step"], line.get(f"eval_{key}")) for line in found.lines]
    if found.after and found.after.heldout:
        # In place of an evaluation of the last step, which is the same.
        pairs = [(step, value) for step, value in pairs if step < found.steps or step == 0]
        pairs.append((found.steps, found.after.heldout.get(key)))
    kept = [(step, float(value)) for step, value in pairs if _is_number(value)]
    return _line(label, colour, kept, "points" if len(kept) <= 40 else "exact")


def _line(label: str, colour: str, pairs: Sequence[tuple[int, float]], kind: Kind) -> Series | None:
    if not pairs:
        return None
    steps, values = (np.array(column) for column in zip(*pairs, strict=True))
    return Series(label, colour, steps, values, kind)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and -1e300 < value < 1e300  # no NaN, nothing infinite
