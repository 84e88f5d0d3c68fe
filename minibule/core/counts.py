"""What was rejected where: a record as token ids, and the counts v of each row.

A row is a position whose next token is part of some answer, rejected or accepted; v counts the
rejections alone. Answers that begin alike share their first rows, so the rows of a record form a
tree: each hangs on the token (the entry) that leads from the row before to it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from minibule.machine.matrix import Array

# Whether v of a row counts all answers at its position, or those that begin as it does.
Counts = Literal["position", "prefix"]


class Example(NamedTuple):
    """A record as token ids: prompt (P,), answers (each (n_k,), n_k >= 1), a count for each.

    number: which record of its file it is, from 1; 0 where it comes from no file.
    rewards: how good each answer is, above 0 where it is accepted; (): all of them were rejected.
    """

    prompt: Array
    answers: tuple[Array, ...]
    counts: tuple[int, ...]
    total_rounds: int
    number: int = 0
    rewards: tuple[float, ...] = ()

    @property
    def rejections(self) -> tuple[int, ...]:
        """How often each answer was rejected: 0 for an accepted one."""
        if not self.rewards:
            return self.counts
        judged = zip(self.counts, self.rewards, strict=True)
        return tuple(0 if reward > 0 else count for count, reward in judged)


def row_count(examples: Iterable[Example]) -> int:
    """The rows of the examples, each (answer, position) counted for itself: the loss's n."""
    return sum(len(answer) for example in examples for answer in example.answers)


def rejected_there(
    answers: Sequence[Sequence[int]],
    times: Sequence[int],
    depth: int,
    alike: Sequence[int],
    counts: Counts,
) -> Counter[int]:
    """v of a row: token -> how often it was rejected there, in order of first appearance; 0 where
    only accepted answers have it.

    depth: tokens of the answer before the row; alike: the answers that have begun as the row does.
    """
    counted = alike
    if counts == "position":
        counted = [k for k, answer in enumerate(answers) if len(answer) > depth]
    v: Counter[int] = Counter()
    for k in counted:
        v[answers[k][depth]] += times[k]
    return v


class RowCounts(NamedTuple):
    """R rows and their E entries, the tokens that answers have there, sorted by row.

    A sparse (R, V) table of v, in which a token that only accepted answers have counts 0.

    weight (R,) float64        answers that pass through the row, of those in this stream
    alike (R,) float64         all answers of the record that begin as the row does
    total (R,) float64         T, the sum of the row's counts
    depth (R,) int             tokens of the answer before the row: 0 at the answer's first token
    rounds (R,) float64        total_rounds of its record
    parent_entry (R,) int      entry whose token leads from the row before to this one; -1: none
    entry_row, entry_id, entry_count (E,)
    attempts (R,) float64      `expected_attempts`, for a loss that needs it; else None
    slope (E,) float64         dL/dlog p of the entries, where that is given beforehand; else None
    """

    weight: Array
    alike: Array
    total: Array
    depth: Array
    rounds: Array
    parent_entry: Array
    entry_row: Array
    entry_id: Array
    entry_count: Array
    attempts: Array | None = None
    slope: Array | None = None

    def entries(self, chunk: slice) -> slice:
        """Where the entries of a slice of rows lie."""
        start, stop, _ = chunk.indices(len(self.weight))
        first, last = np.searchsorted(self.entry_row, [start, stop])
        return slice(int(first), int(last))

    def part(self, chunk: slice) -> "RowCounts":
        """The rows of a slice, with their entries. parent_entry still counts all entries."""
        entries = self.entries(chunk)
        return RowCounts(
            weight=self.weight[chunk],
            alike=self.alike[chunk],
            total=self.total[chunk],
            depth=self.depth[chunk],
            rounds=self.rounds[chunk],
            parent_entry=self.parent_entry[chunk],
            entry_row=self.entry_row[entries] - chunk.indices(len(self.weight))[0],
            entry_id=self.entry_id[entries],
            entry_count=self.entry_count[entries],
            attempts=None if self.attempts is None else self.attempts[chunk],
            slope=None if self.slope is None else self.slope[entries],
        )


class CountTable:
    """`RowCounts` in the making: plain lists that grow row by row."""

    def __init__(self) -> None:
        self.weight: list[int] = []
        self.alike: list[int] = []
        self.depth: list[int] = []
        self.rounds: list[int] = []
        self.parent_entry: list[int] = []
        self.entry_row: list[int] = []
        self.entry_id: list[int] = []
        self.entry_count: list[int] = []

    def add(
        self,
        v: Counter[int],
        weight: int,
        alike: int,
        depth: int,
        rounds: int,
        parent_entry: int,
    ) -> dict[int, int]:
        """Append a row that counts `v`; returns the entry of each of its tokens."""
        entries = {token: len(self.entry_id) + i for i, token in enumerate(v)}
        self.entry_row += [len(self.weight)] * len(v)
        self.entry_id += v.keys()
        self.entry_count += v.values()
        self.weight.append(weight)
        self.alike.append(alike)
        self.depth.append(depth)
        self.rounds.append(rounds)
        self.parent_entry.append(parent_entry)
        return entries

    def finish(self) -> RowCounts:
        """The table as arrays."""
        entry_row = np.array(self.entry_row)
        entry_count = np.array(self.entry_count, np.float64)
        return RowCounts(
            weight=np.array(self.weight, np.float64),
            alike=np.array(self.alike, np.float64),
            total=np.bincount(entry_row, entry_count, len(self.weight)),
            depth=np.array(self.depth),
            rounds=np.array(self.rounds, np.float64),
            parent_entry=np.array(self.parent_entry),
            entry_row=entry_row,
            entry_id=np.array(self.entry_id),
            entry_count=entry_count,
        )


# -- along the tree --------------------------------------------------------------------------------


def path_log_probs(rows: RowCounts, logp: Array) -> tuple[Array, Array]:
    """From log p of each entry's token (E,) to log p of whole beginnings of answers.

    Of the answer up to each row (R,), and of the answer up to and with each entry's token (E,):

        prefix(row) = path(parent entry), 0 at the root      path(e) = prefix(row of e) + logp(e)
    """
    prefix, path = np.zeros(len(rows.weight)), np.empty(len(logp))
    starts = np.searchsorted(rows.entry_row, np.arange(len(prefix) + 1))
    for row, parent in enumerate(rows.parent_entry):  # a row's parent entry stands before it
        if parent >= 0:
            prefix[row] = path[parent]
        entries = slice(starts[row], starts[row + 1])
        path[entries] = prefix[row] + logp[entries]
    return prefix, path


def path_log_probs_backward(dpath: Array, rows: RowCounts) -> Array:
    """dlogp (E,) from dpath (E,): an entry is part of every path that goes on from it.

    dlogp(e) = dpath(e), and the parent entry of e's row gets dpath(e) added: rows in reverse.
    """
    dpath = dpath.copy()
    starts = np.searchsorted(rows.entry_row, np.arange(len(rows.weight) + 1))
    for row in range(len(rows.weight) - 1, -1, -1):
        parent = rows.parent_entry[row]
        if parent >= 0:
            dpath[parent] += dpath[starts[row] : starts[row + 1]].sum()
    return dpath


def expected_attempts(rows: RowCounts, ref_logp: Array) -> Array:
    """max(T, N p_ref(prefix)), (R,): sampled answers expected to have come by each row.

    ref_logp (E,): log p_ref of the entries; N is total_rounds.
    """
    prefix, _ = path_log_probs(rows, ref_logp)
    return np.maximum(rows.total, rows.rounds * np.exp(prefix))
