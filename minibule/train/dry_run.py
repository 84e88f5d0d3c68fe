"""A dry run: what a run will take and write, found out by trying a few of its steps in memory."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibule.core.counts import row_count
from minibule.core.forest import pack
from minibule.core.optim import AdamW
from minibule.evaluate.heldout import evaluate
from minibule.machine.ranks import world
from minibule.machine.threads import memory_gb, peak_memory_gb, seconds_since, threads
from minibule.progress import passing_bar
from minibule.report import figures
from minibule.runs.folder import RunFolder
from minibule.runs.output import check_space, output_folder
from minibule.runs.settings import TrainConfig
from minibule.train.loop import reference_of, take_step
from minibule.train.observe import check_questions, observe
from minibule.train.reference import most_bytes
from minibule.train.setup import Setup, check_alike, describe, expected_bytes, prepare

USUAL_STEPS = 3  # tried at most,
USUAL_SECONDS = 20.0  # and no further one after so long


class Tried(NamedTuple):
    """Seconds of a step, and of asking the base about its examples before it, if that is kept."""

    step: float
    asking: float


def print_estimate(setup: Setup, folder: RunFolder, try_step: Callable[[int], Tried]) -> None:
    """Try some steps and print the run's rows, tokens, time, memory, and what it would write.

    try_step: takes the step of that number with the set-up's model.
    """
    config, loaded = setup.config, memory_gb()
    # Of the steps of the first epoch: later ones are like it.
    epoch = min(setup.steps, math.ceil(len(setup.examples) / config.records_a_step))
    tokens, rows, a_token = _rehearse(setup, epoch, try_step)
    asking = _snapshot_seconds(setup)
    exporting = max((export.memory(setup.model) for export in config.exports), default=0)
    seconds = setup.steps * float(np.mean(tokens)) * a_token.step + sum(tokens) * a_token.asking
    kept = 0.0  # of what the base says
    if setup.keeps_reference:
        kept = min(config.reference_memory, most_bytes(setup.model, setup.examples) / 1e9)
    # Exports are made when training is over, in the memory that its arrays have left.
    peak = max(peak_memory_gb() + kept, loaded + exporting / 1e9)
    print(f"rows       {rows:,} in the {epoch:,} steps of an epoch")
    print(f"tokens     {np.median(tokens):,.0f} a step (median), {max(tokens):,} (largest)")
    print(f"steps      {setup.steps:,}, {seconds / setup.steps:.2g} s each")
    print(
        f"time       {figures.duration(seconds)} for the steps, "
        f"{figures.duration(asking)} to measure before and after"
    )
    print(f"memory     {peak:.2f} GB at its peak")
    print("would write")
    for path in folder.results(config):
        print(f"  {path}")


def _rehearse(
    setup: Setup, steps: int, try_step: Callable[[int], Tried]
) -> tuple[Sequence[int], int, Tried]:
    """Try the step with the largest passes, then some about the median.

    Returns the tokens of each step, the rows of all, and how long the usual steps take a token. The
    largest step is tried for the memory it takes, and first, so that the others, tried for the time
    they take, find the process warm.
    """
    at_once = threads()  # passes, see `threads.side_by_side`
    counts, pass_tokens = setup.loss.counts, setup.config.pass_tokens
    tokens, largest, rows = [], [], 0
    for step in passing_bar(range(1, steps + 1), desc="packing", unit="step"):
        examples = setup.examples_of(step)
        passes = [len(batch.ids) for batch in pack(examples, counts, pass_tokens, at_once)]
        tokens.append(sum(passes))
        largest.append(sum(sorted(passes)[-at_once:]))
        rows += row_count(examples)
    try_step(1 + int(np.argmax(largest)))
    usual = np.argsort(np.abs(np.array(tokens) - np.median(tokens)), kind="stable")[:USUAL_STEPS]
    tried, computed, started = list[Tried](), 0, time.perf_counter()
    for index in usual:
        tried.append(try_step(1 + int(index)))
        computed += tokens[index]
        if world().first(seconds_since, started) > USUAL_SECONDS:
            break
    return tokens, rows, Tried(*(sum(seconds) / computed for seconds in zip(*tried, strict=True)))


def _snapshot_seconds(setup: Setup) -> float:
    """Seconds of both snapshots; of the held-out records only the longest are tried."""
    longest = sorted(setup.heldout, key=lambda example: -row_count([example]))[:4]
    without = dataclasses.replace(setup, heldout=[])
    asking = evaluating = 0.0
    for adapter in (setup.start, setup.adapter):
        started = time.perf_counter()
        observe(without, adapter)
        asking += seconds_since(started)
        if longest:
            model = dataclasses.replace(setup.model, adapter=adapter)
            started = time.perf_counter()
            evaluate(model, longest, setup.loss, setup.config.pass_tokens)
            evaluating += seconds_since(started)
    share = row_count(longest) / row_count(setup.heldout) if longest else 1.0
    return asking + evaluating / share


def dry_run(config: TrainConfig, settings_file: str | Path | None = None) -> None:
    """Check everything, try a few steps in memory, and print what the run would take and write."""
    file = Path(settings_file) if settings_file else None
    folder = world().first(output_folder, config, False, file)
    setup = prepare(config)
    check_alike(setup)
    check_questions(setup)
    world().first(check_space, folder.path, expected_bytes(setup))
    describe(setup)
    optimiser = AdamW(setup.adapter.params, config.weight_decay)

    def try_step(step: int) -> Tried:
        if not setup.keeps_reference:
            return Tried(take_step(setup, optimiser, step)["seconds"], 0.0)
        started = time.perf_counter()
        with reference_of(setup, setup.examples_of(step), folder=None) as reference:
            asking = seconds_since(started)
            return Tried(take_step(setup, optimiser, step, reference)["seconds"], asking)

    print_estimate(setup, folder, try_step)
