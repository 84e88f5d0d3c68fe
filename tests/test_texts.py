"""The texts do what they say: their Python runs and prints what stands beside it, their commands
parse and the cheap ones run, their files, links and names exist, and what they show as printed is
printed."""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import io
import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT

import minibule
from minibule.core import llama
from minibule.explain import picture
from minibule.files import embedded_folder
from minibule.generate.__main__ import GenerateConfig
from minibule.models.gguf_write import GGUF_TYPES
from minibule.records.formats import FORMATS, parse_row
from minibule.rounds.settings import RoundsConfig
from minibule.runs.presets import PRESETS
from minibule.runs.settings import FIELDS
from minibule.settings import Parser, settings_of

PYTHON = ("python", "py")  # GitHub colours both; `py` needs an extra and runs where that is there


class Text(NamedTuple):
    """A page: where it is, all of it, and what stands outside its fenced blocks."""

    path: Path
    whole: str
    outside: str

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """(kind, content) of every fenced block."""
        return re.findall(r"^```(\w+)\n(.*?)^```", self.whole, re.M | re.S)

    @property
    def quoted(self) -> list[str]:
        """What stands in `backticks`, on one line again where the paragraph broke it."""
        return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", self.outside)]


def read(path: str) -> Text:
    whole = (ROOT / path).read_text(encoding="utf-8")
    return Text(ROOT / path, whole, re.sub(r"^```.*?^```", "", whole, flags=re.M | re.S))


NAMES = (
    "README.md",
    "minibule/core/LESSON.md",
    "minibule/core/EXERCISES.md",
    "minibule/methods/METHODS.md",
    "minibule/records/FORMATS.md",
    "tools/EXPERIMENTS.md",
    "tools/BENCHMARKS.md",
)
TEXTS = {name: read(name) for name in NAMES}
README, LESSON = TEXTS["README.md"], TEXTS["minibule/core/LESSON.md"]

each_text = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


def test_every_text_of_the_tree_is_here():
    found = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*.md")}
    for folder in ("minibule", "tools", "tests"):
        found |= {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.md")}
    assert found == set(NAMES)


# -- Python ----------------------------------------------------------------------------------------


def expected(block: str) -> list[str]:
    """What the comments say is printed: those at the end of a print, and lines right under one."""
    said, printing = [], False
    for line in block.splitlines():
        prints = line.lstrip().startswith("print(")
        comment = re.search(r"  # (.*)", line) if prints else None
        if not prints and printing:
            comment = re.fullmatch(r"# (.*)", line)
        said += [comment[1]] if comment else []
        printing = prints or (printing and comment is not None)
    return said


def test_what_is_expected_is_read_from_the_comments():
    block = 'print(1)  # 1\nprint(x)\n# a\n# b\n\n# no output\ny = 1  # no output\nprint("#")\n'
    assert expected(block) == ["1", "a", "b"]


@pytest.mark.parametrize(("text", "least"), [(README, 1), (LESSON, 15)], ids=["README", "LESSON"])
def test_the_python_runs_and_prints_what_stands_beside_it(text, least, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    blocks = [(kind, block) for kind, block in text.blocks if kind in PYTHON]
    assert len(blocks) >= least
    for kind, block in blocks:
        needs = re.findall(r"^import (\w+)", block, re.M) if kind == "py" else []
        if any(importlib.util.find_spec(name) is None for name in needs):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, text.path.name, "exec"), namespace)  # noqa: S102 - our own text
        assert printed.getvalue().splitlines() == expected(block)
        assert block.count("print(") <= len(expected(block)), "a print without its output"


# -- commands --------------------------------------------------------------------------------------

COMMAND = re.compile(r"python ((?:-m minibule\.|tools/)\w+\S*.*)")
MARKER = re.compile(
    r"<!-- printed by: (.*?)(?: \(commit \w+, [\d-]+\))? -->\n(.*?)<!-- end -->", re.S
)


def commands(text: Text) -> list[str]:
    """Every command line of a text, from `-m minibule.NAME` or `tools/NAME.py` on."""
    indented = [line.strip() for line in text.outside.splitlines() if line.startswith("    ")]
    # A column of explanations stands two spaces away or more.
    lines = [re.split(r"\s{2,}", line)[0] for line in indented]
    lines += [command for command, _ in MARKER.findall(text.whole)]
    return sorted({found[1] for line in lines + text.quoted if (found := COMMAND.search(line))})


