"""Every setting, its default, its range and its help, in one place and nowhere else.

`TrainConfig` holds what a training run can be told. Its values come from four places, the first
that has one wins: a flag, a TOML file, a preset, the default here. A key that nobody knows is an
error, wherever it stands.
"""

import argparse
import dataclasses
import json
import math
import reprlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from minibule.core.counts import Counts
from minibule.core.objective import OBJECTIVES, Contrast, Objective, Prior
from minibule.core.optim import Schedule
from minibule.core.shapes import (
    PROJECTIONS,
    LoraConfig,
    module_names,
)
from minibule.errors import InputError, listed
from minibule.files import embedded_folder
from minibule.text.examples import Order

# -- the model -------------------------------------------------------------------------------------


# -- the adapter -----------------------------------------------------------------------------------


# -- the objective ---------------------------------------------------------------------------------


# -- a training run --------------------------------------------------------------------------------


def _setting(default: Any, help: str, low: float | None = None, high: float | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `python -m minibule.train`; `--help` prints this table."""

    model: str = _setting("", "Hugging Face folder of the base model; empty = the embedded one")
    data: str = _setting("", "rejection records; empty = the embedded ones")
    heldout: str = _setting(
        "", "prompts with their accepted and rejected answers, asked before and after training"
    )
    output: str = _setting("", "folder to write; empty = runs/NAME, the first that is free")
    overwrite: bool = _setting(False, "replace an earlier run in the output folder")
    export: tuple[str, ...] = _setting(
        ("hf",),
        "what to write beside the adapter, separated by commas: hf (the merged Hugging Face "
        "folder), gguf:TYPE (the merged model for llama.cpp), gguf-lora (the adapter for "
        "llama.cpp); or none",
    )
    probe: str = _setting("hello", "a prompt answered before and after training; empty = none")

    objective: Literal["literal", "reference", "rate"] = _setting(
        "reference", "the loss, as a named choice of the four knobs below"
    )
    prior: Prior | None = _setting(None, "what the target is built on (else as the objective says)")
    counts: Counts | None = _setting(None, "which answers v_t counts (else as the objective says)")
    contrast: Contrast | None = _setting(
        None, "how rejected tokens are pushed down (else as the objective says)"
    )
    alpha: float | None = _setting(
        None, "share of the KL part, 1 - alpha is the contrast's (else as the objective says)", 0, 1
    )

    lora_r: int = _setting(16, "LoRA rank", 1)
    lora_alpha: float = _setting(32.0, "LoRA scale: the adapter counts lora_alpha / r times", 1e-6)
    lora_targets: tuple[str, ...] = _setting(
        tuple(PROJECTIONS), "adapted projections, separated by commas"
    )
    lora_layers: int = _setting(0, "adapt the last N layers only; 0 = all", 0)
    rslora: bool = _setting(False, "scale by lora_alpha / sqrt(r) instead")
    init_adapter: str = _setting("", "PEFT adapter folder to start from (its r, targets, … hold)")

    steps: int = _setting(0, "optimiser steps; 0 = as many as the epochs take", 0)
    epochs: float = _setting(1.0, "passes over the training records, where steps is 0", 0)
    batch_size: int = _setting(4, "records a step (times grad-accum)", 1)
    grad_accum: int = _setting(1, "batches added up into one step", 1)
    lr: float = _setting(1e-4, "peak learning rate", 0)
    warmup_steps: int = _setting(0, "steps over which the learning rate rises to its peak", 0)
    schedule: Schedule = _setting("linear", "how the learning rate goes on after the warm-up")
    weight_decay: float = _setting(0.0, "AdamW's decoupled weight decay", 0)
    max_grad_norm: float = _setting(1.0, "gradients longer than this are scaled down; 0 = off", 0)

    max_length: int = _setting(1024, "tokens: answers are cut so that prompt + answer fits", 2)
    max_records: int = _setting(0, "records read from the data, the first N; 0 = all", 0)
    max_rejected: int = _setting(0, "rejected answers used of each record; 0 = all", 0)
    skip_long: bool = _setting(False, "leave out records whose prompt alone exceeds max-length")
    order: Order = _setting(
        "shuffle", "order of the records: as in the file, shuffled each epoch, most rejected first"
    )
    eval_fraction: float = _setting(0.1, "share of the prompts held out; 0 = off", 0, 0.9)
    eval_records: int = _setting(64, "held-out records evaluated, at most; 0 = all", 0)
    eval_every: int = _setting(0, "steps between evaluations; 0 = before and after only", 0)

    pass_tokens: int = _setting(
        640,
        "tokens a thread computes at once, at most if answers allow; less needs less memory",
        1,
    )
    memory: Literal["full", "low"] = _setting(
        "full",
        "low = compute each layer again in backward: less memory, more time, the same numbers",
    )
    threads: int = _setting(0, "processor threads; 0 = all, or one for a small model", 0)
    save_every: int = _setting(
        20, "steps between checkpoints, from which --resume goes on; 0 = after the last only", 0
    )
    keep: int = _setting(2, "newest checkpoints that are kept", 1)
    seed: int = _setting(0, "start of every random choice", 0)

    def resolved_files(self) -> tuple[Path, Path, Path | None]:
        """The model, the records, and the questions or None: as set, or the embedded ones.

        Raises InputError for a model without records: the embedded ones are not made for it.
        """
        if self.model and not self.data:
            raise InputError("--model without --data: expected a file of rejection records too.")
        embedded = embedded_folder()
        usual = None if self.data else embedded / "heldout.jsonl"
        return (
            Path(self.model or embedded),
            Path(self.data or embedded / "records.jsonl"),
            Path(self.heldout) if self.heldout else usual,
        )

    def resolved_lora(self, layers: int) -> LoraConfig:
        """The shape of a fresh adapter for a model of so many layers.

        Raises InputError if `lora_layers` asks for more of them.
        """
        if self.lora_layers > layers:
            raise InputError(f"--lora-layers {self.lora_layers}: the model has only {layers}.")
        last = range(layers - (self.lora_layers or layers), layers)
        modules = module_names(last, self.lora_targets)
        return LoraConfig(self.lora_r, self.lora_alpha, modules, self.rslora)

    def resolved_objective(self) -> Objective:
        """The named objective with the knobs that were set apart."""
        knobs = {name: getattr(self, name) for name in Objective._fields}
        named = OBJECTIVES[self.objective]
        return named._replace(**{name: v for name, v in knobs.items() if v is not None})


# The reference run of the published model card is `smollm2-360m`: one epoch over 90 % of 5,000
# records, 4 a step. Its learning rate is not published; 1e-5 is a sibling implementation's.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"lr": 1e-3, "steps": 90, "warmup_steps": 3},
    "smollm2-360m": {
        "objective": "literal",
        "max_records": 5000,
        "lr": 1e-5,
        "eval_fraction": 0.1,
        "epochs": 1.0,
        "batch_size": 4,
        "skip_long": True,
    },
}

# Types a GGUF file's matrices can have.
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")

# What each setting that is a list may hold.
LISTS = {
    "lora_targets": tuple(PROJECTIONS),
    "export": ("none", "hf", "gguf-lora", *(f"gguf:{kind}" for kind in GGUF_TYPES)),
}

FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
HINTS = get_type_hints(TrainConfig)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` a flag for every setting, and --preset and --config."""
    parser.add_argument(
        "--preset", choices=PRESETS, help="named settings (tiny when no --model is given)"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings")
    add_settings(parser, FIELDS)


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Give `parser` a flag for each of these settings."""
    for name in names:
        field = FIELDS[name]
        flag = "--" + name.replace("_", "-")
        text = field.metadata["help"].replace("%", "%%")
        if field.default not in (None, "") and field.default is not False:
            text += f" (default: {_show(field.default)})"
        if HINTS[name] is bool:
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=None, help=text
            )
        else:
            parser.add_argument(flag, metavar=_metavar(name), help=text)


def resolve(arguments: Mapping[str, Any]) -> TrainConfig:
    """Settle flags (None = not given), TOML file, preset and defaults into one TrainConfig.

    Raises InputError naming every unknown key and every value out of its range at once.
    """
    return TrainConfig(**given_settings(arguments, default_preset="tiny"))


def given_settings(
    arguments: Mapping[str, Any], default_preset: str | None = None
) -> dict[str, Any]:
    """`resolve` without the defaults: what flags, TOML file and preset say, and nothing else.

    default_preset: the preset taken where neither a preset nor a model is given.
    """
    flags = {name: arguments[name] for name in FIELDS if arguments.get(name) is not None}
    config_path = arguments.get("config")
    table = _read_toml(Path(config_path)) if config_path else {}
    preset = arguments.get("preset") or table.pop("preset", None)
    if preset is None and not (flags.get("model") or table.get("model")):
        preset = default_preset
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise InputError(
            f"preset {_show(preset)} in {config_path}: unknown. Known: {', '.join(PRESETS)}."
        )
    values: dict[str, Any] = dict(PRESETS[preset]) if preset else {}
    problems: list[str] = []
    for source, given in ((str(config_path), table), ("command line", flags)):
        for name, value in given.items():
            if name not in FIELDS:
                problems.append(f"{_show(name)} ({source}): no such setting{_meant(name)}")
                continue
            try:
                values[name] = _convert(name, value, from_text=given is flags)
            except ValueError as error:
                problems.append(f"{name} = {_show(value)} ({source}): {error}")
    if problems:
        raise InputError("settings that cannot be used:\n" + listed(problems))
    return values


def to_toml(config: TrainConfig) -> str:
    """The settings as a TOML file that `--config` reads back, each with its help above it.

    InputError for a text that no file can hold.
    """
    lines = []
    for name, field in FIELDS.items():
        value = getattr(config, name)
        try:
            _check_utf8(value if isinstance(value, str) else "")
        except ValueError as error:
            raise InputError(f"{name} = {_show(value)}: {error}.") from None
        shown = "" if value is None else f"{name} = {_toml_value(value)}\n"
        lines.append(f"# {field.metadata['help']}\n{shown}")
    return "\n".join(lines)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the settings ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, too many digits, too deep
        raise InputError(f"{path}: not a TOML file ({error}).") from None
    settings = {name.replace("-", "_"): value for name, value in table.items()}
    if len(settings) < len(table):
        twice = next(name for name in table if "-" in name and name.replace("-", "_") in table)
        raise InputError(f"{path}: {twice} stands there twice, once with _ for -; expected once.")
    return settings


def _convert(name: str, value: Any, from_text: bool) -> Any:
    """`value` as the type of setting `name`; ValueError says what was expected."""
    hint = HINTS[name]
    choices = _choices(hint)
    if choices:
        if value not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return value
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    kind = kinds[0]
    if name in LISTS:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list) or not names or any(n not in LISTS[name] for n in names):
            raise ValueError(f"expected some of {','.join(LISTS[name])}")
        return tuple(dict.fromkeys(names))
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError("expected true or false")
        return value
    if kind is str:
        if not isinstance(value, str):
            raise ValueError("expected a text")
        _check_utf8(value)
        return value
    return _number(FIELDS[name].metadata, kind, value, from_text)


def _check_utf8(value: str) -> None:
    """ValueError for half characters, as a command line or file name that is not UTF-8 has them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("expected UTF-8 text, which config.toml can hold") from None


def _number(metadata: Mapping[str, Any], kind: type, value: Any, from_text: bool) -> int | float:
    low, high = metadata["low"], metadata["high"]
    what = "a whole number" if kind is int else "a number"
    bound = f"from {low:g} to {high:g}" if high is not None else f"of at least {low:g}"
    expected = ValueError(f"expected {what} {bound}")
    if isinstance(value, bool) or not isinstance(value, str if from_text else (int, kind)):
        raise expected
    try:
        number: int | float = kind(value)
    except (ValueError, OverflowError):
        raise expected from None
    if not low <= number <= (math.inf if high is None else high) or number == math.inf:
        raise expected
    if number >= 2**63:  # no count is, and NumPy's whole numbers end here
        raise ValueError("expected less than 2^63")
    return number


def _choices(hint: Any) -> tuple[str, ...]:
    """The texts a Literal (or Literal | None) allows; empty for any other type."""
    return tuple(c for part in (hint, *get_args(hint)) for c in get_args(part) if type(c) is str)


def _metavar(name: str) -> str:
    hint = HINTS[name]
    if choices := _choices(hint):
        return "|".join(choices)
    if hint is int:
        return "N"
    return "X" if hint in (float, float | None) else "TEXT"


def _meant(name: str) -> str:
    import difflib  # only needed on this way out

    close = difflib.get_close_matches(name, FIELDS, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return value if isinstance(value, str) and len(value) <= 40 else reprlib.repr(value)


def _toml_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # JSON's texts, numbers and booleans are TOML's too (DEL alone is escaped there and not here).
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
