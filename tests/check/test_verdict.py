"""Verdicts: what is right is, and of what is wrong it is said in which way and where."""

import numpy as np
import pytest

from minibule.check.case import Answer
from minibule.check.exercises import FUNCTIONS, case_of
from minibule.check.verdict import UNFILLED, judge

RIGHT = np.arange(1.0, 13).reshape(4, 3) ** 2
SQUARE = RIGHT[:3]
PART = np.where(RIGHT > 50, RIGHT, 1.0)
ANSWER = Answer(RIGHT, {"PART": PART, "REST": RIGHT - PART}, {"a known slip": RIGHT[::-1]})


def changed(index, value):
    x = RIGHT.copy()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (RIGHT * 0.5, "off by a factor 0.5 everywhere"),
        (RIGHT * 1.7, "off by a factor 1.7 = s everywhere"),
        (RIGHT / 1.7, "off by a factor 0.588235 = 1 / s everywhere"),
        (RIGHT / -1.7, "off by a factor -0.588235 = -1 / s everywhere"),
        (-RIGHT, "the sign is wrong everywhere"),
        (RIGHT * 0, "0 everywhere"),
        (RIGHT - 1, "1 too small everywhere"),
        (RIGHT + 1, "1 too large everywhere"),
        (RIGHT - PART, "the term PART is missing"),
        (RIGHT - 2 * PART, "the term PART has the wrong sign"),
        (RIGHT + PART, "the term PART is there 2 times"),
        (RIGHT[::-1], "a known slip"),
        (RIGHT.T, "shape (3, 4), expected (4, 3): transposed; its transpose would be right"),
        (RIGHT.ravel(), "shape (12,), expected (4, 3); the numbers are right (keepdims=True"),
        (RIGHT.sum(), "shape (), expected (4, 3)"),
        (changed((1, 2), 40), "wrong in row 1 of 4, first at [1, 2]: found 40, expected 36"),
        (changed(np.s_[2:], 0), "wrong in rows 2, 3 of 4, first at [2, 0]: "),
        (changed(np.s_[:2], 2 * RIGHT[:2]), "first at [0, 0]: off by a factor 2; found 2, exp"),
        (changed((0, 1), np.nan), "nan at [0, 1], expected 4"),
        (changed((3, 0), -np.inf), "-inf at [3, 0], expected 100"),
        (None, "found nothing (None), expected an array (4, 3) of numbers"),
        ("x", "found a str, expected"),
        ([[1, 2], [3]], "found a list, expected"),
        (RIGHT + 0j, "found an array (4, 3) of complex128, expected"),
    ],
)
def test_what_is_wrong_is_said(found, words):
    verdict = judge(found, ANSWER, {"s": 1.7})
    assert not verdict.right and words in verdict.words


def test_what_is_right_is_exact_or_within():
    assert judge(RIGHT.copy(), ANSWER) == (True, "exact")
    assert judge(RIGHT.tolist(), ANSWER) == (True, "exact")
    assert judge(RIGHT + 1.44e-5, ANSWER) == (True, "within 1e-07")
    assert not judge(RIGHT + 1.44e-3, ANSWER).right
    assert judge(..., ANSWER) == UNFILLED
    assert judge(2.0, Answer(np.float64(2))).right
    assert judge(3.0, Answer(np.float64(2))).words == "3, expected 2"


def test_a_square_matrix_can_be_transposed_too():
    assert "transposed" in judge(SQUARE.T, Answer(SQUARE)).words


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_answer_is_told_from_its_damaged_copies(name):
    case = case_of(name)
    for value, answer in case.answers.items():
        right = np.asarray(answer.value)
        assert judge(right, answer, case.factors) == (True, "exact"), value
        assert np.isfinite(right).all() and right.any()
        one = right.copy()
        one[tuple(i // 2 for i in right.shape)] += 1e-3 * np.abs(right).max()
        for damaged in (-right, 1.001 * right, right + 0.01, one, right * np.nan):
            assert not judge(damaged, answer, case.factors).right, value
        for slip, wrong in answer.slips.items():
            assert judge(wrong, answer).words == slip, "a slip that is right, or never named"
        if answer.terms:
            error = np.abs(sum(answer.terms.values()) - right).max()
            assert error < 1e-9 * np.abs(right).max(), value
        for term, part in answer.terms.items():
            assert term in judge(right - part, answer).words
