"""Judges: what each accepts, what none does, and which files of questions are refused."""

import json

import pytest

from minibule.errors import InputError
from minibule.evaluate.judge import JUDGES, judged, read_rows

REGEX, CONTAINS, EXACT = JUDGES["regex"], JUDGES["contains"], JUDGES["exact"]


@pytest.mark.parametrize(
    ("judge", "wanted", "accepted", "rejected"),
    [
        (REGEX, "white|pale", ["White.", "It is PALE"], ["It is bewhite", "black"]),
        (REGEX, r"red\b", ["red", "a red one"], ["reduced", "bored"]),
        (CONTAINS, "Oslo", ["It is oslo!"], ["It is Os lo"]),
        (EXACT, "7", ["7", " 7.\n"], ["17", "7 or 8", "seven"]),
        (EXACT, "Seven.", ["seven", "SEVEN."], ["7"]),
    ],
)
def test_what_a_judge_accepts(judge, wanted, accepted, rejected):
    row = {"prompt": "Well?", "accept": wanted, "answer": wanted}
    assert [judged(judge, answer, row) for answer in accepted] == [1.0] * len(accepted)
    assert [judged(judge, answer, row) for answer in rejected] == [0.0] * len(rejected)


@pytest.mark.parametrize(
    "answer", ["", " \n", ":", " : ", "Thought process:", "say WHITE ", "Say white"]
)
def test_what_is_no_answer_is_rejected_by_every_judge(answer):
    row = {"prompt": "Say white", "accept": "white|.", "answer": answer}
    assert len(JUDGES) >= 3
    for judge in JUDGES.values():
        assert judged(judge, answer, row) == 0.0
    assert judged(REGEX, "Say white!", row) == 1.0


def question(**changes):
    return {"prompt": "What color is milk?", "accept": "white", "answer": "white"} | changes


@pytest.mark.parametrize(
    ("judge", "row", "says"),
    [
        ("regex", question(accept="wh(ite"), "accept: not a regular expression"),
        ("regex", question(accept="a{99999999999}"), "accept: not a regular expression"),
        ("regex", question(accept="white|"), "accept: found a pattern that every answer has"),
        ("regex", question(accept=["white"]), r"accept: found \['white'\], expected a text"),
        ("regex", {"prompt": "hi"}, "accept: not there"),
        ("contains", {"prompt": "hi"}, "answer: not there"),
        ("exact", question(answer=" "), "answer: found ' ', expected a text"),
        ("regex", question(prompt=""), "prompt: found '', expected a text"),
        ("regex", {"accept": "x"}, "prompt: not there"),
        ("regex", question(kind=3), "kind: found 3, expected a text"),
        ("regex", question(prompt="\ud800"), ".*surrogates not allowed"),
        ("regex", ["hi"], "expected an object"),
    ],
)
def test_rows_that_are_no_question(judge, row, says, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(f"{json.dumps(question(prompt='good'))}\n\n{json.dumps(row)}\n")
    with pytest.raises(InputError, match=f"line 3: {says}"):
        read_rows(path, JUDGES[judge])


def test_every_bad_line_is_named(tmp_path):
    path = tmp_path / "questions.jsonl"
    good = json.dumps(question()).encode()
    path.write_bytes(b'{"prompt"\n\xff\n' + good + b"\n" + good + b"\n")
    with pytest.raises(InputError) as error:
        read_rows(path, REGEX)
    lines = str(error.value).splitlines()
    assert len(lines) == 4 and str(path) in lines[0]
    for line, says in zip(
        lines[1:], ("1: not valid JSON", "2: not UTF-8", "4: found a prompt that"), strict=True
    ):
        assert f"line {says}" in line


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for path in (tmp_path / "empty.jsonl", tmp_path, tmp_path / "nothing", tmp_path / "a\0b"):
        with pytest.raises(InputError):
            read_rows(path, REGEX)


def test_other_columns_stay(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\ufeff" + json.dumps(question(more=[1])), encoding="utf-8")
    assert read_rows(path, REGEX) == [question(more=[1])]
