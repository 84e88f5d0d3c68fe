"""Judges of the user's own: what they are given, and that each thing they do wrong is told."""

import contextlib
import json
import os
import shlex
import sys

import pytest

from minibule.errors import InputError
from minibule.evaluate.judge import read_rows
from minibule.evaluate.own_judge import named_judge

ROWS = [
    {"prompt": "1 + 1?", "answer": "2", "kind": "sum"},
    {"prompt": "2 + 2?", "answer": "4"},
    {"prompt": "3 + 3?", "answer": "6", "hint": [1]},
]
ANSWERS = ["It is 2", "It is 5", "It is 6"]


@pytest.fixture
def named(tmp_path):
    """The judge that these lines make: of a function f, or of a program in Python."""
    judges = []

    def make(lines, program=False, seconds=60.0):
        path = tmp_path / ("program.py" if program else "mine.py")
        path.write_text(lines, encoding="utf-8")
        name = f"command:{shlex.join([sys.executable, str(path)])}" if program else f"{path}:f"
        judges.append(named_judge(name, seconds))
        return judges[-1]

    yield make
    for judge in judges:
        judge.rewards.__self__.process.end()


def program(body):
    """A program with this for each line it reads, as `row`, the number of which is `i`."""
    return (
        "import json, os, sys, time\n"
        "for i, line in enumerate(sys.stdin):\n"
        "    row = json.loads(line)\n"
        f"    {body}\n"
    )


def test_a_function_is_called_with_what_it_names(named):
    judge = named(
        "def f(completions, *, answer):\n"
        "    return [float(a in c) for a, c in zip(answer, completions, strict=True)]\n"
    )
    assert judge.rewards(ANSWERS, ROWS) == [1.0, 0.0, 1.0]
    assert judge.rewards([], []) == []


def test_a_function_that_takes_all_is_given_all(named, tmp_path):
    judge = named(
        "import json, os\n"
        "def f(prompts, **others):\n"
        "    others['log_extra']('column', prompts)\n"
        "    others.pop('log_metric')('name', 1.0)\n"
        "    del others['log_extra']\n"
        "    with open(os.path.dirname(__file__) + '/given.json', 'w') as file:\n"
        "        json.dump([prompts, others], file)\n"
        "    return [None] * len(prompts)\n"
    )
    assert judge.rewards(ANSWERS, ROWS) == [None, None, None]
    assert json.loads((tmp_path / "given.json").read_text()) == [
        ["1 + 1?", "2 + 2?", "3 + 3?"],
        {
            "answer": ["2", "4", "6"],
            "kind": ["sum", None, None],
            "hint": [None, None, [1]],
            "completions": ANSWERS,
        },
    ]


def test_a_parameter_with_a_default_may_be_missing(named):
    judge = named("def f(completions, more=3.5):\n    return [more] * len(completions)\n")
    assert judge.rewards(ANSWERS, ROWS) == [3.5] * 3


@pytest.mark.parametrize(
    ("returned", "rewards"),
    [
        ("[1, True, None]", [1.0, 1.0, None]),
        ("(x for x in (0.5, -2, 7))", [0.5, -2.0, 7.0]),
        ("numpy.array([1, 0, 2], numpy.float32)", [1.0, 0.0, 2.0]),
        ("[numpy.bool_(True), numpy.int64(3), numpy.float16(0.5)]", [1.0, 3.0, 0.5]),
    ],
)
def test_rewards_of_several_types(named, returned, rewards):
    judge = named(f"import numpy\ndef f(**_):\n    return {returned}\n")
    found = judge.rewards(ANSWERS, ROWS)
    assert found == rewards and all(x is None or type(x) is float for x in found)


def test_an_async_function_what_it_imports_from_its_folder_and_what_it_remembers(named, tmp_path):
    (tmp_path / "beside.py").write_text("HALF = 0.5\n")
    judge = named(
        "import asyncio, beside\n"
        "calls = []\n"
        "async def f(prompts, completions):\n"
        "    await asyncio.sleep(0)\n"
        "    print('no reward', 7)\n"
        "    calls.append(prompts)\n"
        "    return [len(calls) * beside.HALF] * len(prompts)\n"
    )
    assert [judge.rewards(ANSWERS[:1], ROWS[:1]) for _ in range(3)] == [[0.5], [1.0], [1.5]]


