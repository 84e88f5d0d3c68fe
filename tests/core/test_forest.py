"""Packing: every row once, with the right counts, in front of the right token."""

import sys
from collections import Counter

import numpy as np
import pytest
from helpers import random_examples

from minibule.core.counts import Example, row_count
from minibule.core.forest import MAX_SEGMENT, pack


def seen_by(batch, token):
    """The stream positions that a token attends to, itself last."""
    (segment,) = (s for s in batch.segments if s.tokens.start <= token < s.tokens.stop)
    return [key for key in segment.keys if key <= token]


def contexts(batch):
    """For each row: the tokens that stand before what it predicts, prompt included."""
    return [tuple(batch.ids[seen_by(batch, token)].tolist()) for token in batch.rows_at]


def naive_rows(examples, counts):
    """(context, v) of every row of every answer alone, by the definition."""
    rows = Counter()
    for example in examples:
        for answer in example.answers:
            for t in range(len(answer)):
                v = Counter()
                for other, c in zip(example.answers, example.counts, strict=True):
                    alike = np.array_equal(other[:t], answer[:t])
                    if len(other) > t and (counts == "position" or alike):
                        v[int(other[t])] += c
                context = (*example.prompt.tolist(), *answer[:t].tolist())
                rows[context, frozenset(v.items())] += 1
    return rows


@pytest.mark.parametrize("counts", ["position", "prefix"])
@pytest.mark.parametrize("pass_tokens", [10**6, 6, 1])
@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_of_the_definition(counts, pass_tokens, seed):
    examples = random_examples(seed)
    found = Counter()
    for batch in pack(examples, counts, pass_tokens):
        rows = batch.rows
        for row, context in enumerate(contexts(batch)):
            entries = rows.entry_row == row
            v = zip(rows.entry_id[entries], rows.entry_count[entries], strict=True)
            v = frozenset((int(i), int(c)) for i, c in v)
            assert rows.total[row] == sum(c for _, c in v)
            found[context, v] += int(rows.weight[row])
    assert found == naive_rows(examples, counts)
    assert sum(found.values()) == row_count(examples)


@pytest.mark.parametrize("seed", range(5))
def test_positions_parents_and_completed_answers(seed):
    examples = random_examples(seed)
    (batch,) = pack(examples, "prefix", 10**6)
    rows = batch.rows
    assert batch.positions.tolist() == [len(seen_by(batch, t)) - 1 for t in range(len(batch.ids))]
    assert len(set(batch.rows_at.tolist())) == len(batch.rows_at)  # a token is one row at most
    where = contexts(batch)
    for row, parent in enumerate(rows.parent_entry):
        if rows.depth[row] == 0:
            assert parent == -1
        else:
            assert where[row] == (*where[rows.entry_row[parent]], rows.entry_id[parent])
    answers = [(e.prompt, a) for e in examples for a in e.answers]
    for entry, (prompt, answer) in zip(batch.answer_entry, answers, strict=True):
        said = (*where[rows.entry_row[entry]], rows.entry_id[entry])
        assert said == (*prompt.tolist(), *answer.tolist())


def test_shared_tokens_are_computed_once():
    prompt = np.array([1, 2, 3])
    answers = tuple(np.array(a) for a in ([4, 5, 6], [4, 5, 7, 8], [9], [4, 5, 6]))
    (batch,) = pack([Example(prompt, answers, (1, 1, 1, 2), 5)], "prefix", 10**6)
    # The last token of an answer is only predicted; 6 ends two answers, 9 ends one.
    assert batch.ids.tolist() == [1, 2, 3, 4, 5, 7]
    assert batch.rows.weight.tolist() == [4, 3, 3, 1]
    assert batch.rows.total.tolist() == [5, 4, 4, 1]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("pass_tokens", [1, 5, 8, 20, 100])
@pytest.mark.parametrize("seed", range(5))
def test_a_pass_is_larger_only_for_a_single_answer(seed, pass_tokens, threads):
    examples = random_examples(seed, records=20)
    batches = list(pack(examples, "position", pass_tokens, threads))
    assert batches
    for batch in batches:
        distinct = {(i, examples[i].answers[k].tobytes()) for i, k in batch.answer.tolist()}
        assert len(batch.ids) <= pass_tokens or len(distinct) == 1  # it may be given twice


