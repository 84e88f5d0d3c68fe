"""Rounds on the embedded model: what they write, and that they go on where they were."""

import functools
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from safetensors.numpy import load_file

from minibule.errors import InputError
from minibule.evaluate import sampled
from minibule.evaluate.sampled import figures
from minibule.machine.ranks import world
from minibule.records.records import read_file
from minibule.report.sections import write_report
from minibule.rounds import loop
from minibule.rounds.__main__ import main
from minibule.rounds.inputs import check_alike
from minibule.rounds.presets import PRESETS
from minibule.rounds.settings import RoundsConfig, resolve
from minibule.runs.metrics import read_metrics
from minibule.runs.rounds import read_asked, read_log
from minibule.settings import Source
from minibule.train import loop as train_loop
from minibule.train.__main__ import main as train_main

QUESTIONS = ROOT / "weights" / "tiny" / "questions.jsonl"


def few(path, n, start=0):
    """A file of n questions, all of one kind or another."""
    lines = QUESTIONS.read_text().splitlines(keepends=True)[start : start + n]
    path.write_text("".join(lines))
    return str(path)


HELD, ROWS, SAMPLES = 3, 12, 4
ASKED = HELD * (1 + loop.HELD_SAMPLES)  # answers to held-out questions, greedily and at T = 1
DRAWN = ROWS * SAMPLES  # samples of a round


def config_in(folder, name, **more):
    usual = {
        "data": few(folder / "questions.jsonl", ROWS),
        "heldout": few(folder / "heldout.jsonl", HELD, 40),
        "output": str(folder / name),
        **{"rounds": 2, "samples": SAMPLES, "max_new_tokens": 24, "lora_r": 2},
    }
    return RoundsConfig(**usual | more)


@pytest.fixture
def config(tmp_path):
    return functools.partial(config_in, tmp_path)


@pytest.fixture(scope="module")
def one_round(tmp_path_factory):
    return loop.rounds(config_in(tmp_path_factory.mktemp("rounds"), "c", rounds=1))


@pytest.fixture
def begun(one_round, tmp_path):
    """The folder of rounds, of which one is done."""
    return shutil.copytree(one_round, tmp_path / "c")


def test_ranks_must_have_as_many_threads(two_threads, monkeypatch):
    """Also where each takes those of its machine: what is measured is dealt out by them."""
    compared = {}
    monkeypatch.setattr(type(world()), "check_alike", lambda ranks, found: compared.update(found))
    check_alike(RoundsConfig(), {"the model": "abc"})
    assert compared["threads"] == 2 and compared["the model"] == "abc"
    assert compared["samples"] == RoundsConfig().samples and "output" not in compared


def files(folder):
    """All files of rounds by name, but for what has seconds, paths or a process in it."""
    kept = ("samples.jsonl", "answers.jsonl", "adapter_model.safetensors")
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
        assert lines[number]["samples"] == 12 * 4 and not list(folder.glob("*.partial"))
    for number, line in enumerate(lines):
        asked = read_asked(place / f"round-{number:03d}" / "answers.jsonl")
        assert figures(asked).accepted == line["eval_accepted"] and len(asked) == HELD
        assert {"prompt", "kind"} == set(asked[0].row)
    page = (place / "report.html").read_text()
    assert f"{lines[0]['eval_accepted']:.0%} → {lines[2]['eval_accepted']:.0%}" in page
    for line in lines[1:]:  # GRPO learns from the prompts whose samples are of both sorts
        mixed = 12 - line["fully_solved"] - line["fully_unsolved"]
        assert (line["trained_prompts"], line["trained_answers"]) == (mixed, 4 * mixed)
    assert lines[0]["eval_kl"] == 0 < lines[1]["eval_kl"] and lines[0]["eval_entropy"] > 0
    records, _ = read_file(place / "round-001" / "samples.jsonl")
    assert sum(sum(record.counts) for record in records) == lines[1]["rejected"]
    # The second round's samples are those of the first one's model, not of the base.
    assert files(place)["round-001/samples.jsonl"] != files(place)["round-002/samples.jsonl"]
    printed = capsys.readouterr().out
    assert printed.count("\n    1 ") == 1 and "base" in printed


