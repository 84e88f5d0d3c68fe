"""The house: imports go one way, no folder's circle, and the front page names every room."""

import ast
import graphlib
import pydoc
import re

from helpers import ROOT

import minibule

HOUSE = ROOT / "minibule"
ROOMS = {
    ".".join(path.relative_to(HOUSE).with_suffix("").parts): path.read_text()
    for path in HOUSE.rglob("*.py")
    if path.name != "__init__.py"
}
# From left to right: each imports of minibule only what stands to its left, or in its own folder.
ORDER = """
    errors wording
    machine files program settings
    core
    records
    text
    methods
    models
    generate
    evaluate
    runs
    report explain export
    train
    rounds
""".strip().splitlines()
PLACE = {room: i for i, row in enumerate(ORDER) for room in row.split()}


def imported(source):
    """The rooms that a module imports, wherever in it the import stands, as "folder.module"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minibule"):
            _, _, room = node.module.partition(".")
            for alias in node.names:
                below = f"{room}.{alias.name}".strip(".")
                yield below if below in ROOMS else room


def graph():
    return {room: set(imported(source)) - {""} for room, source in ROOMS.items()}


def test_imports_go_one_way():
    assert len(ROOMS) > 40
    assert graph()["train.loop"] >= {"train.setup", "core.optim"}
    order = list(graphlib.TopologicalSorter(graph()).static_order())  # CycleError names a circle
    assert set(order) == set(ROOMS)


def test_folders_have_no_circle():
    folders = {}
    for room, others in graph().items():
        folder = room.partition(".")[0]
        folders.setdefault(folder, set()).update(o.partition(".")[0] for o in others)
    for folder, others in folders.items():
        others.discard(folder)
    list(graphlib.TopologicalSorter(folders).static_order())


def test_help_shows_the_public_names():
    page = pydoc.plain(pydoc.render_doc(minibule))
    for name in minibule.__all__:
        assert name in dir(minibule) and name in page
        assert getattr(minibule, name).__doc__


def test_the_front_page_names_every_command():
    commands, _, _ = minibule.__doc__.partition("The code is meant to be read")
    named = re.findall(r"python -m minibule\.(\w+)", commands)
    assert len(named) > 5
    found = {
        room.partition(".")[0]
        for room, source in ROOMS.items()
        for name in re.findall(r'prog="python -m minibule\.(\w+)"', source)
        if name == room.partition(".")[0]
    }
    assert sorted(named) == sorted(found)
