"""Files of rows, one row at a time: JSON lines, JSON arrays, either gzipped, and parquet.

A row that cannot be read comes as an InputError in its place, so that one bad row hides no other.
A file comes from anywhere: what a row may take in memory has a limit, far above what is of use.
"""

import codecs
import gzip
import importlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from minibule.errors import InputError
from minibule.files import no_file
from minibule.progress import passing_bar
from minibule.records.formats import fields_read
from minibule.wording import printable

Items = Iterator[tuple[str, object]]  # where in the file, and the value or an InputError

LONGEST = 32 << 20  # of a row: bytes of a line, characters of an array's element
MOST_BLANK = 1_000_000  # blank lines one after another
DEEPEST = 100  # lists and objects in one another; no format has more than 3
PACKED = 100  # times its size in the file a file may unpack to; of texts, 3 to 30 are usual
SMALL = 64 << 20  # bytes: a file that unpacks to less may do so from any size


def _not_json(error: Exception, start: int = 0) -> InputError:
    if isinstance(error, json.JSONDecodeError):
        what = error.msg.removesuffix(" at")
        return InputError(f"not valid JSON: {what} at character {error.pos - start + 1:,}")
    if isinstance(error, RecursionError):
        return InputError(f"found brackets nested too deeply, expected at most {DEEPEST} levels")
    return InputError("found a number with too many digits to read")  # int() has a limit


def _too_long(unit: str) -> InputError:
    return InputError(f"found more than {LONGEST:,} {unit}, expected less; the rest is not read")


def _check_depth(value: object) -> None:
    """RecursionError, as of the parser itself, whose own limit differs from Python to Python."""
    level = [value] if isinstance(value, list | dict) else []
    depth = 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError
        level = [
            part
            for outer in level
            for part in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(part, list | dict)
        ]


def json_lines(stream: BinaryIO | io.BufferedIOBase) -> Items:
    """Each line that is not blank as ("line 1", value), or with an InputError for its value."""
    blank = 0
    for number in itertools.count(1):
        line = stream.readline(LONGEST + 1)
        where = f"line {number:,}"
        if not line:
            return
        if len(line) > LONGEST:
            yield where, _too_long("bytes in one line")
            return
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)  # some editors put one there
        line = line.rstrip()
        blank = 0 if line else blank + 1
        if blank > MOST_BLANK:
            yield where, InputError(f"found more than {MOST_BLANK:,} blank lines; no more is read")
            return
        if not line:
            continue
        try:
            value = json.loads(line.decode())
            _check_depth(value)
            yield where, value
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02x} at byte {error.start + 1:,}"
            yield where, InputError(f"not UTF-8 text: {byte} of the line")
        except (ValueError, RecursionError) as error:
            yield where, _not_json(error)


_BLOCK = 1 << 20  # bytes of a JSON array read at a time
_SPACE = re.compile(r"\s*")
_OPENING = re.compile(r"\s*\[(\s*\])?")
_DELIMITER = re.compile(r"\s*([,\]])")
_WRONG_BYTE = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of one


def _json_array(stream: io.BufferedIOBase) -> Items:
    """The elements of one array, each as soon as it is complete, so that little is in memory."""
    # A byte that is no UTF-8 is carried along as an escape: it must cost only its own row.
    utf8 = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    parse = json.JSONDecoder().raw_decode
    text = utf8.decode(stream.read(_BLOCK))
    opening = _OPENING.match(text)
    if not opening:
        hint = "where each line is an object, name the file .jsonl"
        yield "start", InputError(f"found {json.dumps(text[:20])}, expected one JSON array; {hint}")
        return
    at, row, done = opening.end(), 1, opening[1] is not None
    while not done:
        start = at
        try:
            if space := _SPACE.match(text, at):
                start = space.end()
            value, end = parse(text, start)
            delimiter = _DELIMITER.match(text, end)
            if not delimiter:
                raise json.JSONDecodeError("Expecting ',' or ']'", text, end)
            _check_depth(value)
        except RecursionError as error:  # nobody knows where such an element ends
            yield f"row {row:,}", _not_json(error)
            return
        except ValueError as error:
            # Most likely the block ended within this element: read on and try again.
            length = len(text) - at
            block = stream.read(max(_BLOCK, length)) if length <= LONGEST else None
            if block:
                text, at = text[at:] + utf8.decode(block), 0
                continue
            most = f" (in the {LONGEST:,} characters that a row may have)" if block is None else ""
            yield f"row {row:,}", InputError(f"{_not_json(error, start)}{most}")
            return
        if end - start > LONGEST:
            yield f"row {row:,}", _too_long("characters in one row")
            return
        wrong = _WRONG_BYTE.search(text, start, end)
        yield f"row {row:,}", InputError("not UTF-8 text") if wrong else value
        at, row, done = delimiter.end(), row + 1, delimiter[1] == "]"
    if text[at:].strip() or stream.read(_BLOCK).strip():
        yield "end", InputError("found more after the array, expected nothing")


