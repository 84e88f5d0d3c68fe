"""The forest: records packed into one stream of tokens, prompts shared by their answers.

A record is a tree. Its prompt is the root; the answers hang below it, and answers that begin alike
share their beginning. Every node is a segment of the stream that attends to its ancestors and,
causally, to itself, so a prompt is computed once however many answers it has, and nothing is
padded:

    prompt: what is 3 + 4 ?          segments    [what is 3 + 4 ? it is] <- [9]
    answers: it is 9 .                                                   <- [6 ,]
             it is 6 , ok                        (the last token of an answer is only predicted)

What all answers begin with is in the prompt's segment.

A row is a position whose next token is part of some answer. Rows that several answers share are
computed once and carry how many they stand for as their weight.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minibule.core.counts import Counts, CountTable, Example, RowCounts, rejected_there
from minibule.core.ops import Segment
from minibule.core.passes import deal
from minibule.machine.matrix import Array
from minibule.machine.ranks import ALONE, Ranks

# Longer segments are cut into a chain of this many tokens, each the child of the one before:
# attention then skips most of the masked half of a causal block and needs less memory at once.
MAX_SEGMENT = 64


class Batch(NamedTuple):
    """One packed stream for one forward and backward pass.

    ids, positions (T,) int    tokens, and the place of each in its own sequence
    segments                   what each run of tokens attends to
    rows_at (R,) int           where in the stream each row lies
    rows                       what each row's logits are trained on
    row_answer (R, 2) int      the example's number, and the first answer to pass through each row
    answer (A, 2) int          the example's number and the answer's, for each of A answers ...
    answer_entry (A,) int      ... and the entry that completes it
    """

    ids: Array
    positions: Array
    segments: list[Segment]
    rows_at: Array
    rows: RowCounts
    row_answer: Array
    answer: Array
    answer_entry: Array


def pack(
    examples: Sequence[Example],
    counts: Counts,
    pass_tokens: int,
    threads: int = 1,
    ranks: Ranks = ALONE,
) -> Iterator[Batch]:
    """Batches of at most `pass_tokens` tokens that together hold every row of the examples once.

    Only a prompt with a single answer that is longer makes a larger one. Divided so that the
    threads, each with a batch of its own, are done soonest; the largest comes first. Of several
    ranks each gets the batches that it is to compute: one rank may get none.
    """
    for trees in deal(examples, pass_tokens, threads, ranks.rank, ranks.size):
        forest = _Forest(counts)
        for example, members in trees:
            forest.add(examples[example], example, members)
        yield forest.batch()


class _Branch(NamedTuple):
    """A segment that is to come.

    tokens         those it begins with
    alike          the answers that have begun just like this ...
    depth          ... by so many tokens
    ancestors (S,) places in the stream that it attends to
    parent_entry   the entry that leads to it; -1: none
    """

    tokens: list[int]
    alike: list[int]
    depth: int
    ancestors: Array
    parent_entry: int


class _Forest:
    """A batch in the making: plain lists that grow tree by tree."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.rows_at: list[int] = []
        self.table = CountTable()
        self.row_answer: list[tuple[int, int]] = []
        self.answer: list[tuple[int, int]] = []
        self.answer_entry: list[int] = []

    def add(self, example: Example, number: int, members: Collection[int]) -> None:
        """Append the tree of the answers `members`. The record's other answers are only counted."""
        answers = [answer.tolist() for answer in example.answers]
        members, rejections = frozenset(members), example.rejections
        completed: dict[int, int] = {}  # answer -> the entry that completes it
        root = np.empty(0, np.int64)
        pending = [_Branch(example.prompt.tolist(), list(range(len(answers))), 0, root, -1)]
        while pending:
            tokens, alike, depth, ancestors, parent_entry = pending.pop()
            first, position = len(self.ids), len(ancestors)
            while True:  # until the answers part: one row, and one token more
                v = rejected_there(answers, rejections, depth, alike, self.counts)
                weight = len(members.intersection(alike))
                entries = self.table.add(
                    v, weight, len(alike), depth, example.total_rounds, parent_entry
                )
                self.rows_at.append(first + len(tokens) - 1)
                self.row_answer.append((number, alike[0]))

                followers: dict[int, list[int]] = {}  # token -> the answers that go on after it
                for k in alike:
                    token = answers[k][depth]
                    if len(answers[k]) > depth + 1:
                        followers.setdefault(token, []).append(k)
                    else:
                        completed[k] = entries[token]
                depth += 1
                followers = {
                    token: longer
                    for token, longer in followers.items()
                    if not members.isdisjoint(longer)
                }
                if len(followers) != 1:
                    break
                ((token, alike),) = followers.items()
                tokens.append(token)
                parent_entry = entries[token]
            keys = self.segment(tokens, position, ancestors)
            pending += [
                _Branch([token], longer, depth, keys, entries[token])
                for token, longer in reversed(followers.items())
            ]
        self.answer += [(number, k) for k in sorted(members)]
        self.answer_entry += [completed[k] for k in sorted(members)]

    def segment(self, tokens: list[int], position: int, ancestors: Array) -> Array:
        """Append tokens below `ancestors` (S,); returns the places in the stream that a child
        attends to, (S + t,)."""
        for begin in range(0, len(tokens), MAX_SEGMENT):
            part = tokens[begin : begin + MAX_SEGMENT]
            own = slice(len(self.ids), len(self.ids) + len(part))
            self.ids += part
            self.positions += range(position + begin, position + begin + len(part))
            ancestors = np.concatenate([ancestors, np.arange(own.start, own.stop)])
            self.segments.append(Segment(own, ancestors))
        return ancestors

    def batch(self) -> Batch:
        return Batch(
            np.array(self.ids),
            np.array(self.positions),
            self.segments,
            np.array(self.rows_at),
            self.table.finish(),
            np.array(self.row_answer),
            np.array(self.answer),
            np.array(self.answer_entry),
        )
