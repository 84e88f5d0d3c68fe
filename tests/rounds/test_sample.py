"""Samples: stage by stage as a budget asks for them, and on to the same bytes from anywhere."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from minibule.errors import InputError
from minibule.evaluate.judge import JUDGES
from minibule.evaluate.sampled import Answer
from minibule.rounds import sample
from minibule.rounds.sample import figures_of, read_samples, sample_round
from minibule.rounds.settings import RoundsConfig

CHANCES = {"hard": 0.0, "half": 0.5, "easy": 1.0, "rare": 0.2}
ROWS = [{"prompt": prompt, "answer": "yes"} for prompt in CHANCES]
JUDGE = JUDGES["contains"]


@pytest.fixture
def asked(monkeypatch):
    """A model that answers by chance alone, and the list of what it was asked.

    Of each answer's ids the first depend on the question alone, the last on all that are put to the
    model together, which are two.
    """
    asked = []

    def answers(model, chat, rows, judge, wanted):
        for place, row in enumerate(rows):
            together = "".join(one["prompt"] for one in rows[place // 2 * 2 :][:2])
            several = []
            for number in range(wanted.first, wanted.first + wanted.samples):
                rng = np.random.default_rng([wanted.sampling.seed, number, *row["prompt"].encode()])
                right = rng.random() < CHANCES[row["prompt"]]
                told = rng.random() < 0.9
                ids = [*rng.integers(0, 9, number).tolist(), *together.encode()[-1:]]
                text = "yes" if right else "nö"
                several.append(Answer(text, ids, number != 1, float(right) if told else None))
                asked.append((row["prompt"], number))
            yield several

    monkeypatch.setattr(sample, "judged_answers", answers)
    monkeypatch.setattr(sample, "in_one_go", lambda samples: 2)
    monkeypatch.setattr(sample, "_norms", lambda *given: np.array([1.0, 2, 3, 4]))
    return asked


def draw(path, number=1, rows=ROWS, **more):
    config = RoundsConfig(**{"samples": 3} | more)
    chat = SimpleNamespace(stop=frozenset())
    sample_round(None, chat, rows, JUDGE, config, number, path)
    return path.read_bytes()


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_fixed_draws_as_many_of_each(asked, tmp_path):
    found = lines(draw(tmp_path / "s.jsonl", samples=5))
    assert asked == [(prompt, number) for prompt in CHANCES for number in range(5)]
    told = [(line["prompt"], line["sample"]) for line in found]
    assert set(told) < set(asked) and told == [one for one in asked if one in told]
    assert all(line["label"] == (line["reward"] == 1) for line in found)
    assert [len(line["ids"]) for line in found] == [line["sample"] + 1 for line in found]
    assert list(tmp_path.iterdir()) == [tmp_path / "s.jsonl"]
    assert draw(tmp_path / "t.jsonl", number=2, samples=5) != draw(tmp_path / "s.jsonl", samples=5)


def test_a_budget_asks_again_where_it_must(asked, tmp_path):
    draw(tmp_path / "s.jsonl", budget="positive")
    counts = {prompt: sum(p == prompt for p, _ in asked) for prompt in CHANCES}
    assert counts["hard"] == 12 and counts["easy"] == 3 and counts["rare"] in (3, 6, 9, 12)
    assert len(set(asked)) == len(asked)
    for prompt in CHANCES:
        assert sorted(n for p, n in asked if p == prompt) == list(range(counts[prompt]))


def test_gvm_asks_for_the_norms_and_divides_by_them(asked, tmp_path, monkeypatch):
    def counts(name):
        asked.clear()
        draw(tmp_path / name, budget="gvm", samples=8)
        return [sum(p == prompt for p, _ in asked) for prompt in CHANCES]

    first = counts("a")
    assert sum(first) == 2 * 8 * 4 and first[0] == 8
    monkeypatch.setattr(sample, "_norms", lambda *given: np.array([1.0, 1, 100, 1]))
    assert counts("b")[2] > first[2]


def test_what_is_given_to_one_question_is_drawn_in_pieces(asked, tmp_path, monkeypatch):
    whole = draw(tmp_path / "a", samples=7)
    monkeypatch.setattr(sample, "SEQUENCES", 3)
    pieces = draw(tmp_path / "b", samples=7)
    assert sorted(pieces.splitlines()) == sorted(whole.splitlines()) and pieces != whole
    assert draw(tmp_path / "b", samples=7) == pieces


@pytest.mark.parametrize("budget", ["fixed", "gvm", "balance", "positive"])
def test_sampling_goes_on_to_the_same_bytes_from_wherever_it_stopped(budget, asked, tmp_path):
    path = tmp_path / "s.jsonl"
    part = tmp_path / "s.jsonl.partial"
    kept, real = [], sample.whole_file
    with pytest.MonkeyPatch.context() as patch:  # what stands in the partial file at its end
        patch.setattr(
            sample, "whole_file", lambda given: (kept.append(part.read_bytes()), real(given))[1]
        )
        whole = draw(path, budget=budget)
    (partial,), all_asked = kept, list(asked)
    lengths = np.cumsum([len(line) for line in partial.splitlines(keepends=True)])
    for cut in {0, 1, *(n + d for n in lengths.tolist() for d in (-1, 0, 7))}:
        path.unlink()
        part.write_bytes(partial[:cut])
        asked.clear()
        assert draw(path, budget=budget) == whole
        done = len(all_asked) - len(asked)
        assert asked == all_asked[done:]  # on from what was put to the model together
        assert done > np.count_nonzero(lengths <= cut) - 6
    asked.clear()
    assert draw(path, budget=budget) == whole and asked == []


def test_other_questions_are_no_going_on(asked, tmp_path):
    path = tmp_path / "s.jsonl"
    text = draw(path)
    path.unlink()
    (tmp_path / "s.jsonl.partial").write_bytes(text)
    with pytest.raises(InputError, match="'hard', which is not the question"):
        draw(path, rows=ROWS[1:])
    path.write_bytes(text)
    with pytest.raises(InputError, match="'hard', which is not the question"):
        read_samples(path, ROWS[1:])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "s.jsonl: not valid JSON"),
        (b"3", "no sample"),
        (b'{"prompt": "half"}', "no sample"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_a_line_that_is_no_sample_is_named(line, words, asked, tmp_path):
    path = tmp_path / "s.jsonl"
    draw(path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(InputError, match=words):
        read_samples(path, ROWS)


# -- figures ---------------------------------------------------------------------------------------


def one(prompt, number, reward, length=2, ended=True):
    return sample.Sample(prompt, "text", reward >= 0.5, reward, ended, [7] * length, number)


def test_the_figures_are_those_of_trl():
    drawn = [
        [one("a", 0, 1.0, 2), one("a", 1, 0.0, 4, ended=False)],
        [one("b", 0, 0.0, 6), one("b", 1, 0.0, 8)],
        [],  # the judge could tell nothing
        [one("d", 1, 0.5, 1)],
    ]
    found = figures_of(drawn, 2)
    assert found["reward"] == pytest.approx(1.5 / 5)
    assert found["reward_std"] == pytest.approx(math.sqrt(0.5) / 3)
    assert found["frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert found["completions/mean_length"] == pytest.approx(21 / 5)
    assert (found["completions/min_length"], found["completions/max_length"]) == (1, 8)
    assert found["completions/mean_terminated_length"] == pytest.approx(17 / 4)
    assert found["completions/clipped_ratio"] == pytest.approx(1 / 5)
    assert (found["accepted"], found["rejected"]) == (2, 3)
    assert (found["samples"], found["sampled_tokens"]) == (5, 21)
    assert (found["fully_solved"], found["fully_unsolved"]) == (1, 1)


def test_what_a_budget_draws_again_is_in_no_share():
    """Stopping at a success, a question would look easier than it is."""
    first = [[one("a", 0, 0.0), one("a", 1, 0.0)], [one("b", 0, 1.0), one("b", 1, 0.0)]]
    more = [[*first[0], *(one("a", i, 1.0, 9) for i in range(2, 8))], first[1]]
    of_all = ("samples", "sampled_tokens", "fully_unsolved")
    before, after = figures_of(first, 2), figures_of(more, 2)
    assert before | {name: after[name] for name in of_all} == after
    assert (before["fully_unsolved"], after["fully_unsolved"], after["samples"]) == (1, 0, 10)


def test_the_norms_begin_with_the_adapter_that_training_begins_with(monkeypatch):
    """Round 1 has none yet: a fresh one; later rounds have theirs."""
    from helpers import random_adapter, random_llama

    class Chat:
        end_of_turn = 5

        def encode_prompt(self, prompt):
            return np.array([1, 2])

    drawn = [[one("a", 0, 1.0), one("a", 1, 0.0)], [one("b", 0, 0.0)]]
    config, model = RoundsConfig(lora_r=2), random_llama()
    first = sample._norms(model, Chat(), drawn, config, 1)
    assert first[0] > 0 == first[1] and model.adapter is None
    later = sample._norms(
        dataclasses.replace(model, adapter=random_adapter()), Chat(), drawn, config, 2
    )
    assert later[0] > 0 == later[1] and later[0] != first[0]
