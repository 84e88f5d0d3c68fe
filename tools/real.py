"""`python tools/experiments.py real`: every method on SmolLM2-135M-Instruct, asked what it learnt.

The base answers the questions of weights/questions/train.jsonl, 8 times each at temperature 1; a
key word judges; every method trains on the same judged samples, at several learning rates and
seeds. Then other questions of the same kinds are asked, and questions of kinds never trained on,
once greedily and several times at temperature 1; the perplexity of a text that has nothing to do
with any of it shows damage, and so does the distance from the base.

A run takes some minutes. Each is written to --folder as soon as it is done, and is not done again:
the table can be stopped and gone on with. --data trains on other records, for instance another
model's rejected answers; of those with accepted answers that --set max_records spares, the margin
shows whether rejected answers became less likely than these.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tables import begun_with, cell, in_workers

from minibule.core.counts import Example
from minibule.core.forest import pack
from minibule.core.llama import Llama
from minibule.core.step import answer_log_probs
from minibule.errors import InputError
from minibule.evaluate.__main__ import write_samples
from minibule.evaluate.heldout import evaluate
from minibule.evaluate.judge import JUDGES, read_rows
from minibule.evaluate.perplexity import text_perplexity
from minibule.evaluate.sampled import ask, figures
from minibule.files import embedded_folder, whole_file
from minibule.machine.threads import threads
from minibule.methods.table import LOSSES
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.records.records import read_file
from minibule.runs.folder import RunFolder
from minibule.runs.settings import TrainConfig, resolve
from minibule.text.chat import Chat
from minibule.text.examples import tokenize
from minibule.train.loop import run_steps
from minibule.train.setup import prepare

QUESTIONS = embedded_folder().parent / "questions"
SAMPLES = 8  # of each training question
MAX_NEW_TOKENS = 32
PASS_TOKENS = 640
LAST = 60  # records of --data that margins are taken on, at most

# Settings beside a method's own: what a row of the table is called, and what it sets.
ROWS = {
    **{name: f"objective={name}" for name in LOSSES},
    "rate, target alone": "objective=rate alpha=1",
    "reference, contrast ratio": "objective=reference contrast=ratio",
    "nsr, kl .3": "objective=nsr kl=0.3",
    "npo, kl .3": "objective=npo kl=0.3",
    "sft, kl .3": "objective=sft kl=0.3",
    "w-reinforce, kl .3": "objective=w-reinforce kl=0.3",
    "dpo, kl .3": "objective=dpo kl=0.3",
    "grpo, kl .3": "objective=grpo kl=0.3",
    **{f"complement, kl .{n}": f"objective=complement kl=0.{n}" for n in (1, 3)},
    **{f"complement, kl .1, beta .{n}": f"objective=complement kl=0.1 beta=0.{n}" for n in (5, 7)},
}


class Run(NamedTuple):
    """One training run: the row of the table, its learning rate and its seed."""

    row: str
    lr: str
    seed: int


class Job(NamedTuple):
    """What every run needs.

    model, folder    the base model, and where its judged samples lie
    data             the records to train on
    settings         that all runs share
    asked            samples of each held-out question
    """

    model: str
    folder: Path
    data: Path
    settings: dict[str, str]
    asked: int


Outcome = dict[str, Any]  # what one run came to: name -> number or text


def prepare_samples(model: Llama, chat: Chat, folder: Path) -> None:
    """The base's judged answers to the questions: what is trained on, and the base's own row."""
    judge = JUDGES["regex"]
    for name in ("train", "test"):
        path = folder / f"{name}.jsonl"
        if not path.exists():
            rows = read_rows(QUESTIONS / path.name, judge)
            write_samples(
                ask(
                    model, chat, rows, judge, samples=SAMPLES, max_new_tokens=MAX_NEW_TOKENS, seed=0
                ),
                path,
            )


def measure(model: Llama, chat: Chat, job: Job) -> Outcome:
    """What a model answers to questions that it was not trained on, and what else it has lost."""
    judge, outcome = JUDGES["regex"], {}
    for name, few in (("test", ""), ("other", "other ")):
        rows = read_rows(QUESTIONS / f"{name}.jsonl", judge)
        asked = ask(
            model, chat, rows, judge, samples=job.asked, max_new_tokens=MAX_NEW_TOKENS, seed=1
        )
        f = figures(asked)
        outcome |= {f"{few}greedy": f.greedy, f"{few}T=1": f.accepted}
        if name == "test":
            outcome |= {"pass": f.pass_at[job.asked], "tokens": f.tokens, "ended": f.ended}
    text = (QUESTIONS / "prose.txt").read_text(encoding="utf-8")
    outcome["perplexity"] = text_perplexity(model, chat, text)
    outcome["KL"] = evaluate(model, _rejected(job, chat), None, PASS_TOKENS)["kl_to_base"]
    if examples := _judged_both_ways(job, chat):
        outcome["margin"] = margin(model, examples)
    return outcome


def _rejected(job: Job, chat: Chat) -> list[Example]:
    """The base's rejected answers to the test questions: where the distance is measured."""
    records, _ = read_file(job.folder / "test.jsonl")
    return tokenize(records, chat, 512, max_rejected=2)


