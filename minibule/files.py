"""JSON in and out with clear errors, and files that are either whole or not there."""

import dataclasses
import glob
import io
import json
import os
import re
import secrets
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, BinaryIO, get_args, get_origin, get_type_hints

from minibule.errors import InputError, Terminated, shortened

# What `whole_file` and `whole_folder` call what is not whole yet: .NAME.a1b2c3d4.partial, with the
# first `_NAME` characters of the name, so that the whole stays within the 255 bytes of most disks.
_PARTIAL = re.compile(r"\..+\.[0-9a-f]{1,9}\.partial")
_NAME = 50


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
    panics pyo3's PanicException, which is not even an Exception. What Rust writes about that, by
    itself and before anybody is asked, goes nowhere: the InputError says it.
    """
    try:
        with _STANDARD_ERROR, _discarded(2):
            yield
    except (InputError, MemoryError, KeyboardInterrupt, Terminated, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise InputError(f"{refusal} ({shortened(str(error))}).") from None


_STANDARD_ERROR = threading.RLock()  # two threads would put back each other's


@contextmanager
def _discarded(stream: int) -> Iterator[None]:
    """Throw away what is written to a file descriptor, unless the caller has closed that."""
    try:
        kept = os.dup(stream)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream)
        yield
    finally:
        os.dup2(kept, stream)
        os.close(kept)
        os.close(nowhere)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object for people to read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def to_json(value: Any) -> Any:
    """What JSON can hold: named tuples and dataclasses become objects, tuples lists."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: to_json(part) for name, part in value.items()}
    return [to_json(part) for part in value] if isinstance(value, (list, tuple)) else value


def from_json(hint: Any, value: Any, where: str) -> Any:
    """The way back: `value` as the type that `hint` names.

    Raises ValueError, which names the field by `where`, for a value that is not of it.
    """
    if get_origin(hint) is UnionType:  # ... | None
        return None if value is None else from_json(get_args(hint)[0], value, where)
    if isinstance(hint, type) and (hasattr(hint, "_fields") or dataclasses.is_dataclass(hint)):
        hints = _hints_of(hint)
        if isinstance(value, dict) and set(value) == set(hints):
            return hint(**{name: from_json(hints[name], value[name], name) for name in hints})
        hint = f"an object of {', '.join(hints)}"
    elif get_origin(hint) is list and isinstance(value, list):
        return [from_json(get_args(hint)[0], part, where) for part in value]
    elif get_origin(hint) in (dict, Mapping) and isinstance(value, dict):
        return {name: from_json(get_args(hint)[1], part, name) for name, part in value.items()}
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is Any or type(value) is hint:
        return value
    raise ValueError(f"{where}: found a {type(value).__name__}, expected {hint}")


@cache
def _hints_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def existing_folder(path: str | Path, what: str) -> Path:
    """`path`, if it is a folder; InputError otherwise."""
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; expected {what}.")
    if not folder.is_dir():
        raise InputError(f"{folder}: found a file, expected a folder: {what}.")
    return folder


def found_at(path: Path) -> str:
    """What a path leads to: "a file", "a folder", "a pipe or a device", or "" where nothing is."""
    if not path.exists():
        return ""
    return "a folder" if path.is_dir() else "a file" if path.is_file() else "a pipe or a device"


def no_file(path: Path) -> str:
    """What a path is that is to be a file, and is none: a pipe would be waited for without end."""
    found = found_at(path)
    return f"found {found}, expected a file" if found else "no such file"


