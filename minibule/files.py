"""Reading JSON with clear errors, and writing files that are either whole or not there."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minibule.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; InputError where there is none."""
    if path.exists() and not path.is_file():  # a folder, or a pipe that would be waited for
        raise InputError(f"{path}: found something else there, expected a JSON file.")
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text.lower():  # JSON can spell half a character, which no file or text holds
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. {_what_is_there(path.parent)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a JSON {type(value).__name__}, expected an object.")
    return value


@contextmanager
def native_parser(refusal: str) -> Iterator[None]:
    """Around calls of tokenizers and safetensors: any way they fail is an InputError.

    They raise plain Exceptions, type errors for texts that are no Unicode, and where their Rust
    panics pyo3's PanicException, which is not even an Exception.
    """
    try:
        yield
    except (InputError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        said = str(error)  # which may quote a value as long as the file
        shown = said if len(said) <= 500 else f"{said[:250]} ... {said[-250:]}"
        raise InputError(f"{refusal} ({shown}).") from None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object for people to read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def existing_folder(path: str | Path, what: str) -> Path:
    """`path`, if it is a folder; InputError otherwise."""
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; expected {what}.")
    if not folder.is_dir():
        raise InputError(f"{folder}: found a file, expected a folder: {what}.")
    return folder


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well, and else goes away."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())  # on disk before the name says so
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, which replaces an older one of that name."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _what_is_there(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder either."
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{folder} holds {shown or 'nothing'}."
