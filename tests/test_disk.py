"""Disks that are full and folders that may not be written: a command says so and spoils nothing.

The train command's own files are tested in train/test_resume.py.
"""

import ctypes
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT, random_adapter

from minibule.files import embedded_folder
from minibule.models.huggingface import load_config
from minibule.models.peft import save_adapter

resource = pytest.importorskip("resource", reason="limits on files are Unix's")

CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


def full_after(size):
    """A disk with room for `size` bytes a file, as far as the process can tell."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def as_anybody():
    """Root may write into any folder; without this capability it must keep to the permissions."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def run(module, *arguments, limits):
    return subprocess.run(
        [sys.executable, "-B", "-m", f"minibule.{module}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limits,
    )


def tree(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


EXPORTS = {
    "gguf": ("model.gguf", ("--format", "gguf", "--dtype", "q8_0")),
    "gguf-lora": ("lora.gguf", ("--format", "gguf-lora")),
    "hf": ("merged", ("--format", "hf", "--dtype", "bf16")),
}


def command(kind, output):
    if kind == "records":
        return ("records", embedded_folder() / "records.jsonl", "--output", output)
    adapter = output.parent.parent / "adapter"
    return ("export", "--adapter", adapter, *EXPORTS[kind][1], "--output", output)


@pytest.fixture(params=["records", *EXPORTS])
def output(request, tmp_path):
    """(kind, path to write), beside which something else stands."""
    config = load_config(embedded_folder())
    save_adapter(random_adapter(config), config, tmp_path / "adapter", "base")
    folder = tmp_path / "out"
    folder.mkdir()
    path = folder / ("canonical.jsonl" if request.param == "records" else EXPORTS[request.param][0])
    (folder / "other.json").write_text(json.dumps("another's"))
    return request.param, path


def refused(done):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return message


# Room for nothing, for a config.json, and for a tokenizer.json but no weights: three moments of a
# folder, of a single file one.
ROOM = [("hf", 0), ("hf", 3000), ("hf", 50_000)]
ROOM += [("gguf", 50_000), ("gguf-lora", 0), ("records", 3000)]


@pytest.mark.parametrize(("output", "room"), ROOM, indirect=["output"])
def test_a_full_disk(output, room):
    kind, path = output
    before = tree(path.parent)
    message = refused(run(*command(kind, path), limits=full_after(room)))
    assert str(path) in message and "cannot be written" in message
    assert tree(path.parent) == before
    assert [p.name for p in path.parent.iterdir()] == [str(p) for p in before]  # nor a folder


@pytest.mark.skipif(sys.platform != "linux", reason="takes a capability of Linux's away")
def test_a_folder_that_may_not_be_written(output):
    kind, path = output
    before = tree(path.parent)
    path.parent.chmod(0o555)
    try:
        message = refused(run(*command(kind, path), limits=as_anybody))
    finally:
        path.parent.chmod(0o755)
    assert str(path.parent) in message and "Permission denied" in message
    assert tree(path.parent) == before


def test_the_device_that_is_always_full():
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("there is no /dev/full here")
    # It is no file, and the printed summary is lost: both end in words.
    message = refused(run(*command("records", "/dev/full"), limits=None))
    assert "found a pipe or a device, expected the name of a file" in message
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-B", "-m", "minibule.records", embedded_folder() / "records.jsonl"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
