"""A browser for the pages."""

import browser
import pytest


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    command = browser.find()
    if command is None:
        pytest.skip("chromium is not installed")
    with browser.running(command, tmp_path_factory.mktemp("chromium")) as running:
        yield running
