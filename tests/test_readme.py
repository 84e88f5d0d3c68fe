"""The README does what it says: its Python runs and prints what stands beside it, its commands
parse and the cheap ones run, its files exist, and what it shows as printed is printed."""

import argparse
import contextlib
import importlib
import io
import json
import re
import shlex

import pytest
from helpers import ROOT

from minibule.records.formats import FORMATS, parse_row
from minibule.runs.settings import FIELDS, PRESETS

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.M | re.S)
CODE = [block for kind, block in BLOCKS if kind == "python"]
OUTSIDE = re.sub(r"^```.*?^```", "", TEXT, flags=re.M | re.S)
# What stands in `backticks`, on one line again where the paragraph broke it.
QUOTED = [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", OUTSIDE)]
COMMAND = re.compile(r"python ((?:-m minibule\.|tools/)\w+\S*.*)")


def commands() -> list[str]:
    """Every command line of the README, from `-m minibule.NAME` or `tools/NAME.py` on."""
    indented = [line.strip() for line in OUTSIDE.splitlines() if line.startswith("    ")]
    # A column of explanations stands two spaces away or more.
    lines = [re.split(r"\s{2,}", line)[0] for line in indented]
    lines += [" ".join(cmd.split()) for cmd in re.findall(r"<!-- \w+(?: by)?: (.*?) -->", TEXT)]
    return sorted({found[1] for line in lines + QUOTED if (found := COMMAND.search(line))})


def shown(command: str) -> list[str]:
    """The lines that the README shows as the print of a command."""
    block = re.search(rf"<!-- printed by: {re.escape(command)} -->\n(.*?)<!-- end -->", TEXT, re.S)
    assert block, f"no place for {command}"
    return [line for line in block[1].splitlines() if not line.startswith("```")]


def main_of(words: list[str]):
    """The `main` of a command, and the arguments that the README gives it."""
    if words[0] == "-m":
        return importlib.import_module(words[1]).main, words[2:]
    return importlib.import_module(words[0].removeprefix("tools/").removesuffix(".py")).main, words[
        1:
    ]


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


# -- Python ----------------------------------------------------------------------------------------


def expected(block: str) -> list[str]:
    """What the comments say is printed: those at the end of a print, and lines right under one."""
    said, printing = [], False
    for line in block.splitlines():
        comment = re.fullmatch(r"# (.*)", line) if printing else None
        comment = comment or (re.search(r"  # (.*)", line) if "print(" in line else None)
        said += [comment[1]] if comment else []
        printing = "print(" in line
    return said


def test_the_python_runs_and_prints_what_stands_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    assert len(CODE) >= 10
    for block in CODE:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "README.md", "exec"), namespace)  # noqa: S102 - our own text
        assert printed.getvalue().splitlines() == expected(block)
        assert block.count("print(") == len(expected(block))


# -- commands --------------------------------------------------------------------------------------


class Parsed(Exception):  # noqa: N818 - no error: the command line was understood
    """Raised in place of all that a command does after reading its arguments."""


