"""Judges of answers: programs that say how good an answer to a question is.

A file of questions has one JSON object a line: the prompt, what the judge needs to know, and, if
wanted, the kind of question, by which the figures are told apart:

    {"prompt": "What color is milk?", "accept": "white", "kind": "color"}

The questions of weights/questions are such files, for models that know little: train.jsonl and
test.jsonl have other questions of the same kinds, other.jsonl has kinds that train.jsonl has not.
Beside them stands prose.txt, a text about none of this: how much less a trained model expects it
shows what was damaged.
"""

import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minibule.errors import InputError, listed
from minibule.files import reading
from minibule.records.readers import json_lines

Row = Mapping[str, Any]

# What is no answer to anything, whatever a judge would make of it; letters in lower case.
NO_ANSWER = ("", ":", "thought process:")


class Judge(NamedTuple):
    """A judge of answers.

    reward   (answer, prompt, row) -> from 0, the worst, to 1, the best; None: it cannot tell
    check    what the judge needs of a row; ValueError says what is wrong with it
    """

    reward: Callable[[str, str, Row], float | None]
    check: Callable[[Row], None]


def _regex(answer: str, _prompt: str, row: Row) -> float:
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


def _contains(answer: str, _prompt: str, row: Row) -> float:
    """Whether `answer` stands anywhere in it, in letters of either case."""
    return float(row["answer"].casefold() in answer.casefold())


def _exact(answer: str, _prompt: str, row: Row) -> float:
    """Whether it is `answer`, but for case, the space around it and a full stop at its end."""
    return float(_bare(answer) == _bare(row["answer"]))


def _bare(text: str) -> str:
    return text.strip().removesuffix(".").casefold()


def _check_answer(row: Row) -> None:
    _text(row, "answer")


JUDGES = {
    "regex": Judge(_regex, _check_regex),
    "contains": Judge(_contains, _check_answer),
    "exact": Judge(_exact, _check_answer),
}


def judged(judge: Judge, answer: str, row: Row) -> float | None:
    """The judge's reward, but 0 for what is no answer: nothing, or the prompt again."""
    said = answer.strip().casefold()
    if said in (*NO_ANSWER, row["prompt"].strip().casefold()):
        return 0.0
    return judge.reward(answer, row["prompt"], row)


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
    text.encode()  # half a character is no text: a UnicodeEncodeError is a ValueError
    return text
