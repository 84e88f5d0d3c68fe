"""Presets: what they set, and what is given beside them."""

import re

import pytest

from minibule.errors import InputError
from minibule.rounds.presets import DEFAULT, PRESETS
from minibule.rounds.settings import HELD, SEEDS, RoundsConfig, resolve
from minibule.settings import Source, settings_of


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


@pytest.mark.parametrize("model", ["", "smollm2-135m"])
def test_the_anchor_is_the_default_s_or_the_objective_s_own(model, tmp_path):
    def kl(*sources, preset=DEFAULT):
        config = resolve([*given(model=model), *sources], preset)
        return config.round_config(1, tmp_path, None).resolved_loss().kl

    assert kl() == 0.1 and kl(preset="grpo") == 0 == kl(*given(objective="nsr"))
    assert kl(*given(objective="complement")) == 0.05 and kl(*given(kl=0.2)) == 0.2
    assert kl(*given(objective="nsr", kl=0.3)) == 0.3


@pytest.mark.parametrize(("model", "usual"), [("", 5e-4), ("smollm2-135m", 3e-4)])
def test_a_rate_is_the_one_given_or_what_suits_the_model(model, usual, tmp_path):
    def lr(**values):
        return resolve(given(model=model, **values)).round_config(1, tmp_path, None).lr

    assert lr() == usual and lr(lr=3e-4) == 3e-4 and lr(lr=1e-3) == 1e-3


def test_every_seed_and_round_has_draws_and_a_training_of_its_own():
    last = settings_of(RoundsConfig)["rounds"].about.high
    seeds = [RoundsConfig(seed=seed).seed_of(n) for seed in (0, 1) for n in (1, 2, last, HELD)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("selection", ["d3s", "par", "balanced"])
def test_rewards_of_a_selection_s_own_are_nothing_to_a_loss_of_what_was_accepted(selection):
    for objective in ("nsr", "complement", "kto", "w-reinforce", "rso", "sft"):
        with pytest.raises(InputError, match=f"--selection {selection}: gives rewards of its own"):
            resolve(given(selection=selection, objective=objective))
    for objective in ("reinforce", "grpo", "dapo"):
        resolve(given(selection=selection, objective=objective))


def test_one_answer_of_each_question_is_nothing_to_a_loss_that_compares():
    for objective in ("grpo", "dpo", "redi", "dapo"):
        with pytest.raises(InputError, match="--selection bon: keeps one answer of each"):
            resolve(given(selection="bon", objective=objective))
        for other in ("br", "bw", "all"):
            resolve(given(selection=other, objective=objective))
    for objective in ("sft", "reinforce", "kto"):
        resolve(given(selection="bon", objective=objective))


def test_the_seeds_of_all_rounds_are_seeds():
    most = settings_of(RoundsConfig)["seed"].about.high
    assert RoundsConfig(seed=most).seed_of(HELD) < 2**63 <= SEEDS * (most + 2)
    with pytest.raises(InputError, match="seed = "):
        resolve(given(seed=most + 1))


def test_a_round_passes_over_what_it_keeps():
    with pytest.raises(InputError, match="epochs = 0"):
        resolve(given(epochs=0.0))


@pytest.mark.parametrize("selection", ["raft", "rft", "raft++", "majority"])
def test_accepted_answers_alone_are_nothing_to_a_loss_of_rejected_ones(selection):
    for objective in ("complement", "nsr", "dpo", "grpo"):
        with pytest.raises(InputError, match=re.escape(f"--selection {selection}: keeps")):
            resolve(given(selection=selection, objective=objective))
    for objective in ("sft", "reinforce", "kto"):
        resolve(given(selection=selection, objective=objective))
