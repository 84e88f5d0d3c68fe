"""metrics.jsonl: one JSON object a step."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from minibule.errors import InputError
from minibule.files import open_own, reading, writing
from minibule.records.readers import json_lines
from minibule.wording import Number

STEP = Number(int, 0, 2**53 - 1)  # beyond, a chart could not tell it from its neighbours


def open_metrics(path: Path, length: int) -> BinaryIO:
    """metrics.jsonl, cut back to its first `length` bytes and ready for the next line.

    Where it is shorter (somebody changed it), it goes on after its last whole line.
    """
    log = open_own(path)
    with writing(path):
        kept = log.read(length).rfind(b"\n") + 1
        if kept < length:
            tqdm.write(f"{path}: lines of earlier steps are missing there")
        log.truncate(kept)
        log.seek(kept)
        return log


def write_line(log: BinaryIO, line: Mapping[str, Any]) -> None:
    """Append one JSON object; a number that is not finite becomes null, as JSON has none."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    with writing(Path(log.name)):
        log.write(json.dumps(finite, allow_nan=False).encode() + b"\n")
        log.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl by step; a last one that is only half there is left out."""
    if not path.exists():
        return []
    with reading(path) as file:
        lines = list(json_lines(file))
    steps: dict[int, dict[str, Any]] = {}
    for where, value in lines:
        try:
            if not isinstance(value, dict):
                raise ValueError("no object")
            steps[STEP.check(value.get("step"))] = value
        except ValueError:
            if where == lines[-1][0]:
                break
            raise InputError(
                f"{path}, {where}: expected the JSON object of a training step, with its "
                "number as step. Remove the line to go on without it."
            ) from None
    return [steps[step] for step in sorted(steps)]
