"""From judged samples to what is trained on: groups, what a selection keeps, token ids.

Answers are trained as they were sampled: their ids are never made of their text again, which might
cut it into other tokens.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from minibule.core.counts import Example
from minibule.core.loss import Loss
from minibule.evaluate.judge import Judge
from minibule.machine.matrix import Array
from minibule.rounds.groups import Group, Kept, Selection, signed
from minibule.rounds.sample import Drawn, Sample
from minibule.text.chat import Chat


def groups_of(
    drawn: Drawn, judge: Judge, selection: Selection, usual: Drawn | None = None
) -> list[Group]:
    """A group for each question; an empty one where a selection that needs it has no `usual`.

    usual: samples of the base, the first round's.
    """
    of_base: Sequence[Array | None] = [None] * len(drawn)
    if selection.needs_usual and usual is not None:
        of_base = [_rewards(several) for several in usual]
        drawn = [several if len(base) else [] for several, base in zip(drawn, usual, strict=True)]
    return [
        Group(
            _rewards(several),
            [(*s.ids, s.ended) for s in several],
            [judge.key(s.completion) for s in several],
            base,
        )
        for several, base in zip(drawn, of_base, strict=True)
    ]


def _rewards(several: Sequence[Sample]) -> Array:
    return signed([sample.reward for sample in several])


def examples_of(kept: Sequence[Kept], drawn: Drawn, chat: Chat, loss: Loss) -> list[Example]:
    """What is kept as token ids, as far as the loss learns from it; equal answers become one.

    An answer of no text has nothing to teach but its end, where that is trained.
    """
    examples = []
    for number, one in enumerate(kept, start=1):
        samples = drawn[one.group]
        answers: Counter[tuple[tuple[int, ...], float]] = Counter()  # ids, reward -> how often
        for sample, reward in zip((samples[i] for i in one.samples), one.rewards, strict=True):
            ids = sample.tokens(chat.end_of_turn if loss.end_token else None)
            says_something = sample.completion.strip() or len(ids) > len(sample.ids)
            if says_something and _is_used(loss, reward > 0):
                answers[tuple(ids), float(reward if loss.graded else reward > 0)] += 1
        rewards = tuple(reward for _, reward in answers)
        if answers and (loss.uses != "both" or len(set(rewards)) > 1):
            examples.append(
                Example(
                    chat.encode_prompt(samples[0].prompt),
                    tuple(np.array(ids) for ids, _ in answers),
                    tuple(answers.values()),
                    len(samples),
                    number,
                    rewards if any(rewards) else (),
                )
            )
    return examples


def _is_used(loss: Loss, accepted: bool) -> bool:
    return {"rejected": not accepted, "accepted": accepted}.get(loss.uses, True)
