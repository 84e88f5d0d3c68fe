"""Judges: what each accepts, what none does, and which files of questions are refused."""

import json
from decimal import Decimal

import pytest

from minibule.errors import InputError
from minibule.evaluate.judge import JUDGES, graded, last_number, read_rows

REGEX, CONTAINS, EXACT = JUDGES["regex"], JUDGES["contains"], JUDGES["exact"]


NUMBER, JSON = JUDGES["number"], JUDGES["json"]


def judged(judge, answer, row):
    """The reward of a single answer."""
    (reward,) = judge.rewards([answer], [row])
    return reward


@pytest.mark.parametrize(
    ("judge", "wanted", "accepted", "rejected"),
    [
        (REGEX, "white|pale", ["White.", "It is PALE"], ["It is bewhite", "black"]),
        (REGEX, r"red\b", ["red", "a red one"], ["reduced", "bored"]),
        (CONTAINS, "Oslo", ["It is oslo!"], ["It is Os lo"]),
        (EXACT, "7", ["7", " 7.\n"], ["17", "7 or 8", "seven"]),
        (EXACT, "Seven.", ["seven", "SEVEN."], ["7"]),
        (NUMBER, 7, ["7", "3 + 4 = 7.", "$7.00", "+7", "**7**", "5 or 7"], ["17", "-7", "7 or 8"]),
        (NUMBER, "-1,234.5", ["-1234.5", "It is \u22121,234.50.", "-1.2345e3"], ["1,234.5"]),
        (NUMBER, 0.1, ["0.1", ".1", "1e-1"], ["0.10000000000000001", "0", "1"]),
        (NUMBER, 10**20, [f"{10**20:,}"], [f"{10**20 + 1}"]),
        (JSON, {"a": [1, None], "b": "x"}, ['{"b": "x", "a": [1.0, null]}'], ['{"a": [1, null]}']),
        (JSON, {"a": 1}, ['```json\n{"a": 1}\n```', '```\n{"a": 1}\n```'], ['{"a": true}']),
        (JSON, [1, 2], ["[1,2]"], ["[2,1]", "[1,2,3]", "[1,2] is it", "12", "[" * 10**5]),
        (JSON, True, ["true"], ["1", "True", "NaN"]),
        (JSON, None, ["null"], ["NaN", "0", "{}"]),
    ],
)
def test_what_a_judge_accepts(judge, wanted, accepted, rejected):
    row = {"prompt": "Well?", "accept": wanted, "answer": wanted}
    judge.check(row)
    assert [judged(judge, answer, row) for answer in accepted] == [1.0] * len(accepted)
    assert [judged(judge, answer, row) for answer in rejected] == [0.0] * len(rejected)


def test_json_with_all_its_keys():
    row = {"prompt": "Who?", "keys": ["name", "age"]}
    JSON.check(row)
    answers = ['{"age": 3, "name": "x", "more": 1}', '{"age": 3}', '["name", "age"]', "name age"]
    assert JSON.rewards(answers, [row] * 4) == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("12,345,678", "12345678"),
        ("(4)-2", "2"),
        ("3-5", "5"),
        ("3 - -5", "-5"),
        ("water is H2O", None),
        ("version 1.2.3", "1.2"),
        ("so...5", "5"),
        ("a.5", "5"),
        ("5.", "5"),
        ("2e", "2"),
        ("1e5", "1e5"),
        ("no number", None),
        ("\u0663", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("a", "b", "reward"),
    [
        (3, 3, 1),
        (2.5, 2, 1 - 0.25 - 0.125),
        (7, 8, 0.5 - 1 / 16),
        (0, 5, 0),
        (-1e9, 4, 0),
        (0.5, 0, 0.25),
    ],
)
def test_the_graded_reward(a, b, reward):
    assert graded(a, b) == pytest.approx(reward, abs=1e-6)
    row = {"prompt": "?", "answer": b, "graded": True}
    assert judged(NUMBER, f"It is {a:f}", row) == pytest.approx(reward, abs=1e-6)
    assert judged(NUMBER, "I do not know", row) == 0
    assert judged(NUMBER, f"It is {a:f}", row | {"graded": False}) == (a == b)


def test_a_whole_number_that_is_wrong_is_never_accepted_however_near():
    assert all(graded(b + 1, b) < 0.5 for b in (0, 1, 10, 1e6))


@pytest.mark.parametrize(
    "answer", ["", " \n", ":", " : ", "Thought process:", "say WHITE 4 ", "Say white 4"]
)
def test_what_is_no_answer_is_rejected_by_every_judge(answer):
    row = {"prompt": "Say white 4", "accept": "white|.", "answer": answer}
    assert set(JUDGES) == {"regex", "contains", "exact", "number", "json"}
    for name, judge in JUDGES.items():
        there = row | ({"answer": 4} if name == "number" else {})
        assert judged(judge, answer, there) == 0.0
        assert judge.rewards([answer, answer], [there, there]) == [0.0, 0.0]
    assert judged(REGEX, "Say white 4!", row) == 1.0
    assert judged(NUMBER, "Say white 4!", row | {"answer": 4}) == 1.0


def test_what_answers_say():
    assert NUMBER.key("It is 7.0") == NUMBER.key("7") != NUMBER.key("-7")
    assert JSON.key('{"a": 1, "b": 2}') == JSON.key('{"b": 2,\n"a": 1}') != JSON.key("{}")
    assert EXACT.key(" Yes.") == EXACT.key("yes") != EXACT.key("no")
    assert JSON.key("no JSON.") == "no json"


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
        ("regex", question(prompt="\ud800"), "prompt: found the lone surrogate .* character 1"),
        ("regex", ["hi"], "expected an object"),
        ("number", {"prompt": "hi"}, "answer: not there, expected a number"),
        ("number", question(answer="7 or 8"), "answer: found '7 or 8', expected a number"),
        ("number", question(answer=True), "answer: found True, expected a number"),
        ("number", question(answer=1e999), "answer: found inf, expected a number"),
        ("number", question(answer="1e999"), "answer: found '1e999', expected a number"),
        ("number", question(answer=[7]), r"answer: found \[7\], expected a number"),
        ("json", question(answer=[1e999]), "answer: found NaN, infinity"),
        ("number", question(answer=7, graded=1), "graded: found 1, expected true or false"),
        ("json", {"prompt": "hi"}, "expected answer, any value, or keys, a list of texts"),
        ("json", question(keys=["a"]), "expected answer, any value, or keys, .* and not both"),
        ("json", {"prompt": "hi", "keys": "a"}, "keys: found 'a', expected a list of texts"),
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
