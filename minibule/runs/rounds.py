"""The folder of rounds: what each file in it is called, and what they hold.

rounds.toml                the settings
inputs.json                by what the model and the questions are known again
rounds.jsonl               a line a round, 0 being the base
round-000/answers.jsonl    what the base answers to held-out questions
round-001/                 a run's folder; beside its files there are
  samples.jsonl              what was sampled to learn from, judged
  answers.jsonl              what its model answers to held-out questions
report.html
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minibule.errors import InputError
from minibule.evaluate.sampled import Asked
from minibule.files import existing_folder, from_json, reading, to_json, whole_file, writing
from minibule.records.readers import json_lines
from minibule.runs.folder import RunFolder
from minibule.runs.manifest import Manifest
from minibule.runs.starts import Start
from minibule.settings import read_toml

SAMPLES = "samples.jsonl"  # in the folder of a round's run


class RoundsFolder:
    """What lies where in the folder of rounds, be it there already or not."""

    def __init__(self, path: str | Path) -> None:
        self.path = path = Path(path)
        self.settings = path / "rounds.toml"
        self.inputs = path / "inputs.json"
        self.log = path / "rounds.jsonl"
        self.report = path / "report.html"

    def run(self, number: int) -> RunFolder:
        """The run of round 1, 2, ...; of 0, the base, only its answers are there."""
        return RunFolder(self.path / f"round-{number:03d}")

    def samples(self, number: int) -> Path:
        return self.run(number).path / SAMPLES

    def answers(self, number: int) -> Path:
        return self.run(number).path / "answers.jsonl"


def rounds_of(run: Path) -> Path | None:
    """The folder of the rounds that a run's folder is of, if it is: they chose its examples."""
    parent = run.parent if run.name else run.absolute().parent  # of "."
    is_one = RoundsFolder(parent).settings.exists() and (run / SAMPLES).exists()
    return parent if is_one else None


class Judged(NamedTuple):
    """Of a line of samples.jsonl as much as can be counted: of which kind, and if accepted."""

    kind: str
    accepted: bool


class Rounds(NamedTuple):
    """The folder of rounds, read.

    settings   those of rounds.toml, unchecked
    lines      of rounds.jsonl, by round: 0 is the base
    asked      by round, the held-out questions with their answers
    drawn      by round, the samples to learn from
    starts     what its runs were started by
    """

    folder: Path
    settings: dict[str, Any]
    lines: dict[int, dict[str, Any]]
    asked: dict[int, list[Asked]]
    drawn: dict[int, list[Judged]]
    starts: list[Start]

    @property
    def files(self) -> RoundsFolder:
        """Where each of its files is."""
        return RoundsFolder(self.folder)

    @property
    def last(self) -> int:
        """The last round that is done; 0 if none is."""
        return max(self.lines, default=0)


def read_rounds(folder: str | Path) -> Rounds:
    """Read the folder of rounds, finished or not; InputError where it is none."""
    folder = existing_folder(folder, "the output folder of rounds")
    files = RoundsFolder(folder)
    settings, lines = read_toml(files.settings), read_log(files.log)
    asked, drawn, starts = {}, {}, []
    for number in sorted(lines):
        if files.answers(number).exists():
            asked[number] = read_asked(files.answers(number))
        if number and files.samples(number).exists():
            drawn[number] = [_drawn(line) for line in _objects(files.samples(number))]
        starts += Manifest(files.run(number).path).starts
    return Rounds(folder, settings, lines, asked, drawn, starts)


def read_log(path: Path) -> dict[int, dict[str, Any]]:
    """The lines of rounds.jsonl by round; what is none of its lines is left out."""
    if not path.exists():
        return {}
    with reading(path) as file:
        lines = [line for _, line in json_lines(file) if isinstance(line, dict)]
    return {line["round"]: line for line in lines if type(line.get("round")) is int}


# -- answers to held-out questions -----------------------------------------------------------------


def write_asked(path: Path, asked: Sequence[Asked]) -> None:
    """A question a line, with the answers to it; of its columns only prompt and kind."""
    path.parent.mkdir(exist_ok=True)
    with writing(path), whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        for one in asked:
            row = {name: one.row[name] for name in ("prompt", "kind") if name in one.row}
            line = to_json(one._replace(row=row))
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_asked(path: Path) -> list[Asked]:
    """What `write_asked` wrote; InputError where the file is anything else."""
    asked = []
    for line in _objects(path):
        try:
            one: Asked = from_json(Asked, line, "the line")
        except ValueError as error:
            raise InputError(f"{path}: not a question and its answers ({error}).") from None
        if not isinstance(one.row.get("prompt"), str) or not one.samples:
            raise InputError(f"{path}: found a question without its prompt or without samples.")
        asked.append(one)
    return asked


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line; InputError where a line is none."""
    with reading(path) as file:
        for where, value in json_lines(file):
            if not isinstance(value, dict):
                said = value if isinstance(value, InputError) else "expected a JSON object"
                raise InputError(f"{path}, {where}: {said}")
            yield value


def _drawn(line: dict[str, Any]) -> Judged:
    return Judged(kind_of(line), line.get("label") is True)


def kind_of(row: Any) -> str:
    """The kind of a question, as text; "" where it has none."""
    return "" if row.get("kind") is None else str(row["kind"])
