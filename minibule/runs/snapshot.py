"""What a model does at one moment, saved and compared: before.json and after.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, cast

from minibule.errors import InputError
from minibule.evaluate.position import Position
from minibule.evaluate.questions import ACCEPTED, NOISE, Answers
from minibule.files import from_json, read_json, to_json, whole_file, write_json, writing


class Snapshot(NamedTuple):
    """What a model does at one moment.

    sizes       how many `parameters`, `trained` ones, training `records` and `answers`, and
                `heldout` records there are
    probe       the answer to the probe
    questions   the answers to held-out prompts
    heldout     `evaluate` on held-out records
    position    what the model expects at one position of one of them, and what it should
    """

    sizes: dict[str, int]
    probe: str | None
    questions: Answers | None
    heldout: dict[str, float] | None
    position: Position


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot as a JSON object."""
    with writing(path), whole_file(path) as file:
        write_json(file, to_json(snapshot))


def load_snapshot(path: Path) -> Snapshot:
    """Read what `save_snapshot` wrote; InputError where the file is anything else."""
    value = read_json(path)
    try:
        return cast(Snapshot, from_json(Snapshot, value, "the file"))
    except ValueError as error:
        raise InputError(
            f"{path}: not a snapshot of a model by this version of minibule: {error}."
        ) from None


Comparison = tuple[str, float, float]


def comparisons(before: Snapshot, after: Snapshot) -> dict[str, list[Comparison]]:
    """What both know, as (what, before, after), under what it was measured on."""
    tables: dict[str, list[Comparison]] = {}
    if before.questions and after.questions:
        was, now = before.questions, after.questions
        rows = [
            ("greedy answer accepted", _of(was.greedy, ACCEPTED), _of(now.greedy, ACCEPTED)),
            ("P(accepted answer), exact", _of(was.exact, ACCEPTED), _of(now.exact, ACCEPTED)),
        ]
        rows += [
            (f"P({style})", share, _of(now.exact, style))
            for style, share in was.exact.items()
            if style != ACCEPTED
        ]
        rows += [
            ("greedy noise", _of(was.greedy, NOISE), _of(now.greedy, NOISE)),
            ("perplexity of accepted answers", was.perplexity, now.perplexity),
        ]
        tables[f"on {len(was.texts):,} held-out prompts"] = rows
    if before.heldout and after.heldout:
        tables[f"on {before.sizes.get('heldout', 0):,} held-out records"] = [
            (name.replace("_", " "), _of(before.heldout, name), value)
            for name, value in after.heldout.items()
        ]
    return tables


def _of(values: Mapping[str, float], name: str) -> float:
    return values.get(name, float("nan"))


def print_comparison(before: Snapshot, after: Snapshot, probe: str) -> None:
    """The table of `comparisons` and the answers to the probe, for the terminal."""
    print()
    print(f"{'':<34}{'before':>12}{'after':>12}")
    for title, rows in comparisons(before, after).items():
        print(title)
        for what, was, now in rows:
            print(f"  {what:<32}{was:>12.4f}{now:>12.4f}")
    if before.probe is not None:
        print(f"\n{probe!r}\n  before: {before.probe}\n  after:  {after.probe}")