def _judged_both_ways(job: Job, chat: Chat) -> list[Example]:
    """The last records that have accepted and rejected answers, which --set max_records spares."""
    if "max_records" not in job.settings:
        return []
    records, _ = read_file(job.data)
    spared = records[int(job.settings["max_records"]) :]
    return tokenize(spared[-LAST:], chat, 512, skip_long=True, uses="both")


def margin(model: Llama, examples: Sequence[Example]) -> float:
    """Mean, over records, of how much more likely training made an accepted answer, in nats, less
    the same of a rejected one."""
    batches = list(pack(examples, "prefix", PASS_TOKENS, threads()))
    gain = answer_log_probs(model, batches, examples)
    gain -= answer_log_probs(model.base, batches, examples)
    ends = np.cumsum([len(example.answers) for example in examples])[:-1]
    accepted = [np.array(example.rewards) > 0 for example in examples]
    parts = zip(np.split(gain, ends), accepted, strict=True)
    return float(np.mean([part[good].mean() - part[~good].mean() for part, good in parts]))


def train_and_measure(run: Run, job: Job) -> Outcome:
    """One run, in a process of its own."""
    settings = dict(pair.split("=") for pair in ROWS[run.row].split())
    config: TrainConfig = resolve(
        {"model": job.model, "data": str(job.data)}
        | {"eval_fraction": "0", "threads": "1", "probe": "", "save_every": "0"}
        | job.settings
        | settings
        | {"lr": run.lr, "seed": str(run.seed)}
    )
    started = time.process_time()  # of one thread: other work does not count
    setup = prepare(config)
    with tempfile.TemporaryDirectory() as folder:
        run_steps(setup, RunFolder(folder))
    seconds = time.process_time() - started
    return run._asdict() | {"seconds": seconds} | measure(setup.model, setup.chat, job)


# -- all of them, side by side ---------------------------------------------------------------------


def measure_all(runs: Sequence[Run], job: Job, results: Path) -> list[Outcome]:
    """The outcomes of the runs, those that `results` has already from there."""
    done: dict[Run, Outcome] = {}
    if results.exists():
        for line in results.read_text(encoding="utf-8").splitlines():
            outcome = json.loads(line)
            done[Run(outcome["row"], outcome["lr"], outcome["seed"])] = outcome
    left = [run for run in runs if run not in done]
    for number, outcome in in_workers(train_and_measure, [(run, job) for run in left], "training"):
        done[left[number]] = outcome
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")
    return [done[run] for run in runs]


# -- what is printed -------------------------------------------------------------------------------

COLUMNS = {
    "greedy": ".2f",
    "T=1": ".2f",
    "pass": ".2f",
    "tokens": ".0f",
    "ended": ".2f",
    "KL": ".2f",
    "perplexity": ".1f",
    "other greedy": ".2f",
    "other T=1": ".2f",
    "margin": "+.1f",
    "seconds": ".0f",
}


