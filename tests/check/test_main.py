"""`python -m minibule.check`: a learner's file is run because they named it, and marked."""

import signal
import subprocess
import sys

import pytest
from helpers import ROOT

from minibule.check.__main__ import main
from minibule.check.exercises import FUNCTIONS, skeleton
from minibule.errors import InputError

ANSWERS = ROOT / "tests/check/answers.py"


def status_of(*argv):
    try:
        main([str(word) for word in argv])
    except SystemExit as exit:
        return exit.code
    return 0


def test_what_is_filled_in_is_right(capsys):
    assert status_of(ANSWERS) == 0
    out = capsys.readouterr().out
    assert out.endswith("\n11 of 11 exercises are right\n")
    assert all(f"  {name}\n" in out for name in FUNCTIONS)


def test_a_number_chooses_one(capsys):
    assert status_of(ANSWERS, 5) == 0
    out = capsys.readouterr().out
    assert out.startswith(" 5  rms_norm\n") and "\n 5  rms_norm_backward\n" in out
    assert "softmax" not in out and "exercises are right" not in out


def test_the_skeleton_is_to_be_filled_in_and_replaces_nothing(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    assert status_of("--skeleton", mine) == 0
    assert mine.read_text(encoding="utf-8") == skeleton()
    assert "then `python -m minibule.check " in capsys.readouterr().out
    assert status_of(mine) == 1
    out = capsys.readouterr().out
    assert out.count(": not filled in yet\n") == len(FUNCTIONS)
    assert out.endswith("0 of 11 exercises are right\n")
    mine.write_text("x = 1\n")
    with pytest.raises(InputError, match=r"mine\.py: exists already; expected a new name"):
        main(["--skeleton", str(mine)])
    assert mine.read_text() == "x = 1\n" and [p.name for p in tmp_path.iterdir()] == ["mine.py"]


def test_a_wrong_value_is_a_status(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(ANSWERS.read_text(encoding="utf-8").replace("s * (dy @ B)", "(dy @ B)"))
    assert status_of(mine, 4) == 1
    assert "du   off by a factor 0.588235 = 1 / s everywhere" in capsys.readouterr().out
    assert status_of(mine, 3) == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(:\n", "line 1: invalid syntax: `def f\\(:`"),
        ("x = 1\nimport no_such_thing\n", "line 2: `import no_such_thing`: ModuleNotFoundError"),
        ("raise SystemExit(0)\n", "line 1: `raise SystemExit\\(0\\)` ends the program"),
        ("x = '\0'\n", "null bytes"),
        ("x = '\udcff'\n", "line 1: "),
    ],
)
def test_a_file_that_cannot_be_run_names_its_line(tmp_path, source, message):
    mine = tmp_path / "mine.py"
    mine.write_bytes(source.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=f"mine\\.py.*{message}"):
        main([str(mine)])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]  # no compiled one beside it


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.py"], r"nowhere\.py: no such file"),
        (["."], "found a folder, expected a file"),
        ([str(ANSWERS), "12"], "exercise 12: expected 1 to 11"),
        ([str(ANSWERS), "x"], "invalid int value"),
        ([], "required: FILE.py"),
        (["--skeleton", "no/such/folder/mine.py"], "cannot be written"),
    ],
)
def test_bad_arguments(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        main(argv)
    assert not list(tmp_path.rglob("*"))


def test_an_endless_loop_ends_with_ctrl_c(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def softmax(score):\n    while True: print('here', flush=True)\n")
    command = [sys.executable, "-m", "minibule.check", str(mine), "6"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == "interrupted\n"
    assert out.endswith("softmax, line 2: `while True: print('here', flush=True)`\n")