ALL_COMMANDS = sorted({command for text in TEXTS.values() for command in commands(text)})


def shown(text: Text, command: str) -> list[str]:
    """The lines that a text shows as the print of a command."""
    (block,) = [block for by, block in MARKER.findall(text.whole) if by == command]
    return [line for line in block.splitlines() if not line.startswith("```")]


def main_of(words: list[str]):
    """The `main` of a command, and the arguments that the text gives it."""
    if words[0] == "-m":
        module = importlib.import_module(words[1])
        if hasattr(module, "__path__"):  # a folder
            module = importlib.import_module(f"{words[1]}.__main__")
        return module.main, words[2:]
    tool = words[0].removeprefix("tools/").removesuffix(".py")
    return importlib.import_module(tool).main, words[1:]


class Parsed(Exception):  # noqa: N818 - no error: the command line was understood
    """Raised in place of all that a command does after reading its arguments."""


def test_commands_are_found():
    assert len(ALL_COMMANDS) > 25
    assert "-m minibule.train --resume --output RUN" in ALL_COMMANDS
    assert "tools/experiments.py alpha" in ALL_COMMANDS


@pytest.mark.parametrize("command", ALL_COMMANDS)
def test_every_command_line_parses(command, monkeypatch):
    words = shlex.split(command)
    try:
        main, argv = main_of(words)
    except ModuleNotFoundError as error:  # a tool that compares with what an extra brings
        assert error.name in ("torch", "peft", "llama_cpp")
        pytest.skip(f"{words[0]} needs {error.name}")
    if not argv and words[0] != "-m":
        return  # a tool without arguments is there, and can be imported
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, args=None, namespace=None):
        raise Parsed(parse(parser, args, namespace))

    for parser in (argparse.ArgumentParser, Parser):  # ours has its own words for a wrong flag
        monkeypatch.setattr(parser, "parse_args", parse_only)
    with pytest.raises(Parsed):
        main(argv)


def test_a_marked_table_shows_its_command():
    """The comment is invisible on a page that is read: the command stands above it too."""
    for name in ("tools/EXPERIMENTS.md", "tools/BENCHMARKS.md"):
        text = TEXTS[name]
        for command, _ in MARKER.findall(text.whole):
            assert f"\n    {command}\n\n<!-- printed by: {command} (commit " in text.whole


