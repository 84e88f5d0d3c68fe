"""`start`: from the command to the first step of training."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benches.flags import add_data
from benches.turns import Bench, Engine, Result, in_turn, print_table, spread

from minibule.errors import InputError
from minibule.models.load import load_model


def start_import(_args: argparse.Namespace) -> Result:
    """Seconds that `import minibule` adds to an empty Python."""
    bare, ours = (seconds_of([sys.executable, "-c", code]) for code in ("", "import minibule"))
    return {"seconds": ours - bare}


def start_read(args: argparse.Namespace) -> Result:
    """Seconds of the weight files' plain bytes, and of `load_model` as training calls it."""
    started = time.perf_counter()
    for file in args.model.glob("*.safetensors"):
        with file.open("rb", buffering=0) as raw:
            while raw.read(2**24):
                pass
    plain = time.perf_counter() - started
    started = time.perf_counter()
    load_model(args.model, narrow=True)
    return {"seconds": time.perf_counter() - started, "of them the file's bytes": plain}


def start_train(args: argparse.Namespace) -> Result:
    """Seconds from the command to the moment its first step begins.

    That moment is when the step's line of metrics appears, less the seconds that it reports.
    """
    with TemporaryDirectory() as folder:
        flags = ["--model", args.model, "--data", args.data, "--output", f"{folder}/run"]
        flags += ["--steps", "1", "--eval-fraction", "0", "--max-records", "100"]
        flags += ["--max-rejected", "1", "--max-length", "128"]  # the step itself is not the point
        metrics = Path(folder) / "run" / "metrics.jsonl"
        started = time.perf_counter()
        with (Path(folder) / "err").open("w+") as err:
            train = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "minibule.train", *map(str, flags)],
                stdout=subprocess.DEVNULL,
                stderr=err,
            )
            try:
                while not metrics.exists() or not metrics.read_bytes().endswith(b"\n"):
                    if train.poll():
                        err.seek(0)
                        raise InputError(f"the training failed:\n{err.read()[-2000:]}")
                    time.sleep(0.002)
                there = time.perf_counter() - started
            finally:
                train.kill()
                train.wait()
        line = json.loads(metrics.read_text().splitlines()[0])
    return {"seconds": there - line["seconds"]}


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)  # noqa: S603 - our own commands
    return time.perf_counter() - started


ENGINES: dict[str, Engine] = {
    "import minibule": start_import,
    "load_model": start_read,
    "command to first step": start_train,
}


def bench_start(args: argparse.Namespace, argv: list[str]) -> None:
    results = in_turn(list(ENGINES), argv, args.rounds)
    print_table(results, ("seconds", "of them the file's bytes"), {})
    beyond = [
        {"seconds": whole["seconds"] - read["seconds"]}
        for whole, read in zip(results["command to first step"], results["load_model"], strict=True)
    ]
    print(f"\nto the first step beyond load_model: {spread(beyond, 'seconds')} s")


START = Bench(ENGINES, bench_start, add_data)
