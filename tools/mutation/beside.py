"""Links, pipes, devices and odd names where a command reads and writes: whole commands are run.

Each case lays out a scene, a folder of good files, and puts something else in the place of one of
them, or where the command is to write. Whatever it is, the command must leave all else as it was.
"""

import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mutation.damage import COMMANDS
from mutation.good import RUN_FLAGS
from mutation.use import Used

from minibule import export
from minibule.generate import __main__ as generate
from minibule.records import __main__ as records
from minibule.report import __main__ as report
from minibule.train import __main__ as train

NAMES = ["x", "a b", "-x", "é", COMMANDS, "n" * 250, "n" * 300, "caf\udce9", "no/such/x", "."]
STAGE = ("f32", "adapter", "run", "few.jsonl", "heldout.jsonl")

# What the commands read and write, below the scene. Where they write, something may be, too.
MODEL = [f"f32/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")]
MODEL += ["f32/tokenizer_config.json", "f32/special_tokens_map.json", "f32/chat_template.jinja"]
ADAPTER = ["adapter", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
RUN = [
    *("run/.lock", "run/config.toml", "run/metrics.jsonl", "run/checkpoint", "run/adapter"),
    *("run/before.json", "run/after.json", "run/report.html", "run/manifest.json"),
    *("run/adapter/adapter_config.json", "run/checkpoint/step-00000002.safetensors"),
    *("run/model-f32.gguf", "run/merged", "run/.config.toml.0a.partial", "run/notes.txt"),
]

Main = Callable[[list[str]], None]


def _commands(rng: random.Random) -> tuple[Main, list[str], list[str]]:
    """A command, its arguments, and the files that it reads or writes."""
    output = f"out/{rng.choice(NAMES)}"
    form = rng.choice([["--format=gguf", "--dtype=f32"], ["--format=gguf-lora"], ["--format=hf"]])
    training = [*RUN_FLAGS, "--steps=1", "--model=f32", "--data=few.jsonl", "--output=run"]
    data = ["few.jsonl", "heldout.jsonl"]
    again = rng.choice(["--overwrite", "--probe=x"])
    exported = rng.choice(["none", "gguf:f32", "hf"])
    return rng.choice(
        [
            (
                generate.main,
                ["--model=f32", "--adapter=adapter", "--prompt=hello", "--max-new-tokens=4"],
                [*MODEL, *ADAPTER],
            ),
            (
                export.main,
                ["--model=f32", "--adapter=adapter", *form, f"--output={output}"],
                [*MODEL, *ADAPTER, output],
            ),
            (records.main, ["few.jsonl", f"--output={output}"], ["few.jsonl", output]),
            (report.main, ["run"], RUN),
            (
                train.main,
                [*training, "--heldout=heldout.jsonl", again, f"--export={exported}"],
                [*RUN, *RUN, *MODEL, *data],
            ),
            (train.main, ["--resume", "--output=run"], RUN),
        ]
    )


def _put(rng: random.Random, path: Path, victim: Path) -> None:
    """Something in the place of `path`, whatever was there."""
    moved = path.with_name("moved")
    try:
        if path.is_symlink() or path.exists():
            path.rename(moved)
        path.parent.mkdir(parents=True, exist_ok=True)
        rng.choice(
            [
                lambda: path.symlink_to(victim / "file"),
                lambda: path.symlink_to(victim / "file"),
                lambda: path.symlink_to(victim / "folder"),
                lambda: path.symlink_to(moved),
                lambda: path.symlink_to(path.name),
                lambda: path.symlink_to("nowhere"),
                lambda: path.symlink_to(rng.choice(["/dev/zero", "/dev/null", "/dev/full"])),
                lambda: os.link(victim / "file", path),
                lambda: os.mkfifo(path),
                lambda: _socket(path),
                lambda: path.mkdir(),
                lambda: shutil.copytree(victim / "folder", path),
                lambda: path.write_bytes(b""),
                lambda: path.write_text(COMMANDS),
                lambda: (path.write_bytes(b"x"), path.chmod(0)),
                lambda: None,  # it is gone
            ]
        )()
    except (OSError, ValueError):  # a name that no file can have, or below what is no folder now
        return


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@contextmanager
def scene(rng: random.Random, folder: Path) -> Iterator[tuple[Callable[[], Used], list[Path]]]:
    """What runs a command in a scene, and the folders in which the command may write."""
    place = folder / "scene"
    try:
        place.mkdir()
        for name in STAGE:
            (shutil.copytree if (folder / name).is_dir() else shutil.copy)(
                folder / name, place / name
            )
        victim = folder / "victim"
        main, arguments, places = _commands(rng)
        (place / "out").mkdir()
        for _ in range(rng.choice([1, 1, 1, 2])):
            _put(rng, place / rng.choice(places), victim)

        def use() -> Used:
            os.chdir(place)
            main(arguments)
            left = [path for path in place.rglob(".*.partial") if not path.name.startswith(".c")]
            if left:
                raise AssertionError(f"left half-written: {left}")
            return Used()

        yield use, [place / "out", place / "run"]
    finally:
        shutil.rmtree(place, ignore_errors=True)
