"""The folder of a run: where it is, what is removed from it, and how one goes on with it."""

import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from minibule.errors import InputError
from minibule.files import remove_stale
from minibule.runs.lock import refuse_if_locked
from minibule.runs.manifest import MANIFEST, Manifest
from minibule.runs.settings import TrainConfig

# --export -> what it is called at the end, and the file or folder in the output folder.
EXPORTS = {
    "hf": ("merged", "merged"),
    "gguf": ("GGUF", "model-{dtype}.gguf"),
    "gguf-lora": ("GGUF LoRA", "adapter.gguf"),
}


# What every run writes there, beside its exports.
RESULTS = (
    *(MANIFEST, "config.toml", "metrics.jsonl", "checkpoint", "adapter"),
    *("before.json", "after.json", "report.html"),
)


def output_folder(
    config: TrainConfig, resume: bool = False, settings_file: Path | None = None
) -> Path:
    """The folder to write, checked but not yet made.

    InputError if the run would remove or replace there what no run wrote, or what it reads itself:
    its model, adapter, data, held-out questions or `settings_file`.
    """
    if config.output:
        output = Path(config.output)
        there = next(path for path in (output, *output.absolute().parents) if path.exists())
        if not there.is_dir():
            raise InputError(f"--output {output}: {there} is a file, expected a folder.")
        if not os.access(there, os.W_OK):
            raise InputError(f"--output {output}: may not write in {there}.")
        refuse_if_locked(output)
        earlier = any((output / name).exists() for name in ("metrics.jsonl", "checkpoint"))
        if earlier and not (config.overwrite or resume):
            raise InputError(
                f"--output {output}: found an earlier run there. Choose another folder, "
                "go on with it with --resume, or replace it with --overwrite."
            )
        manifest, targets = Manifest(output), _targets(config, output)
        if manifest.exists or not resume:  # runs of earlier versions have no list, and may go on
            doomed = targets if resume else [*manifest.own, *targets]
            manifest.refuse_foreign(doomed, resume)
        manifest.refuse_inputs(targets, _inputs(config, settings_file))
        return output
    name = Path(config.model).resolve().name if config.model else "tiny"
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in candidates if not path.exists())


def exports(config: TrainConfig, output: Path) -> list[tuple[str, str, Path]]:
    """For each --export: its kind, what it is called at the end, and its path."""
    kinds = [kind.partition(":") for kind in config.export if kind != "none"]
    return [
        (f"{form}{colon}{dtype}", place, output / name.format(dtype=dtype))
        for form, colon, dtype in kinds
        for place, name in (EXPORTS[form],)
    ]


def _targets(config: TrainConfig, output: Path) -> list[Path]:
    """What the run will write, but for its list."""
    names = [output / name for name in RESULTS if name != MANIFEST]
    return [*names, *(path for _, _, path in exports(config, output))]


def _inputs(config: TrainConfig, settings_file: Path | None) -> Iterable[Path]:
    start = Path(config.init_adapter) if config.init_adapter else None
    files = (*config.resolved_files(), start, settings_file)
    return [path for path in files if path is not None]


def take_over(config: TrainConfig, output: Path, resume: bool) -> Manifest:
    """The list of the run's files, empty or as far as it has come; `output` is locked.

    A new run removes what the one before it wrote, so that none of it passes for its own.
    """
    manifest = Manifest(output)
    if not resume:
        manifest.remove_all()
    elif not manifest.exists:
        manifest.settle(*_targets(config, output))
    remove_stale(output)
    return manifest


def check_space(output: Path, needed: int) -> None:
    """InputError if the disk has less than `needed` bytes, with what the run would replace."""
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    freed = sum(path.stat().st_size for path in Manifest(output).own)
    free = shutil.disk_usage(there).free + freed
    if free < needed:
        raise InputError(
            f"--output {output}: the run writes about {needed / 1e6:,.0f} MB, and {there} has "
            f"{free / 1e6:,.0f} MB free. Choose another disk, or fewer --export."
        )


# -- going on --------------------------------------------------------------------------------------
