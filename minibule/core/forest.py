"""The forest: records packed into one stream of tokens, prompts shared by their answers.

A record is a tree. Its prompt is the root; the rejected answers hang below it, and answers that
begin alike share their beginning. Every node is a segment of the stream that attends to its
ancestors and, causally, to itself, so a prompt is computed once however many answers it has, and
nothing is padded:

    prompt: what is 3 + 4 ?          segments    [what is 3 + 4 ?] <- [it is] <- [6 ,]
    answers: it is 9 .                                                        <- [9]
             it is 6 , ok                        (the last token of an answer is only predicted)

A row is a position whose next token is part of some rejected answer. Rows that several answers
share are computed once and carry how many they stand for as their weight.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minibule.core.objective import Counts
from minibule.core.ops import Segment
from minibule.machine.matrix import Array

# Longer segments are cut into a chain of this many tokens, each the child of the one before:
# attention then skips most of the masked half of a causal block and needs less memory at once.
MAX_SEGMENT = 64

# What a pass costs beside its tokens, as so many tokens more, and how much of a pass is its matrix
# products: those alone use all threads when it is by itself. Both as measured with the shapes of
# SmolLM2-360M on two cores; they only decide how a step is divided.
PASS_COST = 64
PRODUCTS = 0.6


class Example(NamedTuple):
    """A record as token ids: prompt (P,), answers (each (n_k,), n_k >= 1), a count for each.

    number: which record of its file it is, from 1; 0 where it comes from no file.
    """

    prompt: Array
    answers: tuple[Array, ...]
    counts: tuple[int, ...]
    total_rounds: int
    number: int = 0


class Rows(NamedTuple):
    """R rows and the E rejected tokens they count, sorted by row (a sparse (R, V) table of v).

    weight (R,) float64        answers that pass through the row
    total (R,) float64         T, the sum of the row's counts
    depth (R,) int             tokens of the answer before the row: 0 at the answer's first token
    rounds (R,) float64        total_rounds of its record
    parent_entry (R,) int      entry whose token leads from the row before to this one; -1: none
    entry_row, entry_id, entry_count (E,)
    """

    weight: Array
    total: Array
    depth: Array
    rounds: Array
    parent_entry: Array
    entry_row: Array
    entry_id: Array
    entry_count: Array

    def part(self, chunk: slice) -> "Rows":
        """The rows of a slice, with their entries. parent_entry still counts all entries."""
        start, stop, _ = chunk.indices(len(self.weight))
        first, last = np.searchsorted(self.entry_row, [start, stop])
        return Rows(
            self.weight[chunk],
            self.total[chunk],
            self.depth[chunk],
            self.rounds[chunk],
            self.parent_entry[chunk],
            self.entry_row[first:last] - start,
            self.entry_id[first:last],
            self.entry_count[first:last],
        )


class Batch(NamedTuple):
    """One packed stream for one forward and backward pass.

    ids, positions (T,) int    tokens, and the place of each in its own sequence
    segments                   what each run of tokens attends to
    rows_at (R,) int           where in the stream each row lies
    rows                       what each row's logits are trained on
    answer (answers, 2)        the example's number and the answer's, for each answer ...
    answer_entry (answers,)    ... and the entry that completes it
    """

    ids: Array
    positions: Array
    segments: list[Segment]
    rows_at: Array
    rows: Rows
    answer: Array
    answer_entry: Array


def pack(
    examples: Sequence[Example], counts: Counts, pass_tokens: int, threads: int = 1
) -> Iterator[Batch]:
    """Batches of at most `pass_tokens` tokens that together hold every row of the examples once.

    Larger ones only where a prompt with a single answer is. Divided so that the threads, each with
    a batch of its own, are done soonest; the largest comes first.
    """
    for trees in _deal(examples, pass_tokens, threads):
        forest = _Forest(counts)
        for example, members in trees:
            forest.add(examples[example], example, members)
        yield forest.batch()


def total_weight(examples: Iterable[Example]) -> int:
    """The rows of the examples, each (answer, position) counted for itself: the loss's n."""
    return sum(len(answer) for example in examples for answer in example.answers)