def test_a_program_reads_and_writes_lines(named):
    judge = named(
        program("print(json.dumps(float(row['answer'] in row['completion']) if i else None))"),
        program=True,
    )
    assert judge.rewards(ANSWERS, ROWS) == [None, 0.0, 1.0]


def test_a_program_is_given_the_columns(named):
    wanted = [row | {"completion": text} for row, text in zip(ROWS, ANSWERS, strict=True)]
    judge = named(program(f"print(int(row == {wanted!r}[i]))"), program=True)
    assert judge.rewards(ANSWERS, ROWS) == [1.0, 1.0, 1.0]
    assert judge.rewards(ANSWERS, ROWS[::-1]) == [0.0, 1.0, 0.0]


def test_a_program_in_another_language(tmp_path):
    script = tmp_path / "judge.sh"
    cases = 'case "$line" in *"is 5"*) echo 0;; *) echo 1;; esac'
    script.write_text(f"#!/bin/sh\nwhile read -r line; do {cases}; done\n")
    script.chmod(0o755)
    assert named_judge(f"command:{script}").rewards(ANSWERS, ROWS) == [1.0, 0.0, 1.0]


def test_a_function_may_use_up_what_it_is_given(named):
    judge = named(
        "def f(prompts, completions):\n"
        "    return [len(completions.pop(0)) + len(prompts.pop(0)) for _ in list(prompts)]\n"
    )
    assert judge.rewards(ANSWERS, ROWS) == [
        len(answer) + len(row["prompt"]) for answer, row in zip(ANSWERS, ROWS, strict=True)
    ]
    short = named(
        "def f(completions):\n    completions.pop()\n    return [1 for _ in completions]\n"
    )
    with pytest.raises(InputError, match="found 0 rewards for 1 answer, "):
        short.rewards(ANSWERS, ROWS)


BAD_FUNCTIONS = {  # what a function does where an answer is bad, and what is said of it
    "1 / 0": r"it raised ZeroDivisionError: division by zero \(.*mine.py, line 4\)",
    "raise KeyboardInterrupt": "it raised KeyboardInterrupt",
    "exit()": "it broke off",
    "__import__('time').sleep(600)": "it took more than 0.5 seconds",
    "rewards = [1 for b in bad if not b]": "found 0 rewards for 1 answer",
    "rewards += [1]": "found 2 rewards for 1 answer",
    "rewards = [float('nan' if b else 1) for b in bad]": "found nan",
    "rewards = [float('inf' if b else 1) for b in bad]": "found inf",
    "rewards = ['1' if b else 1 for b in bad]": "found '1'",
    "rewards = [[1] if b else 1 for b in bad]": r"found \[1\]",
    "rewards = [10**400 if b else 1 for b in bad]": "found 1000",
    "rewards = [-1e16 if b else 1 for b in bad]": r"found -1e\+16",
    "rewards = 1.0": "found 1.0",
    "rewards = '1'": "found '1'",
    "rewards = {'score': 1}": "found {'score': 1}",
}


@pytest.mark.parametrize("body", BAD_FUNCTIONS)
def test_a_function_that_fails_is_told_with_the_sample(named, body):
    judge = named(
        "def f(completions):\n"
        "    bad = [c == 'It is 5' for c in completions]\n"
        "    rewards = [1] * len(bad)\n"
        f"    if any(bad): {body}\n"
        "    return rewards\n",
        seconds=0.5 if "sleep" in body else 60,
    )
    with pytest.raises(InputError, match=BAD_FUNCTIONS[body]) as error:
        judge.rewards(ANSWERS, ROWS)
    assert "for the answer 'It is 5' to '2 + 2?'" in str(error.value)
    assert "mine.py:f: " in str(error.value)
    assert judge.rewards(ANSWERS[2:], ROWS[2:]) == [1.0]  # and the next batch is judged


