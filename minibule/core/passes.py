"""How a step is divided into passes: a scheduler, and no part of the lesson."""

import heapq
import itertools
import math
from collections.abc import Sequence

from minibule.core.counts import Example

# What a pass costs beside its tokens, as so many tokens more, and how much of a pass is its matrix
# products: those alone use all threads when it is by itself. Both as measured with the shapes of
# SmolLM2-360M on two cores; they only decide how a step is divided.
PASS_COST = 64
PRODUCTS = 0.6

# A tree to compute: the example's number, and which of its answers.
Tree = tuple[int, list[int]]


def deal(
    examples: Sequence[Example], pass_tokens: int, threads: int, rank: int = 0, ranks: int = 1
) -> list[list[Tree]]:
    """Deal the examples out to passes so that the threads are done soonest; returns the rank's own.

    Few passes leave threads idle at the end of the step. Many cost more, each something of its own,
    and an example divided between two costs its prompt again. So some numbers of passes are tried.
    threads: those of each rank. Every rank comes to the same deal by itself.
    """
    groups = list(map(_groups, examples))
    fewest = math.ceil(sum(map(_tokens, examples, groups)) / pass_tokens)
    workers = threads * ranks
    numbers = range(fewest, fewest + 2 * workers + 1, max(1, workers // 16))
    plans = [_plan(examples, groups, number, pass_tokens) for number in numbers]
    timetables = [_timetable([load for load, _ in plan], threads, ranks) for plan in plans]
    best = min(range(len(plans)), key=lambda i: timetables[i][0])
    owners = timetables[best][1]
    return [trees for (_, trees), owner in zip(plans[best], owners, strict=True) if owner == rank]


def _groups(example: Example) -> list[list[int]]:
    """The example's answers, equal ones together: as many as there are, they cost what one does."""
    groups: dict[bytes, list[int]] = {}
    for k, answer in enumerate(example.answers):
        groups.setdefault(answer.tobytes(), []).append(k)
    return list(groups.values())


def _tokens(example: Example, groups: list[list[int]]) -> int:
    """Tokens of an example's tree, were none of its answers to begin alike but the equal ones."""
    return len(example.prompt) + sum(len(example.answers[group[0]]) - 1 for group in groups)


def _plan(
    examples: Sequence[Example], groups: list[list[list[int]]], number: int, pass_tokens: int
) -> list[tuple[int, list[Tree]]]:
    """Deal the examples out to `number` passes: (tokens, trees) of each, the largest first.

    The largest example comes first, each goes to the pass that has least so far. It goes there as a
    whole unless that pass would then exceed `pass_tokens`, or its share by more than the prompt:
    beyond that it is cheaper to compute the prompt again for the rest of the answers. Where none of
    the passes has room for so much as one answer, they become more.
    """
    sizes = list(map(_tokens, examples, groups))
    share = sum(sizes) / number
    passes: list[list[Tree]] = [[] for _ in range(number)]
    loads = [(0, i) for i in range(number)]  # a heap
    for i in sorted(range(len(examples)), key=lambda i: -sizes[i]):
        prompt, answers = len(examples[i].prompt), examples[i].answers
        up_to = [0, *itertools.accumulate(len(answers[group[0]]) - 1 for group in groups[i])]
        begin, end = 0, len(groups[i])
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
            passes[emptiest].append((i, sorted(itertools.chain(*groups[i][begin:part]))))
            heapq.heapreplace(loads, (load, emptiest))
            begin = part
    dealt = sorted(loads, key=lambda pair: (-pair[0], pair[1]))
    return [(load, sorted(passes[i])) for load, i in dealt if passes[i]]


def _timetable(loads: Sequence[int], threads: int, ranks: int) -> tuple[float, list[int]]:
    """How long the passes take, side by side in this order, and the rank that computes each.

    In the time of one thread's token; a pass goes to whoever is free first.
    """
    if len(loads) == 1:
        return (loads[0] + PASS_COST) * (1 - PRODUCTS + PRODUCTS / threads), [0]
    busy = [(0, thread) for thread in range(threads * ranks)]  # a heap
    owners = []
    for load in loads:
        until, thread = busy[0]
        heapq.heapreplace(busy, (until + load + PASS_COST, thread))
        owners.append(thread % ranks)
    return max(until for until, _ in busy), owners
