"""LoRA adapters as PEFT folders, in and out.

Names, shapes and settings are all checked before anything is used, and every mismatch is listed.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr  # values of a damaged file may be as long as the file
from typing import Any

from minibule.core.lora import Adapter, adapter_shapes
from minibule.core.shapes import PROJECTIONS, LlamaConfig, LoraConfig, module_names
from minibule.errors import InputError, listed
from minibule.files import existing_folder, read_json, whole_folder, write_json
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
    raw = read_json(file)
    stored = {
        name.removeprefix(PEFT_PREFIX): tensor
        for name, tensor in stored_tensors([folder / "adapter_model.safetensors"]).items()
    }
    config = _lora_config(raw, file, model, stored)
    where = folder / "adapter_model.safetensors"
    return Adapter(config, read_tensors(stored, adapter_shapes(config, model), where))


# Settings of PEFT that change what the adapter computes, and the only value supported here.
_PLAIN_LORA: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "use_dora": False,
    "lora_bias": False,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
}


def _lora_config(
    raw: Mapping[str, Any], file: Path, model: LlamaConfig, stored: Mapping[str, Any]
) -> LoraConfig:
    problems = [
        f"{name}: found {repr(raw[name])}, minibule computes only {plain!r}"
        for name, plain in _PLAIN_LORA.items()
        if raw.get(name) and raw[name] != plain
    ]

    rank, alpha = Number(int, 1, 10**9), Number(float, 0, 1e9, above=True)

    def pattern(name: str, expected: Number) -> dict[str, Any]:
        entries = raw.get(name) or {}
        if not isinstance(entries, dict):
            problems.append(f"{name}: found {repr(entries)}, expected an object")
            return {}
        for module, entry in entries.items():
            if not re.fullmatch(r"[\w.]+", module):
                problems.append(f"{name}: found {repr(module)}, expected a module's name")
            expected.noted(entry, f"{name}[{module[:40]}]", problems)
        return entries

    layers = raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    if layers is not None and not isinstance(layers, list):
        problems.append(f"layers_to_transform: found {repr(layers)}, expected a list of layers")
        layers = None
    config = LoraConfig(
        r=rank.noted(raw.get("r"), "r", problems),
        lora_alpha=alpha.noted(raw.get("lora_alpha"), "lora_alpha", problems),
        modules=_adapted_modules(raw.get("target_modules"), layers, model, stored),
        use_rslora=raw.get("use_rslora", False) is True,
        rank_pattern=pattern("rank_pattern", rank),
        alpha_pattern=pattern("alpha_pattern", alpha),
    )
    if not config.modules:
        problems.append(
            f"target_modules: found {repr(raw.get('target_modules'))}, none of which this model has"
        )
    if problems:
        raise InputError(f"{file}: not an adapter minibule can use:\n{listed(problems)}")
    return config


def _adapted_modules(
    targets: Any, layers: list[Any] | None, model: LlamaConfig, stored: Mapping[str, Any]
) -> tuple[str, ...]:
    """The model's modules that target_modules names, in these layers or all.

    PEFT also takes a regular expression there; then the matrices in the file say what it matched.
    """
    names = []
    for module in module_names(range(model.num_hidden_layers), PROJECTIONS):
        if isinstance(targets, list):
            named = any(module == t or module.endswith(f".{t}") for t in targets)
            wanted = named and (not layers or int(module.split(".")[2]) in layers)
        else:
            wanted = any(name.startswith(module + ".lora_") for name in stored)
        if wanted:
            names.append(module)
    return tuple(names)


def _target_modules(modules: tuple[str, ...], num_layers: int) -> list[str]:
    """PEFT's target_modules: the projections' short names where every layer has them."""
    short = {module.rpartition(".")[2] for module in modules}
    everywhere = set(module_names(range(num_layers), short)) == set(modules)
    return sorted(short) if everywhere else list(modules)
