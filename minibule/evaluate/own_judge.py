"""Judges of the user's own, run where the user names them, with all that the user may do.

    FILE.py:FUNCTION    f(prompts, completions, **columns) -> a reward for each, or None: it cannot
                        tell. As the TRL library calls its reward functions: for a batch, by
                        keyword, with those parameters that it names, or with all that there are
                        where it has a `**`. A column of the questions holds a value for each
                        completion, None where a question has none. Texts are strings.
    command:PROGRAM     a program in any language, started for each batch: for each line of JSON
                        that it reads, {"prompt": ..., "completion": ..., and the columns}, it
                        writes one: a number, or null. Its arguments follow its name; no shell.

Either runs in a process of its own, which is ended where it takes longer than it may. Where it
fails, its samples are put to it one by one, to find the one that it fails on.

This module is both sides: it is asked once with the name of the judge, then for rewards.
"""

import importlib.util
import inspect
import json
import math
import reprlib
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from minibule.errors import InputError
from minibule.evaluate.judge import JUDGES, Judge, Row
from minibule.files import no_file, real_path
from minibule.machine.process import NoAnswerError, Process, serve
from minibule.wording import did_you_mean, printable

COMMAND = "command:"
KINDS = f"{', '.join(JUDGES)}, FILE.py:FUNCTION or {COMMAND}PROGRAM"
JUDGE_HELP = (
    "regex: the pattern in the column accept is found where a word begins; contains: the text in "
    "the column answer is; exact: the answer is this text; number: its last number is this one; "
    "json: it is this value; or a judge of your own, run with all that you may do: "
    "FILE.py:FUNCTION, f(prompts, completions, **columns) -> list; command:PROGRAM, JSON lines in, "
    "a number a line out"
)

LOAD = 120.0  # seconds that a file may take until its function is there: some load torch
SECONDS, MOST_SECONDS = 60.0, 1e6  # for a batch; no clock waits for ever

MOST_REWARD = 1e15  # gradients are float32, and the squares of what rewards make of them are summed

GIVEN = ("prompts", "completions", "log_extra", "log_metric")  # beside the columns
TRL_ONLY = ("completion_ids", "trainer_state")  # what TRL gives, too


def named_judge(name: str, seconds: float = SECONDS) -> Judge:
    """The judge of a name; InputError where it is none, cannot be loaded or found.

    seconds: how long a judge of the user's own may take for a batch.
    """
    if name in JUDGES:
        return JUDGES[name]
    if name.startswith(COMMAND):
        question: dict[str, Any] = {"command": _command(name)}
    else:
        path, _, function = name.rpartition(":")
        if not path.endswith(".py") or not function.isidentifier():
            hint = did_you_mean(name, JUDGES)
            raise InputError(
                f"--judge {printable(name)}: not a judge{hint}; expected one of {KINDS}."
            )
        question = {"path": path, "function": function}
    judge = _Own(name, question, seconds)
    return Judge(judge.rewards, judge.check)


def _command(name: str) -> list[str]:
    try:
        command = shlex.split(name.removeprefix(COMMAND))
    except ValueError as error:
        raise InputError(f"--judge {printable(name)}: not a command ({error}).") from None
    if not command or shutil.which(command[0]) is None:
        found = command[0] if command else "nothing"
        raise InputError(
            f"--judge {printable(name)}: {printable(found)} is no program that can be started; "
            "expected one on the PATH, or a path to one that may be executed."
        )
    return command


class _FaultError(Exception):
    """What a judge did wrong with a batch, and at which of its samples, where that is known."""

    def __init__(self, what: str, at: int | None = None) -> None:
        super().__init__(what)
        self.at = at


class _Own:
    """A judge of the user's own, by name, and the process that it runs in."""

    def __init__(self, name: str, question: Mapping[str, Any], seconds: float) -> None:
        self.name, self.question, self.seconds = f"--judge {printable(name)}", question, seconds
        self.process = self._start()

    def _start(self) -> Process:
        process = Process("minibule.evaluate.own_judge")
        try:
            answer = process.ask(self.question, LOAD)
        except NoAnswerError as error:
            answer = {"error": f"it {error}"}
        if "error" in answer:
            raise InputError(f"{self.name}: cannot be loaded: {answer['error']}.")
        self.needed: list[str] = answer["needed"]
        return process

    def check(self, row: Row) -> None:
        for column in self.needed:
            if column not in row:
                raise ValueError(f"{column}: not there, but {self.name} asks for it")

    def rewards(self, answers: Sequence[str], rows: Sequence[Row]) -> list[float | None]:
        """InputError names the sample that the judge fails on."""
        try:
            return self._ask(answers, rows) if answers else []
        except _FaultError as fault:
            what, where = self._sought(fault, answers, rows)
            raise InputError(
                f"{self.name}: {what}, {where}. Expected a number for each answer, or None to "
                f"leave it out, within {self.seconds:g} seconds (--judge-seconds)."
            ) from None

    def _ask(self, answers: Sequence[str], rows: Sequence[Row]) -> list[float | None]:
        question = {"answers": list(answers), "rows": [dict(row) for row in rows]}
        try:
            answer = self.process.ask(question, self.seconds)
        except NoAnswerError as error:
            self.process = self._start()
            raise _FaultError(f"it {error}") from None
        if "error" in answer:
            raise _FaultError(answer["error"], answer.get("at"))
        return list(answer["rewards"])

    def _sought(
        self, fault: _FaultError, answers: Sequence[str], rows: Sequence[Row]
    ) -> tuple[str, str]:
        """What is wrong, and with which sample: that is looked for as long as a batch may take."""
        what, at = str(fault), 0 if len(answers) == 1 else fault.at
        until = time.monotonic() + self.seconds
        for i in range(len(answers)):
            if at is not None or time.monotonic() > until:
                break
            try:
                self._ask(answers[i : i + 1], rows[i : i + 1])
            except _FaultError as alone:
                what, at = str(alone), i
        sample = f"{_shown(answers[at or 0])} to {_shown(rows[at or 0]['prompt'])}"
        if at is not None:
            return what, f"for the answer {sample}"
        return what, f"for {len(answers):,} answers at once, the first {sample}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")


