"""From records to token ids: what is trained on, what is held out, and in which order."""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from tqdm import tqdm

from minibule.core.counts import Example
from minibule.errors import InputError, listed
from minibule.machine.matrix import Array
from minibule.records.records import Record
from minibule.text.chat import Chat

Order = Literal["file", "shuffle", "density"]  # of the records in training


def tokenize(
    records: Sequence[Record],
    chat: Chat,
    limit: int,
    max_rejected: int = 0,
    skip_long: bool = False,
    numbers: Sequence[int] | None = None,
) -> list[Example]:
    """Records as token ids: at most `max_rejected` answers each (0: all), cut to `limit` tokens.

    Answers that the cut leaves nothing of cannot be: a prompt that fills the limit is an error,
    or left out with `skip_long`. An answer that the tokenizer leaves nothing of (not every
    vocabulary has all bytes) teaches nothing: it is left out and counted, as an empty one is.
    So nothing may be left. `numbers` are the records' places in their file, from 1; None: `records`
    are the file.
    """
    examples, too_long, lost = [], [], []
    bar = tqdm(records, desc="tokenising", unit=" records", delay=1, leave=False)
    for number, record in zip(numbers or itertools.count(1), bar, strict=False):
        prompt = chat.encode_prompt(record.prompt)
        room = limit - len(prompt)
        if room < 1:
            too_long.append(f"record {number:,}: its prompt has {len(prompt):,} tokens")
            continue
        texts = record.rejected[: max_rejected or None]
        encoded = list(zip(chat.encode_answers(texts), record.counts, strict=False))
        kept = [(ids[:room], count) for ids, count in encoded if len(ids)]
        if len(kept) < len(encoded):
            lost.append(f"record {number:,}: {len(encoded) - len(kept):,} of {len(encoded):,}")
        if kept:
            answers, counts = zip(*kept, strict=True)
            examples.append(Example(prompt, answers, counts, record.total_rounds, number))
    if too_long and not skip_long:
        raise InputError(
            f"prompts with no room for an answer in {limit:,} tokens:\n{listed(too_long)}\n"
            "Raise --max-length, as far as the model's context allows, or leave such records out "
            "with --skip-long."
        )
    if too_long:
        tqdm.write(f"{len(too_long):,} records left out: their prompts fill {limit:,} tokens")
    if lost:
        tqdm.write(f"left out: rejected answers without a token of this model's\n{listed(lost)}")
    return examples


def split_by_prompt(
    records: Sequence[Record], fraction: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Training and held-out records, both in their order; a prompt is on one side only.

    At least one prompt is left to train on.
    """
    prompts = [json.dumps(record.prompt) for record in records]
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
    """Mean of T over the rows of a record, counted by position."""
    lengths = np.array([len(answer) for answer in example.answers])
    counts = np.array(example.counts)
    totals = [counts[lengths > t].sum() for t in range(lengths.max())]
    rows = [(lengths > t).sum() for t in range(lengths.max())]
    return float(np.dot(totals, rows) / np.sum(rows))
