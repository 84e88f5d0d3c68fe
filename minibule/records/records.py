"""Rejection records: what was asked, what was rejected, and how often.

`read_records(path)` turns a file of preferences into a list of `Record`s, and

    python -m minibule.records FILE... [--output canonical.jsonl]

checks, counts and converts files. What is understood is in `formats.py`. The rules:

- A row's format is told by its fields. A field that is null counts as absent; a field that its
  format does not know is ignored.
- Rows of one file with the same prompt become one record, in order of first appearance; the same
  answer again adds to its count. Canonical rows are records already and stay as they are.
- Accepted answers are kept where a format has them, in the record of the prompt they answer. An
  answer may be rejected in one row and accepted in another: it then is both.
- `total_rounds` is how many rounds of judging stand behind a record: in pairwise and unpaired
  formats the rows of its prompt, accepted ones too; in UltraFeedback the decided pairs.
- An empty answer teaches nothing and is skipped by name. Its rounds took place and stay counted.
- A prompt without any rejected answer makes a record only where that is asked for (`unrejected`):
  most methods learn nothing from it.
- Anything else that is wrong is an `InputError` that lists all bad rows of the file.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minibule.errors import InputError, listed
from minibule.files import whole_file
from minibule.records.formats import KNOWN, Answer, Draft, UnknownFormatError, parse_row
from minibule.records.readers import read_items
from minibule.records.values import Prompt, turns_of
from minibule.wording import printable


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt and its K rejected answers; answer k was rejected counts[k] >= 1 times.

    Beside them, where the file has them, the accepted answers: accepted[j] was so
    accepted_counts[j] >= 1 times. Only one of the two sides may be empty. `rejected_ended[k]` and
    `accepted_ended[j]` say whether the answer came to its own end, in any of its occurrences, or
    was cut off; () where all of them ended.
    """

    prompt: Prompt
    rejected: tuple[str, ...]
    counts: tuple[int, ...]
    total_rounds: int  # >= max(counts): a round may reject several answers, but each only once
    accepted: tuple[str, ...] = ()
    accepted_counts: tuple[int, ...] = ()
    rejected_ended: tuple[bool, ...] = ()
    accepted_ended: tuple[bool, ...] = ()


MOST_PROBLEMS = 10_000  # in one file: what has more is no file of records

