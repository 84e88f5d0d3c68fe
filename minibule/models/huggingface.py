"""Models as Hugging Face folders, in and out.

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

from minibule.core.llama import Llama
from minibule.core.lora import merged_weight
from minibule.core.shapes import (
    MAX_LAYERS,
    RMS_NORM_EPS,
    ROPE_THETA,
    LlamaConfig,
)
from minibule.errors import InputError, listed
from minibule.files import read_json, whole_folder, write_json
from minibule.machine.matrix import Array
from minibule.models.chat_files import load_chat, save_chat
from minibule.models.gguf_read import is_gguf
from minibule.models.safetensors import (
    TORCH_DTYPE,
    narrowed,
    write_safetensors,
)

# What a model folder holds beside its weights; copied as it is into a merged model's folder.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)


MAX_SHARD_BYTES = 2 * 10**9


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


def weight_files(folder: Path) -> list[Path]:
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


def is_derived(name: str, config: LlamaConfig) -> bool:
    """Whether a checkpoint's tensor only repeats what follows from others, as old ones do."""
    tied_head = name == "lm_head.weight" and config.tie_word_embeddings
    return tied_head or name.endswith("rotary_emb.inv_freq")


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
