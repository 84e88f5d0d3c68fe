"""What a model does at one moment, saved: before.json and after.json."""

from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, cast, get_args, get_origin, get_type_hints

from minibule.errors import InputError
from minibule.evaluate.position import Position
from minibule.evaluate.questions import Answers
from minibule.files import read_json, whole_file, write_json, writing


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
        write_json(file, _as_dict(snapshot))


def load_snapshot(path: Path) -> Snapshot:
    """Read what `save_snapshot` wrote; InputError where the file is anything else."""
    value = read_json(path)
    try:
        return cast(Snapshot, _typed(Snapshot, value, "the file"))
    except ValueError as error:
        raise InputError(
            f"{path}: not a snapshot of a model by this version of minibule: {error}."
        ) from None


def _as_dict(value: Any) -> Any:
    """Named tuples as objects, all the way down."""
    if hasattr(value, "_asdict"):
        return {name: _as_dict(part) for name, part in value._asdict().items()}
    return [_as_dict(part) for part in value] if isinstance(value, list) else value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """The way back: `value` as the type that `hint` names; ValueError where it is not of it."""
    if get_origin(hint) is UnionType:  # ... | None
        return None if value is None else _typed(get_args(hint)[0], value, where)
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        hints = get_type_hints(hint)
        if isinstance(value, dict) and set(value) == set(hints):
            return hint(*(_typed(hints[name], value[name], name) for name in hints))
        hint = f"an object of {', '.join(hints)}"
    elif get_origin(hint) is list and isinstance(value, list):
        return [_typed(get_args(hint)[0], part, where) for part in value]
    elif get_origin(hint) is dict and isinstance(value, dict):
        return {name: _typed(get_args(hint)[1], part, name) for name, part in value.items()}
    elif hint is float and type(value) is int:
        return float(value)
    elif type(value) is hint:
        return value
    raise ValueError(f"{where}: found a {type(value).__name__}, expected {hint}")