def test_questions_that_are_learnt_from_are_not_called_others(config, capsys):
    learnt = [{"prompt": "a"}, {"prompt": "b"}]
    for held, says in (
        ([{"prompt": "c"}], "; 1 others are asked after it"),
        ([{"prompt": "a"}, {"prompt": "c"}], "; 2, 1 of which are among these, are asked after it"),
    ):
        loop._print_head(config("x"), learnt, held)
        assert says in capsys.readouterr().out


def test_rounds_go_on_to_the_same_bytes(config, tmp_path, monkeypatch):
    """Stopped in the middle of sampling, of training, and between rounds."""
    monkeypatch.setattr(sampled, "ANSWERS_IN_ONE_GO", 16)  # of four questions
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
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(loop, "train", raises)
        loop.rounds(config("parts"), resume=True)
    loop.rounds(config("parts", rounds=1), resume=True)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(train_loop, "take_step", raises)
        loop.rounds(config("parts"), resume=True)
    run = place / "round-002"
    page = write_report(run).read_text()  # of a round that is not done
    assert f"minibule.rounds --resume --output {place}" in page and "minibule.train" not in page
    with pytest.raises(InputError, match=f"is of the rounds in {place}, which chose what"):
        train_main(["--resume", "--output", str(run)])
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(train_loop, "observe", raises)  # after the last checkpoint
        loop.rounds(config("parts"), resume=True)
    place = place.rename(tmp_path / "moved")
    main(["--resume", "--output", str(place), "--rounds", "2"])
    assert files(place) == files(tmp_path / "whole") != {}


def test_a_budget_s_later_stages_go_on_to_the_same_bytes(config, tmp_path, monkeypatch):
    """gvm's second stage is divided by gradients, which are worked out anew."""
    gvm = {"budget": "gvm", "selection": "raft++", "objective": "reinforce"}
    gvm |= {"rounds": 1}
    loop.rounds(config("whole", **gvm))
    samples = (tmp_path / "whole" / "round-001" / "samples.jsonl").read_bytes()
    lines = samples.splitlines(keepends=True)
    assert len(lines) == 2 * 48

    def dies(*arguments):
        path = arguments[-1]
        path.with_name(path.name + ".partial").write_bytes(b"".join(lines[:61]) + lines[61][:9])
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "sample_round", dies)
    with pytest.raises(KeyboardInterrupt):
        loop.rounds(config("parts", **gvm))
    monkeypatch.undo()
    loop.rounds(config("parts", **gvm), resume=True)
    assert files(tmp_path / "parts") == files(tmp_path / "whole") != {}


def test_held_out_questions_are_asked_alike_whatever_is_sampled(config, tmp_path):
    path, base = tmp_path / "mine.py", []
    path.write_text("def long(completions):\n    return [len(c) / 1000 for c in completions]\n")
    for name, more in (("a", {}), ("b", {"samples": 12, "temperature": 0.3})):
        more |= {"judge": f"{path}:long", "selection": "raft", "objective": "sft"}
        with pytest.raises(InputError, match="nothing was accepted"):  # after the base was asked
            loop.rounds(config(name, **{"samples": 8} | more))
        line = json.loads((tmp_path / name / "rounds.jsonl").read_text())
        assert line.pop("evaluation_seconds") > 0 < line.pop("judging_seconds")
        base.append(line)
    assert base[0] == base[1] and "eval_pass@8" in base[0]


@pytest.mark.parametrize(
    ("reward", "more", "words"),
    [
        ("1.0", {"objective": "nsr"}, "nothing was rejected in round 1, of 48 samples"),
        (
            "0.0",
            {"selection": "raft", "objective": "sft"},
            "nothing was accepted in round 1",
        ),
        ("0.2", {"selection": "all", "objective": "grpo"}, "--selection all keeps nothing"),
        ("None", {}, "the judge could tell about none"),
    ],
)
def test_nothing_to_learn_from(reward, more, words, config, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"def same(completions):\n    return [{reward}] * len(completions)\n")
    with pytest.raises(InputError, match=words):
        loop.rounds(config("b", judge=f"{path}:same", **more))


