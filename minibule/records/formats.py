"""The formats of rejection records: one parser each, from a row's fields to what it says.

`FORMATS` is the table; the docstring of each parser shows a row of its format. The chosen side is
checked like the rejected one, then dropped and counted.
"""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple, TypedDict

from minibule.errors import InputError
from minibule.wording import Number


class Message(TypedDict):
    """One turn of a chat. The role is system, user or assistant."""

    role: str
    content: str


Prompt = str | list[Message]  # a string is one user turn


# --- The values in a row: each function returns what one stands for, or says what it found ------


def _found(value: object) -> str:
    """What stands in the file, short and in ASCII: `"abc"`, `2.0`, `a list`."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else f"{text[:36]}..."


def _wrong(where: str, value: object, expected: str) -> InputError:
    return InputError(f"{where}: found {_found(value)}, expected {expected}")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character; no tokenizer takes it
        half = f"the lone surrogate \\u{ord(value[error.start]):04x}"
        at = f"character {error.start + 1:,}"
        raise InputError(f"{where}: found {half} at {at}, expected Unicode text") from None
    return value


def _whole(value: object, where: str, least: int = 1) -> int:
    expected = Number(int, least, 2**31 - 1)
    try:
        return int(expected.check(value))
    except ValueError:
        raise _wrong(where, value, str(expected)) from None


def _items(value: object, where: str, expected: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise _wrong(where, value, expected)
    return value


_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def _message(value: object, where: str) -> Message:
    """{"role": "user", "content": "Hi"} or ShareGPT's {"from": "human", "value": "Hi"}."""
    if not isinstance(value, dict):
        raise _wrong(where, value, "a message with role and content")
    by, says = ("from", "value") if "from" in value else ("role", "content")
    role = value.get(by)
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{where}.{by}", role, f"one of {', '.join(_ROLES)}")
    return {"role": _ROLES[role], "content": _text(value.get(says), f"{where}.{says}")}


def _messages(value: object, where: str, expected: str = "a list of messages") -> list[Message]:
    items = _items(value, where, expected)
    return [_message(item, f"{where}[{i}]") for i, item in enumerate(items)]


