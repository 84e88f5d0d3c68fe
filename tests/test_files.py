"""Files that are whole or not there, and parsers that are not ours."""

import os
import subprocess
import sys

import pytest

from minibule.errors import Terminated
from minibule.files import native_parser, remove_stale


def test_half_written_files_of_the_dead_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = tmp_path / f".x.safetensors.{dead.pid}.partial"
    alive = tmp_path / ".x.safetensors.1.partial"
    own = tmp_path / f".folder.{os.getpid()}.partial"
    stale.write_text("")
    alive.write_text("")
    own.mkdir()
    remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [alive]


def test_a_signal_inside_a_native_parser_is_no_bad_input():
    """SIGTERM while tokenizers or safetensors read must end the program, not blame the file."""
    with pytest.raises(Terminated), native_parser("refused"):
        raise Terminated