def test_a_round_without_anything_to_learn_ends_the_rounds(config, tmp_path, capsys):
    """From the second round's samples on the judge finds all of them right."""
    path, seen = tmp_path / "mine.py", tmp_path / "seen"
    path.write_text(
        "from pathlib import Path\n"
        f"SEEN = Path({str(seen)!r})\n"
        "def patient(completions):\n"
        "    asked = SEEN.stat().st_size if SEEN.exists() else 0\n"
        "    SEEN.write_text('x' * (asked + len(completions)))\n"
        "    numbers = range(asked, asked + len(completions))\n"
        f"    return [float(number >= {ASKED + DRAWN + ASKED}) for number in numbers]\n"
    )
    pooled = {"selection": "pooled", "objective": "complement"}
    loop.rounds(config("b", rounds=3, judge=f"{path}:patient", **pooled))
    place = tmp_path / "b"
    lines = [json.loads(line) for line in (place / "rounds.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1]
    printed = capsys.readouterr().out
    assert "nothing was rejected in round 2" in printed
    assert f"adapter    {place / 'round-001' / 'adapter'}\n" in printed


def test_pooled_samples_are_those_of_all_rounds(config, tmp_path):
    loop.rounds(config("a", selection="pooled", objective="complement"))
    lines = [json.loads(x) for x in (tmp_path / "a" / "rounds.jsonl").read_text().splitlines()]
    rejected = [lines[number]["rejected"] for number in (1, 2)]
    assert [lines[number]["trained_answers"] for number in (1, 2)] == [rejected[0], sum(rejected)]


def test_seconds_of_the_judge_are_told_apart(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow(answers, rows):
        now[0] += 3
        return [1.0]

    clock, seconds = loop._Timed(slow), {}
    for what in ("sampling", "evaluation"):
        with loop._spent(seconds, what, clock):
            now[0] += 5
            clock(["x"], [{}])
    assert seconds == pytest.approx(
        {"sampling_seconds": 5, "evaluation_seconds": 5, "judging_seconds": 6}
    )


def test_stopped_after_training_it_is_not_trained_again(config, tmp_path, monkeypatch):
    loop.rounds(config("whole", rounds=1))
    held_out, calls = loop._held_out, []

    def second_fails(*given):
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError("stopped")
        return held_out(*given)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="stopped"):
        patched.setattr(loop, "_held_out", second_fails)
        loop.rounds(config("parts", rounds=1))
    monkeypatch.setattr(loop, "train", None)
    loop.rounds(config("parts", rounds=1), resume=True)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    steps = read_metrics(tmp_path / "parts" / "round-001" / "metrics.jsonl")
    line = read_log(tmp_path / "parts" / "rounds.jsonl")[1]
    assert line["training_seconds"] == sum(step["seconds"] for step in steps) > 0


def test_where_rounds_go_without_an_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = loop._output(RoundsConfig(), False)
    first.mkdir(parents=True)
    assert first == Path("runs/tiny-rounds")
    assert loop._output(RoundsConfig(), False) == Path("runs/tiny-rounds-2")
    assert loop._output(RoundsConfig(model="."), False).name == f"{tmp_path.name}-rounds"
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is there already"):
        loop._output(RoundsConfig(output="file"), False)


def test_how_rounds_go_on_is_said(config, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "sample_round", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.rounds(config("b"))
    hint = f"python -m minibule.rounds --resume --output {tmp_path / 'b'}\n"
    assert hint in capsys.readouterr().out


@pytest.mark.parametrize("name", PRESETS)
def test_every_system_learns_something(name, config, tmp_path):
    """A round of each; and it says how many questions are never or always answered."""
    usual = config(name, rounds=1, max_new_tokens=16)
    given = {n: getattr(usual, n) for n in ("data", "heldout", "output", "rounds")}
    given |= {"samples": 4, "max_new_tokens": 16}
    loop.rounds(resolve([Source("test", given, False)], name))
    (line,) = [
        line
        for line in map(json.loads, (tmp_path / name / "rounds.jsonl").read_text().splitlines())
        if line["round"] == 1
    ]
    folder = tmp_path / name / "round-001"
    samples = [json.loads(text) for text in (folder / "samples.jsonl").read_text().splitlines()]
    assert line["samples"] == len(samples) >= 48 == line["accepted"] + line["rejected"]
    of_each = {}
    for sample in samples:
        of_each.setdefault(sample["prompt"], set()).add(sample["label"])
    assert line["fully_unsolved"] == sum(labels == {False} for labels in of_each.values())
    assert line["fully_solved"] == sum(labels == {True} for labels in of_each.values())
    assert 0 < line["trained_prompts"] <= 12 and line["trained_answers"] > 0
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert any(np.abs(w).max() > 0 for key, w in weights.items() if "lora_B" in key)
    assert (len(samples) > 48) == (PRESETS[name].budget != "fixed")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--resume"], "--resume without --output"),
        (["--resume", "--output", "nowhere"], "rounds.toml"),
        (["--model", "somewhere"], "no questions are made for it"),
        (["--rounds", "0"], "rounds = 0"),
        (["--judge", "me"], "--judge me: not a judge"),
        (["--preset", "best"], "--preset"),
        (["--preset", "raft", "--objective", "nsr"], "keeps accepted answers only"),
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


@pytest.mark.parametrize(
    ("name", "says"), [("data", "the questions are not"), ("heldout", "the questions held out are")]
)
def test_rounds_go_on_with_the_questions_they_began_with(name, says, begun, tmp_path):
    place, others = begun, few(tmp_path / "others.jsonl", 12, 60)
    settings = (place / "rounds.toml").read_bytes()
    (place / "rounds.jsonl").unlink()
    with pytest.raises(InputError, match=says):
        main(["--resume", "--output", str(place), f"--{name}", others])
    assert (place / "rounds.toml").read_bytes() == settings
    moved = few(tmp_path / "moved.jsonl", 12)
    main(["--resume", "--output", str(place), "--data", moved])
    assert len((place / "rounds.jsonl").read_text().splitlines()) == 2


def test_the_rate_that_suited_the_model_is_kept(begun):
    assert "lr = 0.0005" in (begun / "rounds.toml").read_text()


@pytest.mark.parametrize(
    "line",
    [
        {"round": 0},
        {"round": 0, "eval_pass@8": 1.0},
        {"round": 1, "reward": 0.0, "accepted": 0, "rejected": 0},
        {"round": 0, "eval_pass@8": "x", "eval_greedy": [], "eval_accepted": 1, "eval_tokens": 1},
    ],
)
def test_lines_that_somebody_spoiled_are_named(line, begun, config):
    (begun / "rounds.jsonl").write_text(json.dumps(line))
    with pytest.raises(InputError, match=rf"rounds.jsonl: found a line of round {line['round']}"):
        loop.rounds(config("c", rounds=1), resume=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": [99_999_999]}, "token ids: found"),
        ({"ids": [-1]}, "token ids: found -1"),
        ({"reward": None}, "a sample without a reward"),
        ({"reward": math.nan}, "reward: found nan"),
    ],
)
def test_samples_that_somebody_spoiled_are_named(change, says, begun, config):
    log = begun / "rounds.jsonl"
    log.write_text(log.read_text().splitlines()[0])
    samples = begun / "round-001" / "samples.jsonl"
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    spoiled = "".join(json.dumps(line | change) + "\n" for line in lines)
    for left in (begun / "round-001").iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    samples.write_text(spoiled)
    with pytest.raises(InputError, match=says):
        loop.rounds(config("c", rounds=1), resume=True)


def test_a_judge_that_can_tell_of_later_draws_alone(config, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "seen = 0\n"
        "def late(completions):\n"
        "    global seen\n"
        "    seen += len(completions)\n"
        f"    early = {ASKED} < seen <= {ASKED + DRAWN}\n"
        "    return [None if early else len(c) % 2 for c in completions]\n"
    )
    budget = {"budget": "balance", "selection": "balanced", "objective": "reinforce"}
    with pytest.raises(InputError, match="none of the samples drawn first"):
        loop.rounds(config("c", judge=f"{path}:late", **budget))


def test_a_judge_that_can_tell_nothing_is_mended_and_asked_again(config, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def f(completions, kind):\n    return [None for _ in kind]\n")
    with pytest.raises(InputError, match=f"none of the greedy answers to {HELD} questions"):
        loop.rounds(config("c", judge=f"{path}:f", rounds=1))
    path.write_text(
        "seen = 0\n"
        "def f(completions):\n"
        "    global seen\n"
        "    seen += len(completions)\n"
        f"    return [len(c) % 2 if seen <= {ASKED} else None for c in completions]\n"
    )
    with pytest.raises(InputError, match=r"round 1: .* none of the 48 samples\. Expected"):
        loop.rounds(config("c", judge=f"{path}:f", rounds=1), resume=True)
    assert "--resume" in capsys.readouterr().out
    assert not list((tmp_path / "c" / "round-001").glob("samples*"))
    path.write_text("def f(completions):\n    return [len(c) % 2 for c in completions]\n")
    loop.rounds(config("c", judge=f"{path}:f", rounds=1), resume=True)
    loop.rounds(config("d", judge=f"{path}:f", rounds=1))
    assert files(tmp_path / "c") == files(tmp_path / "d")


def test_going_on_is_not_offered_where_it_would_end_the_same_way(config, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def f(completions):\n    return [1 for _ in completions]\n")
    with pytest.raises(InputError, match="nothing was rejected in round 1"):
        loop.rounds(config("c", judge=f"{path}:f", objective="complement"))
    assert "--resume" not in capsys.readouterr().out


@pytest.mark.parametrize("preset", ["rft", "rso"])
def test_rewards_of_any_sign_may_be_ranked(preset, config, tmp_path):
    """To the judge all are accepted, or none is."""
    path, own = tmp_path / "mine.py", PRESETS[preset]._asdict()
    for name, least in (("a", 10), ("b", -1000)):
        path.write_text(
            f"def f(completions):\n    return [{least} + len(c) for c in completions]\n"
        )
        loop.rounds(config(name, judge=f"{path}:f", rounds=1, **own | {"samples": 4}))
        _, line = map(json.loads, (tmp_path / name / "rounds.jsonl").read_text().splitlines())
        assert 0 < line["trained_prompts"] <= 12 and 0 in (line["accepted"], line["rejected"])


def test_what_cannot_be_is_said_before_there_is_a_folder(config, tmp_path):
    questions = tmp_path / "long.jsonl"
    questions.write_text(json.dumps({"prompt": "word " * 3000, "accept": "x"}))
    for wrong, says in (
        ({"objective": "grpo", "beta": 2.0}, "--beta: a number of"),
        ({"heldout": str(questions)}, "question 'word .* exceeds the model's context"),
        ({"data": str(questions)}, "question 'word .* exceeds the model's context"),
        ({"max_new_tokens": 5000}, "exceeds the model's context"),
    ):
        with pytest.raises(InputError, match=says):
            loop.rounds(config("c", **wrong))
        assert not (tmp_path / "c").exists()


def test_settings_of_a_beginning_hold_to_the_end(begun, config):
    settings = (begun / "rounds.toml").read_bytes()
    with pytest.raises(InputError, match=r"samples: 4 there, 2 now\n.*seed: 0 there, 7 now"):
        loop.rounds(config("c", samples=2, seed=7, rounds=5), resume=True)
    with pytest.raises(InputError, match="samples: 4 there, 2 now"):
        main(["--resume", "--output", str(begun), "--samples", "2"])
    with pytest.raises(InputError, match="--preset cannot change in the middle"):
        main(["--resume", "--output", str(begun), "--preset", "rejection"])
    assert (begun / "rounds.toml").read_bytes() == settings
