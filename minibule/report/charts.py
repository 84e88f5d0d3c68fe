"""The course of a training in pictures, and as a table for those who cannot see them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minibule.core.fused import TargetLoss
from minibule.core.loss import Loss, SeparableLoss
from minibule.methods.tokens import Ratio, TokenLoss
from minibule.report import figures
from minibule.report.figures import FEWEST, Level, Series, short
from minibule.report.page import computed_by, source, table, text
from minibule.report.series import evaluated, legend, series, without_anchor
from minibule.runs.comparison import MEASURES
from minibule.runs.read import Run


class Chart(NamedTuple):
    """A picture of the training's course, and what stands around it."""

    name: str
    title: str
    caption: str
    by: str  # the function that computes it
    series: list[Series]
    level: Level | None = None
    from_zero: bool = True

    @property
    def drawn(self) -> bool:
        """Whether there is more to see than in a line of the table."""
        return any(len(line.steps) >= FEWEST for line in self.series)


def _loss_in_words(run: Run, loss: Loss) -> str:
    held = f" + {loss.kl:g} KL(p || base)" if loss.kl else ""
    if isinstance(loss, TargetLoss):
        alpha = loss.objective.alpha
        parts = f"{alpha:g} KL(P || p) + {1 - alpha:g} contrast{held}"
    elif isinstance(loss, SeparableLoss) and loss.uses == "rejected":
        r = ["r(y) = p(y) / p_ref(y)"] if loss.needs_reference else []
        numbers = [f"{name} {x:g}" for name, x in vars(loss).items() if name != "kl"]
        parts = f"{loss.formula} ({', '.join(r + numbers)}) of every rejected answer y{held}"
        return f"{parts}, the mean over a step."
    elif isinstance(loss, TokenLoss):
        where = f" (r = p / p_ref, beta {loss.beta:g})" if isinstance(loss, Ratio) else ""
        parts = f"{loss.f}{where} of every rejected token{held}"
    else:
        return f"The objective {run.config.objective} ({loss}), the mean over a step."
    return f"{parts}, the mean over the rows of a step."


def _loss_chart(run: Run) -> Chart:
    """The loss and its parts: of a `TargetLoss` the two, of any other the anchor's."""
    loss = run.config.resolved_loss()
    parts = [
        series(run, "kl", "KL(P || p)", "orange"),
        series(run, "contrast", "contrast", "green"),
    ]
    if not isinstance(loss, TargetLoss) and loss.kl:
        rest = "loss without KL"
        if loss.uses == "rejected":
            rest = "rejected tokens" if isinstance(loss, TokenLoss) else "rejected answers"
        parts = [
            series(run, "anchor", "KL(p || base)", "orange"),
            without_anchor(run, loss.kl, rest, "green"),
        ]
    lines = _present(series(run, "loss", "loss", "blue"), *parts)
    return Chart("loss", "Loss", _loss_in_words(run, loss), _class_of(loss), lines)


def charts(run: Run) -> list[Chart]:
    """Every picture that the run has numbers for."""
    limit = run.config.max_grad_norm
    heldout, norms = evaluated(run, "optimal_rejected_mass"), series(run, "grad_norm", "a step")
    best = Level("if p were p*, held out", float(heldout.values[0])) if heldout else None
    return _with_numbers(
        _loss_chart(run),
        Chart(
            "mass",
            _title("rejected_mass"),
            "The average probability of one rejected token, weighted by how often it was rejected, "
            "over all rows. Where the model has no choice, as inside a word, it stays high.",
            MEASURES["rejected_mass"].by,
            _present(
                series(run, "rejected_mass", "a step's records", "blue"),
                evaluated(run, "rejected_mass", "held out", "orange"),
            ),
            best,
            from_zero=False,
        ),
        Chart(
            "gradient",
            "Gradient norm",
            f"Before it is clipped at {limit:g}." if limit else "Without clipping.",
            "core.optim.clip_gradients",
            _present(norms),
            # A line that the norms come nowhere near would only press them down.
            Level("clipped", limit) if norms and 2 * norms.values.max() > limit > 0 else None,
        ),
        _heldout_chart(run, "optimality_gap", "Small means converged, not good."),
        _heldout_chart(
            run, "kl_to_base", "Read the distance from p* beside it." if heldout else ""
        ),
        _heldout_chart(run, "entropy", "A sharp rise is language coming apart.", from_zero=False),
    )


def side_charts(run: Run) -> list[Chart]:
    """What is worth a glance: how fast it learnt, and what that took."""
    config, rate = run.config, series(run, "lr", "a step", "blue", "exact")
    speed = series(run, "tokens_per_s", "a step", "blue")
    memory = series(run, "rss_gb", "a step", "blue", "exact")
    warmup = f"{config.warmup_steps:,} steps of warm-up" if config.warmup_steps else "no warm-up"
    return _with_numbers(
        Chart(
            "rate",
            "Learning rate",
            f"peak {config.lr:g}, {config.schedule}, {warmup}",
            "core.optim.learning_rate",
            _present(rate),
        ),
        Chart(
            "speed",
            "Tokens a second",
            f"median {short(float(np.median(speed.values)))}" if speed else "",
            "train.loop.take_step",
            _present(speed),
        ),
        Chart(
            "memory",
            "Memory after a step",
            f"largest {memory.values.max():.2f} GB; within a step, more is used" if memory else "",
            "machine.threads.memory_gb",
            _present(memory),
        ),
    )


