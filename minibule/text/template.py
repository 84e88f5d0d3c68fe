"""Chat templates of other models, rendered where they can do no harm.

A chat template is a program by whoever made the model. jinja2's sandbox keeps it away from files,
modules and attributes, but not from running for ever (two nested loops) or filling the memory
(`{{ "a" * 10**10 }}`), and nothing within a Python process can: so it runs in a process of its own,
which is given so many seconds for each prompt and so much memory (on Linux; elsewhere the seconds
have to do), and is ended when it takes more; where nobody is left to end it, the system does.

This module is both sides. They exchange lines of JSON: first the template and an empty object back,
then for each prompt the template's variables and its text.
"""

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from minibule.errors import InputError

SECONDS = 3.0  # for one prompt; the hub's templates take milliseconds
MEMORY = 512 * 2**20  # bytes of address space, of which Python and jinja2 need some 50 million
LENGTH = 1_000_000  # characters of text that a template may add to what it is given


class Template:
    """A template's source, made ready to be rendered in a process of its own.

    Raises InputError, here and in `render`, with the template's own complaint or how it ended.
    """

    def __init__(self, source: str) -> None:
        if importlib.util.find_spec("jinja2") is None:
            raise InputError(
                "is not the built-in ChatML and needs jinja2. "
                "Install it: pip install '.[templates]'."
            )
        # It is to find minibule and jinja2 where this process found them, and nowhere else.
        found = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # noqa: PTH100
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "minibule.text.template"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": found},
        )
        self._end = weakref.finalize(self, _end, self._process)
        self._ask(None, 60.0)  # starting Python is not the template's time
        self._ask({"template": source}, SECONDS)

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that the template makes of its variables, which must be fit for JSON."""
        return str(self._ask(variables, SECONDS)["text"])

    def _ask(self, question: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: S101
        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            if question is not None:
                self._process.stdin.write(json.dumps(question).encode() + b"\n")
                self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:  # it has ended before it read all
            line = b""
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            self._end()
            what = f"took more than {seconds:g} seconds" if late.is_set() else "broke its process"
            raise InputError(f"fails on this prompt: it {what}, and was ended.")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InputError(f"fails on this prompt ({answer['error']}).")
        return answer


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


# -- the other side --------------------------------------------------------------------------------


def _serve() -> None:
    from jinja2 import TemplateError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    class Generation(Extension):
        """{% generation %}: marks for transformers what the assistant says; here it is its text."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    # What the hub's templates rely on, as transformers has it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    # jinja2's own escapes what HTML would misread, in a text that is none.
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    _limit("RLIMIT_AS", MEMORY)
    _limit("RLIMIT_CORE", 0)
    _say({})
    template = None
    for line in sys.stdin.buffer:
        _limit("RLIMIT_CPU", math.ceil(time.process_time() + SECONDS) + 1)
        try:
            question = json.loads(line)
            if template is None:
                template = environment.from_string(question["template"])
                _say({})
                continue
            text = template.render(question)
            if len(text) > LENGTH + 10 * len(line):
                raise TemplateError(f"it writes {len(text):,} characters")
            text.encode()  # half a character is none
            _say({"text": text})
        except Exception as error:  # a template may fail in any way a program can
            _say({"error": f"{type(error).__name__}: {error}"[:500]})


def _limit(what: str, most: int) -> None:
    """Have the system give this process no more of it, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # or a lower limit is set already
        import resource  # Unix only

        kind = getattr(resource, what)
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