def _most_unpacked(stream: io.BufferedIOBase) -> int:
    """How many bytes may come out of a compressed file."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    return max(SMALL, PACKED * size)


def _bomb(what: str, most: int) -> str:
    return f"found {what} of more than {most:,} bytes, expected at most {PACKED} times the file's"


def _parquet(stream: io.BufferedIOBase) -> Items:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError("reading .parquet needs pyarrow: pip install '.[parquet]'") from None
    row, read, most = 0, 0, _most_unpacked(stream)
    try:
        file = parquet.ParquetFile(stream)
        groups = (file.metadata.row_group(i) for i in range(file.num_row_groups))
        if sum(group.total_byte_size for group in groups) > most:
            raise ValueError(_bomb("row groups", most))
        columns = fields_read(file.schema_arrow.names)  # another may be of a type Python lacks
        # A value may stand in the file once for many rows: few of them at a time.
        for batch in file.iter_batches(batch_size=4, columns=columns):
            for value in batch.to_pylist():
                read += _characters(value)
                if read > most:
                    raise ValueError(_bomb("values", most))
                row += 1
                yield f"row {row:,}", value
    except Exception as error:  # of pyarrow's many, no other base is common to all
        yield f"after row {row:,}", InputError(f"not readable as parquet: {printable(str(error))}")


def _characters(value: object) -> int:
    if isinstance(value, dict | list):
        return sum(map(_characters, value.values() if isinstance(value, dict) else value))
    return len(value) if isinstance(value, str | bytes) else 1


class _Unzipped(gzip.GzipFile):
    """A gzip file that breaks off where it becomes far more than text can have been."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        super().__init__(fileobj=stream)
        self._most = _most_unpacked(stream)

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(size))

    def readline(self, size: int | None = -1) -> bytes:
        return self._checked(super().readline(size))

    def _checked(self, data: bytes) -> bytes:
        if self.tell() > self._most:
            raise gzip.BadGzipFile(_bomb("data", self._most))
        return data


_READERS = {".jsonl": json_lines, ".json": _json_array, ".parquet": _parquet}


def read_items(path: Path, progress: bool) -> Items:
    """Each row of the file as (where, value); damage to the file itself comes as a last row."""
    name = path.name.lower()
    zipped = name.endswith((".jsonl.gz", ".json.gz"))
    read = _READERS.get(Path(name.removesuffix(".gz") if zipped else name).suffix)
    where = "start"
    try:
        if not path.is_file():
            raise InputError(no_file(path))
        if read is None:
            raise InputError("unknown extension, expected .jsonl, .json, .parquet or .gz of a JSON")
        bar = passing_bar(
            total=path.stat().st_size,
            desc=printable(path.name),
            unit="B",
            unit_scale=True,
            disable=None if progress else True,
        )
        with path.open("rb") as raw, bar:
            for where, value in read(_Unzipped(raw) if zipped else raw):
                yield where, value
                bar.update(raw.tell() - bar.n)
    except EOFError:
        yield f"after {where}", InputError("the gzip data break off: a part of the file is missing")
    except (zlib.error, gzip.BadGzipFile) as error:
        yield f"after {where}", InputError(f"not readable as gzip: {error}")
    except OSError as error:
        yield f"after {where}", InputError(f"cannot be read: {error.strerror or error}")
