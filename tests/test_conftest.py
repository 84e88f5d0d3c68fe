"""CI's second run: with the extras it runs what the first one skipped, and loses nothing."""

import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT

TESTS = {
    "test_some.py": """
import os
import pytest

def test_always():
    pass

@pytest.mark.parametrize("name", ["a b", "ü"])
def test_with_an_extra(name):
    if "EXTRA" not in os.environ:
        pytest.skip("needs pip install '.[extra]'")

def test_of_the_machine():
    pytest.skip("needs root")

@pytest.mark.extra
def test_marked():
    pass

@pytest.mark.xfail
def test_expected_to_fail():
    raise ValueError
""",
    "test_whole.py": """
import os
import pytest

if "EXTRA" not in os.environ:
    pytest.importorskip("there_is_no_such_module", reason="needs pip install '.[extra]'")

def test_one():
    pass

def test_two():
    pass
""",
}


@pytest.fixture
def run(tmp_path):
    """Runs pytest on the tests above in a process of its own: its status and what it prints."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -q\nmarkers = extra: as here\n")
    for name, text in TESTS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def run(*arguments, extra):
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        env |= {"PYTHONPATH": str(ROOT)} | ({"EXTRA": "1"} if extra else {})
        # Temporary files in a folder of its own: this one shall not remove what other runs left.
        words = ("-v", "-p", "no:cacheprovider", "--basetemp=temporary", *arguments)
        command = [sys.executable, "-m", "pytest", *words]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_what_was_skipped_runs_with_the_extras(run, tmp_path):
    status, out = run("--write-skipped=skipped", extra=False)
    assert status == 0, out
    names = (tmp_path / "skipped").read_text().splitlines()
    assert len(names) == 4 and "test_whole.py" in names and "test_always" not in str(names)
    status, out = run("--only-skipped=skipped", extra=True)
    assert status == 0, out
    assert "5 passed, 1 skipped, 2 deselected" in out


def test_what_is_skipped_again_is_a_failure(run):
    run("--write-skipped=skipped", extra=False)
    status, out = run("--only-skipped=skipped", extra=False)
    assert status == 1, out
    assert out.count("STILL SKIPPED") == 3 and "STILL SKIPPED test_whole.py: " in out


def test_a_test_that_is_gone_is_missed(run, tmp_path):
    (tmp_path / "skipped").write_text("test_some.py::test_of_old\n")
    status, out = run("--only-skipped=skipped", extra=True)
    assert status == 4 and "test_of_old" in out
