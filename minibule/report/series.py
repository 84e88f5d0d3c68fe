"""Numbers over the steps of a run, as lines to draw, and what says which line is which."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minibule.report.figures import Kind, Level, Series
from minibule.report.page import text
from minibule.runs.read import Run


def series(
    run: Run, key: str, label: str = "", colour: str = "blue", kind: Kind = "noisy"
) -> Series | None:
    """The numbers under `key` in the steps that have one: skipped steps have none."""
    pairs = [(line["step"], float(line[key])) for line in run.lines if is_number(line.get(key))]
    return line_through(label, colour, pairs, kind)


def without_anchor(run: Run, kl: float, label: str, colour: str) -> Series | None:
    """The loss less kl times the anchor, in the steps that have both."""
    pairs = [
        (line["step"], float(line["loss"]) - kl * float(line["anchor"]))
        for line in run.lines
        if is_number(line.get("loss")) and is_number(line.get("anchor"))
    ]
    return line_through(label, colour, pairs, "noisy")


def evaluated(run: Run, key: str, label: str = "", colour: str = "orange") -> Series | None:
    """Held-out measurements: before training (step 0), in between, and after."""
    pairs: list[tuple[int, Any]] = []
    if run.before and run.before.heldout:
        pairs.append((0, run.before.heldout.get(key)))
    pairs += [(line["step"], line.get(f"eval_{key}")) for line in run.lines]
    if run.after and run.after.heldout:
        # In place of an evaluation of the last step, which is the same.
        pairs = [(step, value) for step, value in pairs if step < run.steps or step == 0]
        pairs.append((run.steps, run.after.heldout.get(key)))
    kept = [(step, float(value)) for step, value in pairs if is_number(value)]
    return line_through(label, colour, kept, "points" if len(kept) <= 40 else "exact")


def line_through(
    label: str, colour: str, pairs: Sequence[tuple[int, float]], kind: Kind
) -> Series | None:
    """The line through some (step, value); None where there are none."""
    if not pairs:
        return None
    steps, values = (np.array(column) for column in zip(*pairs, strict=True))
    return Series(label, colour, steps, values, kind)


def legend(lines: Sequence[Series], level: Level | None = None) -> str:
    """Which colour is which line; nothing of a single one."""
    keys = [f'<span><i class="key {line.colour}"></i>{text(line.label)}</span>' for line in lines]
    if level:
        keys.append(f'<span><i class="key dashed"></i>{text(level.label)}</span>')
    return f'<div class="legend">{"".join(keys) if len(keys) > 1 else ""}</div>'


def is_number(value: Any) -> bool:
    """Whether a value from a file can be drawn."""
    return type(value) in (int, float) and -1e300 < value < 1e300  # no NaN, nothing infinite