def table(base: Outcome, outcomes: Sequence[Outcome], asked: int) -> Iterator[str]:
    """A line of Markdown for each row and learning rate: means over the seeds."""
    columns = [name for name in COLUMNS if any(name in o for o in outcomes)]
    names = [f"pass@{asked}" if name == "pass" else name for name in columns]
    yield "| | lr | " + " | ".join(names) + " |"
    yield "|" + "---|" * (len(columns) + 2)
    yield f"| base | | {' | '.join(cells([base], columns))} |"
    lines = dict.fromkeys((o["row"], o["lr"]) for o in outcomes)
    for row, lr in lines:
        of_line = [o for o in outcomes if (o["row"], o["lr"]) == (row, lr)]
        yield f"| {row} | {lr} | {' | '.join(cells(of_line, columns))} |"


def cells(outcomes: Sequence[Outcome], columns: Sequence[str]) -> list[str]:
    """A line's figures, with their spread over seeds where it shows; of the seconds the mean."""
    found = {name: [o[name] for o in outcomes if name in o] for name in columns}
    if found.get("seconds"):
        found["seconds"] = [float(np.mean(found["seconds"]))]
    return [cell(numbers, COLUMNS[name]) for name, numbers in found.items()]


def worst(outcomes: Sequence[Outcome], base: Outcome) -> Iterator[str]:
    """The rule by which a default is chosen: the worst of a row over learning rates and seeds."""
    yield ""
    yield f"worst accepted at T = 1 over learning rates and seeds (base {base['T=1']:.2f}):"
    rows = dict.fromkeys(o["row"] for o in outcomes)
    lowest = {row: min(o["T=1"] for o in outcomes if o["row"] == row) for row in rows}
    for row in sorted(rows, key=lambda row: -lowest[row]):
        runs = sum(o["row"] == row for o in outcomes)
        yield f"- {row}: {lowest[row]:.2f} ({runs} runs)"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python tools/experiments.py real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="smollm2-135m", help="the base model (smollm2-135m)")
    parser.add_argument("--rows", help="rows of the table, separated by semicolons (all)")
    parser.add_argument("--lr", default="3e-5,1e-4,3e-4", help="learning rates (3e-5,1e-4,3e-4)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each row (1)")
    parser.add_argument("--set", default="", help='settings of all runs, as "epochs=2 lora_r=8"')
    parser.add_argument("--data", type=Path, help="records to train on instead of the samples")
    parser.add_argument(
        "--asked", type=int, default=8, help="samples of each held-out question (8)"
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="where samples and results are kept"
    )
    given = parser.parse_args(argv)
    rows = [row.strip() for row in given.rows.split(";")] if given.rows else list(ROWS)
    if unknown := [row for row in rows if row not in ROWS]:
        raise InputError(f"--rows: unknown {', '.join(unknown)}; known: {'; '.join(ROWS)}.")
    folder: Path = given.folder
    settings = dict(pair.split("=") for pair in given.set.split())
    shared = {"model": given.model, "data": given.data and str(given.data), "set": settings}
    begun_with(folder, shared | {"asked": given.asked})
    job = Job(given.model, folder, given.data or folder / "train.jsonl", settings, given.asked)

    base_file = folder / "base.json"
    if not base_file.exists():
        model, chat = load_model(given.model), load_chat(given.model)
        prepare_samples(model, chat, folder)
        with whole_file(base_file) as part:
            part.write_text(json.dumps(measure(model, chat, job)))
    base: Outcome = json.loads(base_file.read_text())
    runs = [
        Run(row, lr, seed)
        for row in rows
        for lr in given.lr.split(",")
        for seed in range(given.seeds)
    ]
    outcomes = measure_all(runs, job, folder / "results.jsonl")
    for line in (*table(base, outcomes, given.asked), *worst(outcomes, base)):
        print(line)
