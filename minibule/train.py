"""Train a LoRA adapter from rejection records.

    python -m minibule.train                                  the embedded model, a few seconds
    python -m minibule.train --model DIR --data FILE          your own

The way through: records -> examples -> forest -> llama.forward -> loss -> llama.backward -> optim
-> checkpoint, export.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from minibule.chat import Chat, load_chat
from minibule.checkpoint import load_adapter, load_model, save_adapter
from minibule.config import (
    FIELDS,
    LoraConfig,
    Objective,
    TrainConfig,
    add_arguments,
    embedded_folder,
    module_names,
    resolve,
    to_toml,
)
from minibule.errors import InputError, listed, run
from minibule.estimate import merged_gb, rehearse
from minibule.examples import record_order, split_by_prompt, tokenize
from minibule.export import export
from minibule.files import flush_to_disk, remove_stale, whole_file, writing
from minibule.forest import Batch, Example, pack, total_weight
from minibule.gguf_export import check_gguf
from minibule.heldout import Question, read_questions
from minibule.llama import Llama, backward, forward_batch
from minibule.lora import Adapter, init_adapter
from minibule.loss import add_metrics, head_loss
from minibule.machine import memory_gb, peak_memory_gb, set_threads, side_by_side, threads
from minibule.ops import Array
from minibule.optim import AdamW, clip_gradients, learning_rate
from minibule.records import Record, read_file
from minibule.report import write_report
from minibule.run_folder import (
    MAY_CHANGE,
    clear,
    exports,
    output_folder,
    resume_hint,
    resumed_settings,
)
from minibule.run_lock import locked
from minibule.run_state import (
    Checkpoint,
    Identity,
    Progress,
    identity,
    newest_checkpoint,
    open_metrics,
    save_checkpoint,
    write_line,
)
from minibule.snapshot import (
    Snapshot,
    evaluate,
    load_snapshot,
    observe,
    print_comparison,
    save_snapshot,
)
from minibule.stopping import stop_after_step

MAX_SKIPPED = 3  # steps in a row that are not finite before a run gives up


def planned_steps(config: TrainConfig, examples: int) -> int:
    """Steps of the run: as set, or as many as the epochs take (a last, short one rounded up)."""
    a_step = config.batch_size * config.grad_accum
    return config.steps or max(1, math.ceil(config.epochs * examples / a_step))


# -- one step --------------------------------------------------------------------------------------

Sums = dict[str, float]


def gradients(
    model: Llama,
    batches: Sequence[Sequence[Example]],
    objective: Objective,
    pass_tokens: int,
    recompute: bool = False,
) -> tuple[dict[str, Array], Sums, int]:
    """Gradients of the mean loss over all rows of some batches, the metrics, and the tokens.

    Every pass divides by the rows of the whole step, so however a step is cut into batches and
    passes, their sum is the same. `recompute` is `llama.forward`'s.
    """
    examples = [example for batch in batches for example in batch]
    count = total_weight(examples)

    def one_pass(batch: Batch) -> tuple[dict[str, Array], Sums, int]:
        """Forward, loss and backward of one packed stream."""
        ref_hidden = forward_batch(model, batch, None)[0] if objective.needs_reference else None
        hidden, cache = forward_batch(model, batch, model.adapter, keep=True, recompute=recompute)
        metrics, dhidden = head_loss(
            hidden, model.head, batch.rows, objective, ref_hidden, count=count
        )
        return backward(dhidden, cache), metrics, len(batch.ids)

    passes = side_by_side(one_pass, pack(examples, objective.counts, pass_tokens, threads()))
    grads, metrics, tokens = next(passes)
    for more_grads, more_metrics, more_tokens in passes:
        for name, grad in more_grads.items():
            grads[name] += grad
        add_metrics(metrics, more_metrics)
        tokens += more_tokens
    return grads, metrics, tokens


# -- a run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """All that a run needs, read and checked before anything is written."""

    config: TrainConfig
    source: Path
    model: Llama
    chat: Chat
    examples: list[Example]
    heldout: list[Example]
    questions: list[Question]

    @property
    def steps(self) -> int:
        return planned_steps(self.config, len(self.examples))


def prepare(config: TrainConfig) -> Job:
    """Read and check everything that the settings name."""
    set_threads(config.threads)
    embedded = embedded_folder()
    source = Path(config.model or embedded)
    if config.model and not config.data:
        raise InputError("--model without --data: expected a file of rejection records too.")
    data = Path(config.data or embedded / "records.jsonl")
    questions_file = config.heldout or ("" if config.data else embedded / "heldout.jsonl")

    model, chat = load_model(source), load_chat(source)
    for kind in config.export:
        if kind.startswith("gguf:"):
            check_gguf(model.config, chat, kind.removeprefix("gguf:"))
    lora = _lora_config(config, model)
    if config.init_adapter:
        model.adapter = load_adapter(config.init_adapter, model.config)
        _check_start(config, lora, model.adapter.config)
    else:
        model.adapter = init_adapter(lora, model.config, config.seed)
    records, _ = read_file(data, progress=True)
    train_records, held_records = split_by_prompt(
        records[: config.max_records or None], config.eval_fraction, config.seed
    )
    held_records = held_records[: config.eval_records or None]
    context = model.config.max_position_embeddings
    number = {id(record): number for number, record in enumerate(records, start=1)}

    def examples(records: Sequence[Record]) -> list[Example]:
        return tokenize(records, chat, config, context, [number[id(r)] for r in records])

    return Job(
        config,
        source,
        model,
        chat,
        examples(train_records),
        examples(held_records) if held_records else [],
        read_questions(questions_file) if questions_file else [],
    )


def _lora_config(config: TrainConfig, model: Llama) -> LoraConfig:
    layers = model.config.num_hidden_layers
    if config.lora_layers > layers:
        raise InputError(f"--lora-layers {config.lora_layers}: the model has only {layers}.")
    last = range(layers - (config.lora_layers or layers), layers)
    modules = module_names(last, config.lora_targets)
    return LoraConfig(config.lora_r, config.lora_alpha, modules, config.rslora)


def _check_start(config: TrainConfig, wanted: LoraConfig, start: LoraConfig) -> None:
    """A start adapter brings its own shape: InputError where a setting asks for another."""
    same = {
        "lora_r": wanted.r == start.r,
        "lora_alpha": wanted.lora_alpha == start.lora_alpha,
        "lora_targets": wanted.modules == start.modules,
        "lora_layers": wanted.modules == start.modules,
        "rslora": wanted.use_rslora == start.use_rslora,
    }
    problems = [
        f"{name} = {getattr(config, name)}"
        for name, fits in same.items()
        if not fits and getattr(config, name) != FIELDS[name].default
    ]
    if problems:
        raise InputError(
            f"--init-adapter {config.init_adapter}: it has a shape of its own, which these "
            f"settings contradict. Leave them out:\n{listed(problems)}"
        )


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Run the training that the settings describe; returns the folder with its results.

    The folder gets config.toml (the settings as resolved), metrics.jsonl (one object a step),
    before.json and after.json (what the model did), checkpoint/, adapter/ (PEFT), as `export` says
    merged/ (Hugging Face) or GGUF files, and report.html.

    resume: go on with the run in the output folder, from its newest checkpoint, to the same bytes
    that it would have come to by itself. Steps already done are not done again; what comes after
    them is.
    """
    output = output_folder(config, resume)
    job = prepare(config)
    _describe(job)
    before_file = output / "before.json"
    with locked(output):
        resolved = _resolved(config, output)
        run = _identity(job, resolved)
        checkpoint = _find_checkpoint(job, output, run) if resume else None
        known = resume and before_file.exists()
        before = load_snapshot(before_file) if known else take_snapshot(job)
        if not resume:
            clear(output)
        settings_file = output / "config.toml"
        with writing(settings_file), whole_file(settings_file) as file:
            file.write_text(to_toml(resolved), encoding="utf-8")
        with writing(before_file):
            save_snapshot(before, before_file)
        with resume_hint(output):
            seconds = run_steps(job, output, run, checkpoint)
            after = take_snapshot(job)
            with writing(output / "after.json"):
                save_snapshot(after, output / "after.json")
            written = _write_results(job, output)
        print_comparison(before, after, config.probe)
        with writing(output / "report.html"):
            written["report"] = write_report(output)
        _closing(job, seconds, written)
    return output


