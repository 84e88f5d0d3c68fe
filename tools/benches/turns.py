"""Engines take turns, round after round, each measurement a process of its own; and the tables."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from benches.names import ranks_of

from minibule.errors import InputError

COMMAND = Path(__file__).parents[1] / "bench.py"  # what is run again, for one engine
Result = dict[str, Any]
Engine = Callable[[argparse.Namespace], Result]


class Bench(NamedTuple):
    """A subcommand of tools/bench.py: its engines, and what it prints of their rounds.

    `report` gets the command's arguments as they were parsed, and as they were given.
    """

    engines: Mapping[str, Engine]
    report: Callable[[argparse.Namespace, list[str]], None]
    add_flags: Callable[[argparse.ArgumentParser], None]
    rounds: int = 5


def in_turn(engines: Sequence[str], argv: list[str], rounds: int) -> dict[str, list[Result]]:
    """Measure each engine once a round, in a process of its own."""
    results: dict[str, list[Result]] = {name: [] for name in engines}
    for number in range(1, rounds + 1):
        for name in engines:
            results[name].append(measure(name, argv))
            shown = {
                key: round(value, 3)
                for key, value in results[name][-1].items()
                if isinstance(value, float)
            }
            print(f"round {number}: {name:<16} {shown}", file=sys.stderr)
    return results


def measure(engine: str, argv: list[str]) -> Result:
    command = [sys.executable, str(COMMAND), *argv, "--engine", engine]
    environment = dict(os.environ)
    if several := ranks_of(engine):
        ranks, threads = several
        environment["OPENBLAS_NUM_THREADS"] = str(threads)
        beside = Path(sys.executable).with_name("mpiexec")
        command = [str(beside) if beside.exists() else "mpiexec", "-n", str(ranks), *command]
    done = subprocess.run(  # noqa: S603 - our own command
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{engine} failed:\n{done.stderr[-2000:]}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def spread(results: Sequence[Result], key: str) -> str:
    """The rounds' median, and their range where there are several."""
    values = [result[key] for result in results if key in result]
    if not values:
        return ""
    digits = max(0, 2 - int(np.floor(np.log10(max(abs(median(values)), 1e-3)))))
    low, middle, high = (f"{x:.{digits}f}" for x in (min(values), median(values), max(values)))
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


def print_table(
    results: Mapping[str, list[Result]],
    columns: Sequence[str],
    against: Mapping[str, tuple[str, str]],
) -> None:
    """Markdown: a row an engine, its columns, and ratios {title: (other engine, column)}."""
    titles = [f"{title} / {other}'s" for title, (other, _) in against.items()]
    print("| engine | " + " | ".join([*columns, *titles]) + " |")
    print("|---" * (1 + len(columns) + len(titles)) + "|")
    for name, rounds in results.items():
        cells = [spread(rounds, column) for column in columns]
        for other, column in against.values():
            pairs = zip(rounds, results[other], strict=True)
            cells.append(
                spread([{"ratio": ours[column] / its[column]} for ours, its in pairs], "ratio")
            )
        print(f"| {name} | " + " | ".join(cells) + " |")
