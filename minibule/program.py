"""A program's start and end: what it says when it fails, and what signals do."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from minibule.errors import InputError, Terminated

# Signals that asked the program to leave. Python drops an exception that a handler raises inside a
# finaliser, or while an import takes its lock; who starts something long looks here first.
received: list[int] = []


def run(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the command line's arguments as a whole program, then exit.

    Exit status: 0 done, 2 bad input, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM), 1 anything
    else that is no bug.
    """
    # Both become exceptions, so that what is open is put away.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character gets its code instead of an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main(sys.argv[1:])
        if sys.stdout is not None:  # it is None where the caller closed it
            sys.stdout.flush()
    except InputError as error:
        _exit(f"error: {error}", 2)
    except BrokenPipeError:
        # The reader (`| head`) has left; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _exit(f"error: {where}{error.strerror or error}", 2)
    except MemoryError:
        _exit(
            "error: out of memory. What needs less, `--help` says: in training --memory low and "
            "--pass-tokens, in generating -n and --max-new-tokens.",
            1,
        )
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except Terminated:
        _exit("terminated", 143)


def leave(number: int, _: object = None) -> NoReturn:
    """Handle SIGINT or SIGTERM: leave now, by way of everything that is to be put away."""
    received.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _exit(message: str, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


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