def turns_of(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _prompt(value: object, where: str) -> Prompt:
    if isinstance(value, str):
        prompt: Prompt = _text(value, where)
    else:
        prompt = _messages(value, where, "text or a list of messages")
    if not any(message["content"].strip() for message in turns_of(prompt)):
        raise InputError(f"{where}: found no text, expected something to answer")
    return prompt


def _reply(value: object, where: str) -> tuple[list[Message], str]:
    """An answer in any of its forms -> the messages before it, if any, and its text.

    "Hello." | {"role": "assistant", "content": "Hello."} | [messages ..., the assistant's last]
    """
    if isinstance(value, str):
        return [], _text(value, where)
    if isinstance(value, dict):
        messages = [_message(value, where)]
    else:
        messages = _messages(value, where, "text, a message or a list of messages")
    *before, last = messages
    if last["role"] != "assistant":
        raise _wrong(where, last["role"], "the last message to be the assistant's")
    return before, last["content"]


def _joined(prompt: Prompt, before: list[Message], where: str) -> Prompt:
    """The prompt of an answer that may repeat it: `before` is empty or ends with the prompt."""
    turns = turns_of(prompt)
    if before and before[-len(turns) :] != turns:
        raise InputError(
            f"{where}: found a conversation that does not continue the prompt, "
            "expected the prompt's messages before the answer, or none"
        )
    return prompt if before in ([], turns) else before


# --- The formats: one parser each, from the fields of a row to what the row says -----------------


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
    texts = _items(value, where, "a list of rejected answers")
    where_counts, value = field_of("rejection_counts", "rejectionCounts", "counts")
    counts = [1] * len(texts) if value is None else _items(value, where_counts, "a list of counts")
    if len(counts) != len(texts):
        raise InputError(
            f"{where_counts}: found {len(counts):,} counts, expected {len(texts):,}: one an answer"
        )
    answers = [
        Answer(
            sys.intern(f"{where}[{k}]"),
            _text(text, f"{where}[{k}]"),
            _whole(n, f"{where_counts}[{k}]"),
        )
        for k, (text, n) in enumerate(zip(texts, counts, strict=True))
    ]
    times = [answer.times for answer in answers]
    where, value = field_of("total_rounds", "totalRounds")
    rounds = sum(times) if value is None else _whole(value, where, least=max(times))
    return Draft(_prompt(row.get("prompt"), "prompt"), answers, rounds)


def _preference(row: _Fields) -> Draft:
    """{"prompt": "Hi", "chosen": "Hello! How can I help?", "rejected": "Hi"}

    Each may also be a list of messages, and a side may repeat the prompt (UltraFeedback binarized):
    {"prompt": "Hi", "chosen": [...], "rejected": [{"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hi"}]}
    """
    return _pair(_prompt(row["prompt"], "prompt"), row)


def _llama_factory(row: _Fields) -> Draft:
    """{"conversations": [{"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Hello!"}, "rejected": {"from": "gpt", "value": "Hi"}}

    A "system" text beside them becomes the first message of the prompt.
    """
    prompt = _messages(row["conversations"], "conversations")
    system = _text(row.get("system", ""), "system")
    if system and prompt[0]["role"] == "system":
        raise InputError("system: found a second system message, expected one")
    if system:
        prompt = [{"role": "system", "content": system}, *prompt]
    return _pair(_prompt(prompt, "conversations"), row)


def _pair(prompt: Prompt, row: _Fields) -> Draft:
    _reply(row["chosen"], "chosen")  # checked as the other side is, then dropped
    before, answer = _reply(row["rejected"], "rejected")
    return Draft(_joined(prompt, before, "rejected"), [Answer("rejected", answer)], discarded=1)


def _conversations(row: _Fields) -> Draft:
    """{"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}],
    "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}]}

    The leading messages that both share are the prompt.
    """
    chosen = _messages(row["chosen"], "chosen")
    before, answer = _reply(row["rejected"], "rejected")
    pairs = zip(before, chosen, strict=False)
    shared = [ours for ours, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if not shared or shared != before:
        raise InputError(
            f"rejected: found {len(shared):,} leading messages shared with chosen and "
            f"{len(before) + 1 - len(shared):,} after them, expected a shared prompt and one answer"
        )
    return Draft(_prompt(shared, "rejected"), [Answer("rejected", answer)], discarded=1)


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh(row: _Fields) -> Draft:
    r"""{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hi"}

    The prompt is everything before the last Assistant turn of the *rejected* side. Where the
    chosen side has another prompt the row is kept all the same, and counted.
    """
    sides = {}
    for side in ("chosen", "rejected"):
        prompt, turn, answer = _text(row[side], side).rpartition("\n\nAssistant:")
        if not turn or not _HH_TURN.match(prompt):
            expected = r'"\n\nHuman: ...\n\nAssistant: ...", or a prompt in a field of its own'
            raise _wrong(side, row[side], expected)
        sides[side] = prompt
    # From here on `prompt` and `answer` are those of the last of the two, the rejected side.
    # "\n\nHuman: Hi" splits into "", "Human", " Hi": nothing, then pairs of speaker and text.
    parts = _HH_TURN.split(prompt)[1:]
    messages: list[Message] = [
        {"role": "user" if by == "Human" else "assistant", "content": says.strip()}
        for by, says in zip(parts[::2], parts[1::2], strict=True)
    ]
    return Draft(
        _prompt(messages, "rejected"),
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
    before, answer = _reply(row[where], where)
    if where == "completion":
        prompt = _joined(_prompt(row["prompt"], "prompt"), before, where)
    else:
        prompt = _prompt(before, "messages before the answer")
    if not isinstance(row["label"], bool):
        raise _wrong("label", row["label"], "true or false")
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
        raise _wrong("completions", row["completions"], "a list of answers")
    texts, scores = [], []
    for k, item in enumerate(row["completions"]):
        where = f"completions[{k}]"
        if not isinstance(item, dict):
            raise _wrong(where, item, "an answer with response and overall_score")
        texts.append(_text(item.get("response"), f"{where}.response"))
        score = item.get("overall_score")
        if score is None:
            score = float("nan")  # compares false with everything: each of its pairs is undecided
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise _wrong(f"{where}.overall_score", score, "a number")
        scores.append(score)

    beaten = [sum(other > score for other in scores) for score in scores]
    unscored = sum(score != score for score in scores)  # only NaN differs from itself
    notes = [f"answers without an overall_score, in no pair: {unscored:,}"] if unscored else []
    if not any(beaten):
        notes.append("no answer beat another")
    return Draft(
        prompt=_prompt(row["instruction"], "instruction"),
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
        raise InputError(f"found {_found(value)}, expected an object{hint}")
    row = {name: content for name, content in value.items() if content is not None}
    for form in FORMATS:
        if all(name in row and isinstance(row[name], form.kind) for name in form.fields):
            parsed = form.parse(row)
            parsed.where = where
            return form.name, parsed
    names = ", ".join(_found(name) for name in list(row)[:12]) or "none"
    raise UnknownFormatError(f"unknown format: found the fields {names}")