# -- the other side --------------------------------------------------------------------------------

Ask = Callable[[list[str], list[dict[str, Any]]], Iterable[Any]]  # (answers, rows) -> rewards


def _function(path: str, name: str) -> tuple[Ask, list[str]]:
    """A function of a file, and the columns that it cannot do without."""
    file = real_path(path)
    if not file.is_file():
        raise _FaultError(no_file(file))
    sys.path.insert(0, str(file.parent))  # as Python itself does
    spec = importlib.util.spec_from_file_location("own_judge_file", file)
    assert spec is not None and spec.loader is not None  # noqa: S101 - its name ends in .py
    module = sys.modules["own_judge_file"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise _FaultError(f"found no function {name} in it")

    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is p.empty and p.name not in GIVEN]
    if unknown := [name for name in needed if name in TRL_ONLY]:
        raise _FaultError(f"it asks for {' and '.join(unknown)}, which only TRL has")

    def ask(answers: list[str], rows: list[dict[str, Any]]) -> Iterable[Any]:
        columns = dict.fromkeys(column for row in rows for column in row)
        there: dict[str, Any] = {column: [row.get(column) for row in rows] for column in columns}
        there |= {"prompts": there.pop("prompt"), "completions": answers}
        there |= {"log_extra": _keep_nothing, "log_metric": _keep_nothing}
        names = there if takes_all else [p.name for p in named if p.name in there]
        rewards = function(**{name: there[name] for name in names})
        if not inspect.isawaitable(rewards):
            return rewards
        import asyncio  # slow to load, and few judges need it

        return asyncio.run(_awaited(rewards))

    return ask, needed


def _keep_nothing(*_: Any, **__: Any) -> None:
    """What TRL's functions log beside their rewards."""


async def _awaited(rewards: Awaitable[Any]) -> Any:
    return await rewards


def _program(command: Sequence[str]) -> Ask:
    """A program that reads and writes lines of JSON."""

    def ask(answers: list[str], rows: list[dict[str, Any]]) -> Iterable[Any]:
        samples = [row | {"completion": text} for row, text in zip(rows, answers, strict=True)]
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        try:
            done = subprocess.run(command, input=lines.encode(), capture_output=True)  # noqa: S603
        except OSError as error:
            raise _FaultError(f"it cannot be started ({error.strerror})") from None
        said = done.stderr.decode(errors="replace")
        print(said, end="", file=sys.stderr, flush=True)
        if done.returncode:
            last = said.strip().rpartition("\n")[2][:500]
            raise _FaultError(f"it exited with status {done.returncode} ({last or 'no words'})")
        return [_parsed(line) for line in done.stdout.splitlines() if line.strip()]

    return ask


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line.decode(errors="replace")  # text, which is no reward


def _checked(rewards: Iterable[Any], n: int) -> list[float | None]:
    """The rewards of n answers, of whatever types Python, NumPy and torch have for them."""
    if not isinstance(rewards, Iterable) or isinstance(rewards, (str, bytes, Mapping)):
        raise _FaultError(f"found {reprlib.repr(rewards)}")
    found = list(rewards)
    if len(found) != n:
        raise _FaultError(f"found {len(found):,} rewards for {n:,} answer{'s' * (n != 1)}")
    return [_number(value, i) for i, value in enumerate(found)]


def _number(value: Any, at: int) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's
        number = math.nan
    if not abs(number) < MOST_REWARD:
        raise _FaultError(f"found {reprlib.repr(value)}", at)
    return number


def _told(error: BaseException, path: str) -> str:
    """What was raised, and the last line of the user's file on its way."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if path and frame.filename == str(real_path(path))
    ]
    where = f" ({path}, line {lines[-1]})" if lines else ""
    return f"it raised {type(error).__name__}: {str(error)[:500]}{where}"


def _serve() -> None:
    judge: Ask | None = None
    path = ""

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        nonlocal judge, path
        try:
            if judge is not None:
                answers = question["answers"]
                n = len(answers)  # before the judge gets hold of the list, which it may change
                return {"rewards": _checked(judge(answers, question["rows"]), n)}
            needed: list[str] = []
            if "command" in question:
                judge = _program(question["command"])
            else:
                path = question["path"]
                judge, needed = _function(path, question["function"])
            return {"needed": needed}
        except _FaultError as fault:
            return {"error": str(fault), "at": fault.at}
        except (Exception, KeyboardInterrupt) as error:  # in any way that a program can fail
            return {"error": _told(error, path)}

    serve(answer)


if __name__ == "__main__":
    _serve()
