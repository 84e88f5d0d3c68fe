"""What the tables of `experiments.py`, `real.py` and `systems.py` share."""

import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from minibule.errors import InputError
from minibule.files import read_json, whole_file, write_json

Y = TypeVar("Y")


def cell(numbers: Sequence[float], form: str) -> str:
    """[.1, .2, .3] -> ".200 (.100-.300)": mean, and the spread where any is seen."""
    if not numbers:
        return ""
    shown = (np.mean(numbers), min(numbers), max(numbers))
    mean, low, high = (f"{number:{form}}".removeprefix("0") for number in shown)
    return mean if low == high else f"{mean} ({low}-{high})"


def in_workers(
    function: Callable[..., Y], jobs: Sequence[tuple[Any, ...]], what: str
) -> Iterator[tuple[int, Y]]:
    """The number of each job and what the function makes of it, as they are done.

    One job on each processor: faster than all processors on one.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(os.cpu_count(), context, _quiet)
    try:
        numbers = {pool.submit(function, *job): number for number, job in enumerate(jobs)}
        for done in tqdm(as_completed(numbers), desc=what, unit=" runs", total=len(jobs)):
            yield numbers[done], done.result()
    except BrokenProcessPool:  # the system ended a worker
        raise MemoryError from None
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    """In a worker: no progress bars among each other, and Ctrl-C is for the one that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr = io.StringIO()


def begun_with(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a table's folder, or see that it is one of these settings.

    InputError where it was begun with others: its results would be shown as those of these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "settings.json"
    if not place.exists():
        with whole_file(place) as part:
            write_json(part, settings)
    there = read_json(place)
    others = [name for name in settings if there.get(name) != settings[name]]
    if others:
        differing = ", ".join(
            f"{name} {there.get(name)!r}, not {settings[name]!r}" for name in others
        )
        raise InputError(
            f"--folder {folder}: its table was begun with {differing}. Expected the same, or "
            "another folder."
        )
