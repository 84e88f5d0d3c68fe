"""Tensors on disk: safetensors files in and out, and the checks that any checkpoint must pass.

NumPy has no bfloat16. Its 16 bits are the upper half of a float32, and are read and written so.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, TensorSpec, safe_open, serialize_file

from minibule.errors import InputError, listed, shortened
from minibule.files import native_parser, reading
from minibule.machine.half import LEAST_SIZE, Narrow, widened
from minibule.machine.matrix import Array, Matrix

NUMPY_DTYPE = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
TORCH_DTYPE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# float16's largest number: every model that has a 16-bit form keeps to it. A flipped bit of an
# exponent does not, and the forward pass would overflow on it.
LARGEST = 65504.0


class Stored(NamedTuple):
    """Where a tensor lies on disk."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


def stored_tensors(files: list[Path]) -> dict[str, Stored]:
    """All tensors of some safetensors files, the headers checked by the safetensors library."""
    stored: dict[str, Stored] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file; expected the model's weights there.")
        refusal = f"{file}: not a whole safetensors file, copy or download it again"
        with native_parser(refusal), safe_open(str(file), "np") as checked:
            names = list(checked.keys())
        with file.open("rb") as raw:
            header_length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(header_length))
        for name in names:
            if name in stored:
                raise InputError(f"{file}: {shortened(name)} is in {stored[name].file.name} too.")
            entry = header[name]
            start = 8 + header_length + entry["data_offsets"][0]
            stored[name] = Stored(file, entry["dtype"], tuple(entry["shape"]), start)
    return stored


def read_tensors(
    stored: Mapping[str, Stored],
    expected: Mapping[str, tuple[int, ...]],
    where: Path,
    narrow: bool = False,
) -> dict[str, Matrix]:
    """The expected tensors as float32, or an InputError that lists what is wrong.

    narrow: large matrices stored in 16 bits stay so, each in a `Narrow`.
    """
    check_shapes({name: tensor.shape for name, tensor in stored.items()}, expected, where)
    problems = [
        f"{name}: found {stored[name].dtype} numbers, expected {', '.join(NUMPY_DTYPE)}"
        for name in expected
        if stored[name].dtype not in NUMPY_DTYPE
    ]
    if problems:
        raise InputError(f"{where}: numbers of another kind:\n{listed(problems)}")
    arrays = {name: _read(stored[name], narrow) for name in expected}
    check_finite(((name, widened(array)) for name, array in arrays.items()), where)
    return arrays


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: Path
) -> None:
    """InputError with every missing, unknown and misshapen tensor, unless there is none."""
    problems = [f"{name}: missing" for name in expected if name not in found]
    for name, shape in found.items():
        if name not in expected:
            problems.append(f"{name}: unknown, this model has no place for it")
        elif shape != expected[name]:
            problems.append(f"{name}: found shape {shape}, expected {expected[name]}")
    if problems:
        raise InputError(f"{where}: its tensors do not fit:\n{listed(problems, limit=40)}")


def check_finite(
    arrays: Iterable[tuple[str, Array]], where: Path, what: str = "broken weights"
) -> None:
    """InputError that names the arrays with numbers that are NaN, infinite or absurdly large."""
    problems = [
        f"{name}: {int((~(np.abs(array) <= LARGEST)).sum()):,} numbers are NaN or infinite, "
        f"or larger than {LARGEST:,.0f}"
        for name, array in arrays
        if not -LARGEST <= array.min(initial=0) <= array.max(initial=0) <= LARGEST  # NaN: false
    ]
    if problems:
        raise InputError(f"{where}: {what}:\n{listed(problems)}")


def _read(tensor: Stored, narrow: bool) -> Matrix:
    """Read a tensor from disk as float32, or, a matrix in 16 bits, as what stands for it."""
    raw = read_array(tensor.file, NUMPY_DTYPE[tensor.dtype], tensor.start, tensor.shape)
    matrix = len(tensor.shape) == 2 and raw.size >= LEAST_SIZE
    if narrow and matrix and tensor.dtype != "F32":
        return Narrow(raw)
    return raw.astype(np.float32, copy=False) if tensor.dtype == "F32" else Narrow(raw)[:]


def read_array(path: Path, dtype: str, start: int, shape: tuple[int, ...]) -> Array:
    """The numbers of an array that begins at byte `start` of a file.

    They are read, not mapped: a file that is cut short meanwhile (a download begun anew, a disk of
    the network) would end a program that only looks at it, without a word.
    """
    with reading(path) as file:
        size = math.prod(shape)
        found = np.fromfile(file, dtype, size, offset=start)
    if found.size < size:
        raise InputError(f"{path}: became shorter while it was read. Copy or download it again.")
    return found.reshape(shape)


def same_numbers(one: Stored, other: Stored) -> bool:
    """Whether two tensors on disk have one shape and the same numbers, whatever their types."""
    if one.shape != other.shape or not {one.dtype, other.dtype} <= NUMPY_DTYPE.keys():
        return False
    return np.array_equal(_read(one, narrow=False)[:], _read(other, narrow=False)[:])


def narrowed(x: Array, dtype: str) -> Array:
    """float32 -> the bytes of `dtype`, rounded to nearest, ties to even."""
    if dtype == "F32":
        return x
    if dtype == "F16":
        return x.astype(np.float16)
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def read_metadata(file: Path) -> dict[str, str]:
    """What a whole safetensors file says of itself."""
    with safe_open(str(file), "np") as opened:
        return opened.metadata() or {}


def write_safetensors(
    path: Path, arrays: Mapping[str, Array], dtype: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays whose bytes are numbers of `dtype` ("float32", "float16", "bfloat16")."""
    held = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    specs = {
        name: TensorSpec(
            dtype=dtype, shape=array.shape, data_ptr=array.ctypes.data, data_len=array.nbytes
        )
        for name, array in held.items()
    }
    path.touch()
    usual = path.stat().st_mode  # safetensors makes its files readable by their owner alone
    try:
        serialize_file(specs, str(path), metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # its kinds are but texts: "I/O error: No space left ..."
        raise OSError(str(error).rpartition("I/O error: ")[2]) from None
    path.chmod(usual)