BAD_PROGRAMS = {  # what a program does for a bad answer, and what is said of it
    "sys.exit('I am full')": r"it exited with status 1 \(I am full\)",
    "os.kill(os.getpid(), 9)": r"it exited with status -9 \(no words\)",
    "time.sleep(600)": "it took more than 0.5 seconds",
    "pass": "found 0 rewards for 1 answer",
    "print('1\\n\\n1')": "found 2 rewards for 1 answer",
    "print('NaN')": "found nan",
    "print('good')": "found 'good'",
    "print({})": "found {}",
    "print('9' * 400)": "found 9999",
    "print('[' * 10**5)": r"found '\[\[",
    "os.write(1, b'\\xff\\n')": "found '\ufffd'",
}


@pytest.mark.parametrize("body", BAD_PROGRAMS)
def test_a_program_that_fails_is_told_with_the_sample(named, body):
    judge = named(
        program(f"exec({body!r} if row['completion'] == 'It is 5' else 'print(1, flush=True)')"),
        program=True,
        seconds=0.5 if "sleep" in body else 60,
    )
    with pytest.raises(InputError, match=BAD_PROGRAMS[body]) as error:
        judge.rewards(ANSWERS, ROWS)
    assert "for the answer 'It is 5' to '2 + 2?'" in str(error.value)
    assert judge.rewards(ANSWERS[2:], ROWS[2:]) == [1.0]


def test_what_fails_for_many_answers_only_is_said_of_the_batch(named):
    judge = named("def f(prompts, **_):\n    return [1][: len(prompts) == 1]\n")
    says = "found 0 rewards for 3 answers, for 3 answers at once, the first 'It is 2' to '1 .+ 1"
    with pytest.raises(InputError, match=says):
        judge.rewards(ANSWERS, ROWS)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("g = 3\n", "found no function f in it"),
        ("f = 3\n", "found no function f in it"),
        ("def f(:\n", r"it raised SyntaxError: .*\(mine.py, line 1\)"),
        ("\nimport nothing_of_this_name\n", r"it raised ModuleNotFoundError: .*mine.py, line 2\)"),
        ("raise SystemExit\n", "it broke off"),
        ("def f(prompts, trainer_state): pass\n", "it asks for trainer_state, which only TRL has"),
    ],
)
def test_a_file_that_cannot_be_loaded(named, lines, says):
    with pytest.raises(InputError, match=f"mine.py:f: cannot be loaded: {says}"):
        named(lines)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine", "not a judge; expected one of regex"),
        ("mine.py", "not a judge"),
        ("mine.py:", "not a judge"),
        ("mine.py:1f", "not a judge"),
        ("mine.txt:f", "not a judge"),
        ("no/such/file.py:f", "cannot be loaded: no such file"),
        ("command:", "nothing is no program"),
        ("command:no-such-program -x", "no-such-program is no program"),
        ("command:'x", r"not a command \(No closing quotation\)"),
        ("\x1b[2J", r"--judge \\x1b\[2J: not a judge"),
    ],
)
def test_names_that_are_no_judge(name, says):
    with pytest.raises(InputError, match=says):
        named_judge(name)


@pytest.mark.skipif(os.name != "posix", reason="files are run as such on Unix")
def test_a_program_that_is_none(tmp_path):
    """It may be run, and does not say by what."""
    path = tmp_path / "none"
    path.write_bytes(b"\0")
    path.chmod(0o755)
    with pytest.raises(InputError, match=r"it cannot be started \(Exec format error\)"):
        named_judge(f"command:{path}").rewards(ANSWERS, ROWS)


def test_questions_without_a_column_that_is_asked_for_are_named(named, tmp_path):
    judge = named("def f(completions, answer, hint=None, **_): return [1] * len(completions)\n")
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, {"prompt": "4 + 4?"}]))
    with pytest.raises(
        InputError, match=r"line 4: answer: not there, but --judge .*mine.py:f asks"
    ):
        read_rows(path, judge)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert read_rows(path, judge) == ROWS


def test_no_code_runs_until_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "regex.py").write_text("open('ran', 'w')\n")
    with contextlib.suppress(InputError):
        named_judge("regex.py")
    named_judge("regex")
    assert not (tmp_path / "ran").exists()
