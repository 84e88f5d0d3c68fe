"""Presets: what they set, and what is given beside them."""

import re

import pytest

from minibule.errors import InputError
from minibule.methods.table import LOSSES
from minibule.rounds.presets import DEFAULT, PRESETS
from minibule.rounds.settings import RoundsConfig, resolve
from minibule.settings import Source


def given(**values):
    return [Source("test", values, False)]


def test_without_a_preset_it_is_the_default_one():
    assert resolve([]) == resolve([], DEFAULT) == RoundsConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_set_and_what_is_given_wins(name):
    config = resolve([], name)
    for part, value in PRESETS[name]._asdict().items():
        assert getattr(config, part) == value
    other = resolve(given(samples=3, temperature=0.5, budget="positive"), name)
    assert (other.samples, other.temperature, other.budget) == (3, 0.5, "positive")
    assert other.selection == config.selection and other.objective == config.objective
    assert config.resolved_budget().samples == config.samples


@pytest.mark.parametrize("objective", LOSSES)
def test_the_anchor_of_the_embedded_model_is_that_of_the_default_objective(objective, tmp_path):
    config = resolve(given(objective=objective)).round_config(1, tmp_path, None)
    assert config.kl == (0.3 if objective == RoundsConfig().objective else None)
    assert resolve(given(objective=objective, kl=0.2)).round_config(1, tmp_path, None).kl == 0.2


@pytest.mark.parametrize("selection", ["raft", "rft", "raft++", "majority"])
def test_accepted_answers_alone_are_nothing_to_a_loss_of_rejected_ones(selection):
    for objective in ("complement", "nsr", "dpo", "grpo"):
        with pytest.raises(InputError, match=re.escape(f"--selection {selection}: keeps")):
            resolve(given(selection=selection, objective=objective))
    for objective in ("sft", "reinforce", "kto"):
        resolve(given(selection=selection, objective=objective))


def test_the_objective_of_later_rounds(tmp_path):
    """That of the default's preset, unless another is named; held as the first one is."""

    def of(number, config):
        made = config.round_config(number, tmp_path, None)
        return made.objective, made.resolved_loss().kl

    real = given(model="smollm2-135m")
    assert [of(n, resolve(real)) for n in (1, 2, 3)] == [("complement", 0.1), *[("grpo", 0.1)] * 2]
    assert of(2, resolve(given())) == ("grpo", 0.3) and of(2, resolve(given(kl=0.2)))[1] == 0.2
    assert of(2, resolve(given(objective="nsr"))) == ("nsr", 0)
    assert of(2, resolve(given(objective="nsr", then="kto"))) == ("kto", 0)
    assert of(2, resolve(given(), "grpo")) == ("grpo", 0)
    beta = resolve(given(beta=0.5))
    assert beta.round_config(1, tmp_path, None).beta == 0.5
    assert beta.round_config(2, tmp_path, None).beta is None
    with pytest.raises(InputError, match="--then grpo learns from rejected ones"):
        resolve(given(selection="raft", objective="sft", then="grpo"))
