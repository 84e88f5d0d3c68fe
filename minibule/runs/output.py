"""Where a run may write: the folder is looked at before anything, then taken over or gone on with.

A run removes and replaces what a run wrote, and nothing else: see `manifest`.
"""

import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from minibule.errors import InputError
from minibule.files import check_own, real_path, remove_stale
from minibule.runs.folder import RunFolder
from minibule.runs.lock import refuse_if_locked
from minibule.runs.manifest import Manifest
from minibule.runs.presets import EMBEDDED
from minibule.runs.settings import TrainConfig


def output_folder(
    config: TrainConfig, resume: bool = False, settings_file: Path | None = None
) -> RunFolder:
    """The folder to write, checked but not yet made.

    InputError if the run would remove or replace there what no run wrote, or what it reads itself:
    its model, adapter, data, held-out questions or `settings_file`.
    """
    if not config.output:
        return RunFolder(free_path(Path("runs") / name_of(config.model)))
    if "\0" in config.output:
        raise InputError(f"--output {config.output!r}: no folder can have such a name.")
    folder = RunFolder(config.output)
    output = folder.path
    there = _existing(output)
    if not there.is_dir():
        raise InputError(f"--output {output}: {there} is a file, expected a folder.")
    if not os.access(there, os.W_OK):
        raise InputError(f"--output {output}: may not write in {there}.")
    refuse_if_locked(output)
    check_output(config, folder, resume, settings_file)
    return folder


def name_of(model: str) -> str:
    """What a run's folder is called: as the model's own file or folder, or as the embedded one."""
    return real_path(model).name if model else EMBEDDED


def free_path(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that is not there yet."""
    others = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    return next(one for one in itertools.chain([path], others) if not one.exists())


def check_output(
    config: TrainConfig, folder: RunFolder, resume: bool, settings_file: Path | None
) -> None:
    """InputError if the run would remove or replace what no run wrote, or what it reads.

    Asked twice: before anything is read, and by the holder of the lock, as another run may have
    come and gone in between.
    """
    output = folder.path
    earlier = folder.metrics.exists() or folder.checkpoints.exists()
    if earlier and not (config.overwrite or resume):
        raise InputError(
            f"--output {output}: found an earlier run there. Choose another folder, "
            "go on with it with --resume, or replace it with --overwrite."
        )
    manifest, results = Manifest(output), folder.results(config)
    for path in results:
        check_own(path, "a folder" if path in folder.folders(config) else "a file")
    if resume and not manifest.exists:  # a run of an earlier version had no list, and may go on
        manifest.assume(results)
    manifest.refuse_foreign(results if resume else [*manifest.own, *results], resume)
    manifest.refuse_inputs(results, _inputs(config, settings_file))


def take_over(
    config: TrainConfig, folder: RunFolder, resume: bool, settings_file: Path | None = None
) -> Manifest:
    """The list of the run's files, empty or as far as it has come; the folder is locked.

    A new run removes what the one before it wrote, so that none of it passes for its own.
    """
    check_output(config, folder, resume, settings_file)
    for place in (folder.path, folder.checkpoints):
        remove_stale(place)
    manifest = Manifest(folder.path)
    if not resume:
        manifest.remove_all()
    elif not manifest.exists:
        manifest.settle(*manifest.assume(folder.results(config)))
    return manifest


def check_space(output: Path, needed: int) -> None:
    """InputError if the disk has less than `needed` bytes, with what the run would replace."""
    there = _existing(output)
    freed = sum(path.stat().st_size for path in Manifest(output).own)
    free = shutil.disk_usage(there).free + freed
    if free < needed:
        raise InputError(
            f"--output {output}: the run writes about {needed / 1e6:,.0f} MB, and {there} has "
            f"{free / 1e6:,.0f} MB free. Choose another disk, or fewer --export."
        )


def _existing(output: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(path for path in (output, *output.absolute().parents) if path.exists())


def _inputs(config: TrainConfig, settings_file: Path | None) -> Iterable[Path]:
    start = Path(config.init_adapter) if config.init_adapter else None
    files = (*config.resolved_files(), start, settings_file)
    return [path for path in files if path is not None]
