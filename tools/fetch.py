"""Fetch the real model and the real records: what the reference run is made of.

    python tools/fetch.py [model | data | all] [--output DIR]

`model` is SmolLM2-360M-Instruct (0.7 GB), `data` is UltraFeedback (0.9 GB). Each lands in a folder
of its own under --output, as ordinary files. A file grows as `<name>.part` and gets its own name
only when it is complete and its hash is right: an interrupted run continues where it stopped, and
a file that has its name is never fetched again. Needs minibule installed (`pip install .`).
"""

import argparse
import hashlib
import os
import re
import shlex
import shutil
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
        "HuggingFaceTB/SmolLM2-360M-Instruct",
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


def fetch(source: Source, name: str, folder: Path) -> None:
    """Bring the file `name` of `source` into `folder`, unless it is there already."""
    final, part = folder / name, folder / f"{name}.part"
    size, expected = PINS.get(name, (None, None))
    if final.exists():  # fetched before, or copied here by hand: never overwritten, never removed
        if expected and (found := sha256(final)) != expected:
            raise InputError(
                f"{final} is not the file of {source.repo_id}: found sha256\n  {found}, expected\n"
                f"  {expected}.\nMove it away, or give another folder with --output."
            )
        print(f"{final}: already there")
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
    if remote.size - done > (free := shutil.disk_usage(folder).free):
        raise InputError(
            f"no room in {folder}: {name} needs {remote.size - done:,} more bytes, {free:,} are "
            "free. Make room, or give another folder with --output."
        )
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


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        prog="python tools/fetch.py", description="Fetch SmolLM2-360M-Instruct and UltraFeedback."
    )
    parser.add_argument("what", nargs="?", choices=[*SOURCES, "all"], default="all")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("~/.cache/minibule"),
        metavar="DIR",
        help="where the two folders are made (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    output = args.output.expanduser().absolute()
    for source in SOURCES.values() if args.what == "all" else [SOURCES[args.what]]:
        folder = output / source.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the folder {folder}: {error.strerror}. Give --output a folder that "
                "exists or can be made."
            ) from error
        for name in source.files:
            fetch(source, name, folder)
    print(f"\nNext:\n  {next_command(output)}")


if __name__ == "__main__":
    run(main)
