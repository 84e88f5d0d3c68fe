"""Seven classic mistakes, each planted in a copy of the project: the lesson's own tests notice, and
so do explain, and check of exercises that have the same mistake.

A test that nobody has seen fail may be one that cannot. A training run is no test, either: with the
first of these mistakes it ends at the same numbers (Adam divides the factor out), and with RoPE
turned the wrong way it still learns.
"""

import mistakes
import pytest
from mistakes import MISTAKES, Place, copy_to, plant

each_mistake = pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)


@pytest.fixture
def clone(tmp_path):
    return copy_to(tmp_path)


@each_mistake
def test_a_mistake_is_noticed(clone, mistake):
    plant(clone, mistake.code)
    status, out = mistakes.tests(clone, mistake.noticed_by)
    assert status == 1 and f"FAILED {mistake.noticed_by}" in out, out
    disagree, out = mistakes.explain(clone)
    assert disagree, out
    assert mistakes.check(clone) == (0, [])  # what the exercises are marked by is not the code


@each_mistake
def test_a_learners_mistake_is_noticed(clone, mistake):
    plant(clone, mistake.learner)
    status, said = mistakes.check(clone)
    assert status == 1 and said


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
