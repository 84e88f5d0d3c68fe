"""A short form of tools/mutate.py: damaged files of every kind load well or are refused in words."""

import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def mutate():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import mutate

        yield mutate
    finally:
        sys.path.remove(str(ROOT / "tools"))


def test_no_damaged_file_gets_the_better_of_a_reader(mutate):
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    counts = {name: n // 25 for name, n in mutate.case_counts().items()}
    tallies = mutate.mutate(1, counts)
    for name, tally in tallies.items():
        assert tally.failures == [], name
        # Neither is all damage harmless, nor is there always too much of it.
        assert tally.results["loaded"] > 0 and tally.results["refused"] > 0, name
        assert sum(tally.results.values()) == counts[name]


@pytest.mark.parametrize(
    ("bug", "says"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("import time; time.sleep(30)", "does not end"),
        ("import os; os.abort()", "the process died"),
        ("kept = bytearray(300_000_000)", "bytes beyond twice"),
        ("check(False, 'logits that are not finite')", "logits that are not finite"),
    ],
)
def test_a_reader_with_a_bug_is_found_out(mutate, bug, says, tmp_path, monkeypatch):
    """The tool itself: what it is there to find, it finds, and goes on after it."""
    if "bytearray" in bug and mutate.memory_of("VmHWM") == 0:
        pytest.skip("memory is measured on Linux only")
    faulty = (
        (ROOT / "tools" / "mutate.py")
        .read_text()
        .replace(
            "def use_toml(path: Path) -> None:\n",
            "def use_toml(path: Path) -> None:\n"
            f"    if b'preset' in path.read_bytes():\n        {bug}\n        return\n",
        )
        .replace("SECONDS = 5.0", "SECONDS = 0.5")
    )
    (tmp_path / "faulty_mutate.py").write_text(faulty)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    faulty_mutate = importlib.import_module("faulty_mutate")
    try:
        tally = faulty_mutate.mutate(0, {"config.toml": 12})["config.toml"]
    finally:
        del sys.modules["faulty_mutate"]
    assert any(says in failure for failure in tally.failures)
    assert sum(tally.results.values()) == 12 and tally.results["refused"] > 0
