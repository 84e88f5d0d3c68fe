"""What a training run can be told: `TrainConfig`.

A value comes from four places, the first that has one wins: a flag, a TOML file, a preset, the
default here. How fields become flags and lines of TOML is in `minibule.settings`.
"""

import argparse
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minibule.core.counts import Counts
from minibule.core.fused import TargetLoss
from minibule.core.loss import Loss
from minibule.core.objective import OBJECTIVES, Contrast, Objective, Prior
from minibule.core.optim import Schedule
from minibule.core.shapes import PROJECTIONS, LoraConfig, module_names
from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.machine.matmul import HELP as MATMUL_HELP
from minibule.machine.matmul import Mode
from minibule.methods.table import LOSSES
from minibule.models.exports import EXPORTS, Export
from minibule.models.named import MODEL_HELP, model_path
from minibule.runs.presets import EMBEDDED, PRESETS
from minibule.settings import (
    Source,
    add_flags,
    checked,
    flags_given,
    read_toml,
    setting,
    settings_of,
    show,
)
from minibule.text.examples import Order

HAVING_BETA = ", ".join(name for name, loss in LOSSES.items() if hasattr(loss, "beta"))

# The headings of --help, in their order.
DATA, OBJECTIVE, ADAPTER, OPTIMISER, RECORDS, MEASURING, MACHINE, RUN = GROUPS = (
    "data and output",
    "objective",
    "adapter",
    "optimiser",
    "records",
    "measuring",
    "machine and memory",
    "run",
)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `python -m minibule.train`; `--help` prints this table."""

    model: str = setting("", MODEL_HELP, group=DATA, may_change=True)
    data: str = setting(
        "", "rejection records; empty = the embedded ones", group=DATA, may_change=True
    )
    heldout: str = setting(
        "",
        "prompts with their accepted and rejected answers, asked before and after training",
        group=MEASURING,
        may_change=True,
    )
    output: str = setting(
        "",
        "folder to write; empty = runs/NAME, the first that is free",
        group=DATA,
        may_change=True,
    )
    overwrite: bool = setting(
        False, "replace an earlier run in the output folder", group=DATA, may_change=True
    )
    export: tuple[str, ...] = setting(
        ("hf",),
        "what to write beside the adapter, separated by commas: hf (the merged Hugging Face "
        "folder), gguf:TYPE (the merged model for llama.cpp), gguf-lora (the adapter for "
        "llama.cpp); or none",
        choices=("none", *EXPORTS),
        group=DATA,
        may_change=True,
    )
    probe: str = setting(
        "hello", "a prompt answered before and after training; empty = none", group=MEASURING
    )

    objective: str = setting(
        "complement",
        "the loss; literal, reference and rate are named choices of prior, counts, contrast and "
        "alpha below",
        choices=tuple(LOSSES),
        group=OBJECTIVE,
    )
    kl: float | None = setting(
        None,
        "how strongly the model is held to its base: so many times KL(p || base) is added to the "
        "loss",
        0,
        group=OBJECTIVE,
    )
    beta: float | None = setting(
        None,
        f"the number called beta in {HAVING_BETA} (default: the objective's own)",
        1e-6,
        group=OBJECTIVE,
    )
    prior: Prior | None = setting(
        None, "what the target is built on (default: the objective's)", group=OBJECTIVE
    )
    counts: Counts | None = setting(
        None, "which answers v counts at a position (default: the objective's)", group=OBJECTIVE
    )
    contrast: Contrast | None = setting(
        None, "how rejected tokens are pushed down (default: the objective's)", group=OBJECTIVE
    )
    alpha: float | None = setting(
        None,
        "share of the KL part, 1 - alpha is the contrast's (default: the objective's)",
        0,
        1,
        group=OBJECTIVE,
    )

    lora_r: int = setting(16, "LoRA rank", 1, 2**16, group=ADAPTER)
    lora_alpha: float = setting(
        32.0, "LoRA scale: the adapter counts lora_alpha / r times", 1e-6, group=ADAPTER
    )
    lora_targets: tuple[str, ...] = setting(
        tuple(PROJECTIONS),
        "adapted projections, separated by commas",
        choices=tuple(PROJECTIONS),
        group=ADAPTER,
    )
    lora_layers: int = setting(0, "adapt the last N layers only; 0 = all", 0, group=ADAPTER)
    rslora: bool = setting(False, "scale by lora_alpha / sqrt(r) instead", group=ADAPTER)
    init_adapter: str = setting(
        "",
        "PEFT adapter folder to start from (its r, targets, … hold)",
        group=ADAPTER,
        may_change=True,
    )

    steps: int = setting(0, "optimiser steps; 0 = as many as the epochs take", 0, group=OPTIMISER)
    epochs: float = setting(
        1.0, "passes over the training records, where steps is 0", 0, group=OPTIMISER
    )
    batch_size: int = setting(4, "records a step (times grad-accum)", 1, 4096, group=OPTIMISER)
    grad_accum: int = setting(1, "batches added up into one step", 1, 4096, group=OPTIMISER)
    lr: float = setting(3e-4, "peak learning rate", 0, group=OPTIMISER)
    warmup_steps: int = setting(
        4, "steps over which the learning rate rises to its peak", 0, group=OPTIMISER
    )
    schedule: Schedule = setting(
        "linear", "how the learning rate goes on after the warm-up", group=OPTIMISER
    )
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", 0, group=OPTIMISER)
    # Shorter than nearly all, so that each counts alike: step 9 of the lesson.
    max_grad_norm: float = setting(
        0.02, "gradients longer than this are scaled down; 0 = off", 0, group=OPTIMISER
    )

    max_length: int = setting(
        1024, "tokens: answers are cut so that prompt + answer fits", 2, group=RECORDS
    )
    max_records: int = setting(
        0, "records read from the data, the first N; 0 = all", 0, group=RECORDS
    )
    max_rejected: int = setting(
        0, "rejected answers used of each record; 0 = all", 0, group=RECORDS
    )
    skip_long: bool = setting(
        False, "leave out records whose prompt alone exceeds max-length", group=RECORDS
    )
    order: Order = setting(
        "shuffle",
        "order of the records: as in the file, shuffled each epoch, most rejected first",
        group=RECORDS,
    )
    eval_fraction: float = setting(
        0.1, "share of the prompts held out; 0 = off", 0, 0.9, group=MEASURING
    )
    eval_records: int = setting(
        64, "held-out records evaluated, at most; 0 = all", 0, group=MEASURING
    )
    eval_every: int = setting(
        0, "steps between evaluations; 0 = before and after only", 0, group=MEASURING
    )

    pass_tokens: int = setting(
        640,
        "tokens a thread computes at once, at most if answers allow; less needs less memory",
        1,
        group=MACHINE,
        may_change=True,
        spares="smaller",
    )
    memory: Literal["full", "low"] = setting(
        "full",
        "low = compute each layer again in backward: less memory, more time, the same numbers",
        group=MACHINE,
        may_change=True,
        spares="low",
    )
    reference_memory: float = setting(
        1.0,
        "GB of memory for what the base says of the records, computed once where they come several "
        "times; what is more goes to a file in the output folder; 0 = computed in every step",
        0,
        group=MACHINE,
        may_change=True,
        spares="0",
    )
    matmul: Mode = setting("auto", MATMUL_HELP, group=MACHINE)
    threads: int = setting(
        0,
        "processor threads; 0 = all, or one for a small model",
        0,
        group=MACHINE,
        may_change=True,
    )
    save_every: int = setting(
        20,
        "steps between checkpoints, from which --resume goes on; 0 = after the last only",
        0,
        group=RUN,
        may_change=True,
    )
    keep: int = setting(2, "newest checkpoints that are kept", 1, group=RUN, may_change=True)
    seed: int = setting(0, "start of every random choice", 0, group=RUN)

    def resolved_files(self) -> tuple[Path, Path, Path | None]:
        """The model, the records, and the questions or None: as set, or the embedded ones.

        Raises InputError for a model without records: the embedded ones are not made for it; and
        for the name of a model that has not been fetched.
        """
        if self.model and not self.data:
            raise InputError("--model without --data: expected a file of rejection records too.")
        embedded = embedded_folder()
        usual = None if self.data else embedded / "heldout.jsonl"
        return (
            model_path(self.model or embedded),
            Path(self.data or embedded / "records.jsonl"),
            Path(self.heldout) if self.heldout else usual,
        )

    @property
    def records_a_step(self) -> int:
        """How many records an optimiser step is taken on."""
        return self.batch_size * self.grad_accum

    @property
    def exports(self) -> list[Export]:
        """What `export` names."""
        return [EXPORTS[name] for name in self.export if name != "none"]

    def resolved_lora(self, layers: int) -> LoraConfig:
        """The shape of a fresh adapter for a model of so many layers.

        Raises InputError if `lora_layers` asks for more of them.
        """
        if self.lora_layers > layers:
            raise InputError(f"--lora-layers {self.lora_layers}: the model has only {layers}.")
        last = range(layers - (self.lora_layers or layers), layers)
        modules = module_names(last, self.lora_targets)
        return LoraConfig(self.lora_r, self.lora_alpha, modules, self.rslora)

    def resolved_loss(self) -> Loss:
        """What is minimised: the named loss, with what is set separately.

        Raises InputError if something is set that this loss has not.
        """

        def given(*names: str) -> dict[str, Any]:
            values = {name: getattr(self, name) for name in names}
            return {name: value for name, value in values.items() if value is not None}

        loss, parts = LOSSES[self.objective], given(*Objective._fields)
        if isinstance(loss, TargetLoss):
            loss = TargetLoss(loss.objective._replace(**parts))
        elif parts:
            flags = ", ".join(f"--{name}" for name in parts)
            raise InputError(
                f"{flags}: part of the objectives {', '.join(OBJECTIVES)}, and not of "
                f"{self.objective}. Leave it out, or choose one of these."
            )
        if self.beta is not None and not hasattr(loss, "beta"):
            raise InputError(f"--beta: a number of {HAVING_BETA}, and not of {self.objective}.")
        return dataclasses.replace(loss, **given("kl", "beta"))  # type: ignore[type-var]


FIELDS = settings_of(TrainConfig)

# What a run may be given anew when it goes on, because nothing that is computed depends on it; or,
# for `threads`, `pass_tokens` and a `reference_memory` of 0, only its last digits: a run that was
# short of memory or of processors must be able to go on. `model`, `data`, `heldout` and
# `init_adapter` may have moved, their content is compared.
MAY_CHANGE = frozenset(name for name, field in FIELDS.items() if field.about.may_change)


# -- where a run's settings come from --------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Give `parser` a flag for every setting, and --preset and --config; returns their heading."""
    heading = add_settings(parser, FIELDS)[RUN]
    heading.add_argument(
        "--preset", choices=PRESETS, help="named settings (tiny when no --model is given)"
    )
    heading.add_argument("--config", metavar="FILE", help="TOML file of settings")
    return heading


