"""When, by which command, with what and where a run was started, and gone on with."""

import platform
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

import minibule
from minibule.machine.processor import processor
from minibule.program import command_line


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
        command_line(),
        f"minibule {minibule.__version__}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}",
        f"{platform.system()} {platform.machine()}, {processor()}",
    )
