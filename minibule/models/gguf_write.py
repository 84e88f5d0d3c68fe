"""GGUF out: the model with its adapter merged, or the adapter alone, for llama.cpp.

Written tensor by tensor, so that no more than one of them is in memory twice, and under a temporary
name until it is whole.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, LlamaFileType
from gguf.gguf_writer import GGUFValue, GGUFWriter
from gguf.quants import quant_shape_to_byte_shape, quantize
from tqdm import tqdm

from minibule.core.llama import Llama
from minibule.core.lora import lora_name
from minibule.core.shapes import LlamaConfig
from minibule.errors import InputError, listed
from minibule.files import whole_file
from minibule.machine.matrix import Array
from minibule.models.gguf_file import (
    Gguf,
    Metadata,
    gguf_name,
    permute,
    permuted_heads,
    text_value,
    u32_value,
)
from minibule.models.gguf_metadata import model_metadata, tokenizer_metadata
from minibule.models.gguf_read import GgufModel
from minibule.models.keys import MERGED
from minibule.models.peft import fingerprint
from minibule.models.save import check_merged, merged_tensor
from minibule.models.source import open_source
from minibule.text.chat import Chat

# dtype -> the type of the matrices (norms stay F32), and what general.file_type calls such a file.
_TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
GGUF_TYPES = tuple(_TYPES)


def export_gguf(model: Llama, chat: Chat, path: Path, dtype: str) -> None:
    """Write the model as a GGUF file that llama.cpp loads.

    Parameters
    ----------
    model : Llama
        Its adapter, if it has one, is merged in float32 before anything is quantised.
    chat : Chat
        Tokenizer and chat template. Where they came from a GGUF file, all of that file's metadata
        and its order of tensors are taken over.
    path : file to write; an existing one is replaced once the new one is whole
    dtype : f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0

    Raises
    ------
    InputError
        If a matrix does not divide into the type's blocks, the tokenizer is none that llama.cpp
        has a name for, or the disk is too small.
    """
    kind, file_type = _TYPES[dtype]
    check_gguf(model.config, chat, dtype)
    check_merged(model, path)
    base = _base(chat)
    shapes = model.config.tensor_shapes()
    metadata = dict(base.metadata) if base else model_metadata(model.config, chat)
    metadata["general.file_type"] = u32_value(int(file_type))
    if GGML_QUANT_SIZES[kind][0] > 1:
        metadata.setdefault("general.quantization_version", u32_value(2))
    if model.adapter:
        metadata[MERGED] = text_value(fingerprint(model.adapter))

    def tensor(name: str) -> Array:
        W = merged_tensor(model, name)
        heads = permuted_heads(name, model.config)
        return permute(W, heads) if heads else W

    names = list(shapes)
    if base:  # its own order
        by_gguf_name = {gguf_name(name): name for name in names}
        names = [by_gguf_name[name] for name in base.tensors]
    _write(
        path,
        metadata,
        [
            (gguf_name(name), shapes[name], kind if len(shapes[name]) > 1 else _F32)
            for name in names
        ],
        (tensor(name) for name in names),
    )


def check_gguf(config: LlamaConfig, chat: Chat, dtype: str) -> None:
    """InputError where `export_gguf` would fail on this model: to be known before a long run."""
    _check_blocks(config.tensor_shapes(), _TYPES[dtype][0])
    if not _base(chat):
        tokenizer_metadata(chat, config.vocab_size)


def _base(chat: Chat) -> Gguf | None:
    """The GGUF file that a chat came from, whose metadata and order a new one takes over."""
    source = open_source(chat.source)
    return source.file if isinstance(source, GgufModel) else None


def gguf_bytes(parameters: int, dtype: str) -> int:
    """About how large a model's file is in one of the types."""
    block, size = GGML_QUANT_SIZES[_TYPES[dtype][0]]
    return parameters * size // block


