"""The settings of a run: where they come from, what wins, and every value that is none is named."""

import argparse
import re

import pytest

from minibule.core.shapes import PROJECTIONS
from minibule.errors import InputError
from minibule.methods.table import LOSSES
from minibule.runs.presets import EMBEDDED, PRESETS
from minibule.runs.settings import (
    FIELDS,
    GROUPS,
    MAY_CHANGE,
    TrainConfig,
    add_arguments,
    add_settings,
    given_settings,
    read_settings,
    resolve,
)
from minibule.settings import Parser, to_toml


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("steps = 1" + "0" * 400, "expected less than 2\\^63"),
        ("lr = 1" + "0" * 400, "lr = .*expected a number of at least 0"),
        ("steps = " + "9" * 5000, "not a TOML file"),
        ("lr = nan", "lr = nan"),
        ("lr = inf", "lr = inf"),
        ("preset = ['tiny']", "preset \\['tiny'\\] in .*: unknown"),
        ("export = [['hf']]", "export = .*expected some of"),
        ("lora_targets = [{}]", "lora_targets = .*expected some of"),
        ("max-length = 9\nmax_length = 8", "max-length stands there twice"),
        ("lr = " + "[" * 100_000, "not a TOML file"),
        ("[lr]\na = 1", "lr = "),
        ("\xff", "not a TOML file"),
    ],
)
def test_settings_that_cannot_be_used(text, says, tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=says) as error:
        read_settings(path)
    assert len(str(error.value)) < 2000


def test_every_text_is_written_so_that_it_is_read_back(tmp_path):
    path = tmp_path / "config.toml"
    config = resolve({"model": "m", "probe": 'a "b" \\ \x00 \x7f \u2028 \U0001f642 \n\t'})
    path.write_text(to_toml(config), encoding="utf-8")
    assert read_settings(path) == config


def test_settings_win_in_the_order_flag_file_preset_default(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('lr = 0.5\nsteps = 9\npreset = "tiny"\nlora-alpha = 8\n')
    config = resolve({"config": str(path), "lr": "0.25"})
    assert (config.lr, config.steps, config.warmup_steps) == (0.25, 9, 3)
    assert (config.lora_alpha, config.batch_size) == (8, 4)


def test_toml_round_trip(tmp_path):
    config = resolve({"model": 'a"b\\c', "alpha": "0.25", "lora_targets": "k_proj", "rslora": True})
    (tmp_path / "x.toml").write_text(to_toml(config))
    assert read_settings(tmp_path / "x.toml") == config


def test_epochs_win_over_steps_that_come_later(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("epochs = 1.0\nsteps = 9\n")
    assert resolve({}).steps == 90 and resolve({"epochs": "2"}).steps == 0
    assert resolve({"epochs": "2", "steps": "5"}).steps == 5
    assert resolve({"config": str(path)}).steps == 9
    assert resolve({"config": str(path), "epochs": "2"}).steps == 0


def test_another_objective_takes_no_number_of_the_file_s(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('objective = "complement"\nbeta = 1.0\nkl = 0.5\nlr = 0.25\n')
    for name in ("dpo", "sft", "literal"):
        config = resolve({"config": str(path), "objective": name})
        assert config.resolved_loss() == LOSSES[name] and config.lr == 0.25
    assert resolve({"config": str(path), "objective": "complement"}).kl == 0.5
    path.write_text("kl = 0.25\n")  # of whatever objective
    assert resolve({"config": str(path), "objective": "nsr"}).resolved_loss().kl == 0.25


def test_a_preset_may_be_named_twice(tmp_path):
    """By flag and in the file: the flag wins."""
    path = tmp_path / "settings.toml"
    path.write_text('preset = "smollm2-360m"\n')
    assert resolve({"config": str(path), "preset": "tiny"}).lr == PRESETS["tiny"]["lr"]


# -- presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["flag", "file"])
def test_a_preset_of_another_model_needs_that_model(where, tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('preset = "smollm2-360m"\n')
    given = {"preset": "smollm2-360m"} if where == "flag" else {"config": str(path)}
    with pytest.raises(InputError, match=r"--preset smollm2-360m without --model: .*fetch\.py"):
        resolve(given)
    assert resolve(given | {"model": "m"}).lr == 1e-5
    assert given_settings(given)["lr"] == 1e-5  # a run that goes on has its model already


def test_the_preset_of_the_embedded_model_is_taken_where_no_model_is_named():
    assert resolve({}) == TrainConfig(**PRESETS[EMBEDDED])
    assert resolve({"model": "m"}) == TrainConfig(model="m")


# -- --help ----------------------------------------------------------------------------------------


def help_of(add, *arguments):
    parser = Parser(prog="x")
    add(parser, *arguments)
    return re.sub(r"\s+", " ", parser.format_help())


@pytest.mark.parametrize("names", [list(FIELDS), ["lr", "steps", "warmup_steps"]])
def test_help_shows_what_a_run_without_arguments_takes(names):
    shown = help_of(add_settings, names)
    without, other = resolve({}), TrainConfig()
    for name in ("lr", "steps", "warmup_steps"):
        value, usual = getattr(without, name), getattr(other, name)
        assert f"(default: {value} for the embedded model, {usual} with --model)" in shown


def test_every_default_shown_is_the_one_taken():
    """A setting whose default a preset changes cannot be forgotten: all are compared."""
    shown, settings = help_of(add_settings, FIELDS), resolve({})
    compared = 0
    for name, field in FIELDS.items():
        text = shown.partition(f" {field.flag} {field.metavar} ")[2].partition(" --")[0]
        value = getattr(settings, name)
        default = re.search(r"\(default: ([^ )]*)", text)
        if default and value is not None:  # None: what is shown are words
            words = {("hf",): "hf", tuple(PROJECTIONS): "all"}
            assert default[1] == (words[value] if isinstance(value, tuple) else str(value))
            compared += 1
    assert compared > 25


def test_the_flags_stand_under_their_headings():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    titles = [group.title for group in parser._action_groups if group._group_actions]
    assert titles == ["options", *GROUPS]
    assert {field.about.group for field in FIELDS.values()} == set(GROUPS)


def test_what_may_change_is_marked_beside_the_field():
    assert {"output", "threads", "model"} < MAY_CHANGE < set(FIELDS)
    assert not MAY_CHANGE & {"lr", "seed", "lora_r", "objective"}
    assert FIELDS["lora_targets"].choices == tuple(PROJECTIONS)
