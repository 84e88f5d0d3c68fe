"""One case after another, each in a process of its own, and what became of it.

The process is a copy (`fork`) of one in which everything has been imported and used once, so a case
costs milliseconds more than what it does; and whatever it does, the next one begins as it did. It
is run as every command is, by `program.run`: its exit status and all that it wrote are looked at.
"""

import contextlib
import io
import json
import os
import random
import re
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mutation.good import KEPT, make_good_files
from mutation.kinds import Case, Kind, kinds
from mutation.reference import TOLERANCE, difference

from minibule import program

SECONDS = 5.0
# What a case may take beside what the damaged file excuses: the libraries' own buffers, above all
# the JSON of a tokenizer, numbers of the rendering and of the forward pass; the good files take up
# to 9 MB.
CONSTANT = 32_000_000
ADDRESS_SPACE = 4_000_000_000  # beyond what the process has: a net under the measurement
LONGEST = 200_000  # characters that are printed of any input

# What no output may hold: control characters, but for ends of lines, tabs, and how a bar is drawn.
_OF_A_BAR = re.compile(r"\r|\x1b\[A")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Outcome(NamedTuple):
    """loaded, refused or failed; seconds; bytes of memory beyond what the file excuses; its words.

    compared    of what was loaded: "" if nothing is to be compared or it is as without damage;
                else "agrees" with the reference program, "refused" by it, or "unchecked"
    """

    result: str
    seconds: float
    memory: int
    message: str
    compared: str = ""


def run_case(folder: Path, name: str, kind: Kind, seed: int, number: int) -> Outcome:
    """Damage what the case's number says, use it, and put it back."""
    rng = random.Random(f"{seed} {name} {number}")
    with kind.case(rng, folder, number) as case:
        before = _seen(folder, case.free)
        outcome = _watched(case)
        after = _seen(folder, case.free)
    changed = sorted(str(path) for path, _ in before.items() ^ after.items())
    if changed and outcome.result != "failed":
        message = f"changed what is not its own: {', '.join(changed)}\n{outcome.message}"
        outcome = outcome._replace(result="failed", message=message)
    return outcome


def _seen(folder: Path, free: tuple[Path, ...]) -> dict[str, tuple[Any, ...]]:
    """Every file but those that the case may write: what tells that it was touched."""
    seen: dict[str, tuple[Any, ...]] = {}
    for place, folders, files in os.walk(folder):
        own = any(Path(place).is_relative_to(path) for path in free)
        for name in folders + files:
            path = Path(place, name)
            if name != KEPT and (own or path in free):
                continue
            about = os.lstat(path)
            state = (about.st_mode, about.st_ino)
            seen[str(path)] = (
                state if name in folders else (*state, about.st_size, about.st_mtime_ns)
            )
    return seen


def _watched(case: Case) -> Outcome:
    """Run the case in a copy of this process."""
    report, into = os.pipe()
    with tempfile.TemporaryFile() as said:
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            os.close(report)
            _run(case, into, said.fileno())
        os.close(into)
        lines, ended = _reported(report)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        output = said.read().decode(errors="replace")
    if not lines:
        what = "does not end" if not ended else f"the process died: {_death(status)}"
        return Outcome("failed", 2 * SECONDS if not ended else 0.0, 0, f"{what}\n{output[-3000:]}")
    outcome = Outcome(*lines[0], "")._replace(message=output.strip())
    result, _, memory, _, _ = outcome
    fault = ""
    if result == "failed":
        fault = "a traceback or another exit status"
    elif "Warning: " in output:
        fault = "a library's warning"
    elif control := _CONTROL.search(_OF_A_BAR.sub("", output)):
        fault = f"a control character, {control.group()!r}"
    elif memory > CONSTANT:
        fault = f"{memory:,} bytes beyond the {case.memory:,} that the file excuses"
    elif outcome.seconds > SECONDS:
        fault = f"{outcome.seconds:.1f} seconds"
    elif len(output) > LONGEST or (result == "refused" and not output.strip()):
        fault = f"a message of {len(output):,} characters"
    elif result == "loaded" and len(lines) > 1:
        (compared,) = lines[1]
        if compared not in ("", "agrees", "refused", "unchecked"):
            fault = compared
        else:
            outcome = outcome._replace(compared=compared)
    elif result == "loaded":  # the reference program died of it
        outcome = outcome._replace(compared="refused")
    return outcome._replace(result="failed", message=f"{fault}\n{output}") if fault else outcome


