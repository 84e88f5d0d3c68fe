"""Which answers of a record are used and where they end, what is held out, and the order."""

import dataclasses

import numpy as np
import pytest

from minibule.core.forest import Example
from minibule.files import embedded_folder
from minibule.models.chat_files import load_chat
from minibule.records.records import Record, read_records
from minibule.text.examples import counts_per_row, record_order, split_by_prompt, tokenize

BOTH = Record("hi", ("No.", "hi"), (2, 1), 8, ("Hello!", "Good day!", "Hi!"), (3, 1, 1))
REJECTED = Record("red", ("Who cares?",), (4,), 4)
ACCEPTED = Record("2 + 2", (), (), 3, ("4",), (3,))
RECORDS = [BOTH, REJECTED, ACCEPTED]


@pytest.fixture(scope="module")
def chat():
    return load_chat(embedded_folder())


def texts(chat, example):
    return [chat.decode(answer) for answer in example.answers]


@pytest.mark.parametrize(
    ("uses", "used", "left_out"),
    [
        ("rejected", {1: (2, 0), 2: (1, 0)}, ""),
        ("accepted", {1: (0, 3), 3: (0, 1)}, "1 records left out: without an accepted answer"),
        ("any", {1: (2, 3), 2: (1, 0), 3: (0, 1)}, ""),
        ("both", {1: (2, 3)}, "2 records left out: without an accepted and a rejected answer"),
    ],
)
def test_which_answers_are_used(chat, uses, used, left_out, capsys):
    examples = tokenize(RECORDS, chat, 100, uses=uses)
    assert capsys.readouterr().out.strip() == left_out
    assert [example.number for example in examples] == list(used)
    for example in examples:
        record = RECORDS[example.number - 1]
        rejected, accepted = used[example.number]
        assert texts(chat, example) == [
            *record.rejected[:rejected],
            *record.accepted[:accepted],
        ]
        counts = (*record.counts[:rejected], *record.accepted_counts[:accepted])
        assert example.counts == counts and example.total_rounds == record.total_rounds
        rewards = (0.0,) * rejected + (1.0,) * accepted
        assert example.rewards == (rewards if accepted else ())
        assert example.rejections == (*record.counts[:rejected], *[0] * accepted)


def test_a_cap_is_on_rejected_answers_alone(chat):
    (example,) = tokenize([BOTH], chat, 100, max_rejected=1, uses="any")
    assert texts(chat, example) == ["No.", "Hello!", "Good day!", "Hi!"]
    assert example.counts == (2, 3, 1, 1) and example.rewards == (0.0, 1.0, 1.0, 1.0)


def test_the_end_of_a_turn_follows_answers_that_ended(chat):
    (plain,) = tokenize([BOTH], chat, 100, uses="both")
    (ended,) = tokenize([BOTH], chat, 100, uses="both", end_token=True)
    for answer, with_end in zip(plain.answers, ended.answers, strict=True):
        np.testing.assert_array_equal(with_end, [*answer, chat.end_of_turn])
    some = dataclasses.replace(
        BOTH, rejected_ended=(False, True), accepted_ended=(True, False, True)
    )
    (mixed,) = tokenize([some], chat, 100, uses="both", end_token=True)
    last = [int(answer[-1]) == chat.end_of_turn for answer in mixed.answers]
    assert last == [False, True, True, False, True]


def test_an_answer_that_is_cut_has_no_end(chat):
    """As many tokens as there is room for: one less leaves room for the end."""
    (whole,) = tokenize([REJECTED], chat, 100)
    length, tokens = len(whole.answers[0]), len(whole.prompt) + len(whole.answers[0])
    assert length > 2
    for limit, expected in (
        (tokens - 1, whole.answers[0][:-1]),
        (tokens, whole.answers[0]),
        (tokens + 1, [*whole.answers[0], chat.end_of_turn]),
    ):
        (example,) = tokenize([REJECTED], chat, limit, end_token=True)
        np.testing.assert_array_equal(example.answers[0], expected)


def test_split_by_prompt():
    records = read_records(embedded_folder() / "records.jsonl")[:12]
    doubled = [*records, *records]
    train, held = split_by_prompt(doubled, 0.25, seed=0)
    assert len(held) == 6 and len(train) == 18
    assert not {str(r.prompt) for r in train} & {str(r.prompt) for r in held}
    assert split_by_prompt(doubled, 0.25, seed=0) == (train, held)
    assert split_by_prompt(doubled, 0.25, seed=1) != (train, held)
    assert split_by_prompt(doubled, 0.0, seed=0) == (doubled, [])
    assert split_by_prompt(records[:1], 0.9, seed=0) == (records[:1], [])


def test_a_prompt_in_either_of_its_forms_is_on_one_side():
    """Text, or the one message that it stands for."""
    texts = [Record(f"say {i}", ("no",), (1,), 1) for i in range(8)]
    messages = [Record([{"role": "user", "content": r.prompt}], ("no",), (1,), 1) for r in texts]
    train, held = split_by_prompt([*texts, *messages], 0.25, seed=0)
    assert len(train) == 12 and len(held) == 4
    assert held[2:] == [messages[texts.index(record)] for record in held[:2]]


def example(counts, lengths):
    answers = tuple(np.zeros(n, int) for n in lengths)
    return Example(np.zeros(2, int), answers, counts, sum(counts))


def test_orders():
    # T per row: 1; then (3+2)*2, 3 -> 13/3; then 2.
    examples = [example((1,), (4,)), example((3, 2), (2, 1)), example((2,), (1,))]
    assert [counts_per_row(e) for e in examples] == [1, 13 / 3, 2]
    judged = examples[1]._replace(rewards=(0.0, 1.0))  # of it only 3, 3 and 0 were rejected
    assert counts_per_row(judged) == (3 * 2 + 3) / 3

    def places(order, seed=0):
        at = record_order(order, seed, examples)
        return [at(place) for place in range(6)]

    assert places("file") == [0, 1, 2, 0, 1, 2]
    assert places("density") == [1, 2, 0, 1, 2, 0]
    shuffled = places("shuffle")
    assert sorted(shuffled[:3]) == sorted(shuffled[3:]) == [0, 1, 2]
    assert any(places("shuffle", seed) != shuffled for seed in range(1, 5))
