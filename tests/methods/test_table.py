"""The table of losses: what all of them have in common, and the defaults that were published."""

import dataclasses
import re

import numpy as np
import pytest
from helpers import GRADIENT_TOLERANCE, ROOT, gradient_error, random_answers

from minibule.core.loss import AnswerLoss, RowLoss
from minibule.methods.table import LOSSES

OF_ANSWERS = {name: loss for name, loss in LOSSES.items() if isinstance(loss, AnswerLoss)}

# The numbers of each loss, as published; those that no paper names are left out.
PUBLISHED = {
    "npo": {"beta": 0.1},
    "simnpo": {"beta": 4.5, "gamma": 0},
    "sft": {},
    "reinforce": {},
    "w-reinforce": {"positive": 0.1},
    "kto": {"beta": 0.1, "desirable": 1, "undesirable": 1},
    "dpo": {"beta": 0.1},
    "slic": {"delta": 1, "sft": 0.1},
    "rso": {"beta": 0.05},
    "rso-hinge": {"beta": 0.05},
    "redi": {"alpha": 0.8},
    "grpo": {"per": "answer", "scaled": True},
    "dr-grpo": {"per": "budget", "scaled": False, "budget": 512},
    "dapo": {"per": "token", "scaled": True},
}


def test_every_loss_has_one_of_two_shapes():
    assert {"literal", "reference", "rate", "ratio", "nsr", "unlikelihood"} <= set(LOSSES)
    for loss in LOSSES.values():
        assert isinstance(loss, RowLoss) != isinstance(loss, AnswerLoss)


def test_the_defaults_are_the_published_ones():
    assert PUBLISHED.keys() == OF_ANSWERS.keys() - {"complement"}  # which is our own
    for name, numbers in PUBLISHED.items():
        found = dataclasses.asdict(OF_ANSWERS[name])
        assert {key: found[key] for key in numbers} == numbers, name
        assert found["kl"] == 0, name  # none of them is held to its base


def test_which_need_the_base():
    """Every loss of d = log p - log p_ref, and no other."""
    needing = {name for name, loss in OF_ANSWERS.items() if loss.needs_reference}
    assert needing == {"complement", "npo", "kto", "dpo", "rso", "rso-hinge"}


def test_the_end_of_a_turn_is_trained_with_accepted_answers_only():
    for name, loss in LOSSES.items():
        assert loss.end_token == (loss.uses != "rejected"), name


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_the_gradient_is_that_of_the_loss(name):
    loss = OF_ANSWERS[name]
    answers, logp = random_answers(loss.uses)
    _, dlogp = loss.answers(answers, logp, 2.5)
    assert np.abs(dlogp).max() > 0
    error = gradient_error(lambda: loss.answers(answers, logp, 2.5)[0], logp, dlogp)
    assert error < GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_an_answer_given_twice_counts_twice(name):
    """An answer of count 2 is the answer two times: the loss, and both slopes together."""
    loss = OF_ANSWERS[name]
    answers, logp = random_answers(loss.uses)
    assert set(answers.times) == {1, 2, 3}
    each = np.repeat(np.arange(len(logp)), answers.times.astype(int))
    apart = type(answers)(*(column[each] for column in answers))
    apart = apart._replace(times=np.ones(len(each)))
    value, dlogp = loss.answers(answers, logp, 2.5)
    other, slopes = loss.answers(apart, logp[each], 2.5)
    assert other == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(np.bincount(each, slopes), dlogp, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", OF_ANSWERS)
def test_accepted_answers_are_pulled_up_and_rejected_ones_pushed_down(name):
    loss = OF_ANSWERS[name]
    answers, logp = random_answers(loss.uses)
    _, dlogp = loss.answers(answers, logp, 0.0)
    assert (dlogp[answers.accepted] < 0).all() and (dlogp[~answers.accepted] >= 0).all()


def test_the_page_lists_every_loss_with_what_it_learns_from_and_its_numbers():
    page = (ROOT / "minibule" / "methods" / "METHODS.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if re.match(r"\| `\w", line)]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    listed = {}
    for names, uses, _, defaults, _ in rows:
        for name in re.findall(r"`([\w-]+)`", names):
            listed[name] = uses, defaults
    assert set(listed) == set(LOSSES)
    for name, loss in LOSSES.items():
        uses, defaults = listed[name]
        assert uses == loss.uses, name
        shown = {
            f"{number} {value:g}".replace(" 0.", " .")
            for number, value in vars(loss).items()
            if isinstance(value, float) and number not in ("desirable", "undesirable")
        }
        shown -= {"kl 0"}
        assert all(number in defaults for number in shown), (name, shown, defaults)
