"""One run at a time in a folder."""

import errno
import os
import signal

import pytest

from minibule.errors import InputError
from minibule.runs import lock
from minibule.runs.lock import locked, refuse_if_locked


def test_the_lock_removes_itself_and_a_folder_that_stayed_empty(tmp_path):
    with locked(tmp_path / "new"), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        refuse_if_locked(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_ctrl_c_while_the_lock_is_taken_leaves_nothing(tmp_path, monkeypatch):
    take = lock._take

    def interrupted(path):
        os.kill(os.getpid(), signal.SIGINT)
        return take(path)

    monkeypatch.setattr(lock, "_take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        locked(tmp_path / "run").__enter__()
    assert list(tmp_path.iterdir()) == []


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


def test_a_disk_of_a_network_that_cannot_lock(tmp_path, monkeypatch):
    """It says so; or each look at a file finds another number for it."""
    path, other = tmp_path / "run", tmp_path / "other"
    other.touch()
    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "fstat", lambda _: other.stat())
        with pytest.raises(InputError, match=r"it is another file each time.*on another disk"):
            locked(path).__enter__()

    def unlockable(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", unlockable)
    with pytest.raises(InputError, match=r"No locks available.*on another disk"):
        locked(path).__enter__()
