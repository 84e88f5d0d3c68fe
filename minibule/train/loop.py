"""Train a LoRA adapter from rejection records.

    python -m minibule.train                                  the embedded model, a few seconds
    python -m minibule.train --model DIR --data FILE          your own

The way through: records -> examples -> forest -> llama.forward -> loss -> llama.backward -> optim
-> checkpoint, export. What a run needs is read in `job`; here it is taught.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minibule.core.forest import total_weight
from minibule.core.optim import AdamW, clip_gradients, learning_rate
from minibule.core.step import gradients
from minibule.errors import InputError
from minibule.evaluate.heldout import evaluate
from minibule.export import export
from minibule.files import flush_to_disk, whole_file
from minibule.machine.threads import memory_gb, peak_memory_gb
from minibule.models.peft import save_adapter
from minibule.program import leave, stop_after_step
from minibule.report.sections import write_report
from minibule.runs.checkpoint import Checkpoint, Progress, checkpoint_path, save_checkpoint
from minibule.runs.folder import check_space, exports, output_folder, take_over
from minibule.runs.lock import locked
from minibule.runs.manifest import Manifest
from minibule.runs.metrics import open_metrics, write_line
from minibule.runs.settings import TrainConfig
from minibule.runs.snapshot import print_comparison, save_snapshot
from minibule.settings import to_toml
from minibule.train.observe import check_questions, observe
from minibule.train.resume import find_checkpoint, resume_hint
from minibule.train.setup import Job, describe, expected_bytes, prepare

MAX_SKIPPED = 3  # steps in a row that are not finite before a run gives up


# -- one step --------------------------------------------------------------------------------------


# -- a run -----------------------------------------------------------------------------------------


def train(
    config: TrainConfig, resume: bool = False, settings_file: str | Path | None = None
) -> Path:
    """Run the training that the settings describe; returns the folder with its results.

    The folder gets config.toml (the settings as resolved), metrics.jsonl (one object a step),
    before.json and after.json (what the model did), checkpoint/, adapter/ (PEFT), as `export` says
    merged/ (Hugging Face) or GGUF files, and report.html.

    resume: go on with the run in the output folder, from its newest checkpoint, to the same bytes
    that it would have come to by itself. Steps already done are not done again; what comes after
    them is.

    settings_file: where the settings were read from, which must not be among what is replaced.

    All that can be wrong with the input is found before anything in the output folder is touched.
    """
    settings_file = Path(settings_file) if settings_file else None
    output = output_folder(config, resume, settings_file)
    job = prepare(dataclasses.replace(config, output=str(output)))
    settings = to_toml(job.config).encode()
    check_questions(job)
    check_space(output, expected_bytes(job))
    describe(job)
    with locked(output):
        checkpoint = find_checkpoint(job, output) if resume else None
        manifest = take_over(job.config, output, resume)
        with manifest.writing(output / "config.toml") as place, whole_file(place) as file:
            file.write_bytes(settings)
        with resume_hint(output):
            seconds = run_steps(job, output, checkpoint)
            written = _write_results(job, output)
            # What the model did before is asked only now: its weights are still the same.
            before, after = observe(job, job.start), observe(job, job.adapter)
            for snapshot, name in ((before, "before.json"), (after, "after.json")):
                with Manifest(output).writing(output / name) as place:
                    save_snapshot(snapshot, place)
        print_comparison(before, after, config.probe)
        written["report"] = write_report(output)
        _print_end(job, seconds, written)
    return output


def _write_results(job: Job, output: Path) -> dict[str, Path]:
    """The adapter and the exports: what they are called, and where they are."""
    manifest = Manifest(output)
    with manifest.writing(output / "adapter") as place:
        save_adapter(job.adapter, job.model.config, place, str(job.source))
    written = {"adapter": place, "metrics": output / "metrics.jsonl"}
    for kind, what, path in exports(job.config, output):
        form, _, dtype = kind.partition(":")
        with manifest.writing(path):
            export(job.model, job.chat, form, dtype or None, path)
        written[what] = path
    return written


def run_steps(job: Job, output: Path, checkpoint: Checkpoint | None = None) -> float:
    """The training loop: update the adapter step by step, a line of metrics for each.

    A checkpoint is saved every `save_every` steps, after the last one, and before it stops early:
    when asked to by a signal, or when MAX_SKIPPED steps in a row were not finite. Returns the
    seconds that all steps took.
    """
    config = job.config
    optimiser = AdamW(job.adapter.params, config.weight_decay)
    progress = Progress()
    if checkpoint:
        optimiser.restore(checkpoint.state, checkpoint.updates)
        progress = checkpoint.progress
    metrics_file, manifest = output / "metrics.jsonl", Manifest(output)
    manifest.claim(metrics_file)
    bar = tqdm(total=job.steps, initial=progress.step, desc="training", unit="step")
    with (
        bar,
        stop_after_step() as stop,
        open_metrics(metrics_file, progress.metrics_bytes) as log,
    ):
        for step in range(progress.step + 1, job.steps + 1):
            line = take_step(job, optimiser, step)
            if config.eval_every and step % config.eval_every == 0 and job.heldout:
                measured = evaluate(
                    job.model, job.heldout, config.resolved_objective(), config.pass_tokens
                )
                line |= {f"eval_{name}": value for name, value in measured.items()}
            write_line(log, line)
            bar.set_postfix_str(
                f"loss {line['loss']:.4g}, rejected mass {line['rejected_mass']:.3f}, "
                f"{line['tokens_per_s']:,.0f} tokens/s"
            )
            bar.update()

            skipped = progress.skipped + 1 if "skipped" in line else 0
            progress = Progress(step, skipped, log.tell(), progress.seconds + line["seconds"])
            due = config.save_every and step % config.save_every == 0
            gives_up = skipped >= MAX_SKIPPED
            if due or gives_up or stop.signal or step == job.steps:
                flush_to_disk(metrics_file)
                with manifest.writing(checkpoint_path(output / "checkpoint", step)) as saved:
                    save_checkpoint(saved.parent, job.identity, progress, optimiser, config.keep)
            if gives_up:
                raise InputError(
                    f"steps {step - skipped + 1} to {step}: no loss or gradient is finite. The "
                    f"adapter as step {step - skipped} left it is saved in {saved}. "
                    "A lower --lr, or other records, may help."
                )
            if stop.signal:
                leave(stop.signal)
    manifest.settle(metrics_file)
    return progress.seconds


def take_step(job: Job, optimiser: AdamW, step: int) -> dict[str, Any]:
    """Step 1, 2, ...: one update of the adapter; returns its line of metrics.

    Where the loss or the gradient is not finite, nothing is updated: the line says "skipped".
    """
    config, objective = job.config, job.config.resolved_objective()
    examples = job.examples_of(step)
    started = time.perf_counter()
    with np.errstate(all="ignore"):  # what comes of it is looked at
        grads, metrics, tokens = gradients(
            job.model, examples, objective, config.pass_tokens, recompute=config.memory == "low"
        )
        norm = clip_gradients(grads, config.max_grad_norm)
        lr = learning_rate(step, job.steps, config.lr, config.warmup_steps, config.schedule)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(norm)
        if finite:
            optimiser.step(grads, lr)
    seconds = time.perf_counter() - started
    line: dict[str, Any] = {
        "step": step,
        **metrics,
        "grad_norm": norm,
        "lr": lr,
        "rows": total_weight(examples),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "rss_gb": memory_gb(),
    }
    if not finite:
        numbers = sorted({example.number for example in examples})
        line |= {"skipped": True, "records": numbers}
        tqdm.write(
            f"step {step} skipped: its loss is {metrics['loss']:.4g}, its gradient's norm "
            f"{norm:.4g}. Its records: {', '.join(f'{number:,}' for number in numbers)}"
        )
    return line


def _print_end(job: Job, seconds: float, written: Mapping[str, Path]) -> None:
    print(
        f"\n{job.steps} steps in {seconds:.1f} s, {seconds / job.steps:.2f} s a step, "
        f"peak memory {peak_memory_gb():.2f} GB"
    )
    for what, place in written.items():
        print(f"{what:<11}{place}")
