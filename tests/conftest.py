"""Fixtures of several test files, and how CI runs with the extras only what they change.

pytest --write-skipped FILE     as always, and a line in FILE for each test that was skipped
pytest --only-skipped FILE      what FILE names and what is marked `extra`; now a skip is a failure
"""

import os

import pytest

# Of a skip's reason: what the machine lacks, and no extra brings.
OF_THE_MACHINE = (
    "MINIBULE_SHARED",
    "mount",
    "needs root",
    "closed to other users",
    "needs two cores",
    "UTF-8 names",
)


@pytest.fixture(autouse=True, scope="session")
def matplotlib_in_tmp(tmp_path_factory):
    """matplotlib keeps a list of the machine's fonts: tests write nothing outside tmp."""
    os.environ["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("matplotlib"))
