"""One run at a time in a folder."""

import os

import pytest

from minibule.errors import InputError
from minibule.runs.lock import locked, refuse_if_locked


def test_the_lock_removes_itself_and_a_folder_that_stayed_empty(tmp_path):
    with locked(tmp_path / "new"), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        refuse_if_locked(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / ".lock").write_text("not JSON")
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()
