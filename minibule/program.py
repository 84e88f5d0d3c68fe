"""A program's start and end: where its words go, what it says when it fails, what signals do."""

import errno
import io
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from minibule.errors import InputError, Terminated
from minibule.wording import harmless

# Signals that asked the program to leave. Python drops an exception that a handler raises inside a
# finaliser, or while an import takes its lock; who starts something long looks here first.
received: list[int] = []

# Flags of the command that runs, as they are to be set where memory is short: `settings.Parser`.
spares: list[str] = []


def run(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the command line's arguments as a whole program, then exit.

    Exit status: 0 done, 2 bad input, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM), 1 anything
    else that is no bug.

    Whatever the program prints, by whichever way, goes through a `Screen`.
    """
    # Both become exceptions, so that what is open is put away.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character gets its code instead of an error.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = Screen.on(sys.stdout), Screen.on(sys.stderr, bars=True)
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except InputError as error:
        _exit(f"error: {error}", 2)
    except BrokenPipeError:  # of `leave_if_unread`
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _exit(f"error: {where}{error.strerror or error}", 2)
    except MemoryError:
        less = f"What needs less: {', '.join(spares)}" if spares else "Expected a smaller input"
        _exit(f"error: out of memory. {less}, or a machine that has more.", 1)
    except KeyboardInterrupt:
        _exit("interrupted", 130)
    except Terminated:
        _exit("terminated", 143)


def command_line() -> str:
    """The command that this process was started with, as far as Python knows it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)  # of what `python -m` runs
    program = [Path(sys.argv[0]).name]
    if spec is not None:
        program = ["python", "-m", spec.name.removesuffix(".__main__")]
    words = shlex.join([*program, *sys.argv[1:]])
    return words.encode(errors="backslashreplace").decode()  # a name that is no text


def as_typed(text: str) -> str:
    """`text` with its commands as the user types them: `minibule train` by the console script."""
    if Path(sys.argv[0]).stem != "minibule":
        return text
    return text.replace("python -m minibule.", "minibule ")


class Screen(io.TextIOBase):
    r"""A stream to people: what a file, a name or a model holds reaches it as text alone.

    A control character in it becomes its escape, such as \x1b, also where no terminal is: one may
    show the file or pipe later. And a reader who leaves (`| head`), or a terminal that is gone,
    ends nothing: what is printed then is lost, what else the program has to write is not.

    bars: progress bars are drawn here. A write may then begin as theirs do, going back to the
    line's start or to a line above.
    """

    _OF_BARS = re.compile(r"\r|\n*(\x1b\[A)*")
    _NOBODY = (errno.EPIPE, errno.EIO)

    def __init__(self, stream: TextIO, bars: bool = False) -> None:
        self.stream = stream
        self.bars = bars
        self.unread = False

    @classmethod
    def on(cls, stream: TextIO | None, bars: bool = False) -> TextIO:
        """A screen on the stream; one that nobody sees where the caller has closed it (None)."""
        if stream is None:
            nowhere = Path(os.devnull)
            stream = nowhere.open("w", encoding="utf-8", errors="replace")
        return cast(TextIO, cls(stream, bars))

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def write(self, text: str) -> int:
        own = self._OF_BARS.match(text) if self.bars else None
        start = own.end() if own else 0
        self._reach(self.stream.write, text[:start] + harmless(text[start:]))
        return len(text)

    def flush(self) -> None:
        self._reach(self.stream.flush)

    def _reach(self, do: Callable[..., Any], *text: str) -> None:
        try:
            do(*text)
        except OSError as error:
            # What is still buffered must not raise again, nor at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if error.errno not in self._NOBODY:
                raise
            self.unread = True


def leave_if_unread() -> None:
    """BrokenPipeError where nobody reads on: for a program that has nothing to do but to print."""
    if isinstance(sys.stdout, Screen) and sys.stdout.unread:
        raise BrokenPipeError


def print_bold(line: str) -> None:
    """Print a line in a terminal's bold type."""
    stream = sys.stdout.stream if isinstance(sys.stdout, Screen) else sys.stdout
    stream.write("\033[1m")
    print(line, end="")
    stream.write("\033[0m\n")


def leave(number: int, _: object = None) -> NoReturn:
    """Handle SIGINT or SIGTERM: leave now, by way of everything that is to be put away."""
    received.append(number)
    interrupt(number)


def interrupt(number: int) -> NoReturn:
    """The exception that SIGINT or SIGTERM becomes."""
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _exit(message: str, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)


@dataclass
class Stop:
    """Whether, and by which signal, the program has been asked to stop."""

    signal: int | None = None


@contextmanager
def stop_after_step() -> Iterator[Stop]:
    """In the block, a first SIGINT or SIGTERM is only noted."""
    stop = Stop(received[-1] if received else None)
    with _noted(stop, step=True):
        yield stop


@contextmanager
def all_or_nothing() -> Iterator[None]:
    """A first SIGINT or SIGTERM acts when the block is done, which is not to take long."""
    stop = Stop()
    with _noted(stop):
        yield
    if stop.signal is not None:
        signal.raise_signal(stop.signal)


@contextmanager
def _noted(stop: Stop, step: bool = False) -> Iterator[None]:
    """In the block, a first SIGINT or SIGTERM is noted in `stop`.

    step: a step is finished first, which is told.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals go to the main thread alone
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
        if not step:
            return
        with suppress(OSError):  # unbuffered: print is not safe inside a signal's handler
            os.write(
                sys.stderr.fileno(),
                b"\nfinishing the step, then saving; once more to leave at once\n",
            )

    for number in usual:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()
