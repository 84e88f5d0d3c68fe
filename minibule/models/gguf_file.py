"""What a GGUF file is made of: metadata and tensors, and how both are named for Llama.

Reading is done here and not by the gguf package's reader, which takes the lengths in a damaged file
at their word. Types, block sizes, dequantising and writing are that package's.

llama.cpp rotates neighbouring numbers of a head, (x[2i], x[2i+1]), where Hugging Face rotates
(x[i], x[i + hd/2]). So the rows of q_proj and k_proj change places on the way: `permute`.
"""

import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.gguf_writer import GGUFValue
from gguf.quants import dequantize

from minibule.core.shapes import LlamaConfig
from minibule.errors import InputError, shortened
from minibule.files import reading
from minibule.machine.matrix import Array
from minibule.models.safetensors import read_array

Metadata = dict[str, GGUFValue]

# Hugging Face's name within a layer -> llama.cpp's.
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name: str) -> str:
    """ "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"; modules likewise."""
    module = name.removesuffix(".weight")
    ending = name[len(module) :]
    if module in OTHER_TENSORS:
        return OTHER_TENSORS[module] + ending
    _, _, layer, within = module.split(".", 3)
    return f"blk.{layer}.{LAYER_TENSORS[within]}{ending}"


def permuted_heads(name: str, config: LlamaConfig) -> int:
    """How many heads' rows `permute` rearranges in a tensor: 0 for all but q_proj and k_proj."""
    if ".q_proj" in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj" in name else 0


def permute(W: Array, heads: int) -> Array:
    """Rows of (heads * hd, n) from Hugging Face's order within a head to llama.cpp's.

    Row i of the first half and row i of the second become rows 2i and 2i + 1.
    """
    halves = W.reshape(heads, 2, -1, W.shape[1])  # (heads, 2, hd / 2, n)
    return halves.swapaxes(1, 2).reshape(W.shape)


def unpermute(W: Array, heads: int) -> Array:
    """The inverse of `permute`."""
    pairs = W.reshape(heads, -1, 2, W.shape[1])  # (heads, hd / 2, 2, n)
    return pairs.swapaxes(1, 2).reshape(W.shape)


def text_value(value: str) -> GGUFValue:
    """A text as the metadata hold it; likewise below."""
    return GGUFValue(value, GGUFValueType.STRING)


def u32_value(value: int) -> GGUFValue:
    return GGUFValue(value, GGUFValueType.UINT32)


def array_value(values: list[Any], kind: GGUFValueType) -> GGUFValue:
    return GGUFValue(values, GGUFValueType.ARRAY, kind)


# -- reading ---------------------------------------------------------------------------------------


class GgufTensor(NamedTuple):
    """A tensor's type, its shape in NumPy's order (rows first), and where its bytes lie."""

    type: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    nbytes: int


class Gguf(NamedTuple):
    """A GGUF file, its tensors not yet read."""

    path: Path
    metadata: Metadata
    tensors: Mapping[str, GgufTensor]

    def get(self, key: str, default: Any = None) -> Any:
        value = self.metadata.get(key)
        return default if value is None else value.value

    def array(self, name: str) -> Array:
        """The tensor as float32."""
        tensor = self.tensors[name]
        raw = read_array(self.path, "u1", tensor.start, (tensor.nbytes,))
        rows = raw.reshape(*tensor.shape[:-1], -1)
        return np.array(dequantize(rows, tensor.type), np.float32).reshape(tensor.shape)


_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}

# Of a file's metadata, each of which becomes an object of Python's. The largest vocabularies, of
# 2**18 tokens, come with scores, types and merges to 1.3 million.
MAX_ITEMS = 2**21


