"""GGUF out: the model with its adapter merged, or the adapter alone, for llama.cpp.

Written tensor by tensor, so that no more than one of them is in memory twice, and under a temporary
name until it is whole.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
from minibule.models.gguf_file import Gguf, Metadata, gguf_name, permute, permuted_heads
from minibule.models.gguf_read import (
    CONTROL,
    NORMAL,
    PRE_TOKENIZERS,
    UNUSED,
    USER_DEFINED,
    GgufModel,
)
from minibule.models.save import merged_tensor
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
    base = _base(chat)
    shapes = model.config.tensor_shapes()
    metadata = dict(base.metadata) if base else model_metadata(model.config, chat)
    metadata["general.file_type"] = _u32(int(file_type))
    if GGML_QUANT_SIZES[kind][0] > 1:
        metadata.setdefault("general.quantization_version", _u32(2))

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
        "general.architecture": _text("llama"),
        "general.type": _text("adapter"),
        "adapter.type": _text("lora"),
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


# -- metadata --------------------------------------------------------------------------------------


def model_metadata(config: LlamaConfig, chat: Chat) -> Metadata:
    """Everything llama.cpp wants to know of a model beside its tensors."""
    shapes = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        shapes |= {
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
        }
    reals = {
        "rope.freq_base": config.rope_theta,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    return {
        "general.architecture": _text("llama"),
        "general.type": _text("model"),
        "general.name": _text(chat.source.resolve().name),
        "general.file_type": _u32(0),
        **{f"llama.{key}": _u32(value) for key, value in shapes.items()},
        **{f"llama.{key}": GGUFValue(value, GGUFValueType.FLOAT32) for key, value in reals.items()},
        **tokenizer_metadata(chat, config.vocab_size),
    }


def tokenizer_metadata(chat: Chat, vocab_size: int) -> Metadata:
    """The tokenizer and chat template as GGUF metadata."""
    description = json.loads(chat.tokenizer.to_str())
    bpe = description["model"]
    pre = _pre_tokenizer_name(description, chat.source)
    ids = chat.tokenizer.get_vocab(with_added_tokens=True)
    if max(ids.values()) >= vocab_size:
        raise InputError(
            f"{chat.source}: found token ids up to {max(ids.values())}, "
            f"expected less than the model's vocab_size of {vocab_size}."
        )
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]  # ids that no text gives
    types = [UNUSED] * vocab_size
    for token, number in ids.items():
        tokens[number], types[number] = token, NORMAL
    for added in description["added_tokens"]:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]
    special = {
        "bos": chat.special_ids.get("bos_token"),
        "eos": chat.special_ids.get("eos_token", chat.end_of_turn),
        "unknown": chat.special_ids.get("unk_token"),
        "padding": chat.special_ids.get("pad_token"),
    }
    return {
        "tokenizer.ggml.model": _text("gpt2"),
        "tokenizer.ggml.pre": _text(pre),
        "tokenizer.ggml.tokens": _array(tokens, GGUFValueType.STRING),
        "tokenizer.ggml.token_type": _array(types, GGUFValueType.INT32),
        "tokenizer.ggml.merges": _array(merges, GGUFValueType.STRING),
        **{
            f"tokenizer.ggml.{name}_token_id": _u32(number)
            for name, number in special.items()
            if number is not None
        },
        "tokenizer.ggml.add_bos_token": GGUFValue(False, GGUFValueType.BOOL),
        "tokenizer.ggml.add_space_prefix": GGUFValue(False, GGUFValueType.BOOL),
        **({"tokenizer.chat_template": _text(chat.template)} if chat.template else {}),
    }


def _pre_tokenizer_name(description: dict[str, Any], source: Path) -> str:
    """llama.cpp's name for a tokenizer's way of cutting text, from what the tokenizer does."""
    bpe = description["model"]
    cut = _essential(description["pre_tokenizer"])
    problems: list[str] = []
    if bpe["type"] != "BPE" or bpe.get("byte_fallback") or bpe.get("ignore_merges"):
        problems.append(f"model: found {bpe['type']}, expected plain byte-level BPE")
    problems += [
        f"{part}: found {description[part]['type']}, expected none"
        for part in ("normalizer", "post_processor")
        if description[part] is not None and description[part]["type"] != "ByteLevel"
    ]
    problems += [
        f"{token['content']}: strips the spaces around it"
        for token in description["added_tokens"]
        if token["lstrip"] or token["rstrip"]
    ]
    names = [name for name, known in PRE_TOKENIZERS.items() if _essential(known) == cut]
    if not names:
        known = ", ".join(PRE_TOKENIZERS)
        problems.append(f"pre_tokenizer: found {json.dumps(cut)}, none of the known: {known}")
    if problems:
        raise InputError(
            f"{source}: its tokenizer has no name in llama.cpp that minibule knows, and a wrong "
            f"one would tokenise wrongly:\n{listed(problems)}"
        )
    return names[0]


def _essential(part: Any) -> Any:
    """A pre_tokenizer's description without what does not change the tokens."""
    if isinstance(part, list):
        return [_essential(item) for item in part]
    if isinstance(part, dict):
        return {key: _essential(value) for key, value in part.items() if key != "trim_offsets"}
    return part


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
        with tqdm(total=sum(sizes), desc="writing GGUF", unit="B", unit_scale=True, delay=1) as bar:
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


def _text(value: str) -> GGUFValue:
    return GGUFValue(value, GGUFValueType.STRING)


def _u32(value: int) -> GGUFValue:
    return GGUFValue(value, GGUFValueType.UINT32)


def _array(values: list[Any], kind: GGUFValueType) -> GGUFValue:
    return GGUFValue(values, GGUFValueType.ARRAY, kind)