def export_gguf_lora(model: Llama, path: Path) -> None:
    """Write the model's adapter alone, for llama.cpp's --lora.

    llama.cpp scales every pair by one alpha / r, r being the pair's own. What a pair's scaling
    differs from that (rsLoRA, ranks or alphas of its own) is multiplied into its B. Of q_proj and
    k_proj the rows of B are permuted, as those of the weights they add to.
    """
    adapter = model.adapter
    if adapter is None:
        raise InputError("gguf-lora: there is no adapter to write; name one with --adapter.")
    config = adapter.config
    alpha = config.scaling(config.modules[0]) * config.rank(config.modules[0])
    if alpha == 0:
        raise InputError("gguf-lora: lora_alpha is 0, which llama.cpp reads as a scale of 1.")
    metadata = {
        "general.architecture": text_value("llama"),
        "general.type": text_value("adapter"),
        "adapter.type": text_value("lora"),
        "adapter.lora.alpha": GGUFValue(float(np.float32(alpha)), GGUFValueType.FLOAT32),
    }
    tensors: list[tuple[str, Array]] = []
    for module in config.modules:
        A, B = adapter.params[lora_name(module, "A")], adapter.params[lora_name(module, "B")]
        B = B * np.float32(config.scaling(module) / (alpha / len(A)))
        heads = permuted_heads(module, model.config)
        name = gguf_name(module + ".weight")
        tensors.append((f"{name}.lora_a", A))
        tensors.append((f"{name}.lora_b", permute(B, heads) if heads else B))
    _write(
        path,
        metadata,
        [(name, array.shape, _F32) for name, array in tensors],
        (array for _, array in tensors),
    )


# -- writing ---------------------------------------------------------------------------------------

_F32 = GGMLQuantizationType.F32
_Place = tuple[str, tuple[int, ...], GGMLQuantizationType]


def _write(
    path: Path, metadata: Metadata, places: Sequence[_Place], arrays: Iterable[Array]
) -> None:
    """Write a whole GGUF file; `arrays` are made one at a time, in the order of `places`."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path}: expected the name of a file in a folder that exists.")
    sizes = [int(np.prod(quant_shape_to_byte_shape(shape, kind))) for _, shape, kind in places]
    free = shutil.disk_usage(path.parent).free
    if sum(sizes) > free:
        raise InputError(
            f"{path}: needs {sum(sizes) / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB are free."
        )
    try:
        with whole_file(path) as partial:
            _stream(partial, metadata, places, sizes, arrays)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error}). Is the disk full?") from None


def _stream(
    path: Path,
    metadata: Metadata,
    places: Sequence[_Place],
    sizes: Sequence[int],
    arrays: Iterable[Array],
) -> None:
    writer = GGUFWriter(path, "llama")
    writer.kv_data[0].clear()  # the metadata say it all, in their own order
    for key, value in metadata.items():
        writer.add_key_value(key, value.value, value.type, value.sub_type)
    if "general.alignment" in metadata:
        writer.data_alignment = metadata["general.alignment"].value
    for (name, shape, kind), size in zip(places, sizes, strict=True):
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with tqdm(
            total=sum(sizes), desc="writing GGUF", unit="B", unit_scale=True, delay=1, disable=None
        ) as bar:
            for (_, _, kind), size, array in zip(places, sizes, arrays, strict=True):
                writer.write_tensor_data(quantize(np.ascontiguousarray(array), kind))
                bar.update(size)
    finally:
        writer.close()


def _check_blocks(shapes: dict[str, tuple[int, ...]], kind: GGMLQuantizationType) -> None:
    block, _ = GGML_QUANT_SIZES[kind]
    problems = [
        f"{name}: rows of {shape[-1]}"
        for name, shape in shapes.items()
        if len(shape) > 1 and shape[-1] % block
    ]
    if problems:
        raise InputError(
            f"{kind.name} is made of blocks of {block} numbers, which do not divide "
            f"these rows; f32, f16 and bf16 take any:\n{listed(problems)}"
        )
