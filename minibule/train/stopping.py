"""Ctrl-C and SIGTERM while training: the first lets the step end and be saved, a second does not.

Anywhere else the first one leaves at once: as KeyboardInterrupt, or as `errors.Terminated`.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from minibule.errors import received


@dataclass
class Stop:
    """Whether, and by which signal, training has been asked to stop."""

    signal: int | None = None


@contextmanager
def stop_after_step() -> Iterator[Stop]:
    """In the block, a first SIGINT or SIGTERM is only noted."""
    stop = Stop(received[-1] if received else None)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals go to the main thread alone
        return
    # A process started with a signal ignored (as by nohup) goes on ignoring it.
    usual = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def note(number: int, _: Any) -> None:
        restore()
        stop.signal = number
        with suppress(OSError):  # unbuffered: print is not safe inside a signal's handler
            os.write(2, b"\nfinishing the step, then saving; once more to leave at once\n")

    for number in usual:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
