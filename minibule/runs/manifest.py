"""What a run has written: the list by which a later run knows what it may remove or replace.

RUN/manifest.json names every file of the run and its size, or null while it is still being written.
A file that it does not name is the user's own, and so is one that has another size by now. It also
says what the run was started by: see `starts`.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minibule.errors import InputError, listed
from minibule.files import (
    from_json,
    is_partial,
    read_json,
    real_path,
    to_json,
    whole_file,
    write_json,
    writing,
)
from minibule.runs.folder import RunFolder
from minibule.runs.starts import Start

# What the files of a run are called.
_NAMES = re.compile(
    r"config\.toml|metrics\.jsonl|before\.json|after\.json|report\.html|step-\d+\.safetensors"
    r"|adapter_model\.safetensors|adapter_config\.json|config\.json|.*\.gguf"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|tokenizer\.json"
    r"|(tokenizer|generation)_config\.json|special_tokens_map\.json|chat_template\.jinja"
)

# A file in the folder, or in one of its folders: on Windows, too, where other signs cut names.
_ENTRY = re.compile(r"[^/\\:\0]+(/[^/\\:\0]+)?")


class Manifest:
    """The files of the run in `folder`: path below it -> size in bytes, None while being written.

    And `starts`, the first one first; there are none of a run of an earlier version.

    Raises InputError if there is a file of that name that is no manifest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = RunFolder(folder).manifest
        self.files, self.starts = self._read()

    @property
    def exists(self) -> bool:
        return self.path.exists()

    def _read(self) -> tuple[dict[str, int | None], list[Start]]:
        if not self.exists:
            return {}, []
        whole = read_json(self.path)
        files = whole.get("files")
        if not isinstance(files, dict) or not all(map(_is_entry, files.items())):
            raise InputError(f"{self.path}: not the list of a run's files; is it yours?")
        try:
            return files, from_json(list[Start], whole.get("starts", []), "starts")
        except ValueError as error:
            raise InputError(f"{self.path}: not that of a run ({error}); is it yours?") from None

    def claim(self, *paths: Path) -> None:
        """Name files that are about to be written: should the run die, they are still its own."""
        self._update(dict.fromkeys(paths))

    def settle(self, *paths: Path) -> None:
        """Note the sizes of files that are written, and of all files in folders that are."""
        files = [file for path in paths for file in _files_in(path)]
        self._update({file: file.lstat().st_size for file in files}, map(self._name, paths))

    def assume(self, paths: Iterable[Path]) -> list[Path]:
        """Take files for the run's by their names: where an earlier version kept no list."""
        files = [file for path in paths for file in _files_in(path) if _NAMES.fullmatch(file.name)]
        self.files = {self._name(file): None for file in files}
        return files

    def begin(self, start: Start) -> None:
        """Note one more start."""
        self._update({}, start=start)

    def _update(
        self,
        sizes: dict[Path, int | None],
        settled: Iterable[str] = (),
        start: Start | None = None,
    ) -> None:
        """Change the list as it is by now: a report may be written while a run goes on."""
        done = frozenset(settled)  # their claims, a folder's among them, have been made good
        files, starts = self._read()
        kept = {
            name: size
            for name, size in files.items()
            if name not in done and (size is None or (self.folder / name).exists())
        }
        self.files = kept | {self._name(path): size for path, size in sizes.items()}
        self.starts = [*starts, start] if start else starts
        whole = {"starts": to_json(self.starts), "files": dict(sorted(self.files.items()))}
        with writing(self.path), whole_file(self.path) as file:
            write_json(file, whole)

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Around the writing of `path`, a file or folder; InputError names it if that fails.

        It is claimed before and settled after. InputError, too, if a file of the user's has come to
        lie there since the run began.
        """
        self.refuse_foreign([path], resume=True)
        self.claim(path)
        with writing(path):
            yield path
        self.settle(path)

    @property
    def own(self) -> list[Path]:
        """The files that are there and that the run wrote; none that a link leads to."""
        files = [file for name in self.files for file in _files_in(self.folder / name)]
        return [file for file in files if self._claims(file) and not file.parent.is_symlink()]

    def _claims(self, file: Path) -> list[str]:
        """The entries by which a file is the run's.

        Its own, or that of the folder it lies in, if that was being written and the name fits.
        """
        names = [self._name(file)]
        if _NAMES.fullmatch(file.name):
            names.append(self._name(file.parent))
        return [name for name in names if name in self.files]

    def refuse_foreign(self, targets: Iterable[Path], resume: bool = False) -> None:
        """InputError if a file among or below `targets` is none of the run's.

        Nor may one have changed since, but for the run that goes on with its own.
        """
        foreign = []
        for file in dict.fromkeys(file for target in targets for file in _files_in(target)):
            if is_partial(file):  # of a run that died: none of the user's
                continue
            claims = self._claims(file)
            if not claims:
                foreign.append(f"{file}: not in the list of what a run wrote, {self.path.name}")
            elif not resume and self.files[claims[0]] not in (None, file.lstat().st_size):
                foreign.append(f"{file}: changed since the run wrote it")
        if foreign:
            raise InputError(
                f"{self.folder}: a run would remove or replace files there that may be yours:\n"
                f"{listed(foreign)}\nChoose another --output, or move them away."
            )

    def refuse_inputs(self, targets: Collection[Path], inputs: Iterable[Path]) -> None:
        """InputError if an input lies in what would be removed or replaced."""
        doomed = [real_path(path) for path in (*self.own, *targets) if path.exists()]
        for source in inputs:
            place = real_path(source)
            if any(place == d or place == d.parent or d in place.parents for d in doomed):
                raise InputError(
                    f"{source}: is read by this run, and lies in {self.folder}, where the run "
                    "would remove or replace it. Choose another --output."
                )

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def remove_all(self) -> None:
        """Remove the files of the run, and the folders that this leaves empty.

        InputError, before anything is removed, if one of them is not as the run wrote it.
        """
        own = self.own
        self.refuse_foreign(own)
        for path in own:
            path.unlink()
        for folder in sorted({path.parent for path in own} - {self.folder}):
            if not any(folder.iterdir()):
                folder.rmdir()
        self.path.unlink(missing_ok=True)
        self.files, self.starts = {}, []


def _is_entry(entry: tuple[str, Any]) -> bool:
    """Whether a name is one below the folder, and its size one."""
    name, size = entry
    below = _ENTRY.fullmatch(name) and not {"..", "."} & set(name.split("/"))
    return bool(below) and (size is None or type(size) is int)


def _files_in(path: Path) -> list[Path]:
    """The file itself, or every file in and below a folder; links are files and not followed."""
    if path.is_dir() and not path.is_symlink():
        return [file for entry in sorted(path.iterdir()) for file in _files_in(entry)]
    return [path] if path.exists() or path.is_symlink() else []
