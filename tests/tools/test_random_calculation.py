"""Questions of random arithmetic: their values are right, and no two ask the same."""

import itertools
import json
import re
from fractions import Fraction

import numpy as np
import pytest
import random_calculation as tool

from minibule.errors import InputError
from minibule.evaluate.judge import JUDGES, read_rows

NUMBER = JUDGES["number"]


def value(prompt):
    """What Python makes of the expression, in fractions."""
    expression = re.fullmatch(r"What is (.*)\?", prompt)[1]
    exact = re.sub(r"\d+", r"Fraction(\g<0>)", expression.replace("^", "**"))
    return eval(exact, {"Fraction": Fraction})  # noqa: S307


@pytest.mark.parametrize("level", tool.LEVELS)
def test_every_answer_is_the_value_and_no_echo_is_accepted(level):
    train, test = tool.questions(tool.LEVELS[level], 60, seed=1)
    rows = [*train, *test]
    assert len(rows) >= 15 and len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        NUMBER.check(row)
        assert row["answer"] == pytest.approx(float(value(row["prompt"])), abs=1e-6)
        assert NUMBER.rewards([f"It is {row['answer']}."], [row]) == [1.0]
        assert NUMBER.rewards([f"{row['prompt']} Well."], [row])[0] < 0.5
    assert len(train) / len(rows) == pytest.approx(0.7, abs=0.05)


def test_levels_are_steps_to_the_published_one():
    hardness = [(one.steps, one.most, len(one.operators)) for one in tool.LEVELS.values()]
    assert len(set(hardness)) == len(hardness) == 7
    for one, other in itertools.pairwise(hardness):
        assert one[:2] <= other[:2]
    assert tool.LEVELS[7] == ("+-*/", 20, 100, True)
    train, test = tool.questions(tool.LEVELS[7], 20, 0)
    rows = [*train, *test]
    kinds = [row["kind"] for row in rows]
    assert len(set(kinds)) == 20 and max(map(kinds.count, kinds)) <= 20
    for row in rows:
        # A sign between spaces is an operator, and one within a number is part of it.
        operators = len(re.findall(r" [-+*/] ", row["prompt"]))
        assert row["kind"].split()[0] == str(operators)
    text = " ".join(row["prompt"] for row in rows)
    assert all(sign in text for sign in (" / ", "^2", "^3")) and re.search(r"\d/\d", text)


def test_what_differs_by_an_order_is_one_question():
    train, test = tool.questions(tool.LEVELS[2], 1000, 0)
    sums = [re.findall(r"\d+", row["prompt"]) for row in [*train, *test] if "+" in row["prompt"]]
    assert len(sums) > 40 and len({tuple(sorted(pair)) for pair in sums}) == len(sums)
    differences = [row["prompt"] for row in [*train, *test] if "-" in row["prompt"]]
    assert {"What is 9 - 1?", "What is 1 - 9?"} <= set(differences)


def test_nothing_is_divided_by_zero_nor_grows_without_end():
    def of(n):
        return tool.Expression(str(n), Fraction(n), str(n))

    assert tool.combined(of(3), of(0), "/") is None
    assert tool.combined(of(0), of(3), "/").value == 0
    assert tool.combined(of(10**4), of(10**2), "*").value == 10**6
    assert tool.combined(of(10**4), of(-101), "*") is None
    assert tool.combined(of(1), of(10**6 + 1), "/") is None


def test_the_seed_decides():
    level = tool.LEVELS[6]
    assert tool.questions(level, 20, 3) == tool.questions(level, 20, 3)
    assert tool.questions(level, 20, 3) != tool.questions(level, 20, 4)
    drawn = tool.expressions(level, 30, np.random.default_rng(0))
    assert [len(those) for those in drawn] == [30] * 4


def test_files_that_the_judge_reads(tmp_path, capsys):
    place = tmp_path / "sums"
    tool.main(["--level", "3", "--count", "50", "--output", str(place)])
    train, test = (read_rows(place / f"{name}.jsonl", NUMBER) for name in ("train", "test"))
    assert f"{len(train):,} questions" in capsys.readouterr().out
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    lines = (place / "train.jsonl").read_text().splitlines()
    assert list(json.loads(lines[0])) == ["prompt", "answer", "graded", "kind"]
    with pytest.raises(InputError, match="exists already"):
        tool.main(["--output", str(place)])
    for flags in (["--count", "0"], ["--seed", "-1"]):
        with pytest.raises(InputError, match="at least"):
            tool.main([*flags, "--output", str(tmp_path / "other")])
    assert [path.name for path in tmp_path.iterdir()] == ["sums"]
