"""The table of all kinds: which good files are damaged, how, and what then reads them."""

import importlib.util
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from mutation import beside, reference, use
from mutation.binary import (
    damaged_checkpoint,
    damaged_gguf,
    damaged_parquet,
    damaged_safetensors,
)
from mutation.damage import (
    Damage,
    damaged_json,
    damaged_lines,
    damaged_template,
    damaged_toml,
)
from mutation.good import random_model
from mutation.rows import damaged_array, damaged_gzip, damaged_record
from mutation.use import Used

from minibule.machine.matrix import Array
from minibule.models.chat_files import load_chat

Reference = Callable[[Path], Array | str | None]


class Case(NamedTuple):
    """What is run, what memory its damaged bytes excuse, where it may write, and whose result it
    must have."""

    run: Callable[[], Used]
    memory: int = 0
    free: tuple[Path, ...] = ()
    clean: Array | str | None = None
    reference: Callable[[], Array | str | None] = lambda: None


class Kind:
    """A kind of cases, so many of them in a whole run."""

    cases: int = 1000
    reference: Reference | None = None

    def case(self, rng: random.Random, folder: Path, number: int):  # type: ignore[no-untyped-def]
        """Within the block the good files in `folder` are damaged, in a way drawn from `rng`."""
        raise NotImplementedError

    def warm(self, folder: Path) -> None:
        """Do once what is done once in a process: imports, above all."""


@dataclass
class Damaged(Kind):
    """One file at a time is damaged where it lies.

    use         of the file, or of the folder it is in where `folder` says so
    writes      what it may write, below the good files
    per_byte    bytes of memory that it may take for each of the file's
    reference   of the same path, what another program makes of it
    clean       file -> what comes of it when it is not damaged
    """

    files: tuple[str, ...]
    damage: Damage
    use: Callable[[Path], Used]
    folder: bool = True
    cases: int = 1000
    writes: tuple[str, ...] = ()
    reference: Reference | None = None
    per_byte: int = 2
    clean: dict[str, Array | str | None] = field(default_factory=dict)

    def warm(self, folder: Path) -> None:
        if self.reference:
            self.reference(self._target(folder / self.files[0]))
        for file in self.files:
            if "records" not in file or file.endswith("parquet"):  # those are of lines to choose of
                self.clean[file] = self.use(self._target(folder / file)).result

    def _target(self, path: Path) -> Path:
        return path.parent if self.folder else path

    @contextmanager
    def case(self, rng: random.Random, folder: Path, number: int) -> Iterator[Case]:
        file = self.files[number % len(self.files)]
        path = folder / file
        target, good, ask = self._target(path), path.read_bytes(), self.reference
        damaged = self.damage(rng, good)
        path.write_bytes(damaged)
        try:
            yield Case(
                run=lambda: self.use(target),
                memory=self.per_byte * len(damaged),
                free=tuple(folder / name for name in self.writes),
                clean=self.clean.get(file),
                reference=lambda: ask(target) if ask else None,
            )
        finally:
            path.write_bytes(good)


@dataclass
class Beside(Kind):
    """A command among links, pipes and devices: see `beside`."""

    cases: int = 3000

    @contextmanager
    def case(self, rng: random.Random, folder: Path, number: int) -> Iterator[Case]:
        with beside.scene(rng, folder) as (run, free):
            yield Case(run, free=tuple(free))


def kinds(folder: Path) -> dict[str, Kind]:
    """Every kind of file that minibule reads, of which a good one is in `folder`."""
    chat, model = load_chat(folder / "model"), random_model()

    def read(path: Path) -> Used:
        return use.use_records(path, chat)

    def ask(path: Path) -> Used:
        return use.use_heldout(path, model, chat)

    ggufs = tuple(f"{dtype}.gguf" for dtype in ("f32", "bf16", "q8_0", "q4_0"))
    report = ("run/report.html", "run/manifest.json")
    safetensors, of_folder = damaged_safetensors, reference.folder_logits
    found: dict[str, Kind] = {
        "records.jsonl": Damaged(("records.jsonl",), damaged_record, read, False, 6000),
        "records.json": Damaged(("records.json",), damaged_array, read, False, 2000),
        "records.jsonl.gz": Damaged(("records.jsonl.gz",), damaged_gzip, read, False, 2000),
        "heldout": Damaged(("heldout.jsonl",), damaged_lines, ask, False),
        "config.toml": Damaged(
            ("config.toml",), damaged_toml, use.use_toml, False, 1500, ("again.toml",)
        ),
        "safetensors": Damaged(
            ("model/model.safetensors", "f32/model.safetensors"),
            *(safetensors, use.use_model, True, 1500, (), of_folder),
        ),
        "shards": Damaged(
            ("sharded/model-1.safetensors",),
            *(safetensors, use.use_model, True, 1000, (), of_folder),
        ),
        "index": Damaged(
            ("sharded/model.safetensors.index.json",),
            *(damaged_json, use.use_model, True, 1000, (), of_folder),
        ),
        "config.json": Damaged(
            ("model/config.json",), damaged_json, use.use_folder, True, 1500, (), of_folder
        ),
        "generation_config": Damaged(("model/generation_config.json",), damaged_json, use.use_chat),
        "tokenizer_config": Damaged(
            ("model/tokenizer_config.json",),
            *(damaged_json, use.use_chat, True, 1000, (), reference.template_text),
        ),
        "tokenizer": Damaged(("model/tokenizer.json",), damaged_json, use.use_chat, True, 1500),
        "template": Damaged(
            ("template/chat_template.jinja",),
            *(damaged_template, use.use_chat, True, 1000, (), reference.template_text),
            per_byte=400,  # all may be text to cut into tokens, for which its library takes so much
        ),
        "adapter_config": Damaged(
            ("adapter/adapter_config.json",),
            *(damaged_json, use.use_adapter, True, 1000, (), reference.adapter_logits),
        ),
        "adapter": Damaged(
            ("adapter/adapter_model.safetensors",),
            *(safetensors, use.use_adapter, True, 1000, (), reference.adapter_logits),
        ),
        "gguf": Damaged(
            ggufs, damaged_gguf, use.use_folder, False, 2000, (), reference.gguf_logits
        ),
        "checkpoint": Damaged(
            ("checkpoint/step-00000002.safetensors",), damaged_checkpoint, use.use_checkpoint
        ),
        "metrics": Damaged(("run/metrics.jsonl",), damaged_lines, use.use_run, True, 1000, report),
        "before and after": Damaged(
            ("run/before.json", "run/after.json"), damaged_json, use.use_run, True, 1500, report
        ),
        "settings of a run": Damaged(
            ("run/config.toml",), damaged_toml, use.use_run, True, 1000, report
        ),
        "manifest": Damaged(("run/manifest.json",), damaged_json, use.use_run, True, 1000, report),
        "beside": Beside(),
    }
    if importlib.util.find_spec("pyarrow"):
        parquet = tuple(path.name for path in sorted(folder.glob("*.parquet")))
        found["parquet"] = Damaged(parquet, damaged_parquet, read, False, 1500)
    # What imports a reference program comes last: it makes every copy of the process slower.
    return dict(sorted(found.items(), key=lambda item: item[1].reference is not None))
