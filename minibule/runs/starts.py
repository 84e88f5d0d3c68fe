"""When, by which command, with what and where a run was started, and gone on with."""

import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

import minibule
from minibule.machine.processor import processor


class Start(NamedTuple):
    """A start of a run.

    first       the first step, or round, that it was to do
    date        in UTC, as 2025-03-01 12:00
    command     as it was typed, as far as Python knows
    versions    of minibule, Python and NumPy
    machine     its system and processor
    """

    first: int
    date: str
    command: str
    versions: str
    machine: str


def this_start(first: int) -> Start:
    """The start that is being made."""
    return Start(
        first,
        f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        typed(),
        f"minibule {minibule.__version__}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}",
        f"{platform.system()} {platform.machine()}, {processor()}",
    )


def typed() -> str:
    """The command that this process was started with."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of what `python -m` runs
    program = [Path(sys.argv[0]).name]
    if spec is not None:
        program = ["python", "-m", spec.name.removesuffix(".__main__")]
    words = shlex.join([*program, *sys.argv[1:]])
    return words.encode(errors="backslashreplace").decode()  # a name that is no text
