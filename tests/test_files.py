"""Files that are whole or not there, parsers that are not ours, and JSON of a given shape."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from minibule.errors import Terminated
from minibule.files import from_json, native_parser, remove_stale, to_json


def test_half_written_files_of_the_dead_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f".x.safetensors.{dead.pid}.partial"
    alive = tmp_path / ".x.safetensors.1.partial"
    own = tmp_path / f".folder.{os.getpid()}.partial"
    stale.write_text("")
    alive.write_text("")
    own.mkdir()
    remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [alive]


def test_a_signal_inside_a_native_parser_is_no_bad_input():
    """SIGTERM while tokenizers or safetensors read must end the program, not blame the file."""
    with pytest.raises(Terminated), native_parser("refused"):
        raise Terminated


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
