"""What is held out, and the order of the rest."""

import numpy as np

from minibule.core.forest import Example
from minibule.files import embedded_folder
from minibule.records.records import read_records
from minibule.text.examples import counts_per_row, record_order, split_by_prompt


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


def example(counts, lengths):
    answers = tuple(np.zeros(n, int) for n in lengths)
    return Example(np.zeros(2, int), answers, counts, sum(counts))


def test_orders():
    # T per row: 1; then (3+2)*2, 3 -> 13/3; then 2.
    examples = [example((1,), (4,)), example((3, 2), (2, 1)), example((2,), (1,))]
    assert [counts_per_row(e) for e in examples] == [1, 13 / 3, 2]

    def places(order, seed=0):
        at = record_order(order, seed, examples)
        return [at(place) for place in range(6)]

    assert places("file") == [0, 1, 2, 0, 1, 2]
    assert places("density") == [1, 2, 0, 1, 2, 0]
    shuffled = places("shuffle")
    assert sorted(shuffled[:3]) == sorted(shuffled[3:]) == [0, 1, 2]
    assert any(places("shuffle", seed) != shuffled for seed in range(1, 5))