# A tree to compute: the example's number, and which of its answers.
_Tree = tuple[int, list[int]]


def _deal(examples: Sequence[Example], pass_tokens: int, threads: int) -> list[list[_Tree]]:
    """Deal the examples out to passes so that the threads are done soonest.

    Few passes leave threads idle at the end of the step. Many cost more, each something of its own,
    and an example divided between two costs its prompt again. So some numbers of passes are tried.
    """
    fewest = math.ceil(sum(map(_tokens, examples)) / pass_tokens)
    numbers = range(fewest, fewest + 2 * threads + 1)
    plans = [_plan(examples, number, pass_tokens) for number in numbers]
    best = min(plans, key=lambda plan: _duration([load for load, _ in plan], threads))
    return [trees for _, trees in best]


def _tokens(example: Example) -> int:
    """Tokens of an example's tree, were none of its answers to begin alike."""
    return len(example.prompt) + sum(len(answer) - 1 for answer in example.answers)


def _plan(
    examples: Sequence[Example], number: int, pass_tokens: int
) -> list[tuple[int, list[_Tree]]]:
    """Deal the examples out to `number` passes: (tokens, trees) of each, the largest first.

    The largest example comes first, each goes to the pass that has least so far. It goes there as a
    whole unless that pass would then exceed `pass_tokens`, or its share by more than the prompt:
    beyond that it is cheaper to compute the prompt again for the rest of the answers. Where none of
    the passes has room for so much as one answer, they become more.
    """
    share = sum(map(_tokens, examples)) / number
    passes: list[list[_Tree]] = [[] for _ in range(number)]
    loads = [(0, i) for i in range(number)]  # a heap
    for i in sorted(range(len(examples)), key=lambda i: -_tokens(examples[i])):
        prompt = len(examples[i].prompt)
        up_to = [0, *itertools.accumulate(len(answer) - 1 for answer in examples[i].answers)]
        begin, end = 0, len(examples[i].answers)
        while begin < end:
            load, emptiest = loads[0]
            if load and load + prompt + up_to[begin + 1] - up_to[begin] > pass_tokens:
                load, emptiest = 0, len(passes)
                passes.append([])
                heapq.heappush(loads, (load, emptiest))
            part, whole = end, load + prompt + up_to[end] - up_to[begin]
            if whole > min(pass_tokens, share + prompt):
                share += prompt / number  # the prompt once more adds to the share of all
                room, limit = share - load - prompt, pass_tokens - load - prompt
                part = begin + 1
                while (
                    part < end
                    and (up_to[part] + up_to[part + 1]) / 2 - up_to[begin] <= room
                    and up_to[part + 1] - up_to[begin] <= limit
                ):
                    part += 1  # an answer goes where its middle lies
            load += prompt + up_to[part] - up_to[begin]
            passes[emptiest].append((i, list(range(begin, part))))
            heapq.heapreplace(loads, (load, emptiest))
            begin = part
    dealt = sorted(loads, key=lambda pair: (-pair[0], pair[1]))
    return [(load, sorted(passes[i])) for load, i in dealt if passes[i]]


def _duration(loads: Sequence[int], threads: int) -> float:
    """How long the passes take, side by side in this order, in the time of one thread's token."""
    if len(loads) == 1:
        return (loads[0] + PASS_COST) * (1 - PRODUCTS + PRODUCTS / threads)
    busy = [0] * threads
    for load in loads:
        heapq.heapreplace(busy, busy[0] + load + PASS_COST)
    return max(busy)