def _write_results(job: Job, output: Path) -> dict[str, Path]:
    """The adapter and the exports: what they are called, and where they are."""
    with writing(output / "adapter"):
        save_adapter(_adapter(job.model), job.model.config, output / "adapter", str(job.source))
    written = {"adapter": output / "adapter", "metrics": output / "metrics.jsonl"}
    for kind, place, path in exports(job.config, output):
        form, _, dtype = kind.partition(":")
        with writing(path):
            export(job.model, job.chat, form, dtype or None, path)
        written[place] = path
    return written


def run_steps(job: Job, output: Path, run: Identity, checkpoint: Checkpoint | None = None) -> float:
    """The training loop: update the adapter step by step, a line of metrics for each.

    A checkpoint is saved every `save_every` steps, after the last one, and before it stops early:
    when asked to by a signal, or when MAX_SKIPPED steps in a row were not finite. Returns the
    seconds that all steps took.
    """
    config = job.config
    optimiser = AdamW(_adapter(job.model).params, config.weight_decay)
    progress = Progress()
    if checkpoint:
        optimiser.restore(checkpoint.state, checkpoint.updates)
        progress = checkpoint.progress
    # Which records a step takes, and in which order, follows from its number and the seed: there is
    # no state of a random generator to save.
    order = record_order(config, job.examples)
    metrics_file = output / "metrics.jsonl"
    bar = tqdm(total=job.steps, initial=progress.step, desc="training", unit="step")
    with (
        bar,
        stop_after_step() as stop,
        open_metrics(metrics_file, progress.metrics_bytes) as log,
    ):
        for step in range(progress.step + 1, job.steps + 1):
            line = take_step(job, optimiser, step, step_batches(job, order, step))
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
                saved = save_checkpoint(
                    output / "checkpoint", run, progress, optimiser, config.keep
                )
            if gives_up:
                raise InputError(
                    f"steps {step - skipped + 1} to {step}: no loss or gradient is finite. The "
                    f"adapter as step {step - skipped} left it is saved in {saved}. "
                    "A lower --lr, or other records, may help."
                )
            if stop.signal:
                stop.leave()
    return progress.seconds


