"""The formats of rejection records: one parser each, from a row's fields to what it says.

`FORMATS` is the table; the docstring of each parser shows a row of its format.
"""

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from minibule.errors import InputError
from minibule.records.values import (
    Message,
    Prompt,
    boolean,
    described,
    joined,
    messages_of,
    prompt_of,
    reply_of,
    text_of,
    turns_of,
    whole,
    wrong,
)


class Answer(NamedTuple):
    where: str  # the field it stood in
    text: str
    times: int = 1
    ended: bool = True  # by itself; False: it was cut off


@dataclass(slots=True)
class Draft:
    """What a row says: in `rounds` rounds these answers to this prompt were judged."""

    prompt: Prompt
    rejected: list[Answer]
    accepted: list[Answer] = field(default_factory=list)
    rounds: int = 1
    discarded: int = 0  # answers that are neither, or answer another prompt
    unshared: bool = False
    note: str = ""
    where: str = ""  # its place in the file


_Fields = dict[str, object]


class _Names(NamedTuple):
    """What the fields of one side of a canonical row may be called, the first preferred."""

    texts: tuple[str, ...]
    counts: tuple[str, ...]
    ended: tuple[str, ...]


_REJECTED = _Names(
    ("rejected_responses", "rejectedResponses", "rejected"),
    ("rejection_counts", "rejectionCounts", "counts"),
    ("rejected_ended", "rejectedEnded"),
)
_ACCEPTED = _Names(
    ("accepted_responses", "acceptedResponses"),
    ("acceptance_counts", "acceptanceCounts"),
    ("accepted_ended", "acceptedEnded"),
)
_ROUNDS = ("total_rounds", "totalRounds")


def _canonical(row: _Fields) -> Draft:
    """{"prompt": "Hi", "rejected_responses": ["Hi", "No."], "rejection_counts": [3, 1],
    "accepted_responses": ["Hello!"], "acceptance_counts": [4], "accepted_ended": [false],
    "total_rounds": 8}

    Either side may be absent. Counts default to 1. `rejected_ended` and `accepted_ended` say of
    each answer whether it came to its own end or was cut off; absent, all ended. `total_rounds`
    defaults to the sum of the rejection counts, or where nothing was rejected of the acceptance
    counts. Where given it is at least the largest rejection count, not the sum: one round may
    reject several answers.
    """
    where, value = _field(row, _REJECTED.texts)
    if not value and not _field(row, _ACCEPTED.texts)[1]:
        raise wrong(where, value, "a list of rejected answers")
    rejected, accepted = _side(row, _REJECTED), _side(row, _ACCEPTED)
    where, value = _field(row, _ROUNDS)
    if value is None:
        value = sum(answer.times for answer in rejected or accepted)
        where = f"{where}, the sum of the counts"
    least = max((answer.times for answer in rejected), default=1)
    rounds = whole(value, where, least)
    return Draft(prompt_of(row.get("prompt"), "prompt"), rejected, accepted, rounds)


def _side(row: _Fields, names: _Names) -> list[Answer]:
    where, texts = _field(row, names.texts)
    if texts is None:
        texts = []
    if not isinstance(texts, list):
        side = "rejected" if names is _REJECTED else "accepted"
        raise wrong(where, texts, f"a list of {side} answers")
    counts_at, counts = _one_each(row, names.counts, len(texts), 1, "counts")
    ended_at, ended = _one_each(row, names.ended, len(texts), True, "booleans")
    return [
        Answer(
            sys.intern(f"{where}[{k}]"),
            text_of(text, f"{where}[{k}]"),
            whole(n, f"{counts_at}[{k}]"),
            boolean(end, f"{ended_at}[{k}]"),
        )
        for k, (text, n, end) in enumerate(zip(texts, counts, ended, strict=True))
    ]


def _field(row: _Fields, names: tuple[str, ...]) -> tuple[str, object]:
    """The name and the value of the field that may have any of these names."""
    given = [name for name in names if name in row]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)}: found two names of one field, expected one")
    return (given or names)[0], row.get(given[0]) if given else None


def _one_each(
    row: _Fields, names: tuple[str, ...], answers: int, default: object, what: str
) -> tuple[str, list[object]]:
    """The name and the values of a field that has one for each answer, or `default` for all."""
    where, values = _field(row, names)
    if values is None:
        return where, [default] * answers
    if not isinstance(values, list):
        raise wrong(where, values, f"a list of {what}")
    if len(values) != answers:
        raise InputError(
            f"{where}: found {len(values):,} {what}, expected {answers:,}: one an answer"
        )
    return where, values


