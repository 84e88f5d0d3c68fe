"""Experiments, one command each; each prints a table of EXPERIMENTS.md.

    python tools/experiments.py methods         losses of rejected answers, the default among them
    python tools/experiments.py objectives      those with a target, and the prior varied alone
    python tools/experiments.py alpha           the contrast alone (0) to the target alone (1)
    python tools/experiments.py knobs           prior, counts and contrast, each against each
    python tools/experiments.py data            fewer records, fewer answers, fewer steps
    python tools/experiments.py unlikelihood    plain unlikelihood (Welleck et al. 2019) beside it
    python tools/experiments.py steps           longer runs: what holds on every seed
    python tools/experiments.py real            every method on a real model: its own flags, --help
    python tools/experiments.py rounds          every preset of rounds: its own flags, --help

Every row is trained on --seeds seeds, counted from --seed; each figure is the mean over them, with
(lowest-highest). A seed is a start of the adapter, an order of the records and a choice of the
held-out ones. Greedy acceptance, P(accepted), noise and perplexity are of the held-out prompts
(exact sums at temperature 1); KL(base, p) and the optimality gap, which is about the row's own
objective and exists where alpha > 0, are of the held-out records. Every other setting of
`python -m minibule.train` can be given too and holds for all rows that do not vary it.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import real
import systems
from tables import cell, in_workers

from minibule.core.counts import Example
from minibule.errors import InputError
from minibule.evaluate.questions import ACCEPTED, NOISE
from minibule.program import run
from minibule.runs.folder import RunFolder
from minibule.runs.settings import TrainConfig, add_arguments, resolve
from minibule.runs.snapshot import Snapshot
from minibule.train.loop import run_steps
from minibule.train.observe import observe
from minibule.train.setup import prepare


class Row(NamedTuple):
    """A row of a table: settings of its runs, and how much of the training data they get (0 = all).

    The data is cut after the held-out records are set apart, so that all rows have the same ones.
    """

    settings: dict[str, str]
    records: int = 0
    answers: int = 0
    trained: bool = True


class Table(NamedTuple):
    """What a command runs, row by row, and on how many seeds where none are given."""

    rows: dict[str, Row]
    seeds: int


def vary(settings: str = "", **data: int) -> Row:
    """A Row from "alpha=0.3 lr=1e-3"; what is not named is as in the demo."""
    return Row(dict(pair.split("=") for pair in settings.split()), **data)


LITERAL, REFERENCE = "objective=literal", "objective=reference alpha=0.3"
UNLIKELIHOOD = "objective=reference prior=uniform counts=position contrast=plain alpha=0"
COMPLEMENT = "objective=complement kl=0.5"  # as in the demo

TABLES = {
    "methods": Table(
        {
            **{
                f"{name}, kl {kl}": vary(f"objective={name} kl={kl}")
                for name in ("complement", "ratio")
                for kl in ("0.1", "0.3", "0.5", "0.7")
            },
            **{
                f"complement, kl .5, lr {lr}": vary(f"{COMPLEMENT} lr={lr}")
                for lr in ("3e-4", "3e-3")
            },
            "reference, contrast ratio": vary("objective=reference contrast=ratio"),
            "reference": vary("objective=reference"),
            **{f"{name}, lr 3e-4": vary(f"objective={name} lr=3e-4") for name in ("nsr", "npo")},
            "nsr, kl .7": vary("objective=nsr kl=0.7"),
            "npo, kl .7": vary("objective=npo kl=0.7"),
        },
        seeds=3,
    ),
    "objectives": Table(
        {
            "literal: uniform, alpha .7": vary(LITERAL),
            "literal, but prior reference": vary(f"{LITERAL} prior=reference"),
            "reference, alpha .7": vary("objective=reference alpha=0.7"),
            "reference, alpha .3": vary(REFERENCE),
            "reference, alpha .3, but prior uniform": vary(f"{REFERENCE} prior=uniform"),
            "rate, alpha .7": vary("objective=rate alpha=0.7"),
            "rate, alpha .3": vary("objective=rate alpha=0.3"),
        },
        seeds=5,
    ),
    "alpha": Table(
        {
            f"{objective}, alpha {alpha}": vary(f"objective={objective} alpha={alpha}")
            for objective in ("reference", "rate")
            for alpha in ("0", "0.1", "0.3", "0.5", "0.7", "0.9", "1")
        },
        seeds=3,
    ),
    "knobs": Table(
        {
            f"{prior}, {counts}, {contrast}": vary(
                f"{REFERENCE} prior={prior} counts={counts} contrast={contrast}"
            )
            for prior in ("uniform", "reference")
            for contrast in ("plain", "choice")
            for counts in ("position", "prefix")
        },
        seeds=3,
    ),
    "data": Table(
        {
            "10 records, 1 answer of each": vary(REFERENCE, records=10, answers=1),
            **{f"{n} records": vary(REFERENCE, records=n) for n in (10, 30, 100)},
            "1 answer a record": vary(REFERENCE, answers=1),
            "2 answers a record": vary(REFERENCE, answers=2),
            **{f"{n} steps": vary(f"{REFERENCE} steps={n}") for n in (15, 30, 60)},
            "all records, 90 steps": vary(REFERENCE),
        },
        seeds=3,
    ),
    # Plain unlikelihood is the contrast alone: - sum_i v(i)/T log(1 - p(i)), v by position, the
    # mean over all rows. It is the token unlikelihood of Welleck et al. 2019 ("Neural Text
    # Generation with Unlikelihood Training") whose negative candidates are the tokens rejected at a
    # position, by their share; its other term, likelihood, needs an answer that was accepted.
    "unlikelihood": Table(
        {
            f"{name}, lr {lr}": vary(f"{settings} lr={lr}")
            for name, settings, rates in (
                ("unlikelihood", UNLIKELIHOOD, ("1e-4", "2e-4", "3e-4", "1e-3")),
                ("literal", LITERAL, ("1e-4", "3e-4", "1e-3")),
                ("reference", REFERENCE, ("1e-4", "3e-4", "1e-3")),
            )
            for lr in rates
        },
        seeds=3,
    ),
    "steps": Table(
        {
            f"alpha {alpha}, lr {lr}, {steps} steps": vary(
                f"objective=reference alpha={alpha} lr={lr} steps={steps}"
            )
            for alpha, lr, lengths in (
                ("0.3", "1e-3", (60, 90, 120, 180)),
                ("0.3", "1.5e-3", (60,)),
                ("0.7", "1e-3", (60, 120)),
            )
            for steps in lengths
        },
        seeds=5,
    ),
}

GREEDY, ACCEPTED_P, KL = "greedy accepted", "P(accepted)", "KL(base, p)"
COLUMNS = {
    GREEDY: ".3f",
    ACCEPTED_P: ".3f",
    "noise": ".3f",
    "perplexity": ".2f",
    KL: ".4f",
    "gap": ".3f",
}
SHOWN = 25  # characters of the probe's answer


class Outcome(NamedTuple):
    """What a model does after training: a figure for each column that has one, and its answer."""

    figures: dict[str, float]
    answer: str


def measure(config: TrainConfig, row: Row) -> Outcome:
    """Train one run of a row, in memory, and ask the model."""
    setup = prepare(config)
    examples = fewer(setup.examples, row.records, row.answers, config.seed)
    setup = dataclasses.replace(setup, examples=examples)
    if row.trained:
        with tempfile.TemporaryDirectory() as folder:
            run_steps(setup, RunFolder(folder))
    return outcome_of(observe(setup, setup.adapter), row.trained)


def fewer(examples: Sequence[Example], records: int, answers: int, seed: int) -> list[Example]:
    """The first `answers` answers of `records` examples drawn at random; 0 = all.

    Of one seed, the draw of more records holds the draw of fewer.
    """
    if records > len(examples):
        raise InputError(
            f"found {len(examples):,} training records, expected at least {records:,}: this "
            "experiment trains on so many of them."
        )
    drawn = np.random.default_rng([seed, 4]).permutation(len(examples))[: records or None]
    some = slice(answers or None)
    return [
        examples[i]._replace(answers=examples[i].answers[some], counts=examples[i].counts[some])
        for i in sorted(drawn)
    ]


def outcome_of(snapshot: Snapshot, trained: bool) -> Outcome:
    figures = {}
    if questions := snapshot.questions:
        figures[GREEDY] = questions.greedy[ACCEPTED]
        figures[ACCEPTED_P] = questions.exact[ACCEPTED]
        figures["noise"] = questions.exact[NOISE]
        figures["perplexity"] = questions.perplexity
    if heldout := snapshot.heldout:
        figures[KL] = heldout["kl_to_base"]
        if trained and "optimality_gap" in heldout:  # the untrained model has no objective
            figures["gap"] = heldout["optimality_gap"]
    return Outcome(figures, snapshot.probe or "")


def measure_all(runs: Sequence[tuple[TrainConfig, Row]]) -> list[Outcome]:
    """The outcome of every run."""
    outcomes = dict(in_workers(measure, runs, "training"))
    return [outcomes[number] for number in range(len(runs))]


# -- what is printed -------------------------------------------------------------------------------


def print_table(outcomes: Mapping[str, Sequence[Outcome]], probe: str) -> None:
    """One line of Markdown a row; columns that nothing is known of are left out."""
    everything = [o for row in outcomes.values() for o in row]
    columns = [name for name in COLUMNS if any(name in o.figures for o in everything)]
    print("| | " + " | ".join([*columns, f'"{probe}"']) + " |")
    print("|" + "---|" * (len(columns) + 2))
    for name, row in outcomes.items():
        cells = [cell([o.figures[c] for o in row if c in o.figures], COLUMNS[c]) for c in columns]
        print(f"| {name} | " + " | ".join([*cells, said([o.answer for o in row])]) + " |")


def said(answers: Sequence[str]) -> str:
    """The commonest answer, cut, and how many of the seeds gave it."""
    text = max(sorted(set(answers)), key=answers.count)
    share = f" ({answers.count(text)} of {len(answers)})" if len(answers) > 1 else ""
    text = " ".join(text.split()).replace("|", "\\|")
    return (text if len(text) <= SHOWN else text[: SHOWN - 3] + "...") + share


def follows_the_rule(figures: Mapping[str, float], base: Mapping[str, float]) -> bool:
    """What the default must do on every seed: help at temperature 1 too, and break no language."""
    return (
        figures[GREEDY] > 0.95
        and figures[ACCEPTED_P] >= 0.75
        and figures["noise"] <= 0.03
        and figures["perplexity"] <= base["perplexity"]
    )


def print_rule(outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """Which rows follow the rule on every seed."""
    figures = {name: [o.figures for o in row] for name, row in outcomes.items()}
    if not all(GREEDY in f for row in figures.values() for f in row):
        return  # no held-out prompts
    (base,) = figures["base"]
    del figures["base"]
    every = [name for name, row in figures.items() if all(follows_the_rule(f, base) for f in row)]
    print(
        f"\non every seed {GREEDY} > .95, {ACCEPTED_P} >= .75, noise <= .03, perplexity not above "
        f"the base's: {'; '.join(every) or 'none'}"
    )


def main(argv: list[str]) -> None:
    for name, of_its_own in (("real", real), ("rounds", systems)):
        if argv[:1] == [name]:
            of_its_own.main(argv[1:])
            return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=TABLES, help="which experiment")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds a row (default: 3 or 5)")
    add_arguments(parser)
    given: dict[str, Any] = vars(parser.parse_args(argv))
    table = TABLES[given.pop("table")]
    seeds = given.pop("seeds")
    seeds = table.seeds if seeds is None else seeds
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: expected at least 1.")
    given["threads"] = given["threads"] or "1"  # of each run; as many run as there are processors

    rows = {"base": Row({}, trained=False)} | table.rows
    first = resolve(given).seed
    runs = [
        (name, resolve(given | row.settings | {"seed": str(seed)}), row)
        for name, row in rows.items()
        for seed in range(first, first + (seeds if row.trained else 1))
    ]
    outcomes: dict[str, list[Outcome]] = {name: [] for name in rows}
    for (name, _, _), outcome in zip(runs, measure_all([r[1:] for r in runs]), strict=True):
        outcomes[name].append(outcome)
    print_table(outcomes, runs[0][1].probe)
    print_rule(outcomes)


if __name__ == "__main__":
    run(main)
