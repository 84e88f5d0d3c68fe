"""The state of a run on disk: all that training needs to go on as if it had never stopped.

A checkpoint is one safetensors file, RUN/checkpoint/step-00000040.safetensors: the adapter and
AdamW's running means as tensors, everything else as a JSON object in the file's metadata, and a
checksum over all of it. There is no random state: the records' order follows from the step.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from minibule.core.counts import Example
from minibule.core.llama import Llama
from minibule.core.lora import Adapter
from minibule.core.optim import AdamW
from minibule.errors import InputError, listed
from minibule.files import from_json, no_file, to_json, whole_file, writing
from minibule.machine.half import widened
from minibule.machine.matrix import Array
from minibule.machine.ranks import world
from minibule.models.peft import fingerprint
from minibule.models.safetensors import check_finite
from minibule.runs.settings import MAY_CHANGE, TrainConfig
from minibule.wording import Number

VERSION = 1
UNSIGNED = "0" * 64  # stands in the checksum's place while the checksum is worked out
MAX_HEADER = 16 * 2**20  # bytes of a file beside its numbers, at most


@dataclass(frozen=True)
class Identity:
    """What a run is made of. A checkpoint goes on only with the same.

    settings    those that what is computed depends on
    model       digest of the base model's weights and shapes, of the adapter's shape, and of the
                numbers that the adapter starts from
    data        digest of the token ids trained on
    """

    settings: Mapping[str, Any]
    model: str
    data: str


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    step              steps done
    skipped           of these, the last ones in a row that were not finite and not applied
    metrics_bytes     length of metrics.jsonl after them
    seconds           that they took
    """

    step: int = 0
    skipped: int = 0
    metrics_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read; `state` and `updates` are for AdamW.restore.

    ranks: how many took its last step.
    """

    path: Path
    progress: Progress
    updates: int
    state: dict[str, Array]
    ranks: int


class DamagedError(Exception):
    """A checkpoint that cannot be used, and why."""


# -- what a run is made of -------------------------------------------------------------------------


def identity(
    model: Llama, start: Adapter | None, examples: Iterable[Example], config: TrainConfig
) -> Identity:
    """Digests of all that is trained with; the settings as JSON would give them back."""
    settings = {name: v for name, v in to_json(config).items() if name not in MAY_CHANGE}
    started = fingerprint(start) if start else ""  # a fresh one follows from the seed
    return Identity(settings, digest_of_model(model) + started, digest_of(examples))


def digest_of_model(model: Llama) -> str:
    """Of the shapes, the adapter's among them, and of the base's weights."""
    shapes = [model.config, model.adapter.config if model.adapter else None]
    digest = hashlib.blake2b(repr(shapes).encode(), digest_size=32)
    for name, weight in sorted(model.weights.items()):
        digest.update(f"{name} {weight.shape}".encode())
        digest.update(np.ascontiguousarray(widened(weight)).data)
    return digest.hexdigest()


def digest_of(examples: Iterable[Example]) -> str:
    data = hashlib.blake2b(digest_size=32)
    for example in examples:
        texts = (example.prompt, *example.answers)
        lengths = [len(ids) for ids in texts]
        judged = (example.rewards,) if example.rewards else ()
        data.update(repr((lengths, example.counts, example.total_rounds, *judged)).encode())
        data.update(np.concatenate(texts).astype("<i8").data)
    return data.hexdigest()


def _check_same(path: Path, found: Identity, expected: Identity) -> None:
    """InputError that lists in what a checkpoint's run differs from this one."""
    differences = [
        f"{name}: {found.settings.get(name)!r} there, {value!r} here"
        for name, value in expected.settings.items()
        if found.settings.get(name) != value
    ]
    if found.model != expected.model:
        differences.append("the base model's weights or shapes, or the adapter that it starts from")
    if found.data != expected.data:
        differences.append("the records' token ids: the data, the tokenizer or the chat template")
    if differences:
        raise InputError(
            f"{path}: cannot go on from there, what is trained with has changed:\n"
            f"{listed(differences)}\nPut it back as it was, or start a new run."
        )


# -- out -------------------------------------------------------------------------------------------


