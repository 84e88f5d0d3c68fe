"""Train a LoRA adapter from rejection records.

    python -m minibule.train                                  the embedded model, a few seconds
    python -m minibule.train --model DIR --data FILE          your own

The way through: records -> examples -> forest -> llama.forward -> loss -> llama.backward -> optim
-> checkpoint, export. What a run needs is read in `setup`; here it is taught.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from minibule.core.counts import Example, row_count
from minibule.core.optim import AdamW, clip_gradients, learning_rate
from minibule.core.step import gradients
from minibule.errors import InputError
from minibule.evaluate.heldout import evaluate
from minibule.files import flush_to_disk, whole_file
from minibule.machine.ranks import world
from minibule.machine.threads import memory_gb, peak_memory_gb, seconds_since
from minibule.models.named import base_name
from minibule.models.peft import save_adapter
from minibule.program import Stop, all_or_nothing, interrupt, stop_after_step
from minibule.progress import passing_bar
from minibule.report.sections import write_report
from minibule.runs.checkpoint import Checkpoint, Progress, checkpoint_path, save_checkpoint
from minibule.runs.comparison import print_comparison
from minibule.runs.folder import RunFolder
from minibule.runs.lock import locked
from minibule.runs.manifest import Manifest
from minibule.runs.metrics import open_metrics, write_line
from minibule.runs.output import check_space, output_folder, take_over
from minibule.runs.settings import TrainConfig
from minibule.runs.snapshot import save_snapshot
from minibule.runs.starts import this_start
from minibule.settings import to_toml
from minibule.train.observe import check_questions, observe
from minibule.train.reference import Reference
from minibule.train.resume import find_checkpoint, resume_hint
from minibule.train.setup import Setup, check_alike, describe, expected_bytes, prepare

MAX_SKIPPED = 3  # steps in a row that are not finite before a run gives up


def train(
    config: TrainConfig,
    resume: bool = False,
    settings_file: str | Path | None = None,
    examples: Sequence[Example] | None = None,
) -> Path:
    """Run the training that the settings describe; returns the folder with its results.

    The folder gets config.toml (the settings as resolved), metrics.jsonl (one object a step),
    before.json and after.json (what the model did), checkpoint/, adapter/ (PEFT), as `export` says
    merged/ (Hugging Face) or GGUF files, and report.html.

    resume: go on with the run in the output folder, from its newest checkpoint, to the same bytes
    that it would have come to by itself. Steps already done are not done again; what comes after
    them is.

    settings_file: where the settings were read from, which must not be among what is replaced.

    examples: what to train on, instead of the records that the settings name.

    All that can be wrong with the input is found before anything in the output folder is touched.
    """
    settings_file = Path(settings_file) if settings_file else None
    folder = world().first(output_folder, config, resume, settings_file)
    setup = prepare(dataclasses.replace(config, output=str(folder.path)), examples)
    check_alike(setup)
    check_questions(setup)
    if not world().leads:
        _take_part(setup, folder)
        return folder.path
    # Whoever trains with this file again is asked again.
    settings = to_toml(dataclasses.replace(setup.config, overwrite=False)).encode()
    check_space(folder.path, expected_bytes(setup))
    describe(setup)
    with locked(folder.path):
        checkpoint = world().first(lambda: find_checkpoint(setup, folder) if resume else None)
        with all_or_nothing():
            manifest = take_over(setup.config, folder, resume, settings_file)
            with manifest.writing(folder.settings) as place, whole_file(place) as file:
                file.write_bytes(settings)
        done = checkpoint.progress.step if checkpoint else 0
        if done < setup.steps:
            manifest.begin(this_start(done + 1))
        with resume_hint(folder.path):
            seconds = run_steps(setup, folder, checkpoint)
            written = _write_results(setup, folder)
            # What the model did before is asked only now: its weights are still the same.
            before, after = observe(setup, setup.start), observe(setup, setup.adapter)
            for snapshot, path in ((before, folder.before), (after, folder.after)):
                with Manifest(folder.path).writing(path) as place:
                    save_snapshot(snapshot, place)
        print_comparison(before, after, config.probe)
        report = write_report(folder.path)
        _print_end(setup, seconds, [*written, ("report", report)])
    return folder.path


def _take_part(setup: Setup, folder: RunFolder) -> None:
    """What the other ranks do of a run: they compute all that the first does, and write nothing."""
    checkpoint = world().first(lambda: None)
    optimiser, progress = _begin(setup, checkpoint)
    with _kept_reference(setup, folder, progress) as reference, stop_after_step() as stop:
        for _ in _steps(setup, folder, optimiser, progress, reference, stop):
            pass
    observe(setup, setup.start)
    observe(setup, setup.adapter)


def _write_results(setup: Setup, folder: RunFolder) -> list[tuple[str, Path]]:
    """The adapter and the exports: what they are called, and where they are."""
    manifest = Manifest(folder.path)
    with manifest.writing(folder.adapter) as place:
        save_adapter(setup.adapter, setup.model.config, place, base_name(setup.source))
    written = [("adapter", place), ("metrics", folder.metrics)]
    for export, path in folder.exports(setup.config):
        with manifest.writing(path):
            export.write(setup.model, setup.chat, path)
        written.append((export.label, path))
    return written


def run_steps(setup: Setup, folder: RunFolder, checkpoint: Checkpoint | None = None) -> float:
    """The training loop: update the adapter step by step, a line of metrics for each.

    A checkpoint is saved every `save_every` steps, after the last one, and before it stops early:
    when asked to by a signal, or when MAX_SKIPPED steps in a row were not finite. Returns the
    seconds that all steps took.
    """
    started = time.perf_counter()
    optimiser, progress = _begin(setup, checkpoint)
    manifest = Manifest(folder.path)
    manifest.claim(folder.metrics)
    with (
        _kept_reference(setup, folder, progress) as reference,
        tqdm(
            total=setup.steps, initial=progress.step, desc="training", unit="step", disable=None
        ) as bar,
        stop_after_step() as stop,
        open_metrics(folder.metrics, progress.metrics_bytes) as log,
    ):
        if reference:  # asking the base has taken its time
            seconds = progress.seconds + seconds_since(started)
            progress = dataclasses.replace(progress, seconds=seconds)
        steps = _steps(setup, folder, optimiser, progress, reference, stop)
        for line, skipped, is_due in steps:
            write_line(log, line)
            _show(bar, line, setup.steps)
            seconds = progress.seconds + line["seconds"]
            progress = Progress(line["step"], skipped, log.tell(), seconds)
            if is_due:
                flush_to_disk(folder.metrics)
                with manifest.writing(checkpoint_path(folder.checkpoints, progress.step)) as saved:
                    keep = setup.config.keep
                    save_checkpoint(saved.parent, setup.identity, progress, optimiser, keep)
    manifest.settle(folder.metrics)
    return progress.seconds


def _begin(setup: Setup, checkpoint: Checkpoint | None) -> tuple[AdamW, Progress]:
    """The optimiser and how far the run has come, by its checkpoint if there is one."""
    optimiser = AdamW(setup.adapter.params, setup.config.weight_decay)
    if not checkpoint:
        return optimiser, Progress()
    optimiser.restore(checkpoint.state, checkpoint.updates)
    return optimiser, checkpoint.progress


@contextmanager
def _kept_reference(
    setup: Setup, folder: RunFolder, progress: Progress
) -> Iterator[Reference | None]:
    """What the base says of all examples, if that is to be kept and there are steps to take."""
    if not setup.keeps_reference or progress.step >= setup.steps:
        yield None
        return
    place = folder.path if world().leads else None  # another machine need not have the folder
    with reference_of(setup, setup.examples, place) as reference:
        yield reference


@contextmanager
def reference_of(
    setup: Setup, examples: Sequence[Example], folder: Path | None
) -> Iterator[Reference]:
    """What the base says of the examples.

    What memory has no room for lies in the folder, or without one where temporary files do.
    """
    limit = 1e9 * setup.config.reference_memory
    with Reference(setup.model, examples, folder, limit) as reference:
        with (
            passing_bar(total=len(examples), desc="asking the base", unit=" records") as bar,
            np.errstate(all="ignore"),  # what comes of it is looked at in the steps
        ):
            for done in reference.sweep(setup.config.pass_tokens):
                bar.update(done - bar.n)
        yield reference


def _steps(
    setup: Setup,
    folder: RunFolder,
    optimiser: AdamW,
    progress: Progress,
    reference: Reference | None,
    stop: Stop,
) -> Iterator[tuple[dict[str, Any], int, bool]]:
    """Take the steps that are left, on all ranks alike.

    Of each its line of metrics, how many steps in a row were skipped by now, and whether a
    checkpoint is due. What ends the steps early comes after that was saved.
    """
    config, skipped = setup.config, progress.skipped
    for step in range(progress.step + 1, setup.steps + 1):
        line = take_step(setup, optimiser, step, reference)
        if config.eval_every and step % config.eval_every == 0 and setup.heldout:
            measured = evaluate(setup.model, setup.heldout, setup.loss, config.pass_tokens)
            line |= {f"eval_{name}": value for name, value in measured.items()}
        skipped = skipped + 1 if "skipped" in line else 0
        is_due = step == setup.steps or (config.save_every and step % config.save_every == 0)
        gives_up = skipped >= MAX_SKIPPED
        asked = max(world().all_gather(stop.signal or 0))  # whichever rank it was that heard
        yield line, skipped, bool(is_due or gives_up or asked)
        if gives_up:
            saved = checkpoint_path(folder.checkpoints, step)
            raise InputError(
                f"steps {step - skipped + 1} to {step}: no loss or gradient is finite. The "
                f"adapter as step {step - skipped} left it is saved in {saved}. "
                "A lower --lr, or other records, may help."
            )
        if asked:
            interrupt(asked)


def _show(bar: "tqdm[NoReturn]", line: Mapping[str, Any], steps: int) -> None:
    """A step on the bar; where that has no terminal, a line every tenth of the run."""
    mass = line.get("rejected_mass")  # none where only accepted answers are trained on
    shown = f"loss {line['loss']:.4g}, " + (f"p rejected {mass:.3f}, " if mass else "")
    shown += f"{line['tokens_per_s']:,.0f} tokens/s"
    bar.set_postfix_str(shown)
    bar.update()
    step = line["step"]
    if bar.disable and 10 * step // steps > 10 * (step - 1) // steps:
        print(f"step {step:,} of {steps:,}: {shown}", file=sys.stderr, flush=True)


def take_step(
    setup: Setup, optimiser: AdamW, step: int, reference: Reference | None = None
) -> dict[str, Any]:
    """Step 1, 2, ...: one update of the adapter; returns its line of metrics.

    reference: what the base says of the step's examples, where it has been asked before.
    Where the loss or the gradient is not finite, nothing is updated: the line says "skipped".
    """
    config = setup.config
    examples = setup.examples_of(step)
    started = time.perf_counter()
    with np.errstate(all="ignore"):  # what comes of it is looked at
        grads, metrics, tokens = gradients(
            setup.model,
            examples,
            setup.loss,
            config.pass_tokens,
            recompute=config.memory == "low",
            known=reference.hidden if reference else None,
        )
        norm = clip_gradients(grads, config.max_grad_norm)
        lr = learning_rate(step, setup.steps, config.lr, config.warmup_steps, config.schedule)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(norm)
        if finite:
            optimiser.step(grads, lr)
    seconds = seconds_since(started)
    line: dict[str, Any] = {
        "step": step,
        **metrics,
        "grad_norm": norm,
        "lr": lr,
        "rows": row_count(examples),
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
            f"{norm:.4g}. Its records: {', '.join(f'{number:,}' for number in numbers)}",
            file=sys.stderr,
        )
    return line


def _print_end(setup: Setup, seconds: float, written: Sequence[tuple[str, Path]]) -> None:
    print(
        f"\n{setup.steps} steps in {seconds:.1f} s, {seconds / setup.steps:.2f} s a step, "
        f"peak memory {peak_memory_gb():.2f} GB"
    )
    for what, place in written:
        print(f"{what:<11}{place}")
