"""A module in a process of its own: what it is asked, what it breaks, and that it ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minibule.machine.process import NoAnswerError, Process

HOLDING_THE_LOCK = "import re; re.match('(a+)+b', 'a' * 60)"  # which no thread interrupts


@pytest.fixture
def other(tmp_path, monkeypatch):
    """A module that runs what it is asked, and answers with what it finds in `found`."""
    (tmp_path / "other_side.py").write_text(
        "import sys\n"
        "from minibule.machine.process import serve\n"
        "kept = {'sys': sys}\n"
        "def answer(question):\n"
        "    exec(question['run'], kept)\n"
        "    return {'found': kept.get('found')}\n"
        "serve(answer)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    process = Process("other_side")
    yield process
    process.end()


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # what has ended and waits for its parent


def wait_until(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_signal_leaves_no_clock_running(other, monkeypatch):
    clocks, start = [], threading.Timer.start

    def interrupted(timer):
        clocks.append(timer)
        start(timer)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Timer, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.ask({"run": "pass"}, 600)
    assert clocks[0].finished.is_set() and clocks[0].daemon


def test_it_answers_and_remembers(other):
    assert other.ask({"run": "x = 3"}, 60) == {"found": None}
    assert other.ask({"run": "found = x * 'é'"}, 60) == {"found": "ééé"}
    assert other.ask({"run": "found = x / 0"}, 60) == {
        "error": "ZeroDivisionError: division by zero"
    }
    assert other.ask({"run": "found = x"}, 60) == {"found": 3}


def asker(*questions):
    """A program that asks the other side, and prints what it finds."""
    code = "from minibule.machine.process import Process\np = Process('other_side')\n"
    code += "".join(
        f"print(p.ask({{'run': {q!r}}}, 600)['found'], flush=True)\n" for q in questions
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_what_it_prints_is_no_answer_and_what_it_reads_no_question(other):
    program = asker("print('seen\\x1b[2J'); found = 'read' + sys.stdin.read()", "pass")
    assert program.communicate(timeout=60) == ("read\nread\n", "seen\\x1b[2J\n")


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("while True: pass", "took more than 0.05 seconds"),
        (HOLDING_THE_LOCK, "took more than 0.05 seconds"),
        ("import os; os._exit(0)", "broke off"),
        ("sys.exit(3)", "broke off"),
        ("import os; os.kill(os.getpid(), 11)", "broke off"),
    ],
)
def test_it_is_ended_where_it_does_not_answer(other, run, says):
    with pytest.raises(NoAnswerError, match=says):
        other.ask({"run": run}, 0.05 if "seconds" in says else 60)
    with pytest.raises(NoAnswerError, match="broke off"):
        other.ask({"run": "found = 1"}, 60)


SLEEPER = """import os, subprocess
sleeper = subprocess.Popen(["sleep", "600"])
found = f"{os.getpid()} {sleeper.pid}"
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
class TestNothingIsLeft:
    def test_after_its_end(self, other):
        pids = other.ask({"run": SLEEPER}, 60)["found"].split()
        assert all(map(alive, pids))
        other.end()
        wait_until(lambda: not any(map(alive, pids)))

    def test_after_a_hang(self, other):
        pids = other.ask({"run": SLEEPER}, 60)["found"].split()
        with pytest.raises(NoAnswerError):
            other.ask({"run": "while True: pass"}, 0.1)
        wait_until(lambda: not any(map(alive, pids)))

    def test_when_the_asker_is_killed(self, other):
        """In the middle of a question, and with Python's lock held."""
        program = asker(SLEEPER, HOLDING_THE_LOCK)
        pids = program.stdout.readline().split()
        assert len(pids) == 2 and all(map(alive, pids))
        program.send_signal(signal.SIGKILL)
        program.communicate(timeout=60)
        wait_until(lambda: not any(map(alive, pids)))
