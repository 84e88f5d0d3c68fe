"""LoRA adapters as PEFT folders, in and out.

Names, shapes and settings are all checked before anything is used, and every mismatch is listed.
"""

import hashlib
import re
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from reprlib import repr  # values of a damaged file may be as long as the file
from typing import Any

from minibule.core.lora import Adapter, adapter_shapes, lora_name
from minibule.core.shapes import PROJECTIONS, LlamaConfig, LoraConfig, module_names
from minibule.errors import InputError, listed
from minibule.files import existing_folder, read_json, whole_folder, write_json
from minibule.machine.half import widened
from minibule.models.keys import ADAPTER_CONFIG
from minibule.models.safetensors import read_tensors, stored_tensors, write_safetensors
from minibule.wording import Number

PEFT_PREFIX = "base_model.model."


def save_adapter(adapter: Adapter, model: LlamaConfig, folder: Path, base_model: str) -> None:
    """Write a PEFT adapter: adapter_model.safetensors and adapter_config.json.

    base_model: the name or path PEFT is to find the base model under.
    """
    config = adapter.config
    with whole_folder(folder) as partial:
        write_json(
            partial / "adapter_config.json",
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base_model,
                "r": config.r,
                "lora_alpha": config.lora_alpha,
                "lora_dropout": 0.0,
                "target_modules": _target_modules(config.modules, model.num_hidden_layers),
                "bias": "none",
                "use_rslora": config.use_rslora,
                "fan_in_fan_out": False,
                "inference_mode": True,
                "init_lora_weights": True,
                "modules_to_save": None,
                "rank_pattern": dict(config.rank_pattern),
                "alpha_pattern": dict(config.alpha_pattern),
            },
        )
        tensors = {PEFT_PREFIX + name: array for name, array in adapter.params.items()}
        write_safetensors(partial / "adapter_model.safetensors", tensors, "float32")


def load_adapter(path: str | Path, model: LlamaConfig) -> Adapter:
    """Read a PEFT LoRA adapter made for a model of these shapes.

    Raises
    ------
    InputError
        If it is no plain LoRA, or its matrices are not exactly those that its own settings and
        the model's shapes call for; every mismatch is listed.
    """
    folder = existing_folder(path, "a PEFT adapter folder")
    file = folder / "adapter_config.json"
    if not file.exists() and (folder / "adapter" / file.name).exists():
        raise InputError(
            f"{folder}: found the folder of a run, expected that of its adapter; did you mean "
            f"{folder / 'adapter'}?"
        )
    raw = read_json(file)
    where = folder / "adapter_model.safetensors"
    stored = stored_tensors([where])
    config = _lora_config(raw, file, model, stored)
    shapes = {PEFT_PREFIX + name: shape for name, shape in adapter_shapes(config, model).items()}
    params = read_tensors(stored, shapes, where)
    arrays = {name.removeprefix(PEFT_PREFIX): widened(p) for name, p in params.items()}
    return Adapter(config, arrays)


def fingerprint(adapter: Adapter) -> str:
    """The same text for the same adapter, wherever it lies: the hash of its numbers."""
    hashed = hashlib.sha256()
    for name in sorted(adapter.params):
        hashed.update(name.encode())
        hashed.update(adapter.params[name].tobytes())
    return hashed.hexdigest()


def _lora_config(
    raw: Mapping[str, Any], file: Path, model: LlamaConfig, stored: Container[str]
) -> LoraConfig:
    problems = ADAPTER_CONFIG.problems(raw)
    rank, alpha = Number(int, 1, 10**9), Number(float, 0, 1e9, above=True)
    config = LoraConfig(
        r=rank.noted(raw.get("r"), "r", problems),
        lora_alpha=alpha.noted(raw.get("lora_alpha"), "lora_alpha", problems),
        modules=_adapted_modules(raw, model, stored, problems),
        use_rslora=raw.get("use_rslora") is True,
        rank_pattern=_pattern(raw, "rank_pattern", rank, model, problems),
        alpha_pattern=_pattern(raw, "alpha_pattern", alpha, model, problems),
    )
    if problems:
        raise InputError(f"{file}: not an adapter minibule can use:\n{listed(problems)}")
    return config


def _pattern(
    raw: Mapping[str, Any], name: str, expected: Number, model: LlamaConfig, problems: list[str]
) -> dict[str, Any]:
    """rank_pattern or alpha_pattern: module -> number.

    To PEFT the modules' names are regular expressions. Here a name is a name, and one that PEFT
    would take for another module's too is refused.
    """
    entries = raw.get(name) or {}
    if not isinstance(entries, dict):
        problems.append(f"{name}: found {repr(entries)}, expected an object")
        return {}
    for key, entry in entries.items():
        if not re.fullmatch(r"[\w.]{1,200}", key) or any(
            _ends_with(module, [key]) != bool(re.match(rf"(.*\.)?({key})$", module))
            for module in _modules(model)
        ):
            problems.append(f"{name}: found {repr(key)}, expected a module's name")
        expected.noted(entry, f"{name}[{key[:40]}]", problems)
    return entries


def _adapted_modules(
    raw: Mapping[str, Any], model: LlamaConfig, stored: Container[str], problems: list[str]
) -> tuple[str, ...]:
    """The model's modules that target_modules names.

    Those named by the end of their names are wanted in the layers of layers_to_transform alone.
    PEFT also takes a regular expression; then the matrices in the file say what it matched.
    """
    targets: Any = raw.get("target_modules")
    excluded: Any = raw.get("exclude_modules") or []
    layers: Any = raw.get("layers_to_transform")
    layers = [layers] if type(layers) is int else layers or []
    expected = {
        "target_modules": (isinstance(targets, str | list), "a list of modules, or a text"),
        "exclude_modules": (isinstance(excluded, list), "a list of modules"),
        "layers_to_transform": (
            isinstance(layers, list) and all(type(layer) is int for layer in layers),
            "a list of layers",
        ),
    }
    wrong = [
        f"{name}: found {repr(raw.get(name))}, expected {what}"
        for name, (fits, what) in expected.items()
        if not fits
    ]
    if layers and isinstance(targets, str):
        wrong.append("layers_to_transform: found with a text in target_modules, expected a list")
    problems += wrong
    if wrong:
        return ()

    def wanted(module: str) -> bool:
        if _ends_with(module, excluded):
            return False
        if isinstance(targets, str):
            return PEFT_PREFIX + lora_name(module, "A") in stored
        in_layers = not layers or int(module.split(".")[2]) in layers
        return module in targets or (_ends_with(module, targets) and in_layers)

    modules = tuple(module for module in _modules(model) if wanted(module))
    if not modules:
        problems.append(f"target_modules: found {repr(targets)}, none of which this model has")
    return modules


def _modules(model: LlamaConfig) -> tuple[str, ...]:
    return module_names(range(model.num_hidden_layers), PROJECTIONS)


def _ends_with(module: str, names: Iterable[Any]) -> bool:
    """Whether one of the names is the module's, or the end of it."""
    return any(module == name or module.endswith(f".{name}") for name in names)


def _target_modules(modules: tuple[str, ...], num_layers: int) -> list[str]:
    """PEFT's target_modules: the projections' short names where every layer has them."""
    short = {module.rpartition(".")[2] for module in modules}
    everywhere = set(module_names(range(num_layers), short)) == set(modules)
    return sorted(short) if everywhere else list(modules)