def take_step(
    job: Job, optimiser: AdamW, step: int, batches: Sequence[Sequence[Example]]
) -> dict[str, Any]:
    """One update of the adapter; returns its line of metrics.

    Where the loss or the gradient is not finite, nothing is updated: the line says "skipped".
    """
    config, objective = job.config, job.config.resolved_objective()
    started = time.perf_counter()
    with np.errstate(all="ignore"):  # what comes of it is looked at
        grads, metrics, tokens = gradients(job.model, batches, objective, config.pass_tokens)
        norm = clip_gradients(grads, config.max_grad_norm)
        lr = learning_rate(config, step, job.steps)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(norm)
        if finite:
            optimiser.step(grads, lr)
    seconds = time.perf_counter() - started
    line: dict[str, Any] = {
        "step": step,
        **metrics,
        "grad_norm": norm,
        "lr": lr,
        "rows": total_weight(example for batch in batches for example in batch),
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "rss_gb": memory_gb(),
    }
    if not finite:
        numbers = sorted({example.number for batch in batches for example in batch})
        line |= {"skipped": True, "records": numbers}
        tqdm.write(
            f"step {step} skipped: its loss is {metrics['loss']:.4g}, its gradient's norm "
            f"{norm:.4g}. Its records: {', '.join(f'{number:,}' for number in numbers)}"
        )
    return line


def step_batches(job: Job, order: Callable[[int], int], step: int) -> list[list[Example]]:
    """The batches of step 1, 2, ...: batch_size examples in each of grad_accum."""
    size, batches = job.config.batch_size, job.config.grad_accum
    first = (step - 1) * size * batches
    starts = range(first, first + size * batches, size)
    return [[job.examples[order(place)] for place in range(s, s + size)] for s in starts]


def take_snapshot(job: Job) -> Snapshot:
    """What the job's model does now."""
    return observe(job.model, job.chat, job.config, job.examples, job.heldout, job.questions)


def _adapter(model: Llama) -> Adapter:
    if model.adapter is None:
        raise InputError("training needs an adapter on the model.")
    return model.adapter


def _resolved(config: TrainConfig, output: Path) -> TrainConfig:
    """The settings with all that was left to be settled."""
    knobs = config.resolved_objective()._asdict()
    return dataclasses.replace(config, output=str(output), **knobs)


def _identity(job: Job, resolved: TrainConfig) -> Identity:
    settings = {n: v for n, v in dataclasses.asdict(resolved).items() if n not in MAY_CHANGE}
    return identity(job.model, job.examples, settings)


def _find_checkpoint(job: Job, output: Path, run: Identity) -> Checkpoint | None:
    """Where to go on from; prints it, and which checkpoints are damaged."""
    for folder in (output, output / "checkpoint"):
        remove_stale(folder)
    checkpoint, damaged = newest_checkpoint(output / "checkpoint", run, _adapter(job.model).params)
    for note in damaged:
        print(f"damaged    {note}")
    if checkpoint is None:
        print("resume     no checkpoint yet: from step 1")
    elif checkpoint.progress.step == job.steps:
        print(f"resume     all {job.steps} steps are done: what comes after them is done again")
    else:
        print(f"resume     from {checkpoint.path}, step {checkpoint.progress.step} of {job.steps}")
    return checkpoint


