"""The formats of rejection records: one parser each, from a row's fields to what it says.

`FORMATS` is the table; the docstring of each parser shows a row of its format. The chosen side is
checked like the rejected one, then dropped and counted.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

from minibule.errors import InputError
from minibule.records.values import (
    Message,
    Prompt,
    described,
    items_of,
    joined,
    messages_of,
    prompt_of,
    reply_of,
    text_of,
    whole,
    wrong,
)


class Answer(NamedTuple):
    where: str  # the field it stood in
    text: str
    times: int = 1


@dataclass(slots=True)
class Draft:
    """What a row says: in `rounds` rounds these answers to this prompt were rejected."""

    prompt: Prompt
    rejected: list[Answer]
    rounds: int = 1
    discarded: int = 0
    unshared: bool = False
    note: str = ""
    where: str = ""  # its place in the file


_Fields = dict[str, object]


def _canonical(row: _Fields) -> Draft:
    """{"prompt": "Hi", "rejected_responses": ["Hi", "No."], "rejection_counts": [3, 1],
    "total_rounds": 8}

    Counts default to 1 and total_rounds to their sum. Where given it is at least the largest
    count, not the sum: one round may reject several answers.
    """

    def field_of(*names: str) -> tuple[str, object]:
        given = [name for name in names if name in row]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)}: found two names of one field, expected one")
        return (given or names)[0], row.get(given[0]) if given else None

    where, value = field_of("rejected_responses", "rejectedResponses", "rejected")
    texts = items_of(value, where, "a list of rejected answers")
    where_counts, value = field_of("rejection_counts", "rejectionCounts", "counts")
    counts = (
        [1] * len(texts) if value is None else items_of(value, where_counts, "a list of counts")
    )
    if len(counts) != len(texts):
        raise InputError(
            f"{where_counts}: found {len(counts):,} counts, expected {len(texts):,}: one an answer"
        )
    answers = [
        Answer(
            sys.intern(f"{where}[{k}]"),
            text_of(text, f"{where}[{k}]"),
            whole(n, f"{where_counts}[{k}]"),
        )
        for k, (text, n) in enumerate(zip(texts, counts, strict=True))
    ]
    times = [answer.times for answer in answers]
    where, value = field_of("total_rounds", "totalRounds")
    rounds = sum(times) if value is None else whole(value, where, least=max(times))
    return Draft(prompt_of(row.get("prompt"), "prompt"), answers, rounds)


def _preference(row: _Fields) -> Draft:
    """{"prompt": "Hi", "chosen": "Hello! How can I help?", "rejected": "Hi"}

    Each may also be a list of messages, and a side may repeat the prompt (UltraFeedback binarized):
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
    reply_of(row["chosen"], "chosen")  # checked as the other side is, then dropped
    before, answer = reply_of(row["rejected"], "rejected")
    return Draft(joined(prompt, before, "rejected"), [Answer("rejected", answer)], discarded=1)


def _conversations(row: _Fields) -> Draft:
    """{"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
    "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]}

    The leading messages that both share are the prompt.
    """
    chosen = messages_of(row["chosen"], "chosen")
    before, answer = reply_of(row["rejected"], "rejected")
    pairs = zip(before, chosen, strict=False)
    shared = [ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if not shared or shared != before:
        raise InputError(
            f"rejected: found {len(shared):,} leading messages shared with chosen and "
            f"{len(before) + 1 - len(shared):,} after them, expected a shared prompt and one answer"
        )
    return Draft(prompt_of(shared, "rejected"), [Answer("rejected", answer)], discarded=1)


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh(row: _Fields) -> Draft:
    r"""{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hi"}

    The prompt is everything before the last Assistant turn of the *rejected* side. Where the
    chosen side has another prompt the row is kept all the same, and counted.
    """
    sides = {}
    for side in ("chosen", "rejected"):
        prompt, turn, answer = text_of(row[side], side).rpartition("\n\nAssistant:")
        if not turn or not _HH_TURN.match(prompt):
            expected = r'"\n\nHuman: ...\n\nAssistant: ...", or a prompt in a field of its own'
            raise wrong(side, row[side], expected)
        sides[side] = prompt
    # From here on `prompt` and `answer` are those of the last of the two, the rejected side.
    # "\n\nHuman: Hi" splits into "", "Human", " Hi": nothing, then pairs of speaker and text.
    parts = _HH_TURN.split(prompt)[1:]
    messages: list[Message] = [
        {"role": "user" if by == "Human" else "assistant", "content": says.strip()}
        for by, says in zip(parts[::2], parts[1::2], strict=True)
    ]
    return Draft(
        prompt_of(messages, "rejected"),
        [Answer("rejected", answer.strip())],
        discarded=1,
        unshared=sides["chosen"] != sides["rejected"],
    )


def _unpaired(row: _Fields) -> Draft:
    """{"prompt": "Hi", "completion": "Hi", "label": false} or
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}],
    "label": false}

    The format of KTO: an answer with label false was rejected, one with label true is discarded.
    """
    where = "completion" if "completion" in row else "messages"
    before, answer = reply_of(row[where], where)
    if where == "completion":
        prompt = joined(prompt_of(row["prompt"], "prompt"), before, where)
    else:
        prompt = prompt_of(before, "messages before the answer")
    if not isinstance(row["label"], bool):
        raise wrong("label", row["label"], "true or false")
    if row["label"]:
        return Draft(prompt, [], discarded=1)
    return Draft(prompt, [Answer(where, answer)])


def _ultrafeedback(row: _Fields) -> Draft:
    """{"instruction": "Hi", "completions": [{"response": "Hello!", "overall_score": 8.5},
    {"response": "Hi", "overall_score": 4.0}, {"response": "No.", "overall_score": 4.0}]}

    Every pair of answers is a round, decided unless the scores are equal or one is missing (absent,
    null or NaN). An answer's count is how many answers beat it; the unbeaten are discarded. The
    row above rejects "Hi" and "No." once each, in 2 rounds.
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

    beaten = [sum(other > score for other in scores) for score in scores]
    unscored = sum(score != score for score in scores)  # only NaN differs from itself
    notes = [f"answers without an overall_score, in no pair: {unscored:,}"] if unscored else []
    if not any(beaten):
        notes.append("no answer beat another")
    return Draft(
        prompt=prompt_of(row["instruction"], "instruction"),
        rejected=[
            Answer(f"completions[{k}]", text, times)
            for k, (text, times) in enumerate(zip(texts, beaten, strict=True))
            if times
        ],
        rounds=sum(beaten),  # each decided pair has one loser
        discarded=beaten.count(0),
        note="; ".join(notes),
    )


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
)

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