@functools.cache
def known_flags() -> set[str]:
    settings = {*FIELDS, *settings_of(GenerateConfig), *settings_of(RoundsConfig)}
    flags = {"--help"} | {"--" + name.replace("_", "-") for name in settings}
    for folder in ("minibule", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            flags |= set(re.findall(r'"(--[\w-]+)"', path.read_text(encoding="utf-8")))
    return flags | {"--lora"}  # llama.cpp's own


@each_text
def test_every_flag_named_is_one(text):
    named = {
        flag for quote in text.quoted for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", quote)
    }
    assert named <= known_flags()
    presets = re.findall(r"--preset (\S+)", " ".join([*text.quoted, *commands(text)]))
    assert set(presets) <= set(PRESETS)


# -- what is printed -------------------------------------------------------------------------------


def labels(lines: list[str]) -> list[str]:
    """Lines with their numbers masked; without the words and answers that depend on them."""
    masked = [re.sub(r"(before|after): .*", r"\1:", line) for line in lines]
    said = r"(Less|More|As) likely.*|At temperature 1.*|  [\w ]*\(x[\d.]+\).*"
    kept = [line for line in masked if not re.fullmatch(said, line)]
    return [" ".join(re.sub(r"[+-]?[\d.,]*\d", "#", line).split()) for line in kept]


@pytest.fixture
def few_questions(tmp_path):
    """Some of the questions of the demo, of all kinds."""
    lines = (embedded_folder() / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(lines[::8]), encoding="utf-8")
    return path


def test_a_run_prints_and_leaves_what_the_readme_says(tmp_path, monkeypatch, capsys, few_questions):
    """The demo with fewer steps, and on its results the cheap commands of the README."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> list[str]:
        main, argv = main_of(shlex.split(command))
        main(argv)
        return capsys.readouterr().out.splitlines()

    demo = run(f"-m minibule.train --steps 3 --heldout {few_questions}")
    assert labels(demo) == labels(shown(README, "python -m minibule.train"))
    for place in re.findall(r"runs/tiny\S*", "\n".join(demo)):
        assert (tmp_path / place).exists()
    run("-m minibule.train --resume --output runs/tiny --export gguf:q8_0,gguf-lora")
    run("-m minibule.report runs/tiny")
    assert run('-m minibule.generate --adapter runs/tiny/adapter --prompt "hello"')[0]

    found = {path.name for path in (tmp_path / "runs" / "tiny").iterdir()}
    folder = re.search(r"^A run's folder holds .*?\n\n", README.whole, re.M | re.S)[0]
    named = {name.strip("/") for name in re.findall(r"`(\w[\w.-]+/?)`", folder)}
    assert named == found | {"merged"}


def test_a_training_run_proves_nothing(tmp_path, monkeypatch, capsys, few_questions):
    """As README and lesson say: with half the gradient of B a run prints the same numbers."""
    monkeypatch.chdir(tmp_path)
    right = llama.lora_linear_backward

    def halved(dy, cache):
        dx, dA, dB = right(dy, cache)
        return dx, dA, dB / 2

    main, _ = main_of(["-m", "minibule.train"])
    tables = []
    for backward in (right, halved):
        monkeypatch.setattr(llama, "lora_linear_backward", backward)
        common = ["--steps", "10", "--export", "none", "--heldout", str(few_questions)]
        main([*common, "--output", f"runs/{backward.__name__}"])
        tables.append(capsys.readouterr().out.partition("\n10 steps in")[0])
    assert labels(tables[0].splitlines()) == labels(tables[1].splitlines())
    figures = [[float(number) for number in re.findall(r"-?\d+\.\d{4}", t)] for t in tables]
    assert len(figures[0]) > 30
    assert figures[0] == pytest.approx(figures[1], abs=1.5e-4)  # a change's last digit is rounded
    rows = [re.findall(r"^  (\S.*?)  +(-?\d+\.\d{4})  +(-?\d+\.\d{4})", t, re.M) for t in tables]
    assert len(rows[0]) > 10 and rows[0] == rows[1]  # before and after, to the last digit


def demo_figures() -> dict[str, list[float]]:
    """label -> the numbers beside it, in the demo's table as the README shows it."""
    rows = [
        re.fullmatch(r"  (\S.*?)((?:\s+[+-]?\d+\.\d{4}){2,3})(?:   (?:higher|lower))?", line)
        for line in shown(README, "python -m minibule.train")
    ]
    return {row[1]: [float(number) for number in row[2].split()] for row in rows if row}


def test_every_label_of_the_demo_is_explained():
    """The table under "How to read what it prints" has all labels, and no others."""
    (table,) = re.findall(r"^\| printed \| meaning \|\n\|.*?\n(.*?)\n\n", README.whole, re.M | re.S)
    explained = [
        line.split(" | ")[0].removeprefix("| ").replace("\\|", "|") for line in table.splitlines()
    ]
    explained = [
        name
        for cell in explained
        for name in ([cell] if "exact" in cell else cell.split(", "))
        if name
    ]
    assert sorted(explained) == sorted(demo_figures())


def test_the_prose_has_the_figures_of_the_table():
    """What is said of the demo under its table follows from the table."""
    figures = demo_figures()
    prose = " ".join(
        README.whole.partition("**What happened.**")[2].partition("**Two sets")[0].split()
    )
    before, after = figures["P(accepted answer), exact"][:2]
    rejected = f"{100 * (1 - after):.0f} % of the time ({100 * (1 - before):.0f} % before)"
    assert rejected in prose
    factors = {name: row[1] / row[0] for name, row in figures.items() if name.startswith("P(")}
    rising = ["P(accepted answer), exact", "P(wrong)", "P(noise)"]
    assert [name for name, factor in factors.items() if factor > 1] == rising
    assert f"by a factor of {factors['P(accepted answer), exact']:.2f}" in prose
    assert f"echo fell to {factors['P(echo)']:.2f} of what it was" in prose
    for style, words in {"rude": "to", "refusing": "to", "wrong": "answers,", "noise": ","}.items():
        assert f"{style} {words} {factors[f'P({style})']:.2f}".replace(" ,", ",") in prose
    shares = zip(figures["P(wrong)"], figures["P(accepted answer), exact"], strict=True)
    before, after = [f"{wrong / (wrong + good):.2f}"[1:] for wrong, good in shares][:2]
    assert f"of that form {before} were wrong and {after} are" in prose
    greedy = figures["greedy answer accepted"]
    assert f"from {greedy[0]:.2f} to {greedy[1]:.2f} ".replace("0.", ".") in prose


def test_the_explanation_shown_is_a_part_of_the_whole(capsys):
    command = "python -m minibule.explain --tiny-vocab"
    main, argv = main_of(shlex.split(command.removeprefix("python ")))
    main(argv)
    printed = capsys.readouterr().out
    assert "\n".join(shown(LESSON, command)) in printed


def test_the_tables_of_experiments_have_the_rows_and_columns_of_their_command():
    experiments = importlib.import_module("experiments")
    text = TEXTS["tools/EXPERIMENTS.md"]
    for name, table in experiments.TABLES.items():
        head, _, *rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in shown(text, f"python tools/experiments.py {name}")
            if line.startswith("|")
        ]
        assert head == ["", *experiments.COLUMNS, '"hello"']
        assert [row[0] for row in rows] == ["base", *table.rows]
        assert f"{experiments.GREEDY} > .95," in text.whole


