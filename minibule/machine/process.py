"""A module of minibule in a process of its own, asked in lines of JSON.

There runs what others wrote: nothing within a Python process can keep it from running for ever,
from filling the memory, or from taking the process down with it.

This module is both sides: `Process` asks, and what it starts calls `serve`.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from minibule.errors import InputError
from minibule.program import Screen

Message = Mapping[str, Any]

START = 60.0  # seconds that Python may take to start


class NoAnswerError(Exception):
    """There is no answer; the message says why, as "took more than 3 seconds" does."""


class Process:
    """A module that calls `serve`, and whatever it starts in turn: all of it ends with this object,
    or with this process, whichever comes first (on Windows, where it waits for a question).

    quiet: whether what it writes to the standard error is thrown away.
    """

    def __init__(self, module: str, quiet: bool = False) -> None:
        # It is to find minibule and its libraries where this process found them, nowhere else.
        found = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # noqa: PTH100
        self._process = subprocess.Popen(  # noqa: S603 - no other program
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env=os.environ | {"PYTHONPATH": found},
            start_new_session=True,  # a group that can be ended as a whole
        )
        self.end = weakref.finalize(self, _end, self._process)
        try:
            self.ask(None, START)  # its time is not that of the first question
        except NoAnswerError as error:
            raise InputError(f"python -m {module}: cannot be started: it {error}.") from None

    def ask(self, question: Message | None, seconds: float) -> dict[str, Any]:
        """The answer to a question. NoAnswerError, and the process is ended: there is none in time.

        An "error" in the answer is what `serve` caught.
        """
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(self._process)

        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101
        timer = threading.Timer(seconds, stop)
        timer.daemon = True  # a signal may come before it can be cancelled
        line = b""
        try:
            timer.start()
            if question is not None:
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (OSError, ValueError):  # it has ended before it read all, or long since
            pass
        finally:
            timer.cancel()
            if not line.endswith(b"\n"):  # Ctrl-C, too: an answer that comes late answers nothing
                self.end()
        if not line.endswith(b"\n"):
            raise NoAnswerError(
                f"took more than {seconds:g} seconds" if late.is_set() else "broke off"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if sys.platform == "win32":
        process.kill()
    elif process.returncode is None:  # else its number may be another's by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    _kill(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


# -- the other side --------------------------------------------------------------------------------


def serve(answer: Callable[[Any], Message]) -> None:
    """Answer questions until there are no more; what `answer` raises becomes {"error": text}.

    It has no standard input, and what it prints goes to the standard error, as text alone.
    """
    if sys.platform != "win32":
        _end_with_the_asker()
    with open(os.dup(0), "rb") as asked, open(os.dup(1), "wb") as said:  # noqa: PTH123
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        sys.stdout, sys.stderr = Screen.on(sys.stdout), Screen.on(sys.stderr)

        def say(message: Message) -> None:
            sys.stdout.flush()
            said.write(json.dumps(message).encode() + b"\n")
            said.flush()

        say({})
        for line in asked:
            try:
                say(answer(json.loads(line)))
            except Exception as error:  # it may fail in any way that a program can
                say({"error": f"{type(error).__name__}: {error}"[:500]})


def _end_with_the_asker() -> None:
    """Start a process that ends all of this group once nobody can ask any more.

    A thread would not do: what others wrote may keep Python's lock to itself.
    """
    if sys.platform == "win32" or os.getpgrp() != os.getpid() or os.fork():
        return  # in a group that is not its own, there are others
    os.closerange(1, 3)  # or who reads them would not see that the others are gone
    pipe = select.poll()
    pipe.register(0, 0)  # nothing but that its other end is closed
    pipe.poll()
    os.killpg(0, signal.SIGKILL)
