"""A training run's folder, read: its settings, its metrics, what its model did."""

from pathlib import Path
from typing import Any, NamedTuple

from minibule.errors import InputError
from minibule.files import existing_folder
from minibule.runs.folder import RunFolder
from minibule.runs.manifest import Manifest
from minibule.runs.metrics import read_metrics
from minibule.runs.settings import TrainConfig, read_settings
from minibule.runs.snapshot import Snapshot, load_snapshot
from minibule.runs.starts import Start


class Run(NamedTuple):
    """A run's folder, read: `lines` are the objects of metrics.jsonl, one a step.

    starts: what it was started by, the first one first; none of a run of an earlier version.
    """

    folder: Path
    config: TrainConfig
    starts: list[Start]
    lines: list[dict[str, Any]]
    before: Snapshot | None
    after: Snapshot | None

    @property
    def steps(self) -> int:
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def finished(self) -> bool:
        return self.after is not None and self.files.adapter.is_dir()

    @property
    def files(self) -> RunFolder:
        """Where each of its files is."""
        return RunFolder(self.folder)


def read_run(folder: str | Path) -> Run:
    """Read a run's folder, finished or not."""
    folder = existing_folder(folder, "the output folder of a training run")
    files = RunFolder(folder)
    if not files.settings.exists():
        raise InputError(
            f"{folder}: not the folder of a training run: it has no {files.settings.name}. "
            "Expected what `python -m minibule.train` has written, such as runs/tiny."
        )
    before, after = (
        load_snapshot(path) if path.exists() else None for path in (files.before, files.after)
    )
    settings, starts = read_settings(files.settings), Manifest(folder).starts
    return Run(folder, settings, starts, read_metrics(files.metrics), before, after)
