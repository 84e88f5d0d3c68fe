"""How a run goes on: its settings, its newest checkpoint, and the words that say so."""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minibule.errors import InputError
from minibule.machine.ranks import world
from minibule.runs.checkpoint import Checkpoint, newest_checkpoint
from minibule.runs.folder import RunFolder
from minibule.runs.rounds import rounds_of
from minibule.runs.settings import MAY_CHANGE, TrainConfig, given_settings, read_settings
from minibule.settings import check_kept
from minibule.train.setup import Setup


def resumed_settings(arguments: Mapping[str, Any]) -> TrainConfig:
    """The settings of the run in --output; InputError that lists all that now contradicts them."""
    if not arguments.get("output"):
        raise InputError("--resume without --output: expected the folder of the run to go on with.")
    if arguments.get("overwrite"):
        raise InputError("--resume goes on with a run, --overwrite replaces it: expected one.")
    file = RunFolder(arguments["output"]).settings
    if not file.exists():
        raise InputError(f"{file}: not there, so there is no run to go on with. Omit --resume.")
    if rounds := rounds_of(file.parent):
        raise InputError(
            f"--resume: {file.parent} is of the rounds in {rounds}, which chose what it is trained "
            f"on. Expected python -m minibule.rounds --resume --output {shlex.quote(str(rounds))}"
        )
    stored, given = read_settings(file), given_settings(arguments)
    check_kept(file, stored, given)
    changed = {name: value for name, value in given.items() if name in MAY_CHANGE}
    return dataclasses.replace(stored, **changed)


def find_checkpoint(setup: Setup, folder: RunFolder) -> Checkpoint | None:
    """Where to go on from, None for the start; prints it, and which checkpoints are damaged."""
    checkpoint, damaged = newest_checkpoint(
        folder.checkpoints, setup.identity, setup.adapter.params
    )
    for note in damaged:
        print(f"damaged    {note}")
    if checkpoint is None:
        print("resume     no checkpoint yet: from step 1")
    elif checkpoint.progress.step == setup.steps:
        print(f"resume     all {setup.steps} steps are done: what comes after them is done again")
    else:
        print(
            f"resume     from {checkpoint.path}, step {checkpoint.progress.step} of {setup.steps}"
        )
        if checkpoint.ranks != world().size:
            print(
                f"           of a run of {checkpoint.ranks} ranks, which goes on with "
                f"{world().size}: last digits may differ from those it would have come to"
            )
    return checkpoint


@contextmanager
def resume_hint(
    output: Path,
    name: str = "train",
    where: str = "its last checkpoint",
    final: type[BaseException] | tuple[()] = (),
) -> Iterator[None]:
    """Whatever ends the block early, say how what `python -m minibule.NAME` began goes on.

    final: an error that going on would only meet again.
    """
    try:
        yield
    except final:
        raise
    except BaseException:
        command = f"python -m minibule.{name} --resume --output {shlex.quote(str(output))}"
        tqdm.write(f"the run goes on from {where} with\n  {command}")
        raise
