"""A training run's folder, read: its settings, its metrics, what its model did."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibule.config import TrainConfig, resolve
from minibule.errors import InputError
from minibule.report.figures import Kind, Series
from minibule.files import existing_folder
from minibule.train.observe import Snapshot, load_snapshot


class Run(NamedTuple):
    """A run's folder, read: `lines` are the objects of metrics.jsonl, one a step."""

    folder: Path
    config: TrainConfig
    lines: list[dict[str, Any]]
    before: Snapshot | None
    after: Snapshot | None

    @property
    def steps(self) -> int:
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def finished(self) -> bool:
        return self.after is not None and (self.folder / "adapter").is_dir()


def read_run(folder: str | Path) -> Run:
    """Read a run's folder, finished or not."""
    folder = existing_folder(folder, "the output folder of a training run")
    if not (folder / "config.toml").is_file():
        raise InputError(
            f"{folder}: not the folder of a training run: it has no config.toml. Expected what "
            "`python -m minibule.train` has written, such as runs/tiny."
        )
    config = resolve({"config": str(folder / "config.toml")})
    before, after = (
        load_snapshot(path) if (path := folder / f"{when}.json").exists() else None
        for when in ("before", "after")
    )
    return Run(folder, config, read_metrics(folder / "metrics.jsonl"), before, after)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl by step; a last one that is only half there is left out."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    steps: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or type(value.get("step")) is not int:
                raise ValueError("no step")
            if not 0 <= value["step"] < 2**53:
                raise ValueError("no step that can be drawn")
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise InputError(
                f"{path}, line {number:,}: expected the JSON object of a training step, with its "
                "number as step. Remove the line to go on without it."
            ) from None
        steps[value["step"]] = value
    return [steps[step] for step in sorted(steps)]


# -- metrics over the steps ------------------------------------------------------------------------


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