class _Forest:
    """A batch in the making: plain lists that grow tree by tree."""

    def __init__(self, counts: Counts) -> None:
        self.counts = counts
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.stream: list[int] = []
        self.weight: list[int] = []
        self.depth: list[int] = []
        self.rounds: list[int] = []
        self.parent_entry: list[int] = []
        self.entry_row: list[int] = []
        self.entry_id: list[int] = []
        self.entry_count: list[int] = []
        self.answer: list[tuple[int, int]] = []
        self.answer_entry: list[int] = []

    def add(self, example: Example, number: int, members: Collection[int]) -> None:
        """Append the tree of the answers `members`. The record's other answers are only counted."""
        answers = [answer.tolist() for answer in example.answers]
        members = frozenset(members)
        completed: dict[int, int] = {}  # answer -> the entry that completes it
        # Segments to come: the tokens each begins with, the answers that have begun just like this
        # and by how many tokens, what it attends to, and the entry that leads to it.
        root = (example.prompt.tolist(), list(range(len(answers))), 0, np.empty(0, np.int64), -1)
        pending: list[tuple[list[int], list[int], int, Array, int]] = [root]
        while pending:
            tokens, group, depth, ancestors, parent_entry = pending.pop()
            first, position = len(self.ids), len(ancestors)
            while True:  # until the answers part
                counted = group
                if self.counts == "position":
                    counted = [k for k, answer in enumerate(answers) if len(answer) > depth]
                v: Counter[int] = Counter()
                for k in counted:
                    v[answers[k][depth]] += example.counts[k]
                entries = self.row(v, first + len(tokens) - 1, depth, parent_entry)
                self.weight.append(len(members.intersection(group)))
                self.rounds.append(example.total_rounds)

                followers: dict[int, list[int]] = {}
                for k in group:
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
                ((token, group),) = followers.items()
                tokens.append(token)
                parent_entry = entries[token]
            keys = self.segment(tokens, position, ancestors)
            pending += [
                ([token], longer, depth, keys, entries[token])
                for token, longer in reversed(followers.items())
            ]
        self.answer += [(number, k) for k in sorted(members)]
        self.answer_entry += [completed[k] for k in sorted(members)]

    def row(self, v: Counter[int], stream: int, depth: int, parent_entry: int) -> dict[int, int]:
        """Append a row that counts `v`; returns the entry of each of its tokens."""
        row = len(self.stream)
        entries = {token: len(self.entry_id) + i for i, token in enumerate(v)}
        self.stream.append(stream)
        self.depth.append(depth)
        self.parent_entry.append(parent_entry)
        self.entry_row += [row] * len(v)
        self.entry_id += v.keys()
        self.entry_count += v.values()
        return entries

    def segment(self, tokens: list[int], position: int, ancestors: Array) -> Array:
        """Append tokens below `ancestors`; returns the stream positions a child attends to."""
        for begin in range(0, len(tokens), MAX_SEGMENT):
            part = tokens[begin : begin + MAX_SEGMENT]
            rows = slice(len(self.ids), len(self.ids) + len(part))
            self.ids += part
            self.positions += range(position + begin, position + begin + len(part))
            ancestors = np.concatenate([ancestors, np.arange(rows.start, rows.stop)])
            self.segments.append(Segment(rows, ancestors))
        return ancestors

    def batch(self) -> Batch:
        entry_row = np.array(self.entry_row)
        entry_count = np.array(self.entry_count, np.float64)
        rows = Rows(
            weight=np.array(self.weight, np.float64),
            total=np.bincount(entry_row, entry_count, len(self.weight)),
            depth=np.array(self.depth),
            rounds=np.array(self.rounds, np.float64),
            parent_entry=np.array(self.parent_entry),
            entry_row=entry_row,
            entry_id=np.array(self.entry_id),
            entry_count=entry_count,
        )
        return Batch(
            np.array(self.ids),
            np.array(self.positions),
            self.segments,
            np.array(self.stream),
            rows,
            np.array(self.answer),
            np.array(self.answer_entry),
        )
