"""One run at a time in a folder: a lock that the kernel lets go of when its process dies."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from minibule.errors import InputError
from minibule.files import open_own, writing
from minibule.program import all_or_nothing
from minibule.runs.folder import RunFolder

if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        """Lock the file for this process, or BlockingIOError."""
        file.seek(2**30)  # a byte far behind the text, which others may go on reading
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        """Lock the file for this process, or BlockingIOError."""
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


MOST_TRIES = 100  # holders may come and go meanwhile; not every network's disk keeps file numbers
_ELSEWHERE = "Choose an --output on another disk, such as the machine's own."

_BEGINNING = b'{"pid": '  # of what its holder writes into a lock


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` if need be, and hold it for this process; InputError where another does.

    What a crash leaves behind is an unlocked file, which is in nobody's way.
    """
    path = RunFolder(folder).lock
    with ExitStack() as undo:
        with all_or_nothing():
            if not folder.exists():
                undo.callback(_remove_empty, folder)
            folder.mkdir(parents=True, exist_ok=True)
            file = _take(path)
            undo.callback(_let_go, file, path)
            holder = {
                "pid": os.getpid(),
                "host": platform.node(),
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            with writing(path):
                file.seek(0)
                file.truncate()
                file.write(json.dumps(holder).encode() + b"\n")
                file.flush()
        yield


def _let_go(file: BinaryIO, path: Path) -> None:
    if os.name == "nt":
        file.close()  # Windows removes no open file
    with suppress(OSError):
        path.unlink()
    with suppress(OSError):  # what could not be written is tried once more
        file.close()


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()  # only if it is empty: nothing came of the run


def refuse_if_locked(folder: Path) -> None:
    """InputError where another run holds the folder; nothing is made or left there."""
    path = RunFolder(folder).lock
    if path.exists() or path.is_symlink():
        _take(path).close()


def _take(path: Path) -> BinaryIO:
    for _ in range(MOST_TRIES):
        file = open_own(path)
        if file.read(len(_BEGINNING)) not in (b"", _BEGINNING):
            file.close()
            raise InputError(f"{path}: found a file that no run wrote there. Move it away.")
        try:
            _lock(file)
        except BlockingIOError:
            file.close()
            raise InputError(
                f"{path.parent}: another run is writing there{_holder(path)}"
            ) from None
        except OSError as error:
            file.close()
            raise InputError(f"{path}: cannot be locked ({error.strerror}). {_ELSEWHERE}") from None
        # A holder removes the file before it lets go: then this is locked, but no longer there.
        with suppress(OSError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()
    raise InputError(f"{path}: cannot be locked (it is another file each time). {_ELSEWHERE}")


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        who = f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return ". Wait for its end, or choose another folder."
    return f": {who}. Wait for its end, end it, or choose another folder."
