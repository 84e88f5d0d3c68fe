"""Train a LoRA adapter from rejection records.

    python -m minibule.train                                  the embedded model, a few seconds
    python -m minibule.train --model DIR --data FILE          your own

The way through: records -> examples -> forest -> llama.forward -> loss -> llama.backward -> optim
-> checkpoint, export.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from minibule.examples import record_order, split_by_prompt, tokenize
from minibule.export import export
from minibule.files import whole_file
from minibule.forest import Batch, Example, pack, total_weight
from minibule.gguf_export import check_gguf
from minibule.heldout import Question, read_questions
from minibule.llama import Llama, backward, forward_batch
from minibule.lora import Adapter, init_adapter
from minibule.loss import add_metrics, head_loss
from minibule.machine import memory_gb, peak_memory_gb, set_threads, side_by_side, threads
from minibule.ops import Array
from minibule.optim import AdamW, clip_gradients, learning_rate
from minibule.records import read_file
from minibule.report import write_report
from minibule.snapshot import Snapshot, evaluate, observe, print_comparison, save_snapshot


def planned_steps(config: TrainConfig, examples: int) -> int:
    """Steps of the run: as set, or as many as the epochs take (a last, short one rounded up)."""
    a_step = config.batch_size * config.grad_accum
    return config.steps or max(1, math.ceil(config.epochs * examples / a_step))


# -- one step --------------------------------------------------------------------------------------

Sums = dict[str, float]


def gradients(
    model: Llama, batches: Sequence[Sequence[Example]], objective: Objective, pass_tokens: int
) -> tuple[dict[str, Array], Sums, int]:
    """Gradients of the mean loss over all rows of some batches, the metrics, and the tokens.

    Every pass divides by the rows of the whole step, so however a step is cut into batches and
    passes, their sum is the same.
    """
    examples = [example for batch in batches for example in batch]
    count = total_weight(examples)

    def one_pass(batch: Batch) -> tuple[dict[str, Array], Sums, int]:
        """Forward, loss and backward of one packed stream."""
        ref_hidden = forward_batch(model, batch, None)[0] if objective.needs_reference else None
        hidden, cache = forward_batch(model, batch, model.adapter, keep=True)
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
    return Job(
        config,
        source,
        model,
        chat,
        tokenize(train_records, chat, config, context),
        tokenize(held_records, chat, config, context) if held_records else [],
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


def train(config: TrainConfig) -> Path:
    """Run the training that the settings describe; returns the folder with its results.

    The folder gets config.toml (the settings as resolved), metrics.jsonl (one object a step),
    before.json and after.json (what the model did), adapter/ (PEFT), as `export` says merged/
    (Hugging Face) or GGUF files, and report.html.
    """
    output = _output_folder(config)
    job = prepare(config)
    _describe(job)
    before = take_snapshot(job)
    output.mkdir(parents=True, exist_ok=True)
    _clear(output)
    save_snapshot(before, output / "before.json")
    knobs = config.resolved_objective()._asdict()
    resolved = dataclasses.replace(config, output=str(output), **knobs)
    with whole_file(output / "config.toml") as file:
        file.write_text(to_toml(resolved), encoding="utf-8")
    started = time.perf_counter()
    run_steps(job, output / "metrics.jsonl")
    seconds = time.perf_counter() - started
    after = take_snapshot(job)
    save_snapshot(after, output / "after.json")
    adapter = _adapter(job.model)
    save_adapter(adapter, job.model.config, output / "adapter", str(job.source))
    written = {"adapter": output / "adapter", "metrics": output / "metrics.jsonl"}
    for kind in config.export:
        form, _, dtype = kind.partition(":")
        if form != "none":
            place, name = _EXPORTS[form]
            written[place] = output / name.format(dtype=dtype)
            export(job.model, job.chat, form, dtype or None, written[place])
    print_comparison(before, after, config.probe)
    written["report"] = write_report(output)
    _closing(job, seconds, written)
    return output


# --export -> what it is called at the end, and the file or folder in the output folder.
_EXPORTS = {
    "hf": ("merged", "merged"),
    "gguf": ("GGUF", "model-{dtype}.gguf"),
    "gguf-lora": ("GGUF LoRA", "adapter.gguf"),
}


def _clear(output: Path) -> None:
    """Remove an earlier run's results, so that none of them passes for this run's."""
    results = ("metrics.jsonl", "before.json", "after.json", "report.html")
    for path in (*output.glob("*.gguf"), *(output / name for name in results)):
        path.unlink(missing_ok=True)
    for folder in (output / "adapter", output / "merged"):
        if folder.exists():
            shutil.rmtree(folder)


def run_steps(job: Job, metrics_file: Path) -> None:
    """The training loop: update the adapter step by step, a line of metrics for each."""
    config, model = job.config, job.model
    adapter, objective = _adapter(model), config.resolved_objective()
    optimiser = AdamW(adapter.params, config.weight_decay)
    order = record_order(config, job.examples)
    bar = tqdm(total=job.steps, desc="training", unit="step")
    with bar, metrics_file.open("w", encoding="utf-8") as log:
        for step in range(1, job.steps + 1):
            started = time.perf_counter()
            batches = step_batches(job, order, step)
            grads, metrics, tokens = gradients(model, batches, objective, config.pass_tokens)
            norm = clip_gradients(grads, config.max_grad_norm)
            lr = learning_rate(config, step, job.steps)
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
            if config.eval_every and step % config.eval_every == 0 and job.heldout:
                measured = evaluate(model, job.heldout, objective, config.pass_tokens)
                line |= {f"eval_{name}": value for name, value in measured.items()}
            log.write(json.dumps(line) + "\n")
            log.flush()
            bar.set_postfix_str(
                f"loss {metrics['loss']:.4g}, rejected mass {metrics['rejected_mass']:.3f}, "
                f"{tokens / seconds:,.0f} tokens/s"
            )
            bar.update()


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


def _output_folder(config: TrainConfig) -> Path:
    """The folder to write, checked but not yet made."""
    if config.output:
        output = Path(config.output)
        there = next(path for path in (output, *output.absolute().parents) if path.exists())
        if not there.is_dir():
            raise InputError(f"--output {output}: {there} is a file, expected a folder.")
        if not os.access(there, os.W_OK):
            raise InputError(f"--output {output}: may not write in {there}.")
        if (output / "metrics.jsonl").exists() and not config.overwrite:
            raise InputError(
                f"--output {output}: found an earlier run there. Choose another folder, "
                "or replace it with --overwrite."
            )
        return output
    name = Path(config.model).resolve().name if config.model else "tiny"
    candidates = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in itertools.count(1))
    return next(path for path in candidates if not path.exists())


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
    train(resolve(vars(parser.parse_args(argv))))


if __name__ == "__main__":
    run(main)
