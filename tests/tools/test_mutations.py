"""A short form of tools/mutate.py: damaged files of every kind load well or are refused."""

import importlib
import sys

import pytest
from helpers import ROOT


@pytest.fixture(scope="module")
def mutate():
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    import mutate

    return mutate


def test_no_damaged_file_gets_the_better_of_a_reader(mutate):
    counts = {name: n // 50 for name, n in mutate.case_counts().items()}
    tallies = mutate.mutate(1, counts)
    assert tallies.keys() == counts.keys() and len(counts) > 5
    for name, tally in tallies.items():
        assert tally.failures == [], name
        # Neither is all damage harmless, nor is there always too much of it.
        assert tally.results["loaded"] > 0 and tally.results["refused"] > 0, name
        assert sum(tally.results.values()) == counts[name]


@pytest.mark.parametrize(
    ("bug", "says"),
    [
        ("raise KeyError('x')", "KeyError"),
        ("time.sleep(30)", "does not end"),
        ("os.abort()", "the process died"),
        ("kept = bytearray(100_000_000)", "bytes beyond twice"),
    ],
)
def test_a_reader_with_a_bug_is_found_out(mutate, bug, says, tmp_path, monkeypatch):
    """What the tool is there to find, it finds: here in the fourth case; then it goes on."""
    if "bytearray" in bug and mutate.memory_of("VmHWM") == 0:
        pytest.skip("memory is measured on Linux only")
    source = (ROOT / "tools" / "mutate.py").read_text()
    name = "def use_toml(path: Path) -> None:\n"
    faulty = source.replace(
        name, f"calls = iter(range(99))\n\n\n{name}    if next(calls) == 4:\n        {bug}\n"
    )
    assert faulty.count(bug) == 1 and faulty.count("SECONDS = 5.0") == 1
    if says == "does not end":  # the others must not be taken for it on a busy machine
        faulty = faulty.replace("SECONDS = 5.0", "SECONDS = 1.0")
    (tmp_path / "faulty_mutate.py").write_text(faulty)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "faulty_mutate", raising=False)
    tally = importlib.import_module("faulty_mutate").mutate(0, {"config.toml": 6})["config.toml"]
    assert len(tally.failures) == 1 and says in tally.failures[0]
    assert tally.failures[0].startswith("case 3: ")
    assert sum(tally.results.values()) == 6
