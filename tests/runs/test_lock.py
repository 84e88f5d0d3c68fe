"""One run at a time in a folder."""

import os

import pytest

from minibule.errors import InputError
from minibule.runs.lock import locked, refuse_if_locked


def test_the_lock_removes_itself_and_a_folder_that_stayed_empty(tmp_path):
    with locked(tmp_path / "new"), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        refuse_if_locked(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("left", ['{"pid": 1, "host": "h"', ""])
def test_what_a_crash_left_is_in_nobodys_way(tmp_path, left):
    (tmp_path / ".lock").write_text(left)
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_a_file_of_that_name_that_is_no_lock_stays(tmp_path):
    file = tmp_path / ".lock"
    file.write_text("the user's own")
    with pytest.raises(InputError, match="no run wrote"), locked(tmp_path):
        pass
    with pytest.raises(InputError, match="no run wrote"):
        refuse_if_locked(tmp_path)
    assert file.read_text() == "the user's own"
