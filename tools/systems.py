"""`python tools/experiments.py rounds`: every preset of `minibule.rounds`, at equal sampling.

Each preset runs on the same questions, with budgets made to draw about as many samples in all:
--samples of each question and round. What it keeps of them, and so how much it trains on, is its
own, and stands beside it; `raft:8` passes over that eight times, so that systems which keep little
can be seen training as much as others. Every other number is the preset's, the rate is --lr's.

All rounds lie in --folder and go on where they were: the table can be stopped and gone on with.
"""

import argparse
import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tables import begun_with, cell, in_workers

from minibule.errors import InputError
from minibule.evaluate.perplexity import text_perplexity
from minibule.files import embedded_folder, whole_file
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.models.named import model_path
from minibule.rounds.loop import NothingToLearnError, rounds
from minibule.rounds.presets import PRESETS
from minibule.rounds.settings import RoundsConfig, resolve
from minibule.settings import Source

# A budget's samples, of those that `fixed` would draw: gvm draws its first stage once more, and
# those that ask again come to about twice theirs on questions that are half solved.
SHARE = {"fixed": 1.0, "gvm": 0.5, "balance": 0.5, "positive": 0.5}


class Run(NamedTuple):
    """One system's rounds."""

    preset: str
    epochs: int
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """As it is given: NAME or NAME:EPOCHS."""
        return self.preset if self.epochs == 1 else f"{self.preset}:{self.epochs}"


def config_of(run: Run, given: argparse.Namespace) -> RoundsConfig:
    """A preset as it is, but for the number of its samples and of its passes over them."""
    samples = max(2, round(given.samples * SHARE[PRESETS[run.preset].budget]))
    output = given.folder / f"{run.name.replace(':', '-')}-{run.lr:g}-{run.seed}"
    settings = {
        **{"model": given.model, "output": str(output), "rounds": given.rounds, "threads": 1},
        **{"samples": samples, "lr": run.lr, "seed": run.seed},
        "epochs": float(run.epochs),
    }
    return resolve([Source("the table", settings, False)], run.preset)


def measured(run: Run, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl, the last one with the perplexity of a text about none of it."""
    config = config_of(run, given)
    place = Path(config.output)
    done, seconds = place / "table.json", Path(f"{place}.seconds")
    if not done.exists():
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.suppress(NothingToLearnError),  # in its first round: it stays the base
            _timed(seconds),
        ):
            rounds(config, resume=(place / "rounds.toml").exists())
        lines = [json.loads(line) for line in (place / "rounds.jsonl").read_text().splitlines()]
        lines[-1]["seconds"] = sum(map(float, seconds.read_text().split()))
        source = model_path(config.model or embedded_folder())
        last = lines[-1]["round"]
        model = load_model(source, place / f"round-{last:03d}" / "adapter" if last else None)
        if config.model:  # the embedded one knows no prose
            prose = embedded_folder().parent / "questions" / "prose.txt"
            text = prose.read_text(encoding="utf-8")
            lines[-1]["perplexity"] = text_perplexity(model, load_chat(source), text)
        with whole_file(done) as part:
            part.write_text(json.dumps(lines))
    found: list[dict[str, Any]] = json.loads(done.read_text())
    return found


@contextlib.contextmanager
def _timed(file: Path) -> Iterator[None]:
    """Adds a line to `file`: the processor's seconds, where other work on the machine counts least.

    A run that was stopped and went on has a line for each time.
    """
    started = time.process_time()
    try:
        yield
    finally:
        with file.open("a") as lives:
            lives.write(f"{time.process_time() - started:.1f}\n")


COLUMNS = {
    "greedy": ("eval_greedy", ".2f"),
    "T=1": ("eval_accepted", ".2f"),
    "pass@8": ("eval_pass@8", ".2f"),
    "tokens": ("eval_tokens", ".0f"),
    "ended": ("eval_ended", ".2f"),
    "KL": ("eval_kl", ".2f"),
    "perplexity": ("perplexity", ".1f"),
}


def table(outcomes: dict[Run, list[dict[str, Any]]]) -> Iterator[str]:
    """A line of Markdown a preset and learning rate: means over the seeds, after the last round."""
    yield "| | lr | " + " | ".join(COLUMNS) + " | T=1 by round | sampled | trained | seconds |"
    yield "|" + "---|" * (len(COLUMNS) + 6)
    bases = [lines[0] for lines in outcomes.values()][:1]
    yield f"| base | | {' | '.join(cells(bases))} | | | | |"
    for name, lr in dict.fromkeys((run.name, run.lr) for run in outcomes):
        those = {run: lines for run, lines in outcomes.items() if (run.name, run.lr) == (name, lr)}
        rounds_of = zip(*those.values(), strict=False)  # some may have ended before their last one
        by_round = [cell([line["eval_accepted"] for line in at], ".2f") for at in rounds_of]
        sampled = [_summed(lines, "sampled_tokens") for lines in those.values()]
        trained = [run.epochs * _summed(lines, "trained_tokens") for run, lines in those.items()]
        seconds = [lines[-1]["seconds"] for lines in those.values()]
        last = " | ".join(cells([lines[-1] for lines in those.values()]))
        yield (
            f"| {name} | {lr:g} | {last} | {', '.join(by_round[1:])} | "
            f"{np.mean(sampled) / 1000:.0f}k | {np.mean(trained) / 1000:.0f}k | "
            f"{np.mean(seconds):.0f} |"
        )


def cells(lines: Sequence[dict[str, Any]]) -> list[str]:
    return [
        cell([line[name] for line in lines if name in line], form)
        for name, form in COLUMNS.values()
    ]


def _summed(lines: Sequence[dict[str, Any]], name: str) -> float:
    return sum(line.get(name, 0) for line in lines)


def _preset(word: str) -> tuple[str, int]:
    """A preset and how often it passes over what it keeps, from NAME or NAME:EPOCHS."""
    name, _, epochs = word.partition(":")
    if name not in PRESETS:
        raise InputError(f"--presets: unknown {name}; known: {', '.join(PRESETS)}.")
    if not re.fullmatch(r"[1-9]\d?", epochs or "1"):
        raise InputError(f"--presets {word}: found {epochs} passes, expected 1 to 99.")
    return name, int(epochs or 1)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python tools/experiments.py rounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="", help="the base model (the embedded one)")
    parser.add_argument(
        "--presets", default=",".join(PRESETS), help="by commas, NAME or NAME:EPOCHS (all)"
    )
    parser.add_argument("--lr", default="3e-4", help="learning rates, by commas (3e-4)")
    parser.add_argument("--rounds", type=int, default=3, help="of each (3)")
    parser.add_argument("--samples", type=int, default=8, help="of a question, each round (8)")
    parser.add_argument("--seeds", type=int, default=1, help="of each preset (1)")
    parser.add_argument("--folder", type=Path, required=True, help="where all rounds are kept")
    given = parser.parse_args(argv)
    presets = [_preset(word) for word in given.presets.split(",")]
    shared = {name: getattr(given, name) for name in ("model", "rounds", "samples")}
    begun_with(given.folder, shared)
    runs = [
        Run(preset, epochs, float(lr), seed)
        for preset, epochs in presets
        for lr in given.lr.split(",")
        for seed in range(given.seeds)
    ]
    found = dict(in_workers(measured, [(run, given) for run in runs], "systems"))
    for line in table({run: found[number] for number, run in enumerate(runs)}):
        print(line)
