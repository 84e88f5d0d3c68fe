"""Questions put to a model: the estimate of pass@k, the figures, and samples that stay the same."""

import itertools
import math

import pytest

from minibule.errors import InputError
from minibule.evaluate import sampled
from minibule.evaluate.judge import JUDGES
from minibule.evaluate.sampled import Answer, Asked, ask, by_kind, figures, pass_at
from minibule.files import embedded_folder
from minibule.generate.decode import Wanted
from minibule.generate.sampling import Sampling
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (6, 0), (6, 1), (6, 3), (6, 5), (6, 6)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_samples(n, c):
    right = [i < c for i in range(n)]
    for k in range(1, n + 1):
        choices = list(itertools.combinations(right, k))
        share = sum(map(any, choices)) / len(choices)
        assert pass_at(k, n, c) == pytest.approx(share, abs=1e-12)


def asked(kind, greedy, *rewards):
    samples = [
        Answer(f"text {i // 2}", ids=[7] * i, ended=i > 0, reward=reward)
        for i, reward in enumerate(rewards)
    ]
    return Asked({"prompt": "?", "kind": kind}, Answer("", 0, True, greedy), samples)


def test_figures():
    rows = [
        asked("a", 1.0, 1.0, 0.5, 0.4),
        asked("b", 0.0, 0.0, None, 0.0),
        asked("a", 0.9, 1, 0, 1),
    ]
    found = figures(rows)
    shares = [2 / 3, 0, 2 / 3]
    mean = sum(shares) / 3
    error = math.sqrt(sum((share - mean) ** 2 for share in shares) / 2 / 3)
    assert found.prompts == 3
    assert found.greedy == pytest.approx(2 / 3)
    assert found.accepted == pytest.approx(mean)
    assert found.accepted_error == pytest.approx(error)
    assert list(found.pass_at) == [1, 2, 3]
    assert found.pass_at == pytest.approx({1: mean, 2: 2 / 3, 3: 2 / 3})
    assert found.tokens == pytest.approx(1.0)
    assert found.ended == pytest.approx(2 / 3)
    assert found.unique == pytest.approx(2.0)
    kinds = by_kind(rows)
    assert list(kinds) == ["a", "b"]
    assert kinds["a"] == figures([rows[0], rows[2]])
    assert math.isnan(kinds["b"].accepted_error) and kinds["b"].accepted == 0


def test_figures_are_of_what_was_judged():
    rows = [
        asked("a", None, 1.0, None, None, 0.0),
        asked("b", 1.0, None, None, None, None),
        asked("a", 0.0, 1.0, 0.0, 0.0, 0.0),
    ]
    found = figures(rows)
    assert (found.prompts, found.greedy) == (3, 0.5)
    assert found.accepted == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert found.pass_at == pytest.approx({1: 3 / 8, 2: (1 + 1 / 2) / 2, 4: 1.0})


def test_by_kind_leaves_out_what_is_of_none():
    one, untold = asked("a", 1.0, 1.0), asked("b", 1.0, None)
    assert list(by_kind([one, one._replace(row={"prompt": "?"}), untold])) == ["a"]


ROWS = [
    {"prompt": prompt, "accept": accept}
    for prompt, accept in (
        ("hello", "welcome|good"),
        ("1 + 1 = ?", "2"),
        ("opposite of hot", "cold"),
    )
]


@pytest.fixture(scope="module")
def tiny():
    folder = embedded_folder()
    return load_model(folder), load_chat(folder)


def test_a_judge_that_can_tell_about_no_sample(tiny):
    def greedy_alone(texts, rows):
        return [1.0 if len(texts) == len(ROWS) else None for _ in texts]

    judge = JUDGES["regex"]._replace(rewards=greedy_alone)
    with pytest.raises(InputError, match="none of the samples to 3 questions"):
        ask(*tiny, ROWS, judge, samples=2)


def test_a_sample_depends_on_seed_prompt_and_number_alone(tiny, monkeypatch):
    together = ask(*tiny, ROWS, JUDGES["regex"], samples=4)
    assert [one.row for one in together] == ROWS
    assert [len(one.samples) for one in together] == [4] * 3
    monkeypatch.setattr(sampled, "SEQUENCES", 1)  # each prompt by itself
    assert ask(*tiny, ROWS, JUDGES["regex"], samples=4) == together
    monkeypatch.setattr(sampled, "ANSWERS_IN_ONE_GO", 8)  # two of them together
    assert ask(*tiny, ROWS, JUDGES["regex"], samples=4) == together
    backwards = ask(*tiny, ROWS[::-1], JUDGES["regex"], samples=2)
    for one, other in zip(together, backwards[::-1], strict=True):
        assert other.greedy == one.greedy and other.samples == one.samples[:2]
    assert ask(*tiny, ROWS, JUDGES["regex"], samples=4, seed=1) != together
    texts = [sample.text for one in together for sample in one.samples]
    assert len(set(texts)) > 3
    assert {sample.accepted for one in together for sample in one.samples} == {True, False}


def test_a_question_that_is_too_long_is_told_before_others_are_asked(tiny, monkeypatch):
    monkeypatch.setattr(sampled, "ANSWERS_IN_ONE_GO", 1)
    monkeypatch.setattr(sampled, "generate_in_turn", None)
    with pytest.raises(InputError, match=r"question 'word .* context of 2,048"):
        ask(*tiny, [*ROWS, ROWS[0] | {"prompt": "word " * 3000}], JUDGES["regex"])


def test_only_so_many_are_decoded_at_once(tiny, monkeypatch):
    model, chat = tiny
    prompts = [chat.encode_prompt(row["prompt"]) for row in ROWS * 10]

    def at_once(samples, max_new_tokens):
        wanted = Wanted(chat.stop, max_new_tokens, Sampling(), samples)
        return sampled._at_once(model, prompts, wanted)

    assert at_once(8, 32) == sampled.SEQUENCES
    monkeypatch.setattr(sampled, "CACHE_BYTES", 4e6)
    assert 1 < at_once(8, 64) < at_once(8, 32) < sampled.SEQUENCES
    assert at_once(4, 32) < at_once(8, 32)  # they share less of their prompts
    monkeypatch.setattr(sampled, "CACHE_BYTES", 1)
    assert at_once(8, 32) == 1


def test_an_answer_that_is_cut_has_not_ended(tiny):
    long = ask(*tiny, ROWS[:1], JUDGES["regex"], samples=1, max_new_tokens=32)[0].greedy
    assert long.ended and 1 <= len(long.ids) < 32 and long.text == "hello"
    short = ask(*tiny, ROWS[:1], JUDGES["regex"], samples=1, max_new_tokens=len(long.ids))[0].greedy
    assert not short.ended and short.ids == long.ids
