"""The folder of a run: what each file in it is called."""

from pathlib import Path

from minibule.models.exports import Export
from minibule.runs.settings import TrainConfig


class RunFolder:
    """What lies where in the folder of a run, be it there already or not."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.settings = path / "config.toml"  # as resolved
        self.metrics = path / "metrics.jsonl"  # one JSON object a step
        self.checkpoints = path / "checkpoint"  # folder of the states it can go on from
        self.adapter = path / "adapter"  # folder of the trained adapter, in PEFT's format
        self.before = path / "before.json"  # what the model did before training,
        self.after = path / "after.json"  # and after it
        self.report = path / "report.html"
        self.manifest = path / "manifest.json"  # the list of all these
        self.lock = path / ".lock"  # there while a process writes

    def exports(self, config: TrainConfig) -> list[tuple[Export, Path]]:
        """What the run writes for other programs, and where."""
        return [(export, self.path / export.place) for export in config.exports]

    def folders(self, config: TrainConfig) -> list[Path]:
        """Of the results those that are folders."""
        exports = [path for export, path in self.exports(config) if export.is_folder]
        return [self.checkpoints, self.adapter, *exports]

    def results(self, config: TrainConfig) -> list[Path]:
        """All that the run writes and keeps, but for its manifest, in the order of writing."""
        return [
            self.settings,
            self.metrics,
            self.checkpoints,
            self.adapter,
            *(path for _, path in self.exports(config)),
            self.before,
            self.after,
            self.report,
        ]
