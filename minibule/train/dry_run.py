"""A dry run: what a run will take and write, found out by trying a few of its steps in memory."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minibule.core.counts import total_weight
from minibule.core.forest import pack
from minibule.core.llama import Llama
from minibule.core.optim import AdamW
from minibule.evaluate.heldout import evaluate
from minibule.machine.half import Narrow
from minibule.machine.threads import memory_gb, peak_memory_gb, threads
from minibule.report import figures
from minibule.runs.folder import check_space, exports, output_folder
from minibule.runs.settings import TrainConfig
from minibule.train.loop import take_step
from minibule.train.observe import check_questions, observe
from minibule.train.setup import Job, describe, expected_bytes, prepare

USUAL_STEPS = 3  # tried at most,
USUAL_SECONDS = 20.0  # and no further one after so long


def print_estimate(job: Job, output: Path, take_step: Callable[[int], float]) -> None:
    """Try some steps and print the run's rows, tokens, time, memory, and what it would write.

    take_step: takes the step of that number with the job's model; returns its seconds.
    """
    config, loaded = job.config, memory_gb()
    a_step = config.batch_size * config.grad_accum
    epoch = min(job.steps, math.ceil(len(job.examples) / a_step))  # later ones are like the first
    tokens, rows, tokens_per_s = _rehearse(job, epoch, take_step)
    asking = _snapshot_seconds(job)
    merging = _merged_gb(job.model) if "hf" in config.export else 0.0
    seconds = job.steps * float(np.mean(tokens)) / tokens_per_s
    # Merging happens when training is over, in the memory that its arrays have left.
    peak = max(peak_memory_gb(), loaded + merging)
    print(f"rows       {rows:,} in the {epoch:,} steps of an epoch")
    print(f"tokens     {np.median(tokens):,.0f} a step (median), {max(tokens):,} (largest)")
    print(f"steps      {job.steps:,}, {seconds / job.steps:.2g} s each")
    print(
        f"time       {figures.duration(seconds)} for the steps, "
        f"{figures.duration(asking)} to measure before and after"
    )
    print(f"memory     {peak:.2f} GB at its peak")
    print("would write")
    for name in ("config.toml", "metrics.jsonl", "checkpoint", "adapter"):
        print(f"  {output / name}")
    for _, _, path in exports(config, output):
        print(f"  {path}")
    for name in ("before.json", "after.json", "report.html"):
        print(f"  {output / name}")


def _rehearse(
    job: Job, steps: int, take_step: Callable[[int], float]
) -> tuple[Sequence[int], int, float]:
    """Try the step with the largest passes, then some about the median.

    Returns the tokens of each step, the rows of all, and how many tokens the usual steps compute a
    second. The largest step is tried for the memory it takes, and first, so that the others, tried
    for the time they take, find the process warm.
    """
    at_once = threads()  # passes, see `machine.side_by_side`
    counts, pass_tokens = job.config.resolved_objective().counts, job.config.pass_tokens
    tokens, largest, rows = [], [], 0
    for step in tqdm(range(1, steps + 1), desc="packing", unit="step", delay=1, leave=False):
        examples = job.examples_of(step)
        passes = [len(batch.ids) for batch in pack(examples, counts, pass_tokens, at_once)]
        tokens.append(sum(passes))
        largest.append(sum(sorted(passes)[-at_once:]))
        rows += total_weight(examples)
    take_step(1 + int(np.argmax(largest)))
    usual = np.argsort(np.abs(np.array(tokens) - np.median(tokens)), kind="stable")[:USUAL_STEPS]
    seconds, computed, started = 0.0, 0, time.perf_counter()
    for index in usual:
        seconds += take_step(1 + int(index))
        computed += tokens[index]
        if time.perf_counter() - started > USUAL_SECONDS:
            break
    return tokens, rows, computed / seconds


def _snapshot_seconds(job: Job) -> float:
    """Seconds of both snapshots; of the held-out records only the longest are tried."""
    longest = sorted(job.heldout, key=lambda example: -total_weight([example]))[:4]
    without = dataclasses.replace(job, heldout=[])
    asking = evaluating = 0.0
    for adapter in (job.start, job.adapter):
        started = time.perf_counter()
        observe(without, adapter)
        asked = time.perf_counter()
        asking += asked - started
        if longest:
            model = dataclasses.replace(job.model, adapter=adapter)
            evaluate(model, longest, job.config.resolved_objective(), job.config.pass_tokens)
            evaluating += time.perf_counter() - asked
    share = total_weight(longest) / total_weight(job.heldout) if longest else 1.0
    return asking + evaluating / share


def _merged_gb(model: Llama) -> float:
    """GB that merging takes: a float32 copy of every weight that is changed, or kept narrow."""
    modules = model.adapter.config.modules if model.adapter else ()
    changed = {f"{module}.weight" for module in modules}
    copied = (
        weight.size
        for name, weight in model.weights.items()
        if name in changed or isinstance(weight, Narrow)
    )
    return 4 * sum(copied) / 1e9


def dry_run(config: TrainConfig, settings_file: str | Path | None = None) -> None:
    """Check everything, try a few steps in memory, and print what the run would take and write."""
    output = output_folder(config, settings_file=Path(settings_file) if settings_file else None)
    job = prepare(config)
    check_questions(job)
    check_space(output, expected_bytes(job))
    describe(job)
    optimiser = AdamW(job.adapter.params, config.weight_decay)
    print_estimate(job, output, lambda step: take_step(job, optimiser, step)["seconds"])
