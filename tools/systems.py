"""`python tools/experiments.py rounds`: every preset of `minibule.rounds`, at equal sampling.

Each preset runs on the same questions, with budgets made to draw about as many samples in all:
--samples of each question and round. What it keeps of them, and so how much it trains on, is its
own, and stands beside it. Every other number is the preset's, the learning rate is --lr's.

All rounds lie in --folder and go on where they were: the table can be stopped and gone on with.
"""

import argparse
import contextlib
import json
import os
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
    lr: float
    seed: int


def config_of(run: Run, given: argparse.Namespace) -> RoundsConfig:
    """A preset as it is, but for the number of its samples."""
    samples = max(2, round(given.samples * SHARE[PRESETS[run.preset].budget]))
    output = given.folder / f"{run.preset}-{run.lr:g}-{run.seed}"
    settings = {
        **{"model": given.model, "output": str(output), "rounds": given.rounds, "threads": 1},
        **{"samples": samples, "lr": run.lr, "seed": run.seed},
    }
    return resolve([Source("the table", settings, False)], run.preset)


def measured(run: Run, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl, the last one with the perplexity of a text about none of it."""
    config = config_of(run, given)
    place = Path(config.output)
    done = place / "table.json"
    if not done.exists():
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.suppress(NothingToLearnError),  # in its first round: it stays the base
        ):
            rounds(config, resume=(place / "rounds.toml").exists())
        lines = [json.loads(line) for line in (place / "rounds.jsonl").read_text().splitlines()]
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
    for preset, lr in dict.fromkeys((run.preset, run.lr) for run in outcomes):
        those = [lines for run, lines in outcomes.items() if (run.preset, run.lr) == (preset, lr)]
        rounds_of = zip(*those, strict=False)  # some may have ended before their last one
        by_round = [cell([line["eval_accepted"] for line in at], ".2f") for at in rounds_of]
        sums = [
            f"{np.mean([sum(line.get(name, 0) for line in lines) for lines in those]) / 1000:.0f}k"
            for name in ("sampled_tokens", "trained_tokens")
        ]
        seconds = np.mean([sum(map(_seconds, lines)) for lines in those])
        last = " | ".join(cells([lines[-1] for lines in those]))
        yield (
            f"| {preset} | {lr:g} | {last} | {', '.join(by_round[1:])} | {' | '.join(sums)} | "
            f"{seconds:.0f} |"
        )


def cells(lines: Sequence[dict[str, Any]]) -> list[str]:
    return [
        cell([line[name] for line in lines if name in line], form)
        for name, form in COLUMNS.values()
    ]


def _seconds(line: dict[str, Any]) -> float:
    return sum(value for name, value in line.items() if name.endswith("_seconds"))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python tools/experiments.py rounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="", help="the base model (the embedded one)")
    parser.add_argument("--presets", default=",".join(PRESETS), help="which, by commas (all)")
    parser.add_argument("--lr", default="3e-4", help="learning rates, by commas (3e-4)")
    parser.add_argument("--rounds", type=int, default=3, help="of each (3)")
    parser.add_argument("--samples", type=int, default=8, help="of a question, each round (8)")
    parser.add_argument("--seeds", type=int, default=1, help="of each preset (1)")
    parser.add_argument("--folder", type=Path, required=True, help="where all rounds are kept")
    given = parser.parse_args(argv)
    if unknown := set(given.presets.split(",")) - set(PRESETS):
        raise InputError(f"--presets: unknown {', '.join(unknown)}; known: {', '.join(PRESETS)}.")
    shared = {name: getattr(given, name) for name in ("model", "rounds", "samples")}
    begun_with(given.folder, shared)
    runs = [
        Run(preset, float(lr), seed)
        for preset in given.presets.split(",")
        for lr in given.lr.split(",")
        for seed in range(given.seeds)
    ]
    found = dict(in_workers(measured, [(run, given) for run in runs], "systems"))
    for line in table({run: found[number] for number, run in enumerate(runs)}):
        print(line)