def _reported(pipe: int) -> tuple[list[list[Any]], bool]:
    """What the process told on its pipe, a JSON array a line; and whether it has ended."""
    data, deadline = b"", time.monotonic() + 2 * SECONDS
    with os.fdopen(pipe, "rb", buffering=0) as stream:
        while select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
            more = stream.read(65536)
            if not more:
                return [json.loads(line) for line in data.splitlines()], True
            data += more
            deadline = time.monotonic() + 60  # for the reference program
    return [json.loads(line) for line in data.splitlines()], False


def _death(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"


def _run(case: Case, pipe: int, said: int) -> None:
    """The other side: all of a process's life."""
    import resource

    def tell(*what: Any) -> None:
        os.write(pipe, json.dumps(what).encode() + b"\n")

    try:
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(
                os.fdopen(stream, "wb"), "utf-8", "backslashreplace", line_buffering=True
            )
            for stream in (1, 2)
        )
        sys.argv = ["case"]
        limit = memory_of("VmSize") + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used: list[Any] = []

        def main(_: list[str]) -> None:
            used.append(case.run())
            print(used[0].shown[: LONGEST - 1])

        before, start, status = memory_of("VmRSS"), time.perf_counter(), 1
        try:
            program.run(main)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        except BaseException:  # a panic in Rust is no Exception
            traceback.print_exc()
        seconds = time.perf_counter() - start
        sys.stdout.flush()
        result = {0: "loaded", 2: "refused"}.get(status, "failed")
        memory = max(0, memory_of("VmHWM") - before - case.memory)
        tell(result, seconds, memory, "")
        if status == 0:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            tell(_compared(case, used[0].result))
    finally:
        os._exit(0)


def _compared(case: Case, result: Any) -> str:
    if case.clean is None or result is None or difference(result, case.clean) == 0:
        return ""
    try:
        expected = case.reference()
    except BaseException:
        return "refused"
    if expected is None:
        return "unchecked"
    wrong = difference(result, expected)
    return "agrees" if wrong <= TOLERANCE else f"differs by {wrong:.2g} from the reference program"


def memory_of(field: str) -> int:
    """A field of Linux's /proc/self/status, in bytes; 0 on other systems."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


# -- many ------------------------------------------------------------------------------------------


class Tally(NamedTuple):
    """What became of the cases of one kind."""

    results: Counter[str]
    compared: Counter[str]
    slowest: float
    memory: int
    failures: list[str]


@contextlib.contextmanager
def good_files() -> Iterator[tuple[Path, dict[str, Kind]]]:
    """A folder of good files, and all kinds, each used once."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_good_files(folder)
        yield folder, kinds(folder)


def warm(folder: Path, kind: Kind) -> None:
    """Use the kind's good files, in silence."""
    with (
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        kind.warm(folder)


def mutate(
    folder: Path, known: dict[str, Kind], seed: int, counts: dict[str, int]
) -> Iterator[tuple[str, Tally]]:
    """Run so many cases of each kind."""
    for name, n in counts.items():
        warm(folder, known[name])
        outcomes = [run_case(folder, name, known[name], seed, number) for number in range(n)]
        yield (
            name,
            Tally(
                Counter(outcome.result for outcome in outcomes),
                Counter(outcome.compared for outcome in outcomes if outcome.compared),
                max(outcome.seconds for outcome in outcomes),
                max(outcome.memory for outcome in outcomes),
                [f"case {i}: {o.message}" for i, o in enumerate(outcomes) if o.result == "failed"],
            ),
        )
