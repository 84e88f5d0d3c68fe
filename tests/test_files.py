"""Files that are whole or not there, parsers that are not ours, and JSON of a given shape."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from helpers import ROOT

from minibule.errors import InputError, Terminated
from minibule.files import (
    from_json,
    native_parser,
    new_output,
    reading,
    real_path,
    remove_stale,
    to_json,
    whole_file,
    whole_folder,
)


def killed_while_writing(path, whole):
    """A process that is killed inside `whole_file(path)` or `whole_folder(path)`."""
    code = f"import os, pathlib\nfrom minibule.files import {whole}\n"
    code += f"with {whole}(pathlib.Path({str(path)!r})): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=False)


WHOLE = {"whole_file": whole_file, "whole_folder": whole_folder}


@pytest.mark.parametrize("whole", WHOLE)
def test_what_a_killed_process_left_is_gone_with_the_next(tmp_path, whole, monkeypatch):
    """Whatever its number was: in a container it is this process's own, or an older one's."""
    for name in ("x.gguf", "other"):
        killed_while_writing(tmp_path / name, whole)
    assert len(list(tmp_path.iterdir())) == 2
    with WHOLE[whole](tmp_path / "x.gguf") as partial:
        assert partial in tmp_path.iterdir() and len(list(tmp_path.iterdir())) == 2
        (partial / "file" if partial.is_dir() else partial).write_text("new")
        remove_stale(tmp_path)  # this one is no other's to remove, nor its own process's
        assert list(tmp_path.iterdir()) == [partial]
    assert list(tmp_path.iterdir()) == [tmp_path / "x.gguf"]


def test_only_half_written_files_are_removed(tmp_path):
    names = [".x.partial", "x.12ab.partial", ".x.gguf.partial", ".x.12ag.partial", ".x.12ab.part"]
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".link.12ab.partial").symlink_to(tmp_path / ".x.partial")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / ".pipe.12ab.partial")  # which must not be waited for
    remove_stale(tmp_path)
    assert set(names) <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "[a-z]*" * 9, ".", "-"], ids=len)
@pytest.mark.parametrize("whole", WHOLE)
def test_any_name_that_can_be_written_is(tmp_path, name, whole):
    path = tmp_path / name if name != "." else tmp_path / ".hidden"
    killed_while_writing(path, whole)
    with WHOLE[whole](path) as partial:
        (partial / "file" if partial.is_dir() else partial).write_text("new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_signal_inside_a_native_parser_is_no_bad_input():
    """SIGTERM while tokenizers or safetensors read must end the program, not blame the file."""
    with pytest.raises(Terminated), native_parser("refused"):
        raise Terminated


def test_what_a_native_parser_writes_by_itself_goes_nowhere(capfd):
    with pytest.raises(InputError, match=r"^refused \(broken\)\.$"), native_parser("refused"):
        with suppress(InputError), native_parser("within"):
            raise ValueError
        os.write(2, b"thread '<unnamed>' panicked")
        raise ValueError("broken")
    os.write(2, b"and now?")
    assert capfd.readouterr().err == "and now?"


# -- JSON ------------------------------------------------------------------------------------------


class Leaf(NamedTuple):
    name: str
    share: float


@dataclass(frozen=True)
class Tree:
    leaves: list[Leaf]
    counts: dict[str, int]
    settings: Mapping[str, Any]
    root: Leaf | None = None


TREE = Tree([Leaf("a", 0.5)], {"x": 1}, {"lr": 0.1, "targets": ("q", "v")}, Leaf("r", 1.0))


@pytest.mark.parametrize("what", ["a file", "a folder", "a link"])
def test_an_output_that_came_to_be_there_meanwhile_is_not_replaced(tmp_path, what):
    path = tmp_path / "out"

    def write(place):
        if what == "a folder":
            place.mkdir()
            place = place / "letter"
        place.write_text("ours")

    with (
        pytest.raises(InputError, match=r"--output .*/out: exists already"),
        new_output(path) as new,
    ):
        write(new)
        if what == "a link":
            path.symlink_to(tmp_path / "nowhere")
        else:
            write(path)
            text = path / "letter" if what == "a folder" else path
            text.write_text("theirs")
    assert [left.name for left in tmp_path.iterdir()] == ["out"]
    assert what == "a link" or text.read_text() == "theirs"


def test_a_new_output_is_whole_or_not_there(tmp_path):
    with new_output(tmp_path / "out") as place:
        place.write_text("all of it")
    assert (tmp_path / "out").read_text() == "all of it"
    with pytest.raises(InputError) as error, new_output(tmp_path / "other") as place:
        raise InputError(f"{place}/config.json: no room")
    assert str(error.value) == f"{tmp_path / 'other'}/config.json: no room"
    missing = tmp_path / "nowhere" / "out"
    with pytest.raises(InputError, match="found no folder"), new_output(missing):
        pass
    assert [left.name for left in tmp_path.iterdir()] == ["out"]


def test_links_in_a_circle_are_a_path(tmp_path):
    circle = tmp_path / "a"
    circle.symlink_to("a")
    assert real_path(circle) == circle
    with pytest.raises(InputError, match="/a: no such file"), reading(circle):
        pass


def test_what_goes_out_as_json_comes_back():
    written = json.loads(json.dumps(to_json(TREE)))
    assert written["leaves"] == [{"name": "a", "share": 0.5}]
    again = from_json(Tree, written, "the file")
    assert again == dataclasses.replace(TREE, settings={"lr": 0.1, "targets": ["q", "v"]})
    assert from_json(Tree, written | {"root": None}, "the file").root is None
    whole = from_json(Leaf, {"name": "a", "share": 1}, "it").share
    assert whole == 1.0 and type(whole) is float


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"leaves": {}}, "leaves: found a dict, expected list"),
        ({"leaves": [{"name": "a"}]}, "leaves: found a dict, expected an object of name, share"),
        ({"leaves": [{"name": 1, "share": 0.5}]}, "name: found a int, expected <class 'str'>"),
        ({"counts": {"x": 1.5}}, "x: found a float"),
        ({"counts": {"x": True}}, "x: found a bool"),
        ({"root": []}, "root: found a list"),
        ({"more": 1}, "the file: found a dict, expected an object of leaves, counts"),
    ],
)
def test_json_of_another_shape(changes, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        from_json(Tree, to_json(TREE) | changes, "the file")
