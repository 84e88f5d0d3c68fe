"""Seven classic mistakes, each planted in a copy of the project: the lesson's own tests notice, and
so do explain, and check of exercises that have the same mistake.

A test that nobody has seen fail may be one that cannot. A training run is no test, either: where a
factor of a whole gradient is forgotten it ends at the same numbers (Adam divides it out), and with
RoPE turned the wrong way it still learns.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor

import mistakes
import pytest
from helpers import ROOT
from mistakes import MISTAKES, Place, copy_to, plant

from minibule.check.__main__ import main
from minibule.check.exercises import TEXT


@pytest.fixture
def clone(tmp_path):
    return copy_to(tmp_path)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """By mistake, what its test and explain come to: programs of their own, two at a time."""
    clones = {name: copy_to(tmp_path_factory.mktemp("clone")) for name in MISTAKES}

    def look(name):
        plant(clones[name], MISTAKES[name].code)
        tested = mistakes.tests(clones[name], MISTAKES[name].noticed_by)
        return tested, mistakes.explain(clones[name])

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(MISTAKES, pool.map(look, MISTAKES), strict=True))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_noticed(seen, name):
    (status, out), (disagree, explained) = seen[name]
    assert status == 1 and f"FAILED {MISTAKES[name].noticed_by}" in out, out
    assert disagree, explained


@pytest.mark.parametrize("name", MISTAKES)
def test_a_learners_mistake_is_noticed(name, tmp_path, capsys):
    """In the words of the table."""
    mine = tmp_path / MISTAKES[name].learner.file
    mine.parent.mkdir(parents=True)
    shutil.copy(ROOT / MISTAKES[name].learner.file, mine)
    plant(tmp_path, MISTAKES[name].learner)
    with pytest.raises(SystemExit) as exit:
        main([str(mine)])
    first, *_ = mistakes.wrong_values(capsys.readouterr().out)
    assert exit.value.code == 1
    assert f"| {name} | caught | caught | caught | {first} | " in TEXT.read_text(encoding="utf-8")


def test_without_a_mistake_they_pass(clone):
    status, out = mistakes.tests(clone, *{mistake.noticed_by for mistake in MISTAKES.values()})
    assert status == 0, out
    disagree, out = mistakes.explain(clone)
    assert disagree == 0 and out.count("They agree") == 5
    assert mistakes.check(clone) == (0, [])


def test_a_mistake_is_planted_in_one_place_only(clone):
    for nowhere_or_everywhere in ("no such line", "return"):
        with pytest.raises(ValueError):
            plant(clone, Place("minibule/core/ops.py", nowhere_or_everywhere, ""))