class _Cursor:
    """Reads the header front to back and never past the end of the file of `size` bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.at = 0
        self.left = MAX_ITEMS

    def count(self, n: int, what: str) -> None:
        """ValueError if there are too many of all that is counted."""
        if n > self.left:
            raise ValueError(
                f"found {what} of {n:,} values, expected {MAX_ITEMS:,} at most in the whole file"
            )
        self.left -= n

    def take(self, n: int) -> bytes:
        # What is too much is not even asked for; and the file may have become shorter meanwhile.
        data = self.file.read(n) if n <= self.size - self.at else b""
        if len(data) < n:
            raise ValueError(
                f"{n:,} bytes are expected at byte {self.at:,}, but the file has only "
                f"{self.size:,} bytes: it is cut short or damaged"
            )
        self.at += n
        return data

    def numbers(self, code: str, n: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}")
        return struct.unpack(f"<{n}{code}", self.take(n * size))

    def number(self, code: str) -> Any:
        return self.numbers(code)[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self) -> GGUFValue:
        kind = GGUFValueType(self.number("I"))
        if kind is not GGUFValueType.ARRAY:
            return GGUFValue(self._one(kind), kind)
        kind, n = GGUFValueType(self.number("I")), self.number("Q")
        if kind is GGUFValueType.ARRAY:
            raise ValueError("found an array of arrays")
        self.count(n, "an array")
        if kind is GGUFValueType.STRING:
            items: list[Any] = [self.text() for _ in range(n)]
        else:
            items = list(self.numbers(_SCALARS[kind], n))
        return GGUFValue(items, GGUFValueType.ARRAY, kind)

    def _one(self, kind: GGUFValueType) -> Any:
        return self.text() if kind is GGUFValueType.STRING else self.number(_SCALARS[kind])


def read_gguf(path: str | Path) -> Gguf:
    """Metadata and tensor places of a GGUF file, versions 2 and 3, little-endian.

    Raises
    ------
    InputError
        If the file is missing, is no GGUF, or is cut short or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; expected a GGUF model.")
    try:
        with reading(path) as file:
            size = path.stat().st_size
            if size == 0:
                raise InputError(f"{path}: the file is empty; expected a GGUF model.")
            return _parse(path, _Cursor(file, size))
    except (ValueError, KeyError, OverflowError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(f"{path}: not a whole GGUF file ({shortened(str(error))}).") from None


def _parse(path: Path, cursor: _Cursor) -> Gguf:
    magic, version = cursor.take(4), cursor.number("I")
    if magic != b"GGUF":
        raise ValueError(f"it begins with {magic!r}, expected b'GGUF'")
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3, little-endian")
    n_tensors, n_values = cursor.numbers("Q", 2)
    cursor.count(n_tensors + n_values, "a header")
    metadata: Metadata = {}
    for _ in range(n_values):
        key = cursor.text()
        if key in metadata:
            raise ValueError(f"found {key!r} twice")
        metadata[key] = cursor.value()
    places: dict[str, tuple[tuple[int, ...], GGMLQuantizationType, int]] = {}
    for _ in range(n_tensors):
        name, n_dims = cursor.text(), cursor.number("I")
        if name in places:
            raise ValueError(f"found {name!r} twice")
        if not 1 <= n_dims <= 4:
            raise ValueError(f"{name}: {n_dims} dimensions")
        shape = tuple(reversed(cursor.numbers("Q", n_dims)))
        places[name] = shape, GGMLQuantizationType(cursor.number("I")), cursor.number("Q")
    alignment = metadata.get("general.alignment", GGUFValue(32, GGUFValueType.UINT32)).value
    if type(alignment) is not int or alignment not in (2**i for i in range(3, 17)):
        raise ValueError(f"general.alignment: found {alignment!r}, expected a power of two")
    first = -(-cursor.at // alignment) * alignment
    tensors = {}
    for name, (shape, kind, offset) in places.items():
        block, block_bytes = GGML_QUANT_SIZES[kind]
        size = 1
        for n in shape:
            size *= n
        if size == 0 or shape[-1] % block:
            raise ValueError(f"{name}: shape {shape} cannot be {kind.name}")
        tensor = GgufTensor(kind, shape, first + offset, size // block * block_bytes)
        if tensor.start + tensor.nbytes > cursor.size:
            raise ValueError(f"{name}: its numbers lie beyond the end of the file")
        tensors[name] = tensor
    in_order = sorted(tensors, key=lambda name: tensors[name].start)
    for one, other in pairwise(in_order):
        if tensors[one].start + tensors[one].nbytes > tensors[other].start:
            raise ValueError(f"{other}: its numbers begin within those of {one}")
    return Gguf(path, metadata, tensors)