@contextmanager
def reading(path: Path) -> Iterator[io.BufferedReader]:
    """A file, open to be read; InputError that names it where it is none or cannot be read."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: {no_file(path)}.")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None


def check_own(path: Path, wanted: str) -> None:
    """InputError where not `wanted`, "a file" or "a folder", has the name of one that a run writes.

    A link is none, wherever it leads: what is there is somebody else's.
    """
    found = "a link" if path.is_symlink() else found_at(path)
    if found not in (wanted, ""):
        raise InputError(f"{path}: found {found}, a run writes {wanted} there. Move it away.")


def real_path(path: str | Path) -> Path:
    """The absolute path, without links. `Path.resolve` raises where these lead in a circle."""
    return Path(os.path.realpath(path))


def check_new(path: Path, flag: str = "--output") -> None:
    """InputError where something has that name already, or where its folder is not there."""
    if path.is_symlink() or path.exists():  # nothing is replaced unasked
        raise InputError(f"{flag} {path}: exists already; expected a new name.")
    if not path.parent.is_dir():
        raise InputError(f"{flag} {path}: found no folder {path.parent}. Make it first.")


def open_own(path: Path) -> BinaryIO:
    """Open a file of a run, made if need be, to be read and written; what is no file is refused.

    And so is one that has a second name, as in a backup made of hard links: it would change there.
    """
    check_own(path, "a file")
    with writing(path):

        def opened(name: str, flags: int) -> int:
            return os.open(name, flags | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)

        file = open(path, "r+b", opener=opened)  # noqa: SIM115 - the caller closes it
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise InputError(f"{path}: is the same file as another, a hard link. Put a copy there.")
    return file


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into an InputError that names `path`."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise InputError(f"{path}: cannot be written ({where}{error.strerror or error}).") from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well, and else goes away."""
    partial = _partial(path)
    try:
        with _held(partial, os.O_CREAT | os.O_EXCL):
            yield partial
            flush_to_disk(partial)  # before the name says so
            partial.replace(path)
        flush_to_disk(path.parent)  # where the name stands
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder, which replaces an older one of that name."""
    with scratch_folder(path) as partial:
        yield partial
        for file in partial.iterdir():
            flush_to_disk(file)
        flush_to_disk(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
        flush_to_disk(path.parent)


@contextmanager
def new_output(path: Path, flag: str = "--output") -> Iterator[Path]:
    """Yield a place for a file or folder that becomes `path` when the block ends well.

    InputError where something has that name, or has come to have it by then.
    """
    check_new(path, flag)
    with writing(path), scratch_folder(path) as scratch:
        place = scratch / path.name
        try:
            yield place
        except InputError as error:  # names where it was to be written
            raise InputError(str(error).replace(str(place), str(path))) from None
        check_new(path, flag)
        place.rename(path)
        flush_to_disk(path.parent)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` that goes away when the block ends, unless it is renamed."""
    partial = _partial(path)
    partial.mkdir(parents=True)
    try:
        with _held(partial):
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: Path) -> Path:
    """A name of its own for what is to become `path`; what others died writing there goes away."""
    remove_stale(path.parent, path.name)
    return path.with_name(f".{path.name[:_NAME]}.{secrets.token_hex(4)}.partial")


def flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, would survive a loss of power."""
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # Windows opens no folders, and writes their entries by itself
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # not every disk can, a folder
            os.fsync(handle)
    finally:
        os.close(handle)


def is_partial(path: Path) -> bool:
    """Whether the name is one of ours for a file or folder that is still being written."""
    return _PARTIAL.fullmatch(path.name) is not None


def remove_stale(folder: Path, name: str = "") -> None:
    """Remove what processes that were killed left half-written in `folder`, or there of `name`."""
    for path in folder.glob(f".{glob.escape(name[:_NAME]) or '*'}.*.partial"):
        if is_partial(path) and not _is_held(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):  # Windows keeps the file of a process that lives
                    path.unlink()


# A process number would not tell who still writes: in a container it is always the same.
if sys.platform == "win32":

    def _held(_path: Path, _flags: int = 0) -> AbstractContextManager[None]:
        """Nothing is needed there: nobody can remove an open file."""
        return nullcontext()

    def _is_held(path: Path) -> bool:
        return path.is_dir()  # whose open files are in it

else:
    import fcntl

    @contextmanager
    def _held(path: Path, flags: int = 0) -> Iterator[None]:
        """Lock a file or folder until the block ends, or the process."""
        handle = os.open(path, flags | os.O_RDONLY, 0o666)
        try:
            with suppress(OSError):  # not every disk can
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _is_held(path: Path) -> bool:
        """Whether a process holds it; True, too, where that cannot be known."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False


def _what_is_there(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is no folder either."
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{folder} holds {shown or 'nothing'}."


def embedded_folder() -> Path:
    """The model that travels with minibule: in an installed wheel, or in a clone beside it."""
    package = Path(__file__).parent
    installed = package / "weights" / "tiny"
    return installed if installed.exists() else package.parent / "weights" / "tiny"
