"""The file of a checkpoint: all there is comes back, and every damage is noticed."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import random_examples, random_llama

from minibule.core.optim import AdamW
from minibule.errors import InputError
from minibule.runs import checkpoint as run_state
from minibule.runs.settings import TrainConfig


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint, what it was made of, and a way to read it again."""
    rng = np.random.default_rng(0)
    optimiser = AdamW({"a": rng.normal(size=(3, 2)).astype(np.float32)}, 0.0)
    optimiser.step({"a": np.ones((3, 2), np.float32)}, 0.1)
    run = run_state.Identity({"lr": 0.1, "targets": ["q"]}, "m", "d")
    progress = run_state.Progress(5, 1, 123, 4.5)
    path = run_state.save_checkpoint(tmp_path / "c", run, progress, optimiser, keep=2)
    return path, optimiser, run, progress


def test_a_checkpoint_holds_everything(saved):
    path, optimiser, run, progress = saved
    found, damaged = run_state.newest_checkpoint(path.parent, run, optimiser.params)
    assert found.progress == progress and found.path == path and not damaged
    other = AdamW({"a": np.zeros((3, 2), np.float32)}, 0.0)
    other.restore(found.state, found.updates)
    assert other.steps == 1
    for name, array in optimiser.state().items():
        np.testing.assert_array_equal(other.state()[name], array)
    assert run_state.newest_checkpoint(path.parent / "no", run, optimiser.params) == (None, [])


def test_what_is_judged_otherwise_is_another_run():
    """Rewards belong to the data: the same answers with others are something else to learn."""
    model = random_llama()

    def data(rewards):
        examples = [example._replace(rewards=rewards) for example in random_examples(records=1)]
        return run_state.identity(model, None, examples, TrainConfig()).data

    (example,) = random_examples(records=1)
    assert len(example.answers) == 2
    found = [data(rewards) for rewards in ((), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.5))]
    assert len(set(found)) == 5
    assert data((1.0, 0.0)) == found[1]


def test_every_flipped_bit_and_every_cut_is_noticed(saved):
    path, optimiser, run, _ = saved
    whole = path.read_bytes()

    def noticed(data):
        path.write_bytes(data)
        with pytest.raises(InputError, match="no checkpoint can be used"):
            run_state.newest_checkpoint(path.parent, run, optimiser.params)

    for place in range(len(whole)):
        noticed(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
    for length in range(0, len(whole), 37):
        noticed(whole[:length])
    noticed(whole + b"\0")
    rng = np.random.default_rng(0)
    for length in (1, 8, 9, 100, 5000):
        noticed(rng.bytes(length))
    noticed((40).to_bytes(8, "little") + b"[" * 40)
    noticed((2).to_bytes(8, "little") + b"{}")
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="no checkpoint can be used"):
        run_state.newest_checkpoint(path.parent, run, optimiser.params)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ([], "no checkpoint can be used"),
        ({}, "version None"),
        ({"version": 1}, "no checkpoint can be used"),
        (
            {"version": 1, "identity": {}, "progress": {}, "updates": 1},
            "no checkpoint can be used",
        ),
    ],
)
def test_a_signed_checkpoint_that_says_something_else(saved, about, says, monkeypatch):
    path, optimiser, run, progress = saved
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda value, **_: dumps(about))
    run_state.save_checkpoint(path.parent, run, progress, optimiser, keep=1)
    monkeypatch.undo()
    with pytest.raises(InputError, match=says):
        run_state.newest_checkpoint(path.parent, run, optimiser.params)


def test_old_checkpoints_go_only_when_the_new_one_is_there(saved, monkeypatch):
    path, optimiser, run, _ = saved
    for step in (6, 7):
        run_state.save_checkpoint(path.parent, run, run_state.Progress(step), optimiser, keep=2)
    two = ["step-00000006.safetensors", "step-00000007.safetensors"]
    assert names(path.parent) == two

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"step-00000008.*No space left"):
        run_state.save_checkpoint(path.parent, run, run_state.Progress(8), optimiser, keep=2)
    assert names(path.parent) == two
