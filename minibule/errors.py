"""What minibule says when it cannot go on.

Every mistake a user can make ends in an `InputError`: one that says what was found, what was
expected, where, and what to do. `run` turns it into one clear message and an exit status, so that
a traceback on the screen always means a bug in minibule.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

# Signals that asked the program to leave. Python drops an exception that a handler raises inside a
# finaliser, or while an import takes its lock; who starts something long looks here first.
received: list[int] = []


class InputError(Exception):
    """Bad input from outside: a file, a flag, a setting. The message is meant for the user."""


class Terminated(BaseException):
    """SIGTERM: leave now, as KeyboardInterrupt is Ctrl-C. Nothing but `run` is to catch it."""


def listed(problems: Sequence[str], limit: int = 20) -> str:
    """`problems` one a line, indented; after `limit` of them only how many more there are."""
    lines = [f"  {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit:,} more")
    return "\n".join(lines)


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
        _exit("error: out of memory. --memory low, or a smaller --pass-tokens, needs less.", 1)
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
