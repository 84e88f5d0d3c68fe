"""The questions of weights/questions: enough of them, each once, and none that answers itself."""

import re
from collections import Counter

import pytest
from helpers import ROOT

from minibule.evaluate.judge import JUDGES, NO_ANSWER, read_rows

FOLDER = ROOT / "weights" / "questions"
TRAIN, TEST, OTHER = (
    read_rows(FOLDER / f"{name}.jsonl", JUDGES["regex"]) for name in ("train", "test", "other")
)
ALL = [*TRAIN, *TEST, *OTHER]


def kinds(rows):
    return Counter(row["kind"] for row in rows)


def test_there_are_enough_and_no_kind_is_rare():
    assert len(ALL) >= 200 and len(TRAIN) >= 110 and len(TEST) >= 45 and len(OTHER) >= 40
    for rows, least in ((TRAIN, 8), (TEST, 4), (OTHER, 8)):
        assert min(kinds(rows).values()) >= least
    assert len(kinds(ALL)) >= 12


def test_test_has_the_kinds_of_train_and_other_has_none_of_them():
    assert set(kinds(TEST)) == set(kinds(TRAIN))
    assert len(kinds(OTHER)) >= 4 and not set(kinds(OTHER)) & set(kinds(TRAIN))


def test_no_prompt_stands_there_twice():
    assert len({row["prompt"].casefold() for row in ALL}) == len(ALL)


def accepted(rows):
    """Every alternative of a pattern, with the kind of the question."""
    return {(row["kind"], word) for row in rows for word in row["accept"].split("|")}


def test_what_test_accepts_train_does_not_in_that_kind():
    """An answer learnt by heart is of no use."""
    assert len(accepted(TRAIN)) > len(TRAIN)
    assert not accepted(TRAIN) & accepted(TEST)


@pytest.mark.parametrize("row", ALL, ids=lambda row: row["prompt"])
def test_a_question_does_not_hold_its_answer(row):
    """Else an echo of it, with some words around it, would be accepted."""
    assert set(row) == {"prompt", "accept", "kind"}
    judge = JUDGES["regex"]
    texts = [f"{row['prompt']} Yes.", *NO_ANSWER, "The answer to this question is not known."]
    assert judge.rewards(texts, [row] * len(texts)) == [0.0] * len(texts)
    literal = re.sub(r"\\b|\([^|]*\)\?|.\?", "", row["accept"].split("|")[0])
    if re.fullmatch(r"[\w '-]+", literal):  # and can be answered at all
        assert judge.rewards([f"It is {literal}."], [row]) == [1.0]


def test_the_prose_is_about_five_hundred_words():
    assert 450 <= len((FOLDER / "prose.txt").read_text(encoding="utf-8").split()) <= 550