# What a summary counts, in the order in which it is printed.
TALLY = {
    "rows": "rows",
    "records": "records",
    "accepted_only": "of these records without any rejected answer",
    "answers": "rejected answers",
    "counts": "counts: how often these answers were rejected",
    "empty": "of these answers without text: skipped",
    "accepted": "accepted answers: kept for the methods that learn from them",
    "accepted_counts": "counts: how often these answers were accepted",
    "accepted_empty": "accepted answers without text: skipped",
    "cut": "answers cut off before their own end",
    "discarded": "answers that were neither, or to another prompt: discarded",
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
        In the order in which their prompts first appear; each has a rejected answer.

    Raises
    ------
    InputError
        If the file or any of its rows cannot be read, or it holds no record.

    See Also
    --------
    read_file : the same with a summary, a progress bar and, if wanted, more records.
    write_records : the way back, to canonical JSON lines.
    """
    return read_file(path)[0]


def read_file(
    path: str | Path, progress: bool = False, unrejected: bool = False
) -> tuple[list[Record], Summary]:
    """As `read_records`, with the numbers of what was read, discarded and skipped.

    With `unrejected`, prompts that have accepted answers only make records too.
    """
    path = Path(path)
    summary = Summary(shown(path))
    drafts: dict[object, Draft] = {}  # prompt -> what its rows say, put together
    problems: list[str] = []
    hint = ""
    try:
        for where, value in read_items(path, progress):
            try:
                name, draft = parse_row(where, value)
            except InputError as error:
                problems.append(f"{where}: {error}")
                if isinstance(error, UnknownFormatError):
                    hint = "\n" + KNOWN
                if len(problems) == MOST_PROBLEMS:
                    break
                continue
            summary.formats[name] += 1
            _count(draft, summary)
            first = drafts.setdefault(_key(draft, name), draft)
            if first is not draft:
                first.rejected += draft.rejected
                first.accepted += draft.accepted
                first.rounds += draft.rounds
    except InputError as error:
        raise InputError(f"{summary.source}: {error}") from None
    if problems:
        many = f"{len(problems):,} problem{'s' if len(problems) > 1 else ''}"
        if len(problems) == MOST_PROBLEMS:
            many += ", and more may come: the rest is not read"
        raise InputError(f"{summary.source}: {many}\n{listed(problems)}{hint}")
    return _records(drafts, summary, unrejected), summary


def _key(draft: Draft, format_name: str) -> object:
    """Rows of equal keys make one record: those of one prompt, and each canonical row alone."""
    if format_name == "canonical":
        return draft.where
    return tuple((turn["role"], turn["content"]) for turn in turns_of(draft.prompt))


def _count(draft: Draft, summary: Summary) -> None:
    empty, accepted_empty = (
        [answer for answer in answers if not answer.text.strip()]
        for answers in (draft.rejected, draft.accepted)
    )
    summary.notes += [f"{draft.where}: {a.where} is empty" for a in empty + accepted_empty]
    if draft.note:
        summary.notes.append(f"{draft.where}: {draft.note}")
    summary.tally.update(
        rows=1,
        counts=sum(answer.times for answer in draft.rejected),
        empty=len(empty),
        accepted_empty=len(accepted_empty),
        discarded=draft.discarded,
        unshared=draft.unshared,
    )


def _records(drafts: dict[object, Draft], summary: Summary, unrejected: bool) -> list[Record]:
    records = []
    for key in list(drafts):
        draft = drafts.pop(key)  # so that no answer's bookkeeping outlives its record's making
        merge = isinstance(key, tuple)  # a prompt's, not a canonical row: equal answers become one
        rejected, counts, rejected_ended = _columns(draft.rejected, merge)
        accepted, accepted_counts, accepted_ended = _columns(draft.accepted, merge)
        if rejected or (unrejected and accepted):
            record = Record(
                draft.prompt,
                rejected,
                counts,
                draft.rounds,
                accepted,
                accepted_counts,
                rejected_ended,
                accepted_ended,
            )
            records.append(record)
        elif draft.rejected:
            summary.notes.append(
                f"{draft.where}: no record, as all rejected answers to its prompt are empty"
            )
        else:
            summary.tally["unrejected"] += 1
    _count_kept(records, summary)
    if not records:
        kind = "answer" if unrejected else "rejected answer"
        rows = f"{summary.tally['rows']:,} rows, expected at least one"
        notes = "\n" + listed(summary.notes) if summary.notes else ""
        raise InputError(f"{summary.source}: found no {kind} in {rows}{notes}")
    return records


def _columns(
    answers: list[Answer], merge: bool
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[bool, ...]]:
    """Of the answers that have text: texts, counts, and whether they ended, () if all did.

    With `merge` equal ones become one, which ended if any of them did.
    """
    kept = [answer for answer in answers if answer.text.strip()]
    if merge:
        distinct: dict[str, Answer] = {}
        for text, times, ended in ((a.text, a.times, a.ended) for a in kept):
            before = distinct.get(text, Answer("", text, 0, False))
            distinct[text] = Answer("", text, before.times + times, before.ended or ended)
        kept = list(distinct.values())
    ends = tuple(answer.ended for answer in kept)
    return (
        tuple(answer.text for answer in kept),
        tuple(answer.times for answer in kept),
        () if all(ends) else ends,
    )


def _count_kept(records: list[Record], summary: Summary) -> None:
    tally = summary.tally
    tally["records"] = len(records)
    tally["accepted_only"] = sum(not record.rejected for record in records)
    tally["answers"] = tally["empty"] + sum(len(record.rejected) for record in records)
    tally["accepted"] = sum(len(record.accepted) for record in records)
    tally["accepted_counts"] = sum(sum(record.accepted_counts) for record in records)
    tally["cut"] = sum((r.rejected_ended + r.accepted_ended).count(False) for r in records)


def shown(path: Path) -> str:
    """The path as text that can always be printed: a file's name may hold any bytes."""
    return printable(str(path))


def write_records(records: Sequence[Record], path: str | Path) -> None:
    """Write canonical JSON lines to `path`, which is untouched until all of them are written."""
    path = Path(path)
    check_output(path)
    try:
        with whole_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                file.write(json.dumps(_row(record), ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be written: {error.strerror or error}") from error


def _row(record: Record) -> dict[str, object]:
    """A canonical row. The rejected side always stands in it, of the rest what the record has."""
    more = {
        "rejected_ended": record.rejected_ended,
        "accepted_responses": record.accepted,
        "acceptance_counts": record.accepted_counts,
        "accepted_ended": record.accepted_ended,
    }
    return {
        "prompt": record.prompt,
        "rejected_responses": record.rejected,
        "rejection_counts": record.counts,
        "total_rounds": record.total_rounds,
        **{name: values for name, values in more.items() if values},
    }


def check_output(path: Path) -> None:
    """InputError where `write_records` could not write: to be known before minutes of reading."""
    if path.is_dir():
        raise InputError(f"{shown(path)}: found a folder, expected the name of a file to write")
    if path.exists() and not path.is_file():
        raise InputError(f"{shown(path)}: found a pipe or a device, expected the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{shown(path)}: no such folder, expected one to write into")
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"{shown(path)}: expected a name that ends in .jsonl")