# -- a rehearsal -----------------------------------------------------------------------------------


def dry_run(config: TrainConfig) -> None:
    """Check everything, try a few steps in memory, and print what the run would take and write."""
    output = output_folder(config)
    job = prepare(config)
    loaded = memory_gb()
    _describe(job)
    optimiser = AdamW(_adapter(job.model).params, config.weight_decay)
    order = record_order(config, job.examples)
    a_step = config.batch_size * config.grad_accum
    epoch = min(job.steps, math.ceil(len(job.examples) / a_step))  # later ones are like the first
    plan = [step_batches(job, order, step) for step in range(1, epoch + 1)]
    estimate = rehearse(
        plan,
        config.resolved_objective().counts,
        config.pass_tokens,
        lambda batches: take_step(job, optimiser, 1, batches)["seconds"],
    )
    asking = _snapshot_seconds(job)
    merging = merged_gb(job.model) if "hf" in config.export else 0.0
    rows = sum(total_weight(example for batch in step for example in batch) for step in plan)
    tokens = estimate.tokens
    seconds = job.steps * float(np.mean(tokens)) / estimate.tokens_per_s
    # Merging happens when training is over, in the memory that its arrays have left.
    peak = max(peak_memory_gb(), loaded + merging)
    print(f"rows       {rows:,} in the {epoch:,} steps of an epoch")
    print(f"tokens     {np.median(tokens):,.0f} a step (median), {max(tokens):,} (largest)")
    print(f"steps      {job.steps:,}, {seconds / job.steps:.2g} s each")
    print(
        f"time       {_duration(seconds)} for the steps, "
        f"{_duration(2 * asking)} to measure before and after"
    )
    print(f"memory     {peak:.2f} GB at its peak")
    print("would write")
    for place in ("config.toml", "metrics.jsonl", "checkpoint", "adapter"):
        print(f"  {output / place}")
    for _, _, path in exports(config, output):
        print(f"  {path}")


def _snapshot_seconds(job: Job) -> float:
    """Seconds that a snapshot takes; of the held-out records only the longest are tried."""
    started = time.perf_counter()
    take_snapshot(dataclasses.replace(job, heldout=[]))
    asked = time.perf_counter()
    longest = sorted(job.heldout, key=lambda example: -total_weight([example]))[:4]
    if not longest:
        return asked - started
    evaluate(job.model, longest, job.config.resolved_objective(), job.config.pass_tokens)
    evaluated = time.perf_counter() - asked
    share = total_weight(longest) / total_weight(job.heldout)
    return asked - started + evaluated / share


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


# -- what is printed -------------------------------------------------------------------------------


def _describe(job: Job) -> None:
    config, adapter, model = job.config, _adapter(job.model), job.model
    trained = sum(p.size for p in adapter.params.values())
    frozen = sum(w.size for w in model.weights.values())
    answers = sum(len(example.answers) for example in job.examples)
    objective = config.resolved_objective()
    name = config.model or "embedded"
    print(f"model      {name}: {frozen:,} parameters, frozen")
    print(
        f"adapter    LoRA r={adapter.config.r} on {len(adapter.config.modules)} modules: "
        f"{trained:,} parameters, trained"
    )
    print(
        f"records    {len(job.examples):,} prompts with {answers:,} rejected answers, "
        f"{len(job.heldout):,} more held out"
    )
    print(
        f"objective  {config.objective}: prior {objective.prior}, counts {objective.counts}, "
        f"contrast {objective.contrast}, alpha {objective.alpha:g}"
    )


def _closing(job: Job, seconds: float, written: Mapping[str, Path]) -> None:
    print(
        f"\n{job.steps} steps in {seconds:.1f} s, {seconds / job.steps:.2f} s a step, "
        f"peak memory {peak_memory_gb():.2f} GB"
    )
    for what, place in written.items():
        print(f"{what:<11}{place}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minibule.train",
        description="Train a LoRA adapter from rejection records. "
        "Without arguments: the embedded model on its embedded records.",
    )
    add_arguments(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --output, with its settings"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, try a few steps, write nothing"
    )
    arguments = vars(parser.parse_args(argv))
    if arguments["resume"] and arguments["dry_run"]:
        parser.error("--dry-run rehearses a new run, --resume goes on with an old one")
    if arguments["dry_run"]:
        dry_run(resolve(arguments))
    elif arguments["resume"]:
        train(resumed_settings(arguments), resume=True)
    else:
        train(resolve(arguments))


if __name__ == "__main__":
    run(main)
