"""`python -m minibule`: the list of commands, each of them by name, and words for all else."""

import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT, printed_by

import minibule
from minibule.__main__ import main
from minibule.errors import InputError
from minibule.settings import Parser


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
    assert any(line.startswith("    python -m minibule.env ") for line in lines)
    assert not any("The code is meant" in line for line in lines) and len(lines) > 7


COMMANDS = re.findall(r"^    python -m minibule\.(\w+)", minibule.__doc__, re.M)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_run_by_its_name(name, capsys, monkeypatch):
    assert len(COMMANDS) > 8
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    by_module = capsys.readouterr().out
    assert by_module.startswith(f"usage: python -m minibule.{name} ")
    monkeypatch.setattr(sys, "argv", ["/venv/bin/minibule", name])
    with pytest.raises(SystemExit):
        main([name, "--help"])
    usage = capsys.readouterr().out
    assert usage.startswith(f"usage: minibule {name} ")
    assert "python -m minibule." not in usage


class Parsed(Exception):  # noqa: N818 - no error: the command line was understood
    """Raised in place of all that a command does after reading its arguments."""


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "env"])
def test_the_examples_of_a_command_can_be_typed(name, monkeypatch):
    parsers, read = [], Parser.parse_args
    monkeypatch.setattr(Parser, "parse_args", lambda parser, words: parsers.append(parser) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([name])

    def parse_only(parser, words):
        raise Parsed(read(parser, words))

    monkeypatch.setattr(Parser, "parse_args", parse_only)
    (parser,) = parsers
    assert len(parser.examples) == (2 if name == "report" else 3)
    for example in parser.examples:
        assert f"  {parser.prog} {example}".rstrip() in parser.format_help().splitlines()
        with pytest.raises(Parsed):
            main([name, *shlex.split(example)])


def test_the_console_script():
    """As pip writes it: the function that pyproject.toml names, called in a process of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["minibule"].partition(":")
    code = (
        f"import sys; sys.argv[0] = '/venv/bin/minibule'; from {module} import {function} as f; f()"
    )

    def script(*words):
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": str(ROOT)},
        )

    assert script("--version").stdout == f"minibule {minibule.__version__}\n"
    assert "    minibule train " in script().stdout
    done = script("trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean train?" in done.stderr and "usage" not in done.stderr


def test_without_docstrings_it_says_what_to_do():
    command = [sys.executable, "-OO", "-m", "minibule", "train"]
    env = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 2 and "python -m minibule.NAME" in done.stderr


def test_a_command_loads_only_what_it_needs():
    code = (
        "import sys; from minibule.__main__ import main; main(['--version']); print(*sys.modules)"
    )
    loaded = printed_by(code).split()
    assert "minibule.program" in loaded
    assert not {"numpy", "tqdm", "tokenizers", "minibule.settings"} & set(loaded)


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
