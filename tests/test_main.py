"""`python -m minibule`: the list of commands, each of them by name, and words for all else."""

import subprocess
import sys

import pytest
from helpers import ROOT

import minibule
from minibule.__main__ import main
from minibule.errors import InputError


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", "minibule", *words],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_it_lists_the_commands(argv, capsys):
    main(argv)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Commands, each with `--help`:"
    assert any(line.startswith("    python -m minibule.train ") for line in lines)
    assert "The code is meant" not in lines[-1] and len(lines) > 7


COMMANDS = ["train", "generate", "evaluate", "export", "records", "report", "explain", "check"]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_run_by_its_name(name, capsys):
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m minibule.{name} ")


def test_its_arguments_and_its_status_are_the_commands():
    one, other = run("generate", "--prompt", "hello"), run("generate", "-n", "0", "--prompt", "x")
    assert one.returncode == 0 and one.stdout == "hello\n" and not one.stderr
    assert other.returncode == 2 and "expected a whole number from 1 to" in other.stderr


def test_a_word_that_is_no_command():
    done = run("trian", "--steps", "3")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: trian: no such command; did you mean train?\n")
    for word in ("core", "../x", "--verson", "train.loop"):  # rooms of the house are no commands
        with pytest.raises(InputError, match="no such command"):
            main([word])


def test_the_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"minibule {minibule.__version__}\n")
    assert run().returncode == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "--lora-rank", "8"), "--lora-rank: no such flag; did you mean --lora-r?"),
        (("generate", "--promt", "x"), "--promt: no such flag; did you mean --prompt?"),
        (("evaluate", "--juge", "exact"), "--juge: no such flag; did you mean --judge?"),
        (("export", "--dtyp=f32", "--fromat=hf"), "--fromat: no such flag; did you mean --format?"),
        (("records", "--outptu", "x"), "--outptu: no such flag; did you mean --output?"),
        (("records",), "the following arguments are required: FILE"),
        (("report",), "the following arguments are required: RUN"),
        (("explain", "--postion", "2"), "--postion: no such flag; did you mean --position?"),
        (("explain", "--record", "x"), "argument --record: invalid int value: 'x'"),
    ],
)
def test_a_misspelt_flag_is_a_line_and_not_a_usage(words, says):
    with pytest.raises(InputError) as error:
        main(list(words))
    message = str(error.value)
    assert says in message and "usage" not in message
    assert message.endswith(f"`python -m minibule.{words[0]} --help` lists the flags.")
