"""Rejection records: what was asked, what was rejected, and how often.

`read_records(path)` turns a file of preferences into a list of `Record`s, and

    python -m minibule.records FILE... [--output canonical.jsonl]

checks, counts and converts files. `FORMATS` is the table of what is understood; the docstring of
each parser shows a row of its format. The chosen answers are dropped, and counted. The rules:

- A row's format is told by its fields. A field that is null counts as absent; a field that its
  format does not know is ignored.
- Rows of one file with the same prompt become one record, in order of first appearance; the same
  answer again adds to its count. Canonical rows are records already and stay as they are.
- `total_rounds` is how many rounds of judging stand behind a record: in pairwise and unpaired
  formats the rows of its prompt, accepted ones too; in UltraFeedback the decided pairs.
- An empty answer teaches nothing and is skipped by name. Its rounds took place and stay counted.
- Anything else that is wrong is an `InputError` that lists all bad rows of the file.
"""

import argparse
import codecs
import gzip
import importlib
import io
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple, TypedDict

from tqdm import tqdm

from minibule.errors import InputError, listed, run


class Message(TypedDict):
    """One turn of a chat. The role is system, user or assistant."""

    role: str
    content: str


Prompt = str | list[Message]  # a string is one user turn


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt and its K rejected answers; answer k was rejected counts[k] >= 1 times."""

    prompt: Prompt
    rejected: tuple[str, ...]
    counts: tuple[int, ...]
    total_rounds: int  # >= max(counts): a round may reject several answers, but each only once


# What a summary counts, in the order in which it is printed.
TALLY = {
    "rows": "rows",
    "records": "records",
    "answers": "rejected answers",
    "counts": "counts: how often these answers were rejected",
    "empty": "of these answers without text: skipped",
    "discarded": "chosen or accepted answers: discarded",
    "unshared": "rows whose two sides do not share the prompt: the rejected side's is taken",
    "unrejected": "prompts without any rejected answer: no record",
}


@dataclass
class Summary:
    """What a file held, in numbers; `str()` of it is what the command prints."""

    source: str
    tally: Counter[str] = field(default_factory=Counter)  # the keys are those of TALLY
    formats: Counter[str] = field(default_factory=Counter)  # format -> rows
    notes: list[str] = field(default_factory=list)  # what was skipped, each with its row

    def __str__(self) -> str:
        lines = [f"{self.source}: {', '.join(self.formats)}"]
        lines += [f"{self.tally[key]:10,} {text}" for key, text in TALLY.items() if self.tally[key]]
        return "\n".join(lines) + ("\n" + listed(self.notes) if self.notes else "")


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
    # To Python True is an int and 2.0 equals 2; neither is a count.
    if type(value) is not int or not least <= value < 2**31:
        raise _wrong(where, value, f"a whole number from {least:,} to {2**31 - 1:,}")
    return value


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


def _turns(prompt: Prompt) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _prompt(value: object, where: str) -> Prompt:
    if isinstance(value, str):
        prompt: Prompt = _text(value, where)
    else:
        prompt = _messages(value, where, "text or a list of messages")
    if not any(message["content"].strip() for message in _turns(prompt)):
        raise InputError(f"{where}: found no text, expected something to answer")
    return prompt


def _reply(value: object, where: str) -> tuple[list[Message], str]:
    """An answer in any of its forms -> the messages before it, if any, and its text.

    "Hello." | {"role": "assistant", "content": "Hello."} | [messages ..., the assistant's last]
    """
    if isinstance(value, str):
        return [], _text(value, where)
    messages = [value] if isinstance(value, dict) else value
    *before, last = _messages(messages, where, "text, a message or a list of messages")
    if last["role"] != "assistant":
        raise _wrong(where, last["role"], "the last message to be the assistant's")
    return before, last["content"]


def _joined(prompt: Prompt, before: list[Message], where: str) -> Prompt:
    """The prompt of an answer that may repeat it: `before` is empty or ends with the prompt."""
    turns = _turns(prompt)
    if before and before[-len(turns) :] != turns:
        raise InputError(
            f"{where}: found a conversation that does not continue the prompt, "
            "expected the prompt's messages before the answer, or none"
        )
    return prompt if before in ([], turns) else before


# --- The formats: one parser each, from the fields of a row to what the row says -----------------


class _Answer(NamedTuple):
    where: str  # the field it stood in
    text: str
    times: int = 1


@dataclass(slots=True)
class _Row:
    """What a row says: in `rounds` rounds these answers to this prompt were rejected."""

    prompt: Prompt
    rejected: list[_Answer]
    rounds: int = 1
    discarded: int = 0
    unshared: bool = False
    note: str = ""
    where: str = ""  # its place in the file


_Fields = dict[str, object]


def _canonical(row: _Fields) -> _Row:
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
        _Answer(
            sys.intern(f"{where}[{k}]"),
            _text(text, f"{where}[{k}]"),
            _whole(n, f"{where_counts}[{k}]"),
        )
        for k, (text, n) in enumerate(zip(texts, counts, strict=True))
    ]
    times = [answer.times for answer in answers]
    where, value = field_of("total_rounds", "totalRounds")
    rounds = sum(times) if value is None else _whole(value, where, least=max(times))
    return _Row(_prompt(row.get("prompt"), "prompt"), answers, rounds)


def _preference(row: _Fields) -> _Row:
    """{"prompt": "Hi", "chosen": "Hello! How can I help?", "rejected": "Hi"}

    Each may also be a list of messages, and a side may repeat the prompt (UltraFeedback binarized):
    {"prompt": "Hi", "chosen": [...], "rejected": [{"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hi"}]}
    """
    return _pair(_prompt(row["prompt"], "prompt"), row)


def _llama_factory(row: _Fields) -> _Row:
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


def _pair(prompt: Prompt, row: _Fields) -> _Row:
    _reply(row["chosen"], "chosen")  # checked as the other side is, then dropped
    before, answer = _reply(row["rejected"], "rejected")
    return _Row(_joined(prompt, before, "rejected"), [_Answer("rejected", answer)], discarded=1)


def _conversations(row: _Fields) -> _Row:
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
    return _Row(_prompt(shared, "rejected"), [_Answer("rejected", answer)], discarded=1)


_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def _hh(row: _Fields) -> _Row:
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
    return _Row(
        _prompt(messages, "rejected"),
        [_Answer("rejected", answer.strip())],
        discarded=1,
        unshared=sides["chosen"] != sides["rejected"],
    )


def _unpaired(row: _Fields) -> _Row:
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
        return _Row(prompt, [], discarded=1)
    return _Row(prompt, [_Answer(where, answer)])


def _ultrafeedback(row: _Fields) -> _Row:
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
    return _Row(
        prompt=_prompt(row["instruction"], "instruction"),
        rejected=[
            _Answer(f"completions[{k}]", text, times)
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
    parse: Callable[[_Fields], _Row]
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


class _UnknownFormatError(InputError):
    """A row whose fields fit no format; KNOWN is then shown once, after all bad rows."""


def _parse(where: str, value: object) -> tuple[str, _Row]:
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
    raise _UnknownFormatError(f"unknown format: found the fields {names}")


# --- Files: bytes -> (where, value) of each row; for a row that cannot be read, an InputError ----

_Rows = Iterator[tuple[str, object]]


def _not_json(error: Exception, start: int = 0) -> InputError:
    if isinstance(error, json.JSONDecodeError):
        what = error.msg.removesuffix(" at")
        return InputError(f"not valid JSON: {what} at character {error.pos - start + 1:,}")
    if isinstance(error, RecursionError):
        return InputError("found brackets nested too deeply to read")
    return InputError("found a number with too many digits to read")  # int() has a limit


def _json_lines(stream: io.BufferedIOBase) -> _Rows:
    for number, line in enumerate(stream, start=1):
        where = f"line {number:,}"
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)  # some editors put one there
        line = line.rstrip()
        if not line:
            continue
        try:
            yield where, json.loads(line.decode())
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02x} at byte {error.start + 1:,}"
            yield where, InputError(f"not UTF-8 text: {byte} of the line")
        except (ValueError, RecursionError) as error:
            yield where, _not_json(error)


_BLOCK = 1 << 20  # bytes of a JSON array read at a time
_SPACE = re.compile(r"\s*")
_OPENING = re.compile(r"\s*\[(\s*\])?")
_DELIMITER = re.compile(r"\s*([,\]])")
_WRONG_BYTE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of one


def _json_array(stream: io.BufferedIOBase) -> _Rows:
    """The elements of one array, each as soon as it is complete, so that little is in memory."""
    # A byte that is no UTF-8 is carried along as an escape: it must cost only its own row.
    utf8 = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    parse = json.JSONDecoder().raw_decode
    text = utf8.decode(stream.read(_BLOCK))
    opening = _OPENING.match(text)
    if not opening:
        hint = "where each line is an object, name the file .jsonl"
        yield "start", InputError(f"found {_found(text[:20])}, expected one JSON array; {hint}")
        return
    at, row, done = opening.end(), 1, opening[1] is not None
    while not done:
        start = at
        try:
            if space := _SPACE.match(text, at):
                start = space.end()
            value, end = parse(text, start)
            delimiter = _DELIMITER.match(text, end)
            if not delimiter:
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
        except (ValueError, RecursionError) as error:
            # Most likely the block ended within this element: read on and try again.
            if block := stream.read(max(_BLOCK, len(text) - at)):
                text, at = text[at:] + utf8.decode(block), 0
                continue
            yield f"row {row:,}", _not_json(error, start)
            return
        wrong = _WRONG_BYTE.search(text, start, end)
        yield f"row {row:,}", InputError("not UTF-8 text") if wrong else value
        at, row, done = delimiter.end(), row + 1, delimiter[1] == "]"
    if text[at:].strip() or stream.read(_BLOCK).strip():
        yield "end", InputError("found more after the array, expected nothing")


def _parquet(stream: io.BufferedIOBase) -> _Rows:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(
            "reading .parquet needs pyarrow: pip install 'minibule[parquet]'"
        ) from None
    row = 0
    try:
        for batch in parquet.ParquetFile(stream).iter_batches(batch_size=256):
            for value in batch.to_pylist():
                row += 1
                yield f"row {row:,}", value
    except ValueError as error:  # the base of pyarrow's own errors
        yield f"after row {row:,}", InputError(f"not readable as parquet: {error}")


_READERS = {".jsonl": _json_lines, ".json": _json_array, ".parquet": _parquet}


def _rows(path: Path, progress: bool) -> _Rows:
    """Each row of the file as (where, value); damage to the file itself comes as a last row."""
    name = path.name.lower()
    zipped = name.endswith((".jsonl.gz", ".json.gz"))
    read = _READERS.get(Path(name.removesuffix(".gz") if zipped else name).suffix)
    where = "start"
    try:
        if not path.is_file():
            raise InputError("found a folder, expected a file" if path.is_dir() else "no such file")
        if read is None:
            raise InputError("unknown extension, expected .jsonl, .json, .parquet or .gz of a JSON")
        bar = tqdm(
            total=path.stat().st_size,
            desc=path.name,
            unit="B",
            unit_scale=True,
            delay=1.0,  # seconds: a small file needs no bar
            leave=False,
            disable=None if progress else True,  # None: shown on a terminal only
        )
        with path.open("rb") as raw, bar:
            for where, value in read(gzip.GzipFile(fileobj=raw) if zipped else raw):
                yield where, value
                bar.update(raw.tell() - bar.n)
    except EOFError:
        yield f"after {where}", InputError("the gzip data break off: a part of the file is missing")
    except (zlib.error, gzip.BadGzipFile) as error:
        yield f"after {where}", InputError(f"not readable as gzip: {error}")
    except OSError as error:
        yield f"after {where}", InputError(f"cannot be read: {error.strerror or error}")


# --- The way through: file -> rows -> records ----------------------------------------------------


def read_records(path: str | Path) -> list[Record]:
    """Read the rejection records of a file of any known format (see `FORMATS`).

    Parameters
    ----------
    path : str or Path
        A .jsonl, .json (an array), either of them with .gz, or .parquet file.

    Returns
    -------
    list of Record
        In the order in which their prompts first appear.

    Raises
    ------
    InputError
        If the file or any of its rows cannot be read, or it holds no record.

    See Also
    --------
    read_file : the same with a summary and a progress bar.
    write_records : the way back, to canonical JSON lines.
    """
    return read_file(path)[0]


def read_file(path: str | Path, progress: bool = False) -> tuple[list[Record], Summary]:
    """As `read_records`, with the numbers of what was read, discarded and skipped."""
    path = Path(path)
    summary = Summary(_shown(path))
    drafts: dict[object, _Row] = {}  # prompt -> its first row, to which later ones are added
    problems: list[str] = []
    hint = ""
    try:
        for where, value in _rows(path, progress):
            try:
                name, row = _parse(where, value)
            except InputError as error:
                problems.append(f"{where}: {error}")
                if isinstance(error, _UnknownFormatError):
                    hint = "\n" + KNOWN
                continue
            summary.formats[name] += 1
            _count(row, summary)
            draft = drafts.setdefault(_key(row, name), row)
            if draft is not row:
                draft.rejected += row.rejected
                draft.rounds += row.rounds
    except InputError as error:
        raise InputError(f"{summary.source}: {error}") from None
    if problems:
        many = f"{len(problems):,} problem{'s' if len(problems) > 1 else ''}"
        raise InputError(f"{summary.source}: {many}\n{listed(problems)}{hint}")
    return _records(drafts, summary), summary


def _key(row: _Row, format_name: str) -> object:
    """Rows of equal keys make one record: those of one prompt, and each canonical row alone."""
    if format_name == "canonical":
        return row.where
    return tuple((turn["role"], turn["content"]) for turn in _turns(row.prompt))


def _count(row: _Row, summary: Summary) -> None:
    empty = [answer for answer in row.rejected if not answer.text.strip()]
    summary.notes += [f"{row.where}: {answer.where} is empty" for answer in empty]
    if row.note:
        summary.notes.append(f"{row.where}: {row.note}")
    summary.tally.update(
        rows=1,
        counts=sum(answer.times for answer in row.rejected),
        empty=len(empty),
        discarded=row.discarded,
        unshared=row.unshared,
    )


def _records(drafts: dict[object, _Row], summary: Summary) -> list[Record]:
    records = []
    for key in list(drafts):
        draft = drafts.pop(key)  # so that no answer's bookkeeping outlives its record's making
        answers = [(answer.text, answer.times) for answer in draft.rejected if answer.text.strip()]
        if isinstance(key, tuple):  # a prompt's, not a canonical row: equal answers become one
            times: Counter[str] = Counter()
            for text, n in answers:
                times[text] += n
            answers = list(times.items())
        if answers:
            texts, counts = zip(*answers, strict=True)
            records.append(Record(draft.prompt, texts, counts, draft.rounds))
        elif draft.rejected:
            summary.notes.append(
                f"{draft.where}: no record, as all answers to its prompt are empty"
            )
        else:
            summary.tally["unrejected"] += 1
    summary.tally["records"] = len(records)
    summary.tally["answers"] = summary.tally["empty"] + sum(len(r.rejected) for r in records)
    if not records:
        rows = f"{summary.tally['rows']:,} rows, expected at least one"
        notes = "\n" + listed(summary.notes) if summary.notes else ""
        raise InputError(f"{summary.source}: found no rejected answer in {rows}{notes}")
    return records


def _shown(path: Path) -> str:
    """The path as text that can always be printed: a file's name need not be valid Unicode."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def write_records(records: Sequence[Record], path: str | Path) -> None:
    """Write canonical JSON lines to `path`, which is untouched until all of them are written."""
    path = Path(path)
    _check_output(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                row = {
                    "prompt": record.prompt,
                    "rejected_responses": record.rejected,
                    "rejection_counts": record.counts,
                    "total_rounds": record.total_rounds,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        part.replace(path)
    except OSError as error:
        raise InputError(f"{_shown(path)}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _check_output(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{_shown(path)}: found a folder, expected the name of a file to write")
    if not path.parent.is_dir():
        raise InputError(f"{_shown(path)}: no such folder, expected one to write into")
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"{_shown(path)}: expected a name that ends in .jsonl")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minibule.records",
        description="Check and count files of rejected answers, and convert them to one format.",
        epilog=KNOWN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = ".jsonl, .json (an array), either with .gz, or .parquet (needs pyarrow)"
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=kinds)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="canonical.jsonl",
        help="write the records of all files as canonical JSON lines; records of equal prompt in "
        "different files are kept as separate records (default: only check and count)",
    )
    args = parser.parse_args(argv)
    if args.output:
        _check_output(args.output)  # now, not after minutes of reading
        if args.output.resolve() in [path.resolve() for path in args.files]:
            raise InputError(f"{_shown(args.output)}: is an input too, expected another name")

    total = Summary(f"all {len(args.files)} files")
    records: list[Record] = []
    errors: list[str] = []
    for path in args.files:
        try:
            found, summary = read_file(path, progress=True)
        except InputError as error:
            errors.append(str(error))  # the other files are checked all the same
            continue
        print(summary)
        total.tally += summary.tally
        total.formats += summary.formats
        if args.output:
            records += found
    if errors:
        raise InputError("\n".join(errors))
    if len(args.files) > 1:
        print(total)
    if args.output:
        write_records(records, args.output)
        print(f"{_shown(args.output)}: {len(records):,} records written")


if __name__ == "__main__":
    run(main)
