"""Rejection records: what was asked, what was rejected, and how often.

`read_records(path)` turns a file of preferences into a list of `Record`s, and

    python -m minibule.records FILE... [--output canonical.jsonl]

checks, counts and converts files. What is understood is in `formats.py`. The rules:

- A row's format is told by its fields. A field that is null counts as absent; a field that its
  format does not know is ignored.
- Rows of one file with the same prompt become one record, in order of first appearance; the same
  answer again adds to its count. Canonical rows are records already and stay as they are.
- `total_rounds` is how many rounds of judging stand behind a record: in pairwise and unpaired
  formats the rows of its prompt, accepted ones too; in UltraFeedback the decided pairs.
- An empty answer teaches nothing and is skipped by name. Its rounds took place and stay counted.
- Anything else that is wrong is an `InputError` that lists all bad rows of the file.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minibule.errors import InputError, listed
from minibule.files import whole_file
from minibule.records.formats import KNOWN, Draft, UnknownFormatError, parse_row
from minibule.records.readers import read_items
from minibule.records.values import Prompt, turns_of


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
                continue
            summary.formats[name] += 1
            _count(draft, summary)
            first = drafts.setdefault(_key(draft, name), draft)
            if first is not draft:
                first.rejected += draft.rejected
                first.rounds += draft.rounds
    except InputError as error:
        raise InputError(f"{summary.source}: {error}") from None
    if problems:
        many = f"{len(problems):,} problem{'s' if len(problems) > 1 else ''}"
        raise InputError(f"{summary.source}: {many}\n{listed(problems)}{hint}")
    return _records(drafts, summary), summary


def _key(draft: Draft, format_name: str) -> object:
    """Rows of equal keys make one record: those of one prompt, and each canonical row alone."""
    if format_name == "canonical":
        return draft.where
    return tuple((turn["role"], turn["content"]) for turn in turns_of(draft.prompt))


def _count(draft: Draft, summary: Summary) -> None:
    empty = [answer for answer in draft.rejected if not answer.text.strip()]
    summary.notes += [f"{draft.where}: {answer.where} is empty" for answer in empty]
    if draft.note:
        summary.notes.append(f"{draft.where}: {draft.note}")
    summary.tally.update(
        rows=1,
        counts=sum(answer.times for answer in draft.rejected),
        empty=len(empty),
        discarded=draft.discarded,
        unshared=draft.unshared,
    )


def _records(drafts: dict[object, Draft], summary: Summary) -> list[Record]:
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


def shown(path: Path) -> str:
    """The path as text that can always be printed: a file's name need not be valid Unicode."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def write_records(records: Sequence[Record], path: str | Path) -> None:
    """Write canonical JSON lines to `path`, which is untouched until all of them are written."""
    path = Path(path)
    check_output(path)
    try:
        with whole_file(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
            for record in records:
                row = {
                    "prompt": record.prompt,
                    "rejected_responses": record.rejected,
                    "rejection_counts": record.counts,
                    "total_rounds": record.total_rounds,
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be written: {error.strerror or error}") from error


def check_output(path: Path) -> None:
    """InputError where `write_records` could not write: to be known before minutes of reading."""
    if path.is_dir():
        raise InputError(f"{shown(path)}: found a folder, expected the name of a file to write")
    if not path.parent.is_dir():
        raise InputError(f"{shown(path)}: no such folder, expected one to write into")
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"{shown(path)}: expected a name that ends in .jsonl")