def add_settings(
    parser: argparse.ArgumentParser, names: Iterable[str]
) -> dict[str, argparse._ArgumentGroup]:
    """Give `parser` a flag for each of these settings; returns the headings they stand under.

    The defaults shown are those of a run without arguments and, beside them, of all others.
    """
    usual = {name: show(FIELDS[name].default) for name in PRESETS[EMBEDDED]}
    usual["kl"] = "the objective's own"
    defaults = {
        name: f"{show(value)} for the embedded model, {usual[name]} with --model"
        for name, value in PRESETS[EMBEDDED].items()
    }
    return add_flags(parser, TrainConfig, names, defaults, GROUPS)


def resolve(arguments: Mapping[str, Any]) -> TrainConfig:
    """Settle flags (None = not given), TOML file, preset and defaults into one TrainConfig.

    Raises InputError naming every unknown key and every value out of its range at once; and for a
    preset that is made for another model than the embedded one, where none is named.
    """
    flags = flags_given(TrainConfig, arguments)
    return _settled(flags, arguments.get("preset"), arguments.get("config"))


def read_settings(path: str | Path) -> TrainConfig:
    """The settings in a TOML file, such as a run's config.toml; raises what `resolve` does."""
    return _settled(flags_given(TrainConfig, {}), None, path)


