"""What rounds are of: the same on all ranks, and from their beginning to their end."""

import hashlib
from collections.abc import Mapping, Sequence

from minibule.core.llama import Llama
from minibule.errors import InputError
from minibule.evaluate.judge import Row
from minibule.files import read_json, whole_file, write_json
from minibule.machine.ranks import world
from minibule.machine.threads import threads
from minibule.program import all_or_nothing
from minibule.rounds.settings import RoundsConfig, resolve
from minibule.runs.checkpoint import digest_of_model
from minibule.runs.rounds import RoundsFolder
from minibule.settings import Source, check_kept, read_toml, settings_of, to_toml


def digests(base: Llama, rows: Sequence[Row], held_rows: Sequence[Row]) -> dict[str, str]:
    """By what the model and the questions are known again, wherever they lie."""
    questions = {"the questions": rows, "the questions held out": held_rows}
    found = {
        name: hashlib.blake2b(repr(those).encode(), digest_size=6).hexdigest()
        for name, those in questions.items()
    }
    return found | {"the model": digest_of_model(base)[:12]}


def check_alike(config: RoundsConfig, given: Mapping[str, str]) -> None:
    """InputError that names what the ranks of these rounds were given other than the first."""
    settings = {name: getattr(config, name) for name in settings_of(RoundsConfig)}
    for name in ("model", "data", "heldout", "output"):  # may lie elsewhere on another machine
        del settings[name]
    settings["threads"] = threads()  # what is measured is dealt out by them, too
    world().check_alike({**given, **settings})


def begin(config: RoundsConfig, folder: RoundsFolder, given: Mapping[str, str]) -> None:
    """Note what the rounds are of; InputError where they were begun with something else."""
    if folder.settings.exists():
        began = resolve([Source(str(folder.settings), read_toml(folder.settings), False)])
        check_kept(folder.settings, began, vars(config))
    there = read_json(folder.inputs) if folder.inputs.exists() else {}
    changed = [name for name in given if there.get(name, given[name]) != given[name]]
    if changed:
        raise InputError(
            f"--resume: {' and '.join(changed)} are not those that the rounds in {folder.path} "
            "began with. Expected the same, wherever they lie now, or a new --output."
        )
    with all_or_nothing():
        with whole_file(folder.settings) as file:  # from here on it can be gone on with
            file.write_bytes(to_toml(config).encode())
        with whole_file(folder.inputs) as file:
            write_json(file, given)
