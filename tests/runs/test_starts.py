"""What a run was started by."""

import re

import numpy as np

import minibule
from minibule.runs.manifest import Manifest
from minibule.runs.starts import this_start


def test_a_start_says_when_with_what_and_where():
    start = this_start(3)
    assert start.first == 3 and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", start.date)
    assert minibule.__version__ in start.versions and np.__version__ in start.versions
    assert re.fullmatch(r".+, \d+ cores", start.machine)


def test_the_manifest_keeps_every_start(tmp_path):
    """Whatever is written in between, and by whomever; until the run is replaced."""
    manifest = Manifest(tmp_path)
    manifest.begin(this_start(1))
    with manifest.writing(tmp_path / "report.html") as path:
        path.write_text("page")
    Manifest(tmp_path).begin(this_start(5))
    manifest.settle(path)
    assert [start.first for start in Manifest(tmp_path).starts] == [1, 5]
    assert Manifest(tmp_path).files == {"report.html": 4}
    manifest.remove_all()
    assert Manifest(tmp_path).starts == [] and not path.exists()
