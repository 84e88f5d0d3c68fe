"""The house: imports go one way, and the front page names every room and every command."""

import ast
import graphlib
import pydoc
import re

from conftest import ROOT

import minibule

ROOMS = {path.stem: path.read_text() for path in (ROOT / "minibule").glob("[!_]*.py")}


def imported(source):
    """The rooms that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minibule"):
            _, _, room = node.module.partition(".")
            yield from [room] if room else [alias.name for alias in node.names]


def test_imports_go_one_way():
    graph = {room: set(imported(source)) for room, source in ROOMS.items()}
    assert graph["train"] >= {"job", "loss", "optim"}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names a circle
    assert set(order) == set(ROOMS)


def test_the_front_page_names_every_room_and_command():
    commands, _, reading = minibule.__doc__.partition("The code is meant to be read")
    named = re.findall(r"python -m minibule\.(\w+)", commands)
    assert sorted(named) == sorted(
        room for room, source in ROOMS.items() if f'prog="python -m minibule.{room}"' in source
    )
    rooms = re.findall(r"^    ((?:\w+, )*\w+)  ", reading, re.MULTILINE)
    assert sorted(", ".join(rooms).split(", ")) == sorted(ROOMS)


def test_help_shows_the_public_names():
    page = pydoc.plain(pydoc.render_doc(minibule))
    for name in minibule.__all__:
        assert name in dir(minibule) and name in page
        assert getattr(minibule, name).__doc__
