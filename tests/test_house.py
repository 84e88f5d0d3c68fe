"""The house: each folder imports only from its left, nothing is too long to read, and the front
page names every room."""

import ast
import functools
import graphlib
import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import minibule

HOUSE = ROOT / "minibule"
# "folder.module" -> its text. "" is the front page, minibule/__init__.py: it shows rooms and is
# none, as the other folders' __init__.py are.
ROOMS = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in HOUSE.rglob("*.py")
    if path.name != "__init__.py"
}
# From left to right: each imports of minibule only what stands above it, or in its own folder; in
# the row of the machine also what stands beside it. Tools and tests import whatever they like.
BESIDE_EACH_OTHER = "machine files program settings"
ORDER = f"""
    errors wording progress
    {BESIDE_EACH_OTHER}
    core
    records
    text
    methods
    models
    generate
    evaluate
    runs
    report explain check export env
    train
    rounds chat
    __main__
""".strip().splitlines()
PLACE = {folder: i for i, row in enumerate(ORDER) for folder in row.split()}

MODULE_LINES, FUNCTION_LINES = 400, 60
# What is longer, and why it reads better so.
LONG: dict[str, str] = {}


def folder_of(room):
    return room.partition(".")[0]


def imported(source):
    """The rooms that a module imports, wherever in it the import stands, as "folder.module"."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"import by a whole name, not .{node.module}"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, below = name.partition(".")
            if package == "minibule" and below:  # the bare name is the front page
                # from minibule.core.ops import linear: the room is core.ops
                yield below if below in ROOMS else below.rpartition(".")[0] or below


@functools.cache
def graph():
    return {room: set(imported(source)) for room, source in ROOMS.items()}


def misplaced(graph):
    """The imports that do not go to the left."""
    return [
        f"{room} imports {other}"
        for room, others in graph.items()
        for other in others
        if folder_of(other) != folder_of(room)
        and not PLACE[folder_of(other)] < PLACE[folder_of(room)]
        and not {folder_of(other), folder_of(room)} <= set(BESIDE_EACH_OTHER.split())
    ]


def test_imports_go_one_way():
    assert len(ROOMS) > 40
    assert graph()["train.loop"] >= {"train.setup", "core.optim"}
    order = list(graphlib.TopologicalSorter(graph()).static_order())  # CycleError names a circle
    assert set(order) == set(ROOMS)  # and each is a module of the house


def test_folders_import_only_from_their_left():
    assert {folder_of(room) for room in ROOMS} <= set(PLACE), "each has its place in ORDER"
    assert misplaced(graph()) == []


def test_an_import_to_the_right_is_seen():
    assert misplaced({"core.ops": {"errors"}, "files": {"program", "machine.half"}}) == []
    wrong = {"core.ops": {"text.chat"}, "errors": {"files"}, "export": {"report.page"}}
    assert len(misplaced(wrong)) == 3
    ways = "import minibule.core.ops\nfrom minibule.core import ops\n"
    ways += "def late():\n    from minibule.core.ops import linear\n"
    assert list(imported(ways)) == ["core.ops"] * 3
    assert list(imported("import minibule_other, numpy\nfrom minibule import files")) == ["files"]


def test_folders_have_no_circle():
    folders = {}
    for room, others in graph().items():
        folders.setdefault(folder_of(room), set()).update(map(folder_of, others))
    assert folders["train"] > {"train", "core"}
    for folder, others in folders.items():
        others.discard(folder)
    list(graphlib.TopologicalSorter(folders).static_order())


def test_the_lesson_needs_little_else():
    others = {
        other for room, names in graph().items() if folder_of(room) == "core" for other in names
    }
    assert {folder_of(other) for other in others} == {"core", "machine", "errors"}


def test_the_lesson_is_loaded_with_few_modules():
    """A step of training, to be read as a whole: no more of minibule than this."""
    code = "import sys, minibule.core.step\nprint(*(m for m in sys.modules if 'minibule' in m))"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert {"minibule.core.step", "minibule.core.ops"} <= set(loaded)
    assert len(loaded) <= 20, loaded


def lengths():
    """The lines of every module, and of every function with its docstring."""
    for room, source in ROOMS.items():
        yield room, len(source.splitlines())
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                yield f"{room}.{node.name}", node.end_lineno - node.lineno + 1


def test_nothing_is_too_long_to_read():
    found = list(lengths())
    assert len(found) > 300
    most = {True: MODULE_LINES, False: FUNCTION_LINES}
    long = {name: n for name, n in found if n > most[name in ROOMS]}
    assert long.keys() <= LONG.keys(), {name: long[name] for name in long.keys() - LONG.keys()}
    assert long.keys() == LONG.keys(), f"no longer long: {LONG.keys() - long.keys()}"


def test_the_clone_is_tested_whatever_is_installed():
    assert Path(minibule.__file__).parent == HOUSE


def test_help_shows_the_public_names():
    page = pydoc.plain(pydoc.render_doc(minibule))
    assert len(minibule.__all__) > 5
    for name in minibule.__all__:
        assert name in dir(minibule) and name in page
        assert getattr(minibule, name).__doc__


def test_the_front_page_names_every_command():
    commands, _, _ = minibule.__doc__.partition("The code is meant to be read")
    named = re.findall(r"python -m minibule\.(\w+)", commands)
    assert len(named) > 5
    found = {
        folder_of(room)
        for room, source in ROOMS.items()
        for name in re.findall(r'prog="python -m minibule\.(\w+)"', source)
        if name == folder_of(room)
    }
    assert sorted(named) == sorted(found)


FOLDERS = sorted({folder_of(room) for room in ROOMS if "." in room})


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_front_page_names_every_folder(folder):
    assert re.search(rf"^    {folder}  |\b{folder}/ ", minibule.__doc__, re.M)