def _heldout_chart(run: Run, key: str, remark: str, from_zero: bool = True) -> Chart:
    gloss = MEASURES[key].gloss
    caption = f"{gloss[:1].upper()}{gloss[1:]}, on held-out records. {remark}"
    measured = _present(evaluated(run, key, "held out", "orange"))
    return Chart(key, _title(key), caption, MEASURES[key].by, measured, from_zero=from_zero)


def _title(key: str) -> str:
    label = MEASURES[key].label
    return label[:1].upper() + label[1:]


def _present(*series: Series | None) -> list[Series]:
    return [one for one in series if one is not None]


def _with_numbers(*charts: Chart) -> list[Chart]:
    return [chart for chart in charts if chart.series]


# -- on the page -----------------------------------------------------------------------------------


def course(run: Run) -> list[str]:
    """The section's parts: the pictures, a row of small ones, and all of it as a table."""
    large, small = charts(run), side_charts(run)
    if not large + small:
        return []
    drawn = [chart for chart in large if chart.drawn]
    little = [chart for chart in small if chart.drawn]
    numbers = table(
        "First, middle and last values",
        ("", "", "first", "middle", "last"),
        (row for chart in large + small for row in _numbers(chart)),
        (2, 3, 4),
    )
    lines = [line for chart in drawn for line in chart.series if line.smoothed]
    many = max((len(line.values) for line in lines), default=0)
    how = (
        f"Dots are steps, the line is the mean of the last {max(1, many // 10):,}. " if many else ""
    )
    parts = [f'<p class="muted">{how}The horizontal axis counts steps.</p>'] if drawn else []
    if drawn:
        parts.append(f'<div class="charts">{_figures(run, _figure, drawn)}</div>')
    if little:
        parts.append(f'<div class="charts small">{_figures(run, _small_figure, little)}</div>')
    few = [chart for chart in large + small if not chart.drawn]
    return [
        *parts,
        _not_drawn(few),
        f"<details{'' if drawn else ' open'}><summary>The same as a table</summary>{numbers}"
        "</details>",
        source(run.folder, "train.loop.take_step", *(chart.by for chart in large + small)),
    ]


def _class_of(loss: Loss) -> str:
    """What computes the loss, as "core.fused.TargetLoss"."""
    cls = type(loss)
    return f"{cls.__module__}.{cls.__name__}".removeprefix("minibule.")


def _figures(run: Run, draw: Callable[[Chart, str], str], some: Sequence[Chart]) -> str:
    return "".join(draw(c, computed_by(run.folder, c.by, c.title)) for c in some)


def _not_drawn(few: Sequence[Chart]) -> str:
    if not few:
        return ""
    heldout = any(line.label == "held out" for chart in few for line in chart.series)
    more = " <code>--eval-every N</code> measures held-out records more often." if heldout else ""
    return (
        f'<p class="muted">{text(", ".join(chart.title for chart in few))}: fewer than {FEWEST} '
        f"measurements make no picture. They are in the table.{more}</p>"
    )


def _figure(chart: Chart, title: str) -> str:
    """title: HTML"""
    picture = figures.line_chart(_alternative(chart), chart.series, chart.level, chart.from_zero)
    caption = chart.caption + _far_out(chart)
    return (
        f"<figure><h3>{title}</h3>{legend(chart.series, chart.level)}{picture}"
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def _small_figure(chart: Chart, title: str) -> str:
    line = chart.series[0]
    return (
        f"<figure><h3>{title}</h3>{figures.small_line(_alternative(chart), line)}"
        f"<figcaption>{text(chart.caption)}</figcaption></figure>"
    )


def _far_out(chart: Chart) -> str:
    """A sentence on the dots that lie off the axis, and the farthest of them."""
    low, high = figures.value_range(chart.series, chart.level, chart.from_zero)
    out = [
        (abs(float(line.values[i])), line, i)
        for line in chart.series
        if line.smoothed
        for i in figures.beyond(line, low, high)
    ]
    if not out:
        return ""
    _, line, i = max(out, key=lambda found: found[0])
    label = f"{line.label} " if len(chart.series) > 1 else ""
    farthest = f"{label}{short(float(line.values[i]))} at step {line.steps[i]:,}"
    if len(out) == 1:
        return f" A triangle marks a step off the axis: {farthest}."
    return f" Triangles mark {len(out):,} steps off the axis, the farthest {farthest}."


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
            *_first_middle_last(s.values),
        ]
        for s in chart.series
    ]


def _first_middle_last(values: Sequence[float] | np.ndarray[Any, Any]) -> list[str]:
    """Of two values there is no middle, and of one no last."""
    n = len(values)
    first, middle, last = (short(float(values[i])) for i in (0, n // 2, -1))
    return [first, middle if n > 2 else "", last if n > 1 else ""]


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
