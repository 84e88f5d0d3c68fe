"""Rounds on the embedded model: what they write, and that they go on where they were."""

import json

import pytest
from helpers import ROOT

from minibule.errors import InputError
from minibule.rounds import loop
from minibule.rounds.__main__ import main
from minibule.rounds.settings import RoundsConfig

QUESTIONS = ROOT / "weights" / "tiny" / "questions.jsonl"


def few(path, n, start=0):
    """A file of n questions, all of one kind or another."""
    lines = QUESTIONS.read_text().splitlines(keepends=True)[start : start + n]
    path.write_text("".join(lines))
    return str(path)


@pytest.fixture
def config(tmp_path):
    def make(name, **more):
        usual = {
            "data": few(tmp_path / "questions.jsonl", 12),
            "heldout": few(tmp_path / "heldout.jsonl", 8, 40),
            "output": str(tmp_path / name),
            **{"rounds": 2, "samples": 4, "max_new_tokens": 24},
        }
        return RoundsConfig(**usual | more)

    return make


def files(folder):
    """All files of rounds by name, but for what has seconds, paths or a process in it."""
    kept = ("samples.jsonl", "records.jsonl", "adapter_model.safetensors")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name in kept
    }


def test_what_rounds_write(config, tmp_path, capsys):
    loop.rounds(config("a"))
    place = tmp_path / "a"
    lines = [json.loads(line) for line in (place / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert {"eval_greedy", "eval_accepted", "eval_pass@4"} <= set(lines[0]) <= set(lines[1])
    for number in (1, 2):
        folder = place / f"round-{number:03d}"
        samples = [json.loads(x) for x in (folder / "samples.jsonl").read_text().splitlines()]
        assert len(samples) == 12 * 4
        assert lines[number]["accepted"] == sum(sample["label"] for sample in samples)
        assert (folder / "report.html").exists() and (folder / "adapter").is_dir()
    assert len((place / "round-002" / "records.jsonl").read_text().splitlines()) == 2 * 12 * 4
    # The second round's samples are those of the first one's model, not of the base.
    assert files(place)["round-001/samples.jsonl"] != files(place)["round-002/samples.jsonl"]
    printed = capsys.readouterr().out
    assert printed.count("\n    1 ") == 1 and "base" in printed


def test_rounds_go_on_to_the_same_bytes(config, tmp_path, monkeypatch):
    """Stopped in the middle of sampling, of training, and between rounds."""
    loop.rounds(config("whole"))

    stopped = RuntimeError("stopped")

    def raises(*_, **__):
        raise stopped

    place = tmp_path / "parts"
    real = loop.sample_round

    def half(*arguments):
        """The first round samples all, and then half of it was lost."""
        real(*arguments)
        path = arguments[-1]
        lines = path.read_bytes().splitlines(keepends=True)
        path.with_name(path.name + ".partial").write_bytes(b"".join(lines[:21]) + lines[21][:9])
        path.unlink()
        raise stopped

    monkeypatch.setattr(loop, "sample_round", half)
    with pytest.raises(RuntimeError):
        loop.rounds(config("parts"))
    monkeypatch.setattr(loop, "sample_round", real)
    monkeypatch.setattr(loop, "train", raises)
    with pytest.raises(RuntimeError):
        loop.rounds(config("parts"), resume=True)
    monkeypatch.undo()
    loop.rounds(config("parts", rounds=1), resume=True)
    main(["--resume", "--output", str(place), "--rounds", "2"])
    assert files(place) == files(tmp_path / "whole") != {}


def test_questions_that_the_model_always_answers(config, monkeypatch):
    real = loop.sample_round
    monkeypatch.setattr(loop, "sample_round", lambda *given: real(*given)._replace(rejected=0))
    with pytest.raises(InputError, match="nothing was rejected in round 1"):
        loop.rounds(config("b"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resume"], "--resume without --output"),
        (["--resume", "--output", "nowhere"], "rounds.toml"),
        (["--model", "somewhere"], "no questions are made for it"),
        (["--rounds", "0"], "rounds = 0"),
        (["--judge", "me"], "--judge me: not a judge"),
    ],
)
def test_what_cannot_be(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        main(flags)
    assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_judge_of_the_user_s_own(config, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def short(completions):\n    return [float(len(c) < 12) for c in completions]\n"
    )
    loop.rounds(config("own", rounds=1, judge=f"{path}:short"))
    lines = (tmp_path / "own" / "round-001" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert len({sample["label"] for sample in samples}) == 2
    for sample in samples:
        if sample["completion"].casefold() != sample["prompt"].casefold():
            assert sample["label"] == (len(sample["completion"]) < 12)


def test_another_s_folder_is_left_alone(config, tmp_path):
    place = tmp_path / "mine"
    place.mkdir()
    (place / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is there already"):
        loop.rounds(config("mine"))
    assert [path.name for path in place.iterdir()] == ["letter.txt"]


def test_settings_of_a_beginning_hold_to_the_end(config, tmp_path):
    loop.rounds(config("c", rounds=1))
    with pytest.raises(InputError, match="--samples cannot change in the middle"):
        main(["--resume", "--output", str(tmp_path / "c"), "--samples", "2"])