def test_as_many_passes_as_it_takes():
    """Of 4 x 4 answers no two fit into a pass beside their prompts."""
    sizes = [len(b.ids) for b in pack([tree(300, 4, 300)] * 4, "prefix", 640, threads=2)]
    assert sizes == [599] * 16


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_thread_gets_as_much_to_do(threads):
    examples = random_examples(3, records=400)
    sizes = [len(batch.ids) for batch in pack(examples, "position", 512, threads)]
    assert len(sizes) % threads == 0
    assert max(sizes) - min(sizes) < 64


def test_the_largest_pass_comes_first():
    rng = np.random.default_rng(0)
    lengths = rng.integers(50, 300, 12)
    examples = [Example(np.array([1]), (np.arange(n),), (1,), 1) for n in lengths]
    sizes = [len(batch.ids) for batch in pack(examples, "position", 200, threads=2)]
    assert len(sizes) > 4
    assert sizes == sorted(sizes, reverse=True)


def tree(prompt, answers, length):
    """An example whose answers share nothing."""
    tokens = np.arange(answers * length).reshape(answers, length)
    return Example(np.arange(prompt), tuple(tokens), (1,) * answers, answers)


def test_a_record_too_large_for_a_pass_is_divided_evenly():
    sizes = [len(b.ids) for b in pack([tree(384, 8, 65)], "prefix", 768, threads=2)]
    assert sizes == [384 + 4 * 64] * 2


def test_a_record_is_divided_only_where_that_is_faster():
    whole = tree(60, 3, 201)
    sizes = [len(b.ids) for b in pack([whole] * 4, "prefix", 768, threads=2)]
    assert sizes == [660] * 4  # two for each thread
    sizes = [len(b.ids) for b in pack([whole] * 3, "prefix", 768, threads=2)]
    assert sum(sizes) > 3 * 660
    assert max(sizes) <= 768


def test_a_record_divided_between_passes_keeps_its_counts():
    """The answers of other passes still count in v."""
    answers = tuple(np.array([7, k, k]) for k in range(4))
    example = Example(np.array([1, 2]), answers, (1, 2, 3, 4), 10)
    batches = list(pack([example], "prefix", 2))
    assert len(batches) == 4
    for batch in batches:
        assert batch.rows.total.tolist() == [10, 10, batch.rows.entry_count[-1]]


def test_long_segments_are_cut_into_a_chain():
    prompt = np.arange(2 * MAX_SEGMENT + 1)
    (batch,) = pack([Example(prompt, (np.array([1]),), (1,), 1)], "position", 10**6)
    assert [s.tokens for s in batch.segments] == [
        slice(0, MAX_SEGMENT),
        slice(MAX_SEGMENT, 2 * MAX_SEGMENT),
        slice(2 * MAX_SEGMENT, 2 * MAX_SEGMENT + 1),
    ]
    assert [len(s.keys) for s in batch.segments] == [MAX_SEGMENT, 2 * MAX_SEGMENT, len(prompt)]


def test_answers_may_part_at_more_places_than_python_can_recurse():
    places = sys.getrecursionlimit() + 100
    answers = tuple(np.array([1] * k + [2, 3]) for k in range(places))
    (batch,) = pack([Example(np.array([5]), answers, (1,) * places, places)], "prefix", 10**6)
    expected = [(5, *[1] * k) for k in range(places)] + [(5, *[1] * k, 2) for k in range(places)]
    assert sorted(contexts(batch)) == sorted(expected)


def test_equal_answers_are_computed_once_however_many():
    """A record's answers are all looked at for each of its trees: so equal ones make one tree."""
    prompt, a, b = np.array([1, 2]), np.arange(3, 13), np.arange(4, 14)
    answers = (a,) * 500 + (b,) + (a,) * 500
    example = Example(prompt, answers, (1,) * len(answers), len(answers))
    (batch,) = pack([example], "position", 40)
    assert len(batch.ids) == len(prompt) + 2 * 9 and batch.rows.weight[0] == len(answers)
    one, other = pack([example], "position", 12)
    assert sorted([*one.answer[:, 1], *other.answer[:, 1]]) == list(range(len(answers)))
