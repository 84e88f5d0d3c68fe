"""Fixtures of several test files."""

import os

import pytest

from minibule.report import figures


@pytest.fixture(autouse=True, scope="session")
def matplotlib_in_tmp(tmp_path_factory):
    """matplotlib keeps a list of the machine's fonts: tests write nothing outside tmp."""
    os.environ["MPLCONFIGDIR"] = str(tmp_path_factory.mktemp("matplotlib"))


@pytest.fixture
def no_pictures(monkeypatch):
    """Reports without pictures, as where matplotlib is not installed: for tests of other things."""
    monkeypatch.setattr(figures, "available", lambda: False)