@pytest.mark.parametrize("command", commands())
def test_every_command_line_parses(command, tools, monkeypatch):
    words = shlex.split(command)
    try:
        main, argv = main_of(words)
    except ModuleNotFoundError as error:  # a tool that compares with what an extra brings
        assert error.name in ("torch", "llama_cpp")
        pytest.skip(f"{words[0]} needs {error.name}")
    if not argv and words[0] != "-m":
        return  # a tool without arguments is there, and can be imported
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, args=None, namespace=None):
        raise Parsed(parse(parser, args, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(Parsed):
        main(argv)


def test_every_flag_named_is_one(tools):
    """`--flags` in the text, and in the table of train all of its settings."""
    known = {"--help", "--lora", "--preset", "--config", "--resume", "--dry-run"}
    known |= {"--" + name.replace("_", "-") for name in FIELDS}
    for name in ("generate", "export", "records", "explain"):
        source = (ROOT / "minibule" / f"{name}.py").read_text(encoding="utf-8")
        known |= set(re.findall(r'"(--[\w-]+)"', source))
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tools").glob("*.py"))
    known |= set(re.findall(r'"(--[\w-]+)"', source))
    named = {flag for text in QUOTED for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    assert named <= known
    (table,) = re.findall(r"^\| `--model --data --output` .*?\n\n", TEXT, re.M | re.S)
    assert {"--" + name.replace("_", "-") for name in FIELDS} <= set(re.findall(r"--[\w-]+", table))
    assert set(PRESETS) == set(re.findall(r"--preset (\S+)", " ".join(QUOTED)))


# -- what is printed -------------------------------------------------------------------------------


def labels(lines: list[str]) -> list[str]:
    """Lines with their numbers masked, and the model's answers, which depend on them."""
    masked = [re.sub(r"(before|after): .*", r"\1:", line) for line in lines]
    return [" ".join(re.sub(r"[\d.,]*\d", "#", line).split()) for line in masked]


def test_a_run_prints_and_leaves_what_the_readme_says(tmp_path, monkeypatch, capsys):
    """The demo with fewer steps, and on its results the cheap commands of the README."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> list[str]:
        main, argv = main_of(shlex.split(command))
        main(argv)
        return capsys.readouterr().out.splitlines()

    demo = run("-m minibule.train --steps 3")
    assert labels(demo) == labels(shown("python -m minibule.train"))
    for place in re.findall(r"runs/tiny\S*", "\n".join(demo)):
        assert (tmp_path / place).exists()
    run("-m minibule.train --resume --output runs/tiny --export gguf:q8_0,gguf-lora")
    run("-m minibule.report runs/tiny")
    assert run('-m minibule.generate --adapter runs/tiny/adapter --prompt "hello"')[0]

    found = {path.name for path in (tmp_path / "runs" / "tiny").iterdir()}
    folder = TEXT.partition("### A run's folder")[2].partition("Ctrl-C")[0]
    named = {name.strip("/") for row in re.findall(r"^\| (`.*?) \|", folder, re.M)
             for name in re.findall(r"`([^`]+)`", row)}  # fmt: skip
    assert named - {"merged"} == found - {"merged"}
    assert "merged" in named


def test_the_explanation_shown_is_a_part_of_the_whole(capsys):
    command = "python -m minibule.explain --tiny-vocab"
    main, argv = main_of(shlex.split(command.removeprefix("python ")))
    main(argv)
    printed = capsys.readouterr().out
    assert "\n".join(shown(command)) in printed


# -- formats, files, names -------------------------------------------------------------------------


def test_every_row_of_the_formats_is_read_as_what_it_is_called():
    (block,) = [block for kind, block in BLOCKS if kind == "jsonl"]
    rows = re.findall(r"^(\w.*?) (\{.*?\})$(?=\n\w|\n?\Z)", block, re.M | re.S)
    assert len(rows) == len(re.findall(r"^\w", block, re.M))
    for name, row in rows:
        found, parsed = parse_row("README.md", json.loads(row))
        assert found == name
        assert [answer.text for answer in parsed.rejected][-1] == "No."
    assert {name for name, _ in rows} == {form.name for form in FORMATS}


def test_every_file_and_function_named_exists():
    files = [t for t in QUOTED if re.fullmatch(r"[\w/.-]+\.(py|jsonl|toml)", t) or "/" in t]
    places = [ROOT, ROOT / "minibule"]
    in_a_run = ("config.toml", "metrics.jsonl", "canonical.jsonl")  # looked at above
    for text in files:
        if re.fullmatch(r"(minibule|tests|tools|weights)/[\w/.-]*|\w+\.(py|jsonl|toml)", text):
            assert text in in_a_run or any((place / text).exists() for place in places), text
    modules = {path.stem for path in (ROOT / "minibule").glob("*.py")} | {"minibule"}
    for text in QUOTED:
        found = re.fullmatch(r"(\w+)\.(\w+)", text)
        if found and found[1] in modules and found[2] not in ("py", "json", "jsonl", "toml"):
            home = "minibule" if found[1] == "minibule" else f"minibule.{found[1]}"
            if found[1] != "report" or found[2] != "html":
                assert hasattr(importlib.import_module(home), found[2]), text
