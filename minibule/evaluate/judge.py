"""Judges of answers: programs that say how good an answer to a question is.

A file of questions has one JSON object a line: the prompt, what the judge needs to know, and, if
wanted, the kind of question, by which the figures are told apart:

    {"prompt": "What color is milk?", "accept": "white", "kind": "color"}

The questions of weights/questions are such files, for models that know little: train.jsonl and
test.jsonl have other questions of the same kinds, other.jsonl has kinds that train.jsonl has not.
Beside them stands prose.txt, a text about none of this: how much less a trained model expects it
shows what was damaged.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from minibule.errors import InputError, listed
from minibule.files import reading
from minibule.records.readers import json_lines
from minibule.records.values import text_of

Row = Mapping[str, Any]
Reward = Callable[[str, Row], float]  # of one answer, which says something

# What is no answer to anything, whatever a judge would make of it; letters in lower case.
NO_ANSWER = ("", ":", "thought process:")


def bare(text: str) -> str:
    """A text as `exact` compares it: without the space around it, a full stop at its end, case."""
    return text.strip().removesuffix(".").casefold()


class Judge(NamedTuple):
    """A judge of answers.

    rewards  (answers, their rows) -> for each from 0, the worst, to 1, the best, where it is one of
             JUDGES, and else any number; None: it cannot tell
    check    what the judge needs of a row; ValueError says what is wrong with it
    key      what an answer says: equal for two that say the same
    """

    rewards: Callable[[Sequence[str], Sequence[Row]], list[float | None]]
    check: Callable[[Row], None]
    key: Callable[[str], Hashable] = bare


def _each(
    reward: Reward, check: Callable[[Row], None], key: Callable[[str], Hashable] = bare
) -> Judge:
    """A judge of one answer after the other: 0 for what is none, be it nothing or the prompt."""

    def rewards(answers: Sequence[str], rows: Sequence[Row]) -> list[float | None]:
        return [
            0.0 if is_no_answer(answer, row["prompt"]) else reward(answer, row)
            for answer, row in zip(answers, rows, strict=True)
        ]

    return Judge(rewards, check, key)


def is_no_answer(answer: str, prompt: str) -> bool:
    """Whether it is one of NO_ANSWER, or the prompt again."""
    return answer.strip().casefold() in (*NO_ANSWER, prompt.strip().casefold())


# -- by text ---------------------------------------------------------------------------------------


def _regex(answer: str, row: Row) -> float:
    """Whether the pattern `accept` is found where a word begins, in letters of either case."""
    return float(re.search(rf"\b(?:{row['accept']})", answer, re.IGNORECASE) is not None)


def _check_regex(row: Row) -> None:
    pattern = _text(row, "accept")
    try:
        matches_nothing = re.compile(rf"\b(?:{pattern})") and re.match(pattern, "")
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"accept: not a regular expression ({error})") from None
    if matches_nothing:
        raise ValueError("accept: found a pattern that every answer has, expected one of some text")


def _contains(answer: str, row: Row) -> float:
    """Whether `answer` stands anywhere in it, in letters of either case."""
    return float(row["answer"].casefold() in answer.casefold())


def _exact(answer: str, row: Row) -> float:
    """Whether it is `answer`, but for case, the space around it and a full stop at its end."""
    return float(bare(answer) == bare(row["answer"]))


def _check_answer(row: Row) -> None:
    _text(row, "answer")


# -- by number -------------------------------------------------------------------------------------

# 1,234.5 or .5 or -3e8, but not the 2 of H2O, nor the 3 of 1.2.3; and of 3-5 the last is 5.
NUMBER = re.compile(
    r"""(?<!\w) (?<![0-9]\.)
        (?: (?<![)\]]) [-+\u2212] )?
        (?: (?: [0-9]{1,3} (?:,[0-9]{3})+ (?![0-9]) | [0-9]+ ) (?:\.[0-9]+)? | (?<!\.)\.[0-9]+ )
        (?: [eE] [-+]? [0-9]{1,3} (?!\w) )?""",
    re.VERBOSE,
)


def last_number(text: str) -> Decimal | None:
    """The last number in a text, exactly as it is written; None where there is none.

    >>> last_number("4 - 6 is -2."), last_number("1,234.50 of them"), last_number("none")
    (Decimal('-2'), Decimal('1234.50'), None)
    """
    found = NUMBER.findall(text)
    return _decimal(found[-1]) if found else None


def _decimal(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("\u2212", "-"))


def _number(answer: str, row: Row) -> float:
    """Whether its last number is `answer`; where the row is `graded`, how near it comes."""
    a, b = last_number(answer), _wanted(row)
    if a is None or not row.get("graded"):
        return float(a == b)
    return graded(float(a), float(b))


def graded(a: float, b: float) -> float:
    """1 for a = b, .5 and less for what is off by 1 or more, 0 for what is off by all of b too.

    Source: the RandomCalculation of Wu et al. 2025, "Reasoning or Memorization?", arXiv:2507.10532.
    """
    off = abs(a - b)
    return 1 - 0.5 * min(off, 1) - 0.5 * min(off / (abs(b) + 1e-6), 1)


def _wanted(row: Row) -> Decimal:
    return _decimal(str(row["answer"]).strip())


def _check_number(row: Row) -> None:
    if "answer" not in row:
        raise ValueError("answer: not there, expected a number")
    value = row["answer"]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(value, str):
        is_number = NUMBER.fullmatch(value.strip()) is not None
    if not is_number or not math.isfinite(_wanted(row)):
        raise ValueError(f"answer: found {reprlib.repr(value)}, expected a number")
    if not isinstance(row.get("graded", False), bool):
        found = reprlib.repr(row["graded"])
        raise ValueError(f"graded: found {found}, expected true or false")


# -- by value --------------------------------------------------------------------------------------

FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


def _json(answer: str, row: Row) -> float:
    """Whether it is JSON, fenced or not, of the value `answer`; or an object with all `keys`.

    Objects are equal whatever the order of their keys, and 1.0 equals 1, but true does not.
    """
    try:
        value = _parsed(answer)
    except (ValueError, RecursionError):
        return 0.0
    if "keys" in row:
        return float(isinstance(value, dict) and set(row["keys"]) <= set(value))
    return float(_equal(value, row["answer"]))


def _parsed(answer: str) -> Any:
    text = answer.strip()
    fenced = FENCED.fullmatch(text)
    return json.loads(fenced[1] if fenced else text, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _json_key(answer: str) -> Hashable:
    try:
        return json.dumps(_parsed(answer), sort_keys=True)
    except (ValueError, RecursionError):
        return bare(answer)


def _check_json(row: Row) -> None:
    if ("answer" in row) == ("keys" in row):
        raise ValueError("expected answer, any value, or keys, a list of texts, and not both")
    try:
        json.dumps(row.get("answer"), allow_nan=False)
    except (ValueError, RecursionError):
        raise ValueError("answer: found NaN, infinity or too many brackets, not JSON") from None
    keys = row.get("keys", [])
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"keys: found {reprlib.repr(keys)}, expected a list of texts")


JUDGES = {
    "regex": _each(_regex, _check_regex),
    "contains": _each(_contains, _check_answer),
    "exact": _each(_exact, _check_answer),
    "number": _each(_number, _check_number, last_number),
    "json": _each(_json, _check_json, _json_key),
}


# -- files of questions ----------------------------------------------------------------------------


def read_rows(path: Path, judge: Judge) -> list[Row]:
    """The questions of a file, as the judge needs them; InputError lists the lines that are none.

    Every prompt is text, and another; other columns than those used are left as they are.
    """
    rows: dict[str, Row] = {}
    problems = []
    with reading(path) as file:
        for where, value in json_lines(file):
            try:
                row = _row(value, judge)
                if row["prompt"] in rows:
                    raise ValueError("found a prompt that stands above, expected another")
                rows[row["prompt"]] = row
            except (InputError, ValueError) as error:
                problems.append(f"{where}: {error}")
    if not rows and not problems:
        problems = ["no line that is not blank"]
    if problems:
        raise InputError(f"{path}: not a file of questions:\n{listed(problems)}")
    return list(rows.values())


def _row(value: object, judge: Judge) -> Row:
    if isinstance(value, InputError):
        raise value
    if not isinstance(value, dict):
        raise ValueError('expected an object: {"prompt": text, ...}')
    _text(value, "prompt")
    if value.get("kind") is not None:
        _text(value, "kind")
    judge.check(value)
    return value


def _text(row: Row, column: str) -> str:
    """The text in a column; ValueError where there is none."""
    if column not in row:
        raise ValueError(f"{column}: not there, expected a text")
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{column}: found {reprlib.repr(text)}, expected a text")
    return text_of(text, column)
