"""Train the embedded model with each objective on several seeds; print the README's table.

    python tools/objectives.py [--seeds 5]

Greedy acceptance, P(accepted), noise and perplexity are of the held-out prompts (exact sums at
temperature 1), KL(base, p) and the optimality gap of the held-out records. Each figure is the mean
over the seeds, with the lowest and highest.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from minibule.config import resolve
from minibule.errors import run
from minibule.heldout import ACCEPTED, NOISE
from minibule.train import Snapshot, prepare, run_steps, take_snapshot

# name -> flags: the named objectives, the refined ones with both alphas.
RUNS = {
    "literal": {"objective": "literal"},
    "reference, alpha .7": {"objective": "reference", "alpha": "0.7"},
    "reference, alpha .3": {"objective": "reference", "alpha": "0.3"},
    "rate, alpha .7": {"objective": "rate", "alpha": "0.7"},
    "rate, alpha .3": {"objective": "rate", "alpha": "0.3"},
}
COLUMNS = {
    "greedy accepted": ".3f",
    "P(accepted)": ".3f",
    "noise": ".3f",
    "perplexity": ".2f",
    "KL(base, p)": ".4f",
    "gap": ".3f",
    "seconds": ".1f",
}


def figures(snapshot: Snapshot) -> dict[str, float]:
    questions, heldout = snapshot.questions, snapshot.heldout
    return {
        "greedy accepted": questions.greedy[ACCEPTED],
        "P(accepted)": questions.exact[ACCEPTED],
        "noise": questions.exact[NOISE],
        "perplexity": questions.perplexity,
        "KL(base, p)": heldout["kl_to_base"],
        "gap": heldout["optimality_gap"],
    }


def measure(flags: dict[str, str], seed: int) -> tuple[dict[str, float], str, dict[str, float]]:
    """Figures of the base, "hello" after training, and figures after training."""
    job = prepare(resolve(flags | {"seed": str(seed)}))
    before = figures(take_snapshot(job))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run_steps(job, Path(folder) / "metrics.jsonl")
    seconds = time.perf_counter() - started
    after = take_snapshot(job)
    return before, after.probe or "", figures(after) | {"seconds": seconds}


def row(name: str, values: list[dict[str, float]], hellos: list[str]) -> str:
    cells = []
    for column, form in COLUMNS.items():
        numbers = [v[column] for v in values if column in v]
        if not numbers:
            cells.append("")
            continue
        low, high = min(numbers), max(numbers)
        spread = f" ({low:{form}}-{high:{form}})" if high > low else ""
        cells.append(f"{np.mean(numbers):{form}}{spread}")
    said = max(sorted(set(hellos)), key=hellos.count)
    share = hellos.count(said)
    said = said if len(said) <= 50 else said[:47] + "..."
    cells.append(f"{said} ({share} of {len(hellos)})")
    return f"| {name} | " + " | ".join(cells) + " |"


def follows_the_rule(values: list[dict[str, float]]) -> bool:
    """The default must hold noise <= .03 and KL <= .02 while greedy acceptance rises above .9."""
    mean = {name: np.mean([v[name] for v in values]) for name in values[0]}
    return mean["noise"] <= 0.03 and mean["KL(base, p)"] <= 0.02 and mean["greedy accepted"] > 0.9


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    args = parser.parse_args(argv)
    results, hellos, base = defaultdict(list), defaultdict(list), []
    for seed in range(args.seeds):
        for name, flags in RUNS.items():
            before, hello, after = measure(flags, seed)
            results[name].append(after)
            hellos[name].append(hello)
        del before["gap"]  # it is about the objective, and these are all of them
        base.append(before)
    print("| objective | " + " | ".join([*COLUMNS, '"hello"']) + " |")
    print("|" + "---|" * (len(COLUMNS) + 2))
    print(row("base", base, ["hello"] * len(base)))
    for name in RUNS:
        print(row(name, results[name], hellos[name]))
    good = [name for name in RUNS if follows_the_rule(results[name])]
    print(f"\nnoise <= .03, KL(base, p) <= .02 and greedy accepted > .9 in the mean: {good}")


if __name__ == "__main__":
    run(main)
