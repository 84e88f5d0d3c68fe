"""How to damage what is binary: safetensors, GGUF, checkpoints, parquet."""

import hashlib
import io
import json
import random
import struct
from pathlib import Path
from typing import Any

from mutation.damage import COMMANDS, damaged_bytes, damaged_json, parsed, unparsed

from minibule.models import gguf_file
from minibule.runs.checkpoint import UNSIGNED

LENGTHS = [0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]


def damaged_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The length, the header (types, shapes, offsets that lie or overlap), or the numbers."""
    n = int.from_bytes(data[:8], "little")
    header, numbers = data[8 : 8 + n], data[8 + n :]
    way = rng.randrange(10)
    if way == 0:
        return struct.pack("<Q", rng.choice([*LENGTHS, n - 1, n + 1, len(data)])) + data[8:]
    if way == 1:
        return damaged_bytes(rng, data)
    if way == 2:
        return data[: 8 + n] + damaged_bytes(rng, numbers)
    if way == 3:
        header = damaged_bytes(rng, header)
    elif way == 4:
        header = damaged_json(rng, header)
    else:
        value = parsed(header)
        tensors = [entry for name, entry in value if name != "__metadata__"]
        one, two = rng.sample(tensors, 2)
        fields, others = dict(one), dict(two)
        start, end = fields["data_offsets"]
        change = rng.choice(
            [
                {"data_offsets": others["data_offsets"]},
                {"data_offsets": [start, end + rng.choice(LENGTHS)]},
                {"data_offsets": [rng.choice(LENGTHS), rng.choice(LENGTHS)]},
                {"data_offsets": [end, start]},
                {"data_offsets": [start + 1, end + 1]},
                {"shape": others["shape"]},
                {"shape": fields["shape"][::-1]},
                {"shape": [*fields["shape"], 1]},
                {"shape": []},
                {"shape": [0, *fields["shape"]]},
                {"shape": [rng.choice(LENGTHS), rng.choice(LENGTHS)]},
                {
                    "dtype": rng.choice(
                        ["F64", "F32", "F16", "BF16", "I8", "U16", "BOOL", "F8_E4M3"]
                    )
                },
                {"dtype": rng.choice(["F4", "C64", "X", "", "f32"])},
            ]
        )
        if rng.random() < 0.2:  # two tensors change places
            one[:], two[:] = list(two), list(one)
        else:
            one[:] = list((fields | change).items())
        header = unparsed(value, ascii_only=True).encode()
    if rng.random() < 0.1:
        numbers += bytes(20_000_000)
    return struct.pack("<Q", len(header)) + header + numbers


class _Watched(gguf_file._Cursor):
    """Notes where each number of a GGUF header stands and how it is coded."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), len(data))
        self.fields: list[tuple[int, str]] = []

    def numbers(self, code: str, n: int = 1) -> tuple[Any, ...]:
        size = struct.calcsize(f"<{code}")
        self.fields += [(self.at + i * size, code) for i in range(min(n, 4))]
        return super().numbers(code, n)


def damaged_gguf(rng: random.Random, data: bytes) -> bytes:
    """A number of the header (a length, a type, an offset, a value), or any bytes."""
    cursor = _Watched(data)
    gguf_file._parse(Path(), cursor)
    way = rng.randrange(10)
    if way <= 1:
        return damaged_bytes(rng, data)
    if way == 2:
        return damaged_bytes(rng, data[: cursor.at]) + data[cursor.at :]
    if way == 3:
        return data[: cursor.at] + damaged_bytes(rng, data[cursor.at :])
    damaged = bytearray(data)
    # The tokens' and merges' lengths are most of the header; the others must not drown in them.
    first, last = cursor.fields[:150], cursor.fields[-150:]
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at, code = rng.choice(rng.choice([first, last, cursor.fields]))
        size = struct.calcsize(f"<{code}")
        if rng.random() < 0.3:
            other, _ = rng.choice(cursor.fields)
            damaged[at : at + size] = data[other : other + size]
        else:
            value = rng.choice(LENGTHS + list(range(20)))
            damaged[at : at + size] = value.to_bytes(8, "little")[:size]
    if rng.random() < 0.1:
        damaged += bytes(20_000_000)
    return bytes(damaged)


def damaged_checkpoint(rng: random.Random, data: bytes) -> bytes:
    """Any damage, most of it with a checksum that fits: then what it says must be checked too."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, data)
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    metadata = header["__metadata__"]
    if rng.random() < 0.7:
        about = damaged_json(rng, metadata["minibule"].encode())
        metadata["minibule"] = about.decode("utf-8", "replace")
    damaged = json.dumps(header).encode()
    data = struct.pack("<Q", len(damaged)) + damaged + data[8 + n :]
    if rng.random() < 0.4:
        data = damaged_safetensors(rng, data)
    claimed = metadata["checksum"].encode()
    if rng.random() < 0.2 or data.count(claimed) != 1:
        return data
    unsigned = data.replace(claimed, UNSIGNED.encode())
    digest = hashlib.blake2b(unsigned, digest_size=32).hexdigest()
    return data.replace(claimed, digest.encode())


def damaged_parquet(rng: random.Random, data: bytes) -> bytes:
    """Bytes, most of them of the footer; or a whole file of values of another kind."""
    import pyarrow
    from pyarrow import parquet

    way = rng.randrange(10)
    if way <= 2:
        return damaged_bytes(rng, data)
    if way <= 5:  # the footer, its length and "PAR1" stand at the end
        n = 8 + int.from_bytes(data[-8:-4], "little")
        return data[:-n] + damaged_bytes(rng, data[-n:])
    table = parquet.read_table(io.BytesIO(data))
    rows = table.num_rows
    odd: list[Any] = [
        pyarrow.array([rng.choice([None, 1, 2**40]) for _ in range(rows)], pyarrow.int64()),
        pyarrow.array([float("nan")] * rows),
        pyarrow.array([b"\xff\xfe\x1b[2J"] * rows),
        pyarrow.array([["a", None, COMMANDS]] * rows),
        pyarrow.array([[]] * rows, pyarrow.list_(pyarrow.string())),
        pyarrow.array([{"role": "user", "content": None}] * rows),
        pyarrow.array([1] * rows, pyarrow.timestamp("ns")),
        pyarrow.array([2**70] * rows, pyarrow.decimal128(38)),
        pyarrow.array(["x" * rng.choice([0, 1, 10**5])] * rows).dictionary_encode(),
        pyarrow.nulls(rows),
    ]
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([*table.column_names, "label", "messages", COMMANDS, "\0"])
        if name in table.column_names:
            table = table.drop_columns([name])
        if rng.random() < 0.9:
            table = table.append_column(name, rng.choice(odd))
    out = io.BytesIO()
    pressed = rng.choice(["snappy", "gzip", "zstd", "none"])
    parquet.write_table(table, out, compression=pressed, row_group_size=rng.choice([1, 2, 1000]))
    return out.getvalue() if rng.random() < 0.8 else damaged_bytes(rng, out.getvalue())
