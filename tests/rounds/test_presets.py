"""The systems: each is made of what there is, and what it keeps is what its loss learns from."""

import numpy as np
import pytest

from minibule.methods.table import LOSSES
from minibule.rounds.budget import BUDGETS
from minibule.rounds.groups import Group
from minibule.rounds.presets import PRESETS
from minibule.rounds.select import SELECTIONS

OURS, SFT = "rejection", ("rft", "raft", "best-of-majority")
OTHERS = ("rso", "nsr", "w-reinforce", "grpo", "gvm-raft", "reinforce-ada")


def test_there_is_every_system_and_ours_comes_first():
    assert next(iter(PRESETS)) == OURS and set(PRESETS) == {OURS, *SFT, *OTHERS}
    assert {name for name, preset in PRESETS.items() if preset.objective == "sft"} == set(SFT)
    assert len(set(PRESETS.values())) == len(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_system_is_made_of_what_there_is(name):
    preset = PRESETS[name]
    assert preset.selection in SELECTIONS and preset.budget in BUDGETS
    assert preset.objective in LOSSES
    assert 1 <= preset.samples <= 256 and 0 < preset.temperature <= 1


@pytest.mark.parametrize("name", PRESETS)
def test_its_selection_keeps_what_its_loss_learns_from(name):
    preset = PRESETS[name]
    rng = np.random.default_rng(0)
    groups = [
        Group(rng.integers(0, 2, 16).astype(float), [f"{x}" for x in range(16)], [*"ab" * 8])
        for _ in range(20)
    ]
    kept = SELECTIONS[preset.selection](groups, rng, 0.0)
    sorts = {frozenset((one.rewards > 0).tolist()) for one in kept}
    expected = {
        "accepted": {frozenset([True])},
        "rejected": {frozenset([True, False])},  # it takes the rejected ones of these
        "any": {frozenset([True]), frozenset([True, False])},
        "both": {frozenset([True, False])},
    }[LOSSES[preset.objective].uses]
    assert kept and sorts <= expected
