"""A training run's folder, read: its settings, its metrics, what its model did."""

from pathlib import Path
from typing import Any, NamedTuple

from minibule.errors import InputError
from minibule.files import existing_folder
from minibule.runs.folder import RunFolder
from minibule.runs.metrics import read_metrics
from minibule.runs.settings import TrainConfig, read_settings
from minibule.runs.snapshot import Snapshot, load_snapshot


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
    return Run(folder, read_settings(files.settings), read_metrics(files.metrics), before, after)
