"""Models and adapters on disk: Hugging Face folders in and out, PEFT adapters in and out.

Everything is checked before anything is used: all missing, unknown and misshapen tensors of a
checkpoint are listed in one error. Folders are written whole or not at all.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr  # values of a damaged file may be as long as the file
from typing import Any

import numpy as np

from minibule.config import (
    MAX_LAYERS,
    PROJECTIONS,
    RMS_NORM_EPS,
    ROPE_THETA,
    LlamaConfig,
    LoraConfig,
    module_names,
)
from minibule.core.llama import Llama
from minibule.core.lora import Adapter, adapter_shapes, merged_weight
from minibule.core.ops import Array
from minibule.errors import InputError, listed
from minibule.files import existing_folder, read_json, whole_folder, write_json
from minibule.models.gguf_file import read_gguf
from minibule.models.gguf_read import gguf_config, gguf_weights, is_gguf
from minibule.models.safetensors import (
    TORCH_DTYPE,
    narrowed,
    read_tensors,
    stored_tensors,
    write_safetensors,
)
from minibule.text.chat import load_chat, save_chat

# What a model folder holds beside its weights; copied as it is into a merged model's folder.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
PEFT_PREFIX = "base_model.model."
MAX_SHARD_BYTES = 2 * 10**9

# -- models in -------------------------------------------------------------------------------------


def load_model(
    path: str | Path, adapter: str | Path | None = None, *, narrow: bool = False
) -> Llama:
    """Load a LlamaForCausalLM from a Hugging Face folder or a GGUF file.

    Parameters
    ----------
    path : folder with config.json and model.safetensors, or shards and their index; or GGUF file
        A folder's tensors may be F32, F16 or BF16, a GGUF file's of any type that the gguf package
        dequantises; they are widened to float32.
    adapter : PEFT adapter folder, optional
    narrow : keep a folder's large F16 and BF16 matrices in 16 bits, and widen each where it is
        used: half the memory and the same numbers, somewhat slower

    Returns
    -------
    Llama
        `model.logits(ids)` maps (T,) token ids to (T, vocab_size) float32.

    Raises
    ------
    InputError
        If the folder is missing, holds another architecture or one with features this code does
        not compute, or if its tensors are not exactly the expected ones, or not finite.
    """
    if is_gguf(path):
        file = read_gguf(path)
        config = gguf_config(file)
        weights = gguf_weights(file, config)
    else:
        folder = existing_folder(path, "a Hugging Face model folder, or a GGUF file")
        config = load_config(folder)
        stored = {
            name: tensor
            for name, tensor in stored_tensors(_weight_files(folder)).items()
            if not _is_derived(name, config)
        }
        weights = read_tensors(stored, config.tensor_shapes(), folder, narrow)
    model = Llama(config, weights)
    if adapter is not None:
        model.adapter = load_adapter(adapter, config)
    return model


def load_config(folder: Path) -> LlamaConfig:
    """The shapes in a folder's config.json; InputError names all that is not supported."""
    path = folder / "config.json"
    raw = read_json(path)
    architectures = raw.get("architectures") or [raw.get("model_type")]
    if architectures not in (["LlamaForCausalLM"], ["llama"]):
        raise InputError(
            f"{path}: found the architecture {repr(architectures)}, expected LlamaForCausalLM, "
            "the only one minibule computes."
        )
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    rope = rope if isinstance(rope, dict) else {"rope_type": rope}
    found = {
        "attention_bias": (raw.get("attention_bias", False), False),
        "mlp_bias": (raw.get("mlp_bias", False), False),
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "rope scaling": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "rope_interleaved": (raw.get("rope_interleaved", False), False),
        "quantization_config": (raw.get("quantization_config"), None),
    }
    problems = [
        f"{name}: found {repr(value)}, minibule computes only {expected!r}"
        for name, (value, expected) in found.items()
        if value != expected
    ]
    raw = {"rope_theta": rope.get("rope_theta", 10000.0), **raw}

    def whole(name: str, default: int | None = None, high: int = 2**31 - 1) -> int:
        value = raw.get(name, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= high:
            expected = f"a whole number above 0 and at most {high:,}"
            problems.append(f"{name}: found {repr(value)}, expected {expected}")
            return 1
        return value

    def real(name: str, low: float, high: float) -> float:
        value: Any = raw.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            problems.append(f"{name}: found {repr(value)}, expected a number from {low} to {high}")
            return 1.0
        return float(value)

    heads, hidden = whole("num_attention_heads"), whole("hidden_size")
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=whole("num_hidden_layers", high=MAX_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=whole("num_key_value_heads", heads),
        head_dim=whole("head_dim", hidden // heads),
        intermediate_size=whole("intermediate_size"),
        vocab_size=whole("vocab_size"),
        max_position_embeddings=whole("max_position_embeddings", 2048),
        rms_norm_eps=real("rms_norm_eps", *RMS_NORM_EPS),
        rope_theta=real("rope_theta", *ROPE_THETA),
        tie_word_embeddings=raw.get("tie_word_embeddings", False) is True,
    )
    if config.num_attention_heads % config.num_key_value_heads:
        problems.append("num_attention_heads: expected a multiple of num_key_value_heads")
    if config.head_dim % 2:
        problems.append(f"head_dim: found {config.head_dim}, expected an even number")
    if config.vocab_size < 2:
        problems.append(f"vocab_size: found {config.vocab_size}, expected at least 2")
    if problems:
        raise InputError(f"{path}: not a model minibule can compute:\n{listed(problems)}")
    return config


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that the index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        return [single]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: expected an object weight_map from tensor to file.")
    for name in weight_map.values():
        # Not "..", not "a/b", and on Windows, where other signs cut names too, not "C:b" or "a\\b".
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]{0,250}", name):
            raise InputError(
                f"{index}: found the file {repr(name)}, expected plain file names in {folder}."
            )
    return [folder / name for name in sorted(set(weight_map.values()))]


def _is_derived(name: str, config: LlamaConfig) -> bool:
    """Whether a checkpoint's tensor only repeats what follows from others, as old ones do."""
    tied_head = name == "lm_head.weight" and config.tie_word_embeddings
    return tied_head or name.endswith("rotary_emb.inv_freq")


# -- models out ------------------------------------------------------------------------------------


def save_model(model: Llama, folder: Path, source: Path, dtype: str = "F32") -> None:
    """Write a Hugging Face folder of the model, its adapter merged into its weights.

    Parameters
    ----------
    source : folder or GGUF file the base model came from
        Its config and tokenizer files are taken over, or made from the GGUF's metadata.
    dtype : "F32", "F16" or "BF16"
        Only F32 keeps a merged adapter's small changes to the last digit.
    """
    chat = load_chat(source) if is_gguf(source) else None
    if chat:
        ids = {f"{name}_id": number for name, number in chat.special_ids.items()}
        config = config_json(model.config, dtype) | ids
    else:
        config = read_json(source / "config.json") | {"torch_dtype": TORCH_DTYPE[dtype]}
        config.pop("dtype", None)  # the newer name of the same
    with whole_folder(folder) as partial:
        if chat:
            save_chat(chat, partial)
        for file in companions(source):
            shutil.copy(file, partial / file.name)
        write_json(partial / "config.json", config)
        save_weights(model, partial, dtype)


def companions(source: Path) -> list[Path]:
    """The files beside a model's weights that go along with it; InputError for one that cannot."""
    files = [source / name for name in COMPANIONS if (source / name).exists()]
    for file in files:
        if not file.is_file() or not os.access(file, os.R_OK):
            raise InputError(f"{file}: expected a file that can be copied beside the weights.")
    return files


def save_weights(model: Llama, folder: Path, dtype: str) -> None:
    """Write model.safetensors, or shards of at most MAX_SHARD_BYTES and their index."""
    shards = _shards(model.config.tensor_shapes(), 4 if dtype == "F32" else 2)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays = {name: narrowed(merged_tensor(model, name), dtype) for name in tensors}
        write_safetensors(folder / file, arrays, TORCH_DTYPE[dtype])
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def config_json(config: LlamaConfig, dtype: str) -> dict[str, Any]:
    """The config.json of a model of these shapes."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **dataclasses.asdict(config),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": None,
        "torch_dtype": TORCH_DTYPE[dtype],
    }


def merged_tensor(model: Llama, name: str) -> Array:
    """A weight of the model by its Hugging Face name, with its adapter's share added."""
    pair = model.adapter.pair(name.removesuffix(".weight")) if model.adapter else None
    return merged_weight(model.weights[name], pair)


def _shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> list[list[str]]:
    """Tensor names, cut where a file would exceed MAX_SHARD_BYTES."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        tensor_size = itemsize * int(np.prod(shape))
        if shards[-1] and size + tensor_size > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor_size
    return shards


# -- PEFT adapters ---------------------------------------------------------------------------------


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

    def checked(name: str, value: Any, kind: type, patterned: bool = False) -> Any:
        if patterned:
            if not isinstance(value or {}, dict):
                problems.append(f"{name}: found {repr(value)}, expected an object")
                return {}
            for key, entry in (value or {}).items():
                if not re.fullmatch(r"[\w.]+", key):
                    problems.append(f"{name}: found {repr(key)}, expected a module's name")
                checked(f"{name}[{key[:40]}]", entry, kind)
            return value or {}
        number = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if not number or not 0 < value < 1e9:
            what = "a whole number" if kind is int else "a number"
            problems.append(f"{name}: found {repr(value)}, expected {what} above 0, below 1e9")
            return 1
        return value

    layers = raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    if layers is not None and not isinstance(layers, list):
        problems.append(f"layers_to_transform: found {repr(layers)}, expected a list of layers")
        layers = None
    config = LoraConfig(
        r=checked("r", raw.get("r"), int),
        lora_alpha=checked("lora_alpha", raw.get("lora_alpha"), float),
        modules=_adapted_modules(raw.get("target_modules"), layers, model, stored),
        use_rslora=raw.get("use_rslora", False) is True,
        rank_pattern=checked("rank_pattern", raw.get("rank_pattern"), int, patterned=True),
        alpha_pattern=checked("alpha_pattern", raw.get("alpha_pattern"), float, patterned=True),
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