def _preference(row: _Fields) -> Draft:
    """{"prompt": "Hi", "chosen": "Hello! How can I help?", "rejected": "Hi"}

    The chosen answer is accepted once, in the same round. Each may also be a list of messages, and
    a side may repeat the prompt (UltraFeedback binarized):
    {"prompt": "Hi", "chosen": [...], "rejected": [{"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hi"}]}
    """
    return _pair(prompt_of(row["prompt"], "prompt"), row)


def _llama_factory(row: _Fields) -> Draft:
    """{"conversations": [{"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {"from": "gpt", "value": "Hi"}}

    A "system" text beside them becomes the first message of the prompt.
    """
    prompt = messages_of(row["conversations"], "conversations")
    system = text_of(row.get("system", ""), "system")
    if system and prompt[0]["role"] == "system":
        raise InputError("system: found a second system message, expected one")
    if system:
        prompt = [{"role": "system", "content": system}, *prompt]
    return _pair(prompt_of(prompt, "conversations"), row)


def _pair(prompt: Prompt, row: _Fields) -> Draft:
    chosen_before, chosen = reply_of(row["chosen"], "chosen")
    before, rejected = reply_of(row["rejected"], "rejected")
    prompt = joined(prompt, before, "rejected")
    return _judged(prompt, rejected, chosen, shared=chosen_before in ([], turns_of(prompt)))


def _judged(prompt: Prompt, rejected: str, chosen: str, shared: bool) -> Draft:
    """What a pair says. A chosen answer that does not share the prompt is one to another prompt."""
    accepted = [Answer("chosen", chosen)] if shared else []
    return Draft(
        prompt,
        [Answer("rejected", rejected)],
        accepted,
        discarded=1 - len(accepted),
        unshared=not shared,
    )


