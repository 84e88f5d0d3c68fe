"""Numbers from outside: what is one, and how it is said what was expected."""

import doctest

import pytest

from minibule import wording
from minibule.wording import Number, did_you_mean


def test_the_examples_of_the_docstrings():
    assert doctest.testmod(wording).attempted > 1
    assert doctest.testmod(wording).failed == 0


@pytest.mark.parametrize(
    ("number", "good", "bad"),
    [
        (Number(int, 1, 9), [1, 9], [0, 10, 2.0, True, "3", None, [], float("nan")]),
        (Number(int), [0, 2**63 - 1], [-1, 2**63, 10**400]),
        (Number(float, 0), [0, 0.5, 7], [-1e-9, float("nan"), float("inf"), False, "1"]),
        (Number(float, 0, 1, above=True), [1e-300, 1, 1.0], [0, 0.0, 1.1]),
    ],
)
def test_what_is_a_number(number, good, bad):
    for value in good:
        assert number.check(value) is value
    for value in bad:
        with pytest.raises(ValueError, match="expected"):
            number.check(value)


def test_the_words():
    assert str(Number(int, 1, 2**31 - 1)) == "a whole number from 1 to 2,147,483,647"
    assert str(Number(float, 1e-12, 0.1)) == "a number from 1e-12 to 0.1"
    assert str(Number(float, 0, above=True)) == "a number above 0"


def test_what_may_be_meant():
    assert did_you_mean("trian", ["train", "export"]) == "; did you mean train?"
    assert did_you_mean("zzz", ["train", "export"]) == ""
