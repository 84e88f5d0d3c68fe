"""`growth`: how a step's cost grows with tokens, answers, layers and ranks."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
from benches.flags import add_names, add_number
from benches.minibule_step import stepper
from benches.timing import Step, count_tokens
from benches.turns import Bench, Result, in_turn, print_table, spread
from benches.work import random_example, untrained

from minibule.core.counts import Example
from minibule.core.shapes import LlamaConfig
from minibule.errors import InputError
from minibule.machine.threads import peak_memory_gb
from minibule.models.huggingface import load_config
from minibule.models.load import load_model

TABLES: dict[str, tuple[str, tuple[int, ...]]] = {
    "tokens": ("tokens of a sequence, half of them answer", (128, 256, 512, 1024, 2048, 4096)),
    "answers": ("rejected answers of 64 tokens to a prompt of 384", (1, 2, 4, 8)),
    "layers": ("layers adapted, from the last down", (1, 2, 4, 8, 16, 32)),
    "rank": ("rank of the adapter", (4, 8, 16, 32, 64, 128)),
}


def point_of(engine: str) -> tuple[str, int]:
    """ "rank=4" -> ("rank", 4)"""
    table, _, value = engine.partition("=")
    return table, int(value)


def growth_point(args: argparse.Namespace) -> Result:
    """The best of some steps on one record; for layers and ranks it has 256 + 256 tokens."""
    table, value = point_of(args.engine)
    lengths = {"tokens": (value // 2, value // 2), "answers": (384, *[64] * value)}
    layers, rank = value if table == "layers" else 0, value if table == "rank" else 16
    model = load_model(args.model, narrow=True)
    rng, vocab = np.random.default_rng(0), model.config.vocab_size
    step = stepper(model, untrained(model.config, rank, layers), "literal")
    step([random_example(rng, vocab, (32, 32))])
    examples = [random_example(rng, vocab, lengths.get(table, (256, 256)))]
    results = [timed_once(step, examples) for _ in range(args.steps)]
    return min(results, key=lambda result: result["s/step"])


def timed_once(step: Step, examples: list[Example]) -> Result:
    started = time.perf_counter()
    step(examples)
    seconds = time.perf_counter() - started
    rate = count_tokens(examples) / seconds
    return {"s/step": seconds, "tokens/s": rate, "peak GB": peak_memory_gb()}


ENGINES = {
    f"{table}={value}": growth_point for table, (_, values) in TABLES.items() for value in values
}


def points(table: str, most: int, model: LlamaConfig) -> list[str]:
    """The engines of a table up to `most`, and to what the model has."""
    limits = {
        "tokens": model.max_position_embeddings,
        "layers": model.num_hidden_layers,
        "rank": model.hidden_size,
    }
    _, values = TABLES[table]
    most = min(most, limits.get(table, most))
    if most < values[0]:
        raise InputError(f"growth: {table} up to {most}, expected at least up to {values[0]}.")
    return [f"{table}={value}" for value in values if value <= most]


def bench_growth(args: argparse.Namespace, argv: list[str]) -> None:
    config = load_config(args.model)
    drawn = {}
    chosen = {table: points(table, args.most, config) for table in args.tables}
    for table, engines in chosen.items():
        results = in_turn(engines, argv, args.rounds)
        print(f"\n{TABLES[table][0]}:\n")
        print_table(results, ("s/step", "tokens/s", "peak GB"), {"time": (engines[0], "s/step")})
        if table == "answers":
            print_sharing(results)
        drawn[table] = {
            point_of(name)[1]: median(r["s/step"] for r in rounds)
            for name, rounds in results.items()
        }
    if args.plot:
        plot_growth(drawn, args.plot)


def print_sharing(results: Mapping[str, list[Result]]) -> None:
    """What the most answers to a prompt cost, by what they would if each had a prompt to itself."""
    engines = list(results)
    one, most = engines[0], engines[-1]
    _, answers = point_of(most)
    shares = [
        {"share": many["s/step"] / (answers * alone["s/step"])}
        for many, alone in zip(results[most], results[one], strict=True)
    ]
    print(f"\n{answers} answers cost {spread(shares, 'share')} of {answers} x the cost of one")


def plot_growth(tables: Mapping[str, Mapping[int, float]], output: Path) -> None:
    """A panel a table: seconds of a step, both axes logarithmic to the base 2."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(tables), 3), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (table, points) in zip(panels, tables.items(), strict=True):
        axes.loglog(list(points), list(points.values()), "o-", base=2)
        axes.set_xticks(list(points), [f"{value:,}" for value in points])
        axes.set(xlabel=table, ylabel="seconds a step")
        axes.grid(alpha=0.3)
    figure.savefig(output)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "--tables", TABLES, TABLES)
    add_number(parser, "--steps", 1, "counted steps")
    add_number(parser, "--most", 4096, "of anything")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")


GROWTH = Bench(ENGINES, bench_growth, add_flags, rounds=1)