def test_the_table_of_gguf_types_has_the_columns_and_types_of_its_tool():
    head, _, *rows = shown(TEXTS["tools/EXPERIMENTS.md"], "python tools/quantised.py")[:-2]
    assert f'print("{head}")' in (ROOT / "tools" / "quantised.py").read_text(encoding="utf-8")
    assert [row.split()[1] for row in rows] == list(GGUF_TYPES)


def test_the_picture_is_what_its_command_draws(tmp_path, capsys):
    """But for the last digits, which depend on the machine."""
    (command,) = re.findall(
        r"^ +python (-m .* --svg )minibule/core/way.svg$", picture.__doc__, re.M
    )
    drawn = tmp_path / "way.svg"
    main, argv = main_of(shlex.split(f"{command} {drawn}"))
    main(argv)
    assert capsys.readouterr().out == f"{drawn}\n"
    there, again = (
        re.split(r"(-?\d+\.\d+)", path.read_text(encoding="utf-8"))
        for path in (ROOT / "minibule" / "core" / "way.svg", drawn)
    )
    assert there[::2] == again[::2]
    assert list(map(float, there[1::2])) == pytest.approx(
        list(map(float, again[1::2])), rel=2e-3, abs=2e-4
    )


# -- formats, files, links, names ------------------------------------------------------------------


def test_every_row_of_the_formats_is_read_as_what_it_is_called():
    ((_, block),) = TEXTS["minibule/records/FORMATS.md"].blocks
    rows = re.findall(r"^(\w.*?) (\{.*?\})$(?=\n\w|\n?\Z)", block, re.M | re.S)
    assert len(rows) == len(re.findall(r"^\w", block, re.M))
    for name, row in rows:
        found, parsed = parse_row("FORMATS.md", json.loads(row))
        assert found == name
        assert [answer.text for answer in parsed.rejected][-1] == "No."
    assert {name for name, _ in rows} == {form.name for form in FORMATS}


