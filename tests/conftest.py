"""Fixtures of several test files."""

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def matplotlib_in_tmp(tmp_path_factory):
    """matplotlib keeps a list of the machine's fonts: tests write nothing outside tmp."""
    os.environ["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("matplotlib"))
