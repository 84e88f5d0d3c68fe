"""A model out, its adapter merged: as a Hugging Face folder, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minibule.core.llama import Llama
from minibule.core.lora import merged_weight
from minibule.files import whole_folder, write_json
from minibule.machine.matrix import Array
from minibule.models.keys import MERGED
from minibule.models.peft import fingerprint
from minibule.models.safetensors import TORCH_DTYPE, check_finite, narrowed, write_safetensors
from minibule.models.source import open_source

MAX_SHARD_BYTES = 2 * 10**9


def save_model(model: Llama, folder: Path, source: Path, dtype: str = "F32") -> None:
    """Write a Hugging Face folder of the model, its adapter merged into its weights.

    Parameters
    ----------
    source : folder or GGUF file the base model came from
        Its config and tokenizer files are taken over, or made from the GGUF's metadata.
    dtype : "F32", "F16" or "BF16"
        Only F32 keeps a merged adapter's small changes to the last digit.
    """
    check_merged(model, folder)
    beside = open_source(source)
    with whole_folder(folder) as partial:
        beside.save_companions(partial, model.config, dtype)
        save_weights(model, partial, dtype)


def save_weights(model: Llama, folder: Path, dtype: str) -> None:
    """Write model.safetensors, or shards of at most MAX_SHARD_BYTES and their index."""
    shards = _shards(model.config.tensor_shapes(), 4 if dtype == "F32" else 2)
    weight_map: dict[str, str] = {}
    merged = {MERGED: fingerprint(model.adapter)} if model.adapter else {}
    for number, tensors in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        arrays = {name: narrowed(merged_tensor(model, name), dtype) for name in tensors}
        write_safetensors(folder / file, arrays, TORCH_DTYPE[dtype], merged)
        weight_map |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def merged_tensor(model: Llama, name: str) -> Array:
    """A weight of the model by its Hugging Face name, with its adapter's share added."""
    pair = model.adapter.pair(name.removesuffix(".weight")) if model.adapter else None
    return merged_weight(model.weights[name], pair)


def check_merged(model: Llama, path: Path) -> None:
    """InputError if merging would break a weight; to be known before anything of `path` is written.

    Base and adapter have been checked, each by itself: only what both make together has not.
    """
    with np.errstate(all="ignore"):  # what overflows is named
        merged = ((name, merged_tensor(model, name)) for name in _changed(model))
        check_finite(merged, path, "not written, as the merged model would have broken weights")


def _changed(model: Llama) -> list[str]:
    """The weights that the adapter, if there is one, adds to."""
    modules = model.adapter.config.modules if model.adapter else ()
    return [f"{module}.weight" for module in modules]


def merged_bytes(model: Llama) -> int:
    """Memory that merging takes: a float32 copy of every weight that is changed, or no array."""
    changed = _changed(model)
    copied = (
        weight.size
        for name, weight in model.weights.items()
        if name in changed or not isinstance(weight, np.ndarray)
    )
    return 4 * sum(copied)


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
