"""Chat templates of other models, rendered where they can do no harm.

A chat template is a program by whoever made the model. jinja2's sandbox keeps it away from files,
modules and attributes, but not from running for ever (two nested loops) or filling the memory
(`{{ "a" * 10**10 }}`), and nothing within a Python process can: so it runs in a process of its own,
which is given so many seconds for each prompt and so much memory (on Linux; elsewhere the seconds
have to do), and is ended when it takes more; where nobody is left to end it, the system does.

This module is both sides: it is asked once with the template, then for the text of each prompt.
"""

import contextlib
import importlib.util
import json
import math
import time
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from minibule.errors import InputError
from minibule.machine.process import NoAnswerError, Process, serve

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
        self._process = Process("minibule.text.template", quiet=True)
        self._ask({"template": source})

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that the template makes of its variables, which must be fit for JSON."""
        return str(self._ask(variables)["text"])

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = self._process.ask(question, SECONDS)
        except NoAnswerError as error:
            raise InputError(f"fails on this prompt: it {error}, and was ended.") from None
        if "error" in answer:
            raise InputError(f"fails on this prompt ({answer['error']}).")
        return answer


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
    template: Any = None

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        nonlocal template
        _limit("RLIMIT_CPU", math.ceil(time.process_time() + SECONDS) + 1)
        if template is None:
            template = environment.from_string(question["template"])
            return {}
        text = template.render(question)
        if len(text) > LENGTH + 10 * len(json.dumps(question)):
            raise TemplateError(f"it writes {len(text):,} characters")
        text.encode()  # half a character is none
        return {"text": text}

    serve(answer)


def _limit(what: str, most: int) -> None:
    """Have the system give this process no more of it, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # or a lower limit is set already
        import resource  # Unix only

        kind = getattr(resource, what)
        resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    _serve()