def save_checkpoint(
    folder: Path, run: Identity, progress: Progress, optimiser: AdamW, keep: int
) -> Path:
    """Write a checkpoint and flush it to disk; only then remove all but the newest `keep`."""
    state = optimiser.state()
    try:
        check_finite(optimiser.params.items(), folder)
    except InputError as error:
        raise InputError(
            f"step {progress.step} made numbers too large, and is not saved: {error}\n"
            "A lower --lr may help."
        ) from None
    about = {
        "version": VERSION,
        "identity": to_json(run),
        "progress": to_json(progress),
        "updates": optimiser.steps,
        **({"ranks": world().size} if world().size > 1 else {}),
    }
    data = save(state, {"minibule": json.dumps(about), "checksum": UNSIGNED})
    path = checkpoint_path(folder, progress.step)
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with writing(path), whole_file(path) as partial:
        partial.write_bytes(data.replace(UNSIGNED.encode(), _checksum(data).encode(), 1))
    # Files of later steps are what an earlier life of this run left, damaged.
    steps = _checkpoints(folder)
    kept = [step for step in steps if step <= progress.step][-keep:]
    for step, file in steps.items():
        if step not in kept:
            file.unlink()
    return path


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after so many steps is saved."""
    return folder / f"step-{step:08}.safetensors"


def _checksum(data: bytes) -> str:
    """BLAKE2b of a whole file whose place for the checksum holds UNSIGNED."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Step -> file, oldest first."""
    found = {
        int(digits): file
        for file in folder.glob("step-*.safetensors")
        if (digits := file.stem.removeprefix("step-")).isdecimal()
    }
    return dict(sorted(found.items()))


# -- in --------------------------------------------------------------------------------------------


def newest_checkpoint(
    folder: Path, run: Identity, params: Mapping[str, Array]
) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint in `folder`, and what is wrong with newer ones.

    None: there is no checkpoint at all. InputError where all are damaged, or where the run they
    are of was made of something else.
    """
    shapes = {
        f"{kind}.{name}": p.shape for kind in ("params", "m", "v") for name, p in params.items()
    }
    damaged: list[str] = []
    for file in reversed(_checkpoints(folder).values()):
        try:
            return _read(file, run, shapes), damaged
        except DamagedError as error:
            damaged.append(f"{file}: {error}")
    if damaged:
        raise InputError(f"no checkpoint can be used, start a new run:\n{listed(damaged)}")
    return None, damaged


def _read(path: Path, run: Identity, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """A checkpoint of `run`; DamagedError for any bytes that are not a whole one."""
    try:
        about, header_bytes = _verified(path)
        if about.get("version") != VERSION:
            raise InputError(
                f"{path}: found version {about.get('version')!r} of the checkpoint format, "
                f"expected {VERSION}. Go on with the minibule that wrote it, or start a new run."
            )
        found = from_json(Identity, about["identity"], "identity")
        progress = from_json(Progress, about["progress"], "progress")
        updates, ranks = about["updates"], about.get("ranks", 1)
        for count in (progress.step, progress.skipped, progress.metrics_bytes, updates, ranks):
            Number(int).check(count)
        _check_same(path, found, run)
        numbers_bytes = sum(4 * math.prod(shape) for shape in shapes.values())
        if path.stat().st_size != header_bytes + numbers_bytes:  # nothing larger is read
            raise DamagedError(f"expected {numbers_bytes:,} bytes of numbers")
        state = load(path.read_bytes())  # no map, which a file cut short meanwhile would break
        kinds = {name: (a.shape, a.dtype.str) for name, a in state.items()}
        if kinds != {name: (shape, "<f4") for name, shape in shapes.items()}:
            raise DamagedError("its tensors are not the run's")
        if not all(np.isfinite(a).all() for a in state.values()):
            raise DamagedError("numbers are NaN or infinite")
    except (
        SafetensorError,
        OSError,
        ValueError,
        RecursionError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise DamagedError(f"not a whole checkpoint ({type(error).__name__}: {error})") from None
    return Checkpoint(path, progress, updates, state, ranks)


def _verified(path: Path) -> tuple[dict[str, Any], int]:
    """What a checkpoint says about itself, and its header's bytes, if its checksum is right."""
    if not path.is_file():
        raise DamagedError(no_file(path))
    with path.open("rb") as file:
        length = file.read(8)
        size = int.from_bytes(length, "little")
        if size > MAX_HEADER:
            raise DamagedError("it does not begin as a safetensors file does")
        header = file.read(size)
        metadata = json.loads(header)["__metadata__"]
        claimed = metadata["checksum"]
        if not re.fullmatch("[0-9a-f]{64}", claimed):
            raise DamagedError("its checksum is none")
        digest = hashlib.blake2b(length, digest_size=32)
        digest.update(header.replace(claimed.encode(), UNSIGNED.encode(), 1))
        while chunk := file.read(2**20):
            digest.update(chunk)
    if digest.hexdigest() != claimed:
        raise DamagedError("its checksum does not fit its bytes: the disk or a copy changed it")
    return json.loads(metadata["minibule"]), 8 + size