def anchors(text: str) -> set[str]:
    """GitHub's names of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_text
def test_every_link_leads_somewhere(text):
    targets = re.findall(r"\]\(([^)\s]+)\)", text.outside)
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        page = text.path.parent / path if path else text.path
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page.read_text(encoding="utf-8")), target


IN_A_RUN = ("config.toml", "metrics.jsonl", "before.json", "after.json", "manifest.json")
SUFFIXES = ("py", "json", "jsonl", "toml", "html", "gguf", "md", "svg")
MADE = ("canonical.jsonl", *IN_A_RUN)  # by a command of the text, looked at above


@each_text
def test_every_file_and_function_named_exists(text):
    places = (ROOT, ROOT / "minibule", text.path.parent)
    modules = {path.stem: path for path in (ROOT / "minibule").rglob("*.py")}
    for quote in text.quoted:
        in_tree = re.fullmatch(r"(minibule|tests|tools|weights)/[\w/.-]*", quote)
        file = re.fullmatch(r"[\w/]+\.(py|jsonl?|toml|md|svg)", quote)
        if in_tree or (file and quote not in MADE):
            assert any((place / quote).exists() for place in places), quote
        named = re.fullmatch(r"(\w+)\.(\w+)", quote)
        if named and named[1] == "minibule":
            names = {*dir(minibule), *(path.stem for path in (ROOT / "minibule").iterdir())}
            assert named[2] in names, quote
        elif named and named[1] in modules and named[2] not in SUFFIXES:
            module = modules[named[1]].relative_to(ROOT).with_suffix("").parts
            assert hasattr(importlib.import_module(".".join(module)), named[2]), quote


def test_the_tree_of_the_readme_is_the_tree():
    (tree,) = [block for kind, block in README.blocks if kind == "text" and "minibule/\n" in block]
    named = set(re.findall(r"^  (\w+)/ ", tree, re.M))
    found = {path.parent.name for path in (ROOT / "minibule").glob("*/__init__.py")}
    assert named == found
    assert all((ROOT / name).is_dir() for name in re.findall(r"^([\w/]+?)/? ", tree, re.M))


# -- the form --------------------------------------------------------------------------------------


def test_the_readme_is_short_and_counts_no_tests():
    assert len(README.path.read_bytes()) <= 16 * 1024
    assert not re.search(r"\d+ (tests|passed)", README.whole)


@each_text
def test_lines_are_of_a_length_to_be_read(text):
    for line in MARKER.sub("", text.outside).splitlines():
        assert len(line) <= 121 or line.startswith(("|", "<!--", "    python ")), line


def test_no_symbol_of_the_lesson_is_explained_twice():
    table = LESSON.whole.partition("| symbol | meaning | step |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| ([^|]+) \|", table, re.M)[1:]
    symbols = [symbol for row in rows for symbol in row.split(", ")]
    assert len(symbols) == len(set(symbols)) > 25
    # What LESSON.md calls otherwise, because these letters have a meaning already.
    for taken in ("silu(g)", "attempts a", "w dy", "c v"):
        assert taken not in LESSON.outside


def test_every_step_of_the_lesson_ends_with_a_summary_and_three_exercises():
    steps = re.split(r"^## \d+\. ", LESSON.whole, flags=re.M)[1:]
    assert len(steps) == 11
    for step in steps:
        assert len(re.findall(r"^\*\*Summary\.\*\*", step, re.M)) == 1
        exercises = step.partition("**Exercises.**")[2]
        assert re.findall(r"(?:^|[\s.?)])\((\d)\) [A-Z]", exercises) == ["1", "2", "3"]


# -- the exercises ---------------------------------------------------------------------------------


def test_the_mistakes_to_make_are_those_that_are_tried():
    """What a learner is to write stands in the code, and the table has a row for each."""
    tried = importlib.import_module("mistakes").MISTAKES
    text = TEXTS["minibule/core/EXERCISES.md"]
    for name, mistake in tried.items():
        place, folder = mistake.code, "minibule/core/"
        file = place.file.removeprefix(folder)
        row = f"| {name} | [{file}]({file}) | `{place.wrong.strip()}` | `{place.right.strip()}` |"
        assert row in text.whole
    _, _, none, *rows = shown(text, "python tools/mistakes.py")
    assert none.startswith("| none | - | - | - |  | ")
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(tried)
    assert all(row.split(" | ")[1:4] == ["caught"] * 3 for row in rows)
    ends = [[float(x) for x in re.findall(r"\d\.\d{4}", row)[-2:]] for row in (none, *rows)]
    unseen = [abs(p - ends[0][1]) for greedy, p in ends[1:] if greedy == 1]
    assert len(unseen) == 4 and f"{max(unseen):.4f}" == "0.0013"
    assert "four of the seven" in text.whole and "within\n.0013 of" in text.whole


def test_a_verdict_is_shown_as_check_gives_it(tmp_path, capsys):
    answers = (ROOT / "tests/check/answers.py").read_text(encoding="utf-8")
    mine = tmp_path / "mine.py"
    mine.write_text(answers.replace("dB = s * dy.T @ u", "dB = dy.T @ u"), encoding="utf-8")
    main, _ = main_of(["-m", "minibule.check"])
    with pytest.raises(SystemExit):
        main([str(mine), "4"])
    blocks = [content for _, content in TEXTS["minibule/core/EXERCISES.md"].blocks]
    assert capsys.readouterr().out in blocks
