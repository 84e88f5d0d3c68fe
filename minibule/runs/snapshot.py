"""What a model does at one moment, saved: before.json and after.json."""

from pathlib import Path
from typing import NamedTuple, cast

from minibule.errors import InputError
from minibule.evaluate.position import Position
from minibule.evaluate.questions import Replies
from minibule.files import from_json, read_json, to_json, whole_file, write_json, writing


class Snapshot(NamedTuple):
    """What a model does at one moment.

    sizes       how many `parameters`, `trained` ones, training `records`, their rejected `answers`
                and `accepted` ones, and `heldout` records there are
    probe       the answer to the probe
    questions   the answers to held-out prompts
    heldout     `evaluate` on held-out records
    position    what the model expects at one position of one of them, and what it should; None
                where no answer was rejected
    """

    sizes: dict[str, int]
    probe: str | None
    questions: Replies | None
    heldout: dict[str, float] | None
    position: Position | None


def save_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot as a JSON object."""
    with writing(path), whole_file(path) as file:
        write_json(file, to_json(snapshot))


def load_snapshot(path: Path) -> Snapshot:
    """Read what `save_snapshot` wrote; InputError where the file is anything else."""
    value = read_json(path)
    try:
        snapshot = cast(Snapshot, from_json(Snapshot, value, "the file"))
        _check(snapshot)
    except (ValueError, OverflowError) as error:  # the latter for a number of hundreds of digits
        raise InputError(
            f"{path}: not a snapshot of a model by this version of minibule: {error}."
        ) from None
    return snapshot


def _check(snapshot: Snapshot) -> None:
    """ValueError for what has the right types and cannot be."""
    if (position := snapshot.position) and not position.total > 0:
        raise ValueError(f"position: found a total of {position.total}, expected more")
    for token in position.tokens if position else []:
        for p in (token.base, token.model, token.target, token.optimum):
            if p is not None and not 0 <= p <= 1 + 1e-6:  # a sum of float32s
                raise ValueError(f"position: found a probability of {p}, expected one up to 1")
    if (asked := snapshot.questions) and not asked.replies:
        raise ValueError("replies: found none, expected one for every question")
