"""Write questions of arithmetic that nobody has seen, for the judge `number`.

    python tools/random_calculation.py --level 2 --output DIR
    python -m minibule.evaluate --data DIR/test.jsonl --judge number

Expressions are put together at random, so what a model answers it has not read. With i operators
they are L op R, of L with j and R with i - 1 - j operators, j up to half of i; with none they are
numbers, at the last level also fractions, squares and cubes. The row says that the reward is to be
graded: how near an answer comes to the value.

Levels 1 to 6 are steps up to the last, 7, the published one: Wu et al. 2025, "Reasoning or
Memorization?", arXiv:2507.10532, with up to 20 operators and 1,000 expressions of each number of
them, 7 of 10 to train on. What it does not say: here nothing is divided by 0, and no value's
numerator or denominator exceeds a million. Two expressions that differ by the order of what is
added or multiplied are one, and none has a value that an echo of it would end with.
"""

import argparse
import json
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibule.errors import InputError
from minibule.evaluate.judge import graded, last_number
from minibule.files import check_new, whole_folder
from minibule.program import run

LARGEST = 10**6  # of a numerator and a denominator
TRIES = 100  # at an expression, before it is taken that there are no more
DIGITS = 6  # of a value that is not whole, behind the point
TRAINED = 0.7


class Level(NamedTuple):
    """Which expressions there are: with operators of these, at most so many, between 0 and most."""

    operators: str
    steps: int
    most: int
    powers: bool = False  # and fractions


LEVELS = {
    1: Level("+", 1, 5),
    2: Level("+-", 1, 9),
    3: Level("+-*", 1, 9),
    4: Level("+-", 2, 9),
    5: Level("+-*", 2, 20),
    6: Level("+-*/", 4, 100),
    7: Level("+-*/", 20, 100, powers=True),
}


class Expression(NamedTuple):
    """What stands there, its value, and the same for all that differ by a mere order."""

    text: str
    value: Fraction
    key: str


def number(level: Level, rng: np.random.Generator) -> Expression:
    n, kind = int(rng.integers(level.most + 1)), int(rng.integers(4)) if level.powers else 0
    if kind == 1:
        below = int(rng.integers(1, level.most + 1))
        return Expression(f"{n}/{below}", Fraction(n, below), f"{n}/{below}")
    power = max(1, kind)
    text = f"{n}^{power}" if power > 1 else str(n)
    return Expression(text, Fraction(n**power), text)


def combined(left: Expression, right: Expression, operator: str) -> Expression | None:
    """The two, or None where their value is none or has too many digits."""
    if operator == "/" and not right.value:
        return None
    value = {
        "+": left.value + right.value,
        "-": left.value - right.value,
        "*": left.value * right.value,
        "/": left.value / (right.value or 1),
    }[operator]
    if max(abs(value.numerator), value.denominator) > LARGEST:
        return None
    keys = (left.key, right.key)
    first, second = sorted(keys) if operator in "+*" else keys
    return Expression(
        f"{_inner(left)} {operator} {_inner(right)}", value, f"({first}){operator}({second})"
    )


def _inner(expression: Expression) -> str:
    return f"({expression.text})" if not expression.text.isdigit() else expression.text


def expressions(level: Level, count: int, rng: np.random.Generator) -> list[list[Expression]]:
    """Up to `count` of each number of operators, from 1 to the level's."""
    sets: list[list[Expression]] = [[]]  # numbers are drawn anew each time
    for i in range(1, level.steps + 1):
        found: dict[str, Expression] = {}
        for _ in range(TRIES * count):
            if len(found) == count:
                break
            j = int(rng.integers(min((i + 1) // 2, i - 1) + 1))
            left, right = (
                sets[n][rng.integers(len(sets[n]))] if n else number(level, rng)
                for n in (j, i - 1 - j)
            )
            if rng.random() < 0.5:
                left, right = right, left
            operator = level.operators[rng.integers(len(level.operators))]
            one = combined(left, right, operator)
            if one is not None:
                found.setdefault(one.key, one)
        sets.append([*found.values()])
    return sets[1:]


def question(expression: Expression, operators: int) -> dict[str, object] | None:
    """A row for the judge; None where an echo of the prompt would be accepted."""
    value = expression.value
    answer = int(value) if value.denominator == 1 else round(float(value), DIGITS)
    prompt = f"What is {expression.text}?"
    if graded(float(last_number(prompt) or 0), float(answer)) >= 0.5:
        return None
    kind = f"{operators} operator{'s' * (operators > 1)}"
    return {"prompt": prompt, "answer": answer, "graded": True, "kind": kind}


def questions(level: Level, count: int, seed: int) -> tuple[list[dict], list[dict]]:
    """To train on and to test with, of each number of operators."""
    rng = np.random.default_rng(seed)
    sides: tuple[list[dict], list[dict]] = [], []
    for i, those in enumerate(expressions(level, count, rng), 1):
        rows = [row for one in those if (row := question(one, i))]
        trained = round(TRAINED * len(rows))
        order = rng.permutation(len(rows))
        sides[0].extend(rows[k] for k in order[:trained])
        sides[1].extend(rows[k] for k in order[trained:])
    return sides


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--level", type=int, default=2, choices=LEVELS, help="how hard (2)")
    parser.add_argument(
        "--count", type=int, default=1000, metavar="N", help="of each number of operators (1000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)
    check_new(args.output)
    if args.count < 1 or args.seed < 0:
        raise InputError("expected --count of at least 1 and --seed of at least 0.")
    with whole_folder(args.output) as partial:
        for name, rows in zip(
            ("train", "test"), questions(LEVELS[args.level], args.count, args.seed), strict=True
        ):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (partial / f"{name}.jsonl").write_text(lines, encoding="utf-8")
            print(f"{args.output / name}.jsonl: {len(rows):,} questions")


if __name__ == "__main__":
    run(main)
