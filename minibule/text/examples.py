"""From records to token ids: what is trained on, what is held out, and in which order."""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from minibule.core.counts import Example
from minibule.core.loss import Uses
from minibule.errors import InputError, listed
from minibule.machine.matrix import Array
from minibule.progress import passing_bar
from minibule.records.records import Record
from minibule.records.values import turns_of
from minibule.text.chat import Chat

Order = Literal["file", "shuffle", "density"]  # of the records in training


# What a record must have to say something to a loss that learns from accepted answers.
NEEDED: dict[Uses, str] = {
    "accepted": "an accepted answer",
    "both": "an accepted and a rejected answer",
}


class _Judged(NamedTuple):
    """An answer of a record: its text, how often it was given, whether it ended, its reward."""

    text: str
    times: int
    ended: bool
    reward: float


def tokenize(
    records: Sequence[Record],
    chat: Chat,
    limit: int,
    max_rejected: int = 0,
    skip_long: bool = False,
    numbers: Sequence[int] | None = None,
    uses: Uses = "rejected",
    end_token: bool = False,
) -> list[Example]:
    """Records as token ids: at most `max_rejected` answers each (0: all), cut to `limit` tokens.

    Answers that the cut leaves nothing of cannot be: a prompt that fills the limit is an error,
    or left out with `skip_long`. An answer that the tokenizer leaves nothing of (not every
    vocabulary has all bytes) teaches nothing: it is left out and counted, as an empty one is.
    So nothing may be left. `numbers` are the records' places in their file, from 1; None: `records`
    are the file.

    uses: which answers are taken; a record that lacks what is `NEEDED` is left out and counted.
    end_token: whether the end of the turn is part of the answers that came to their own end, and
    are not cut.
    """
    examples, too_long, lost, lacking = [], [], [], 0
    bar = passing_bar(records, desc="tokenising", unit=" records")
    for number, record in zip(numbers or itertools.count(1), bar, strict=False):
        prompt = chat.encode_prompt(record.prompt)
        room = limit - len(prompt)
        if room < 1:
            too_long.append(f"record {number:,}: its prompt has {len(prompt):,} tokens")
            continue
        judged = _answers(record, uses, max_rejected)
        encoded = chat.encode_answers([answer.text for answer in judged])
        kept = [
            (_cut(ids, room, chat.end_of_turn if end_token and answer.ended else None), answer)
            for ids, answer in zip(encoded, judged, strict=True)
            if len(ids)
        ]
        if len(kept) < len(encoded):
            lost.append(f"record {number:,}: {len(encoded) - len(kept):,} of {len(encoded):,}")
        sorts = {answer.reward for _, answer in kept}
        if uses in NEEDED and len(sorts) < (2 if uses == "both" else 1):
            lacking += 1
        elif kept:
            examples.append(_example(prompt, kept, record.total_rounds, number))
    if too_long and not skip_long:
        raise InputError(
            f"prompts with no room for an answer in {limit:,} tokens:\n{listed(too_long)}\n"
            "Raise --max-length, as far as the model's context allows, or leave such records out "
            "with --skip-long."
        )
    if too_long:
        tqdm.write(f"{len(too_long):,} records left out: their prompts fill {limit:,} tokens")
    if lost:
        tqdm.write(f"left out: answers without a token of this model's\n{listed(lost)}")
    if lacking:
        tqdm.write(f"{lacking:,} records left out: without {NEEDED[uses]}")
    return examples


def _answers(record: Record, uses: Uses, max_rejected: int) -> list[_Judged]:
    """The answers of a record that are used, the rejected ones first."""
    found: list[_Judged] = []
    sides = {
        0.0: (record.rejected, record.counts, record.rejected_ended),
        1.0: (record.accepted, record.accepted_counts, record.accepted_ended),
    }
    if uses == "rejected":
        del sides[1.0]
    if uses == "accepted":
        del sides[0.0]
    for reward, (texts, counts, ended) in sides.items():
        most = len(texts) if reward else max_rejected or None
        all_ended = ended or (True,) * len(texts)
        rows = zip(texts, counts, all_ended, strict=True)
        found += [_Judged(*row, reward) for row in itertools.islice(rows, most)]
    return found


def _example(
    prompt: Array, kept: Sequence[tuple[Array, _Judged]], total_rounds: int, number: int
) -> Example:
    """A record of these answers; its rewards are () where all of them were rejected."""
    answers = tuple(ids for ids, _ in kept)
    times = tuple(answer.times for _, answer in kept)
    rewards = tuple(answer.reward for _, answer in kept)
    return Example(prompt, answers, times, total_rounds, number, rewards if any(rewards) else ())


def _cut(ids: Array, room: int, end: int | None) -> Array:
    """The first `room` tokens of an answer, followed by its end where there is one and room."""
    return ids[:room] if end is None else np.append(ids, end)[:room]


def split_by_prompt(
    records: Sequence[Record], fraction: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Training and held-out records, both in their order; a prompt is on one side only.

    At least one prompt is left to train on.
    """
    prompts = [json.dumps(turns_of(record.prompt)) for record in records]
    distinct = list(dict.fromkeys(prompts))
    held = min(round(fraction * len(distinct)), len(distinct) - 1)
    chosen = np.random.default_rng([seed, 2]).permutation(len(distinct))[:held]
    heldout = {distinct[i] for i in chosen}
    sides: tuple[list[Record], list[Record]] = ([], [])
    for prompt, record in zip(prompts, records, strict=True):
        sides[prompt in heldout].append(record)
    return sides


def record_order(order: Order, seed: int, examples: Sequence[Example]) -> Callable[[int], int]:
    """The order of training: place 0, 1, 2 ... in the run -> an example's index.

    Any place can be asked for by itself, so a run's state is no more than how far it has come.
    """
    n = len(examples)
    if order == "shuffle":

        @functools.lru_cache(maxsize=2)  # a step may lie in two epochs
        def shuffled(epoch: int) -> Array:
            return np.random.default_rng([seed, 3, epoch]).permutation(n)

        return lambda place: int(shuffled(place // n)[place % n])
    sequence = list(range(n))
    if order == "density":
        sequence.sort(key=lambda i: -counts_per_row(examples[i]))
    return lambda place: sequence[place % n]


def counts_per_row(example: Example) -> float:
    """Mean of T, the rejections, over the rows of a record, counted by position."""
    lengths = np.array([len(answer) for answer in example.answers])
    counts = np.array(example.rejections)
    totals = [counts[lengths > t].sum() for t in range(lengths.max())]
    rows = [(lengths > t).sum() for t in range(lengths.max())]
    return float(np.dot(totals, rows) / np.sum(rows))