def _settled(flags: Source, preset: str | None, file: str | Path | None) -> TrainConfig:
    preset, values = _given(flags, preset, file, EMBEDDED)
    if preset not in (None, EMBEDDED) and not values.get("model"):
        raise InputError(
            f"--preset {preset} without --model: these settings are made for that model, and the "
            "embedded one is another. Name its folder (`python tools/fetch.py model` makes one), "
            f"or leave the preset out: the embedded model has its own, {EMBEDDED}."
        )
    return TrainConfig(**values)


def given_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`resolve` without the defaults: what flags, TOML file and preset say, and nothing else."""
    flags = flags_given(TrainConfig, arguments)
    return _given(flags, arguments.get("preset"), arguments.get("config"), None)[1]


def _given(
    flags: Source, preset: Any, file: str | Path | None, default_preset: str | None
) -> tuple[str | None, dict[str, Any]]:
    """The preset's name and all values given; the default preset is that of no named model."""
    table = read_toml(Path(file)) if file else {}
    stated = table.pop("preset", None)
    preset = preset or stated
    if preset is None and not (flags.values.get("model") or table.get("model")):
        preset = default_preset
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise InputError(f"preset {show(preset)} in {file}: unknown. Known: {', '.join(PRESETS)}.")
    made_for = {"objective": FIELDS["objective"].default}
    values = made_for | PRESETS[preset] if preset else {}
    table = _left_by(flags.values, table)
    values = _left_by(flags.values, _left_by(table, values))
    named = Source(f"preset {preset}", values, False)
    return preset, checked(TrainConfig, [named, Source(str(file), table, False), flags])


def _left_by(first: Mapping[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """What stays of values under those that come first: another objective has numbers of its own,
    and epochs would count for nothing beside steps."""
    gone = {"steps"} if "epochs" in first and "steps" not in first else set[str]()
    if "objective" in values and first.get("objective", values["objective"]) != values["objective"]:
        gone |= {name for name, field in FIELDS.items() if field.about.group == OBJECTIVE}
    return {name: value for name, value in values.items() if name not in gone}