def _conversations(row: _Fields) -> Draft:
    """{"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
    "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]}

    The leading messages that both share are the prompt. Where the chosen side has more after them
    than one answer, as when the talk went on, that is none to this prompt: discarded.
    """
    chosen = messages_of(row["chosen"], "chosen")
    before, rejected = reply_of(row["rejected"], "rejected")
    pairs = zip(before, chosen, strict=False)
    shared = [ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if not shared or shared != before:
        raise InputError(
            f"rejected: found {len(shared):,} leading messages shared with chosen and "
            f"{len(before) + 1 - len(shared):,} after them, expected a shared prompt and one answer"
        )
    *chosen_before, last = chosen
    return _judged(
        prompt_of(shared, "rejected"),
        rejected,
        last["content"],
        shared=chosen_before == shared and last["role"] == "assistant",
    )


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh(row: _Fields) -> Draft:
    r"""{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hi"}

    The prompt is everything before the last Assistant turn of the *rejected* side. Where the
    chosen side has another prompt, its answer is discarded; the row is kept all the same, and
    counted.
    """
    sides = {}
    for side in ("chosen", "rejected"):
        prompt, turn, answer = text_of(row[side], side).rpartition("\n\nAssistant:")
        if not turn or not _HH_TURN.match(prompt):
            expected = r'"\n\nHuman: ...\n\nAssistant: ...", or a prompt in a field of its own'
            raise wrong(side, row[side], expected)
        sides[side] = prompt, answer.strip()
    (chosen_prompt, chosen), (prompt, rejected) = sides["chosen"], sides["rejected"]
    # "\n\nHuman: Hi" splits into "", "Human", " Hi": nothing, then pairs of speaker and text.
    parts = _HH_TURN.split(prompt)[1:]
    messages: list[Message] = [
        {"role": "user" if by == "Human" else "assistant", "content": says.strip()}
        for by, says in zip(parts[::2], parts[1::2], strict=True)
    ]
    return _judged(
        prompt_of(messages, "rejected"), rejected, chosen, shared=chosen_prompt == prompt
    )


def _unpaired(row: _Fields) -> Draft:
    """{"prompt": "Hi", "completion": "Hi", "label": false} or
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}],
    "label": false}

    The format of KTO: an answer with label false was rejected, one with label true accepted. An
    optional "ended": false says that it was cut off before its own end.
    """
    where = "completion" if "completion" in row else "messages"
    before, answer = reply_of(row[where], where)
    if where == "completion":
        prompt = joined(prompt_of(row["prompt"], "prompt"), before, where)
    else:
        prompt = prompt_of(before, "messages before the answer")
    judged = [Answer(where, answer, ended=boolean(row.get("ended", True), "ended"))]
    if boolean(row["label"], "label"):
        return Draft(prompt, rejected=[], accepted=judged)
    return Draft(prompt, rejected=judged)


def _ultrafeedback(row: _Fields) -> Draft:
    """{"instruction": "Hi", "completions": [{"response": "Hello!", "overall_score": 8.5},
    {"response": "Hi", "overall_score": 4.0}, {"response": "No.", "overall_score": 4.0}]}

    Every pair of answers is a round, decided unless the scores are equal or one is missing (absent,
    null or NaN). An answer that another beats is rejected, and its count is how many answers beat
    it, also where it beats others itself: the best of the answers to a prompt are what to learn. An
    unbeaten one is accepted, and its count is how many it beats; where it beats none, all its pairs
    are undecided and nothing is known of it: discarded. The row above rejects "Hi" and "No." once
    each and accepts "Hello!" twice, in 2 rounds.
    """
    if not isinstance(row["completions"], list):
        raise wrong("completions", row["completions"], "a list of answers")
    texts, scores = [], []
    for k, item in enumerate(row["completions"]):
        where = f"completions[{k}]"
        if not isinstance(item, dict):
            raise wrong(where, item, "an answer with response and overall_score")
        texts.append(text_of(item.get("response"), f"{where}.response"))
        score = item.get("overall_score")
        if score is None:
            score = float("nan")  # compares false with everything: each of its pairs is undecided
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise wrong(f"{where}.overall_score", score, "a number")
        scores.append(score)

    known = sorted(score for score in scores if score == score)  # only NaN differs from itself
    beaten = [len(known) - bisect_right(known, score) for score in scores]  # by how many others
    beats = [bisect_left(known, score) for score in scores]  # how many; of NaN, both are 0
    unscored = len(scores) - len(known)
    notes = [f"answers without an overall_score, in no pair: {unscored:,}"] if unscored else []
    if not any(beaten):
        notes.append("no answer beat another")
    draft = Draft(
        prompt_of(row["instruction"], "instruction"),
        rejected=[],
        rounds=sum(beaten),  # each decided pair has one loser
        note="; ".join(notes),
    )
    for k, text in enumerate(texts):
        where = f"completions[{k}]"
        if beaten[k]:
            draft.rejected.append(Answer(where, text, beaten[k]))
        elif beats[k]:
            draft.accepted.append(Answer(where, text, beats[k]))
        else:
            draft.discarded += 1
    return draft


class Format(NamedTuple):
    """A row that has these fields, all of this kind, is read by this parser."""

    name: str
    fields: tuple[str, ...]
    parse: Callable[[_Fields], Draft]
    kind: type = object


# The first that fits wins, so the more telling fields stand first.
FORMATS = (
    Format("canonical", ("rejected_responses",), _canonical),
    Format("canonical", ("rejectedResponses",), _canonical),
    Format("UltraFeedback", ("instruction", "completions"), _ultrafeedback),
    Format("unpaired", ("prompt", "completion", "label"), _unpaired),
    Format("unpaired", ("messages", "label"), _unpaired),
    Format("LLaMA-Factory", ("conversations", "chosen", "rejected"), _llama_factory),
    Format("preference", ("prompt", "chosen", "rejected"), _preference),
    Format("HH-RLHF", ("chosen", "rejected"), _hh, kind=str),
    Format("preference without prompt", ("chosen", "rejected"), _conversations),
    Format("canonical", ("prompt", "rejected"), _canonical),
    Format("canonical", ("accepted_responses",), _canonical),
    Format("canonical", ("acceptedResponses",), _canonical),
)

_OPTIONAL = {name for side in (_REJECTED, _ACCEPTED) for names in side for name in names} | {
    *_ROUNDS,
    "system",
    "ended",
}


def fields_read(names: Sequence[str]) -> Sequence[str]:
    """Of the fields of rows those that are read, or all where they fit no format."""
    if not any(set(form.fields) <= set(names) for form in FORMATS):
        return names
    required = {name for form in FORMATS for name in form.fields}
    return [name for name in names if name in required | _OPTIONAL]


KNOWN = "formats known, by their fields:\n" + "\n".join(
    f"  {form.name:26} {', '.join(form.fields)}" + (" as text" if form.kind is str else "")
    for form in FORMATS
)


class UnknownFormatError(InputError):
    """A row whose fields fit no format; KNOWN is then shown once, after all bad rows."""


def parse_row(where: str, value: object) -> tuple[str, Draft]:
    """One row of a file -> the name of its format, and what it says."""
    if isinstance(value, InputError):
        raise value
    if not isinstance(value, dict):
        hint = " (an array belongs in a .json file)" if isinstance(value, list) else ""
        raise InputError(f"found {described(value)}, expected an object{hint}")
    row = {name: content for name, content in value.items() if content is not None}
    for form in FORMATS:
        if all(name in row and isinstance(row[name], form.kind) for name in form.fields):
            parsed = form.parse(row)
            parsed.where = where
            return form.name, parsed
    names = ", ".join(described(name) for name in list(row)[:12]) or "none"
    raise UnknownFormatError(f"unknown format: found the fields {names}")
