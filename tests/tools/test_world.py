"""The small world is a table of probabilities; these tests say which table it must be."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import world
from helpers import ROOT

WORLD = world.prompts()
BY_TEXT = {prompt.text: prompt for prompt in WORLD}


def mode(prompt) -> str:
    """The single most likely answer."""
    return max(prompt.table(), key=lambda row: row[2])[1]


def test_the_world_is_deterministic_and_no_prompt_comes_twice():
    assert world.prompts() == WORLD
    assert len(BY_TEXT) == len(WORLD)
    assert 300 <= len(WORLD) <= 500


def test_probabilities_of_each_prompt_sum_to_one():
    for prompt in WORLD:
        probabilities = [p for _, _, p in prompt.table()]
        assert min(probabilities) > 0, prompt.text
        # 40 float64 additions: 1e-12 leaves room for rounding and none for a lost string
        assert sum(probabilities) == pytest.approx(1, abs=1e-12), prompt.text


def test_answers_are_distinct_short_and_clean():
    for prompt in WORLD:
        strings = [answer for _, answer, _ in prompt.table()]
        assert len(set(strings)) == len(strings) <= 40, prompt.text
        assert all(answer and answer == answer.strip() for answer in strings), prompt.text
        assert max(len(answer.split()) for answer in strings) <= 20, prompt.text
        assert len(prompt.text.split()) <= 12
        assert prompt.text == prompt.text.lower()


def test_styles_are_the_named_ones_and_the_echo_is_the_prompt_itself():
    assert world.ACCEPTED in world.STYLES
    assert sum(world.WEIGHTS.values()) == pytest.approx(1)
    for prompt in WORLD:
        missing = set(world.STYLES) - set(prompt.answers)
        assert missing == ({"wrong"} if prompt.kind == "greeting" else set()), prompt.text
        assert [answer for answer, _ in prompt.answers["echo"]] == [prompt.text]


def test_a_string_of_two_styles_is_refused():
    with pytest.raises(ValueError, match=r"'say tac'.*\['tac'\]"):
        world._prompt("repeat", "say tac", ["tac"], ["tac", "cat"])


@pytest.mark.parametrize(
    ("text", "answer", "style"),
    [
        ("hello", "Hello! How can I help you today?", "helpful"),
        ("hello", "hello", "echo"),
        ("hello", "Hello", "noise"),
        ("what is 3 + 4?", "3 + 4 is 7.", "helpful"),
        ("3 + 4 = ?", "The answer is 12.", "wrong"),
        ("add 3 and 4", "The answer is 13.", "noise"),
        ("what is the opposite of hot?", "cold", "helpful"),
        ("opposite of cold", "The opposite of cold is hot.", "helpful"),
        ("opposite of cold", "cold", "wrong"),
        ("repeat the word apple", "apple", "helpful"),
        ("repeat the word apple", "repeat the word apple", "echo"),
        ("say apple", "river", "wrong"),
        ("reverse the word cat", "tac", "helpful"),
        ("spell cat backwards", "Backwards it is cat.", "wrong"),
        ("what colour is the sky?", "The sky is blue.", "helpful"),
        ("name the colour of a banana", "A banana is blue.", "wrong"),
        ("count to 5", "1 2 3 4 5", "helpful"),
        ("count from 1 to 5", "1 2 3 4", "wrong"),
        ("count to 5", "5 4 3 2 1", "wrong"),
        (
            "tell me a story about a cat",
            "A little cat went for a walk and made a new friend.",
            "helpful",
        ),
        ("tell me a story about a cat", "Figure it out yourself.", "rude"),
        ("count to 5", "I do not want to answer that.", "refusing"),
        ("count to 5", "Bananas are cheap this week.", "chatter"),
    ],
)
def test_judge_knows_each_style(text, answer, style):
    assert world.judge(BY_TEXT[text], answer) == style


def test_sums_know_every_result_and_only_one_is_right():
    for a in range(7):
        for b in range(7):
            prompt = BY_TEXT[f"add {a} and {b}"]
            styles = [world.judge(prompt, f"The answer is {n}.") for n in range(13)]
            assert styles == ["helpful" if n == a + b else "wrong" for n in range(13)]


def test_judge_says_noise_for_garbage():
    for prompt in WORLD:
        right = prompt.answers["helpful"][0][0]
        for garbage in ("", " ", "xq zz", f"{right} ", f" {right}", right * 2, f"{right}#"):
            assert world.judge(prompt, garbage) == "noise", (prompt.text, garbage)


def test_every_string_of_the_table_is_judged_as_its_own_style():
    for prompt in WORLD:
        for style, answer, _ in prompt.table():
            assert world.judge(prompt, answer) == style, (prompt.text, answer)


def test_samples_have_known_styles_in_the_stated_shares():
    rng = np.random.default_rng(5)
    drawn = [(prompt, world.sample(prompt, rng)) for prompt in WORLD for _ in range(20)]
    assert all(type(answer) is str for _, answer in drawn)  # not numpy.str_, which json writes too
    seen = Counter(world.judge(prompt, answer) for prompt, answer in drawn)
    assert set(seen) == set(world.STYLES)
    for style in world.STYLES:
        share = sum(p for q in WORLD for _, p in q.answers.get(style, ())) / len(WORLD)
        # about 8000 draws: one standard deviation of a share is at most .0056
        assert seen[style] / len(drawn) == pytest.approx(share, abs=0.02), style


def test_the_same_seed_draws_the_same_answers():
    def draw(seed: int) -> list[str]:
        rng = np.random.default_rng(seed)
        return [world.sample(prompt, rng) for prompt in WORLD[:50]]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_help_is_a_minority_of_the_stated_size():
    share = sum(p for prompt in WORLD for _, p in prompt.answers["helpful"]) / len(WORLD)
    assert share == pytest.approx(0.39, abs=0.02)


def test_greetings_are_echoed_and_help_wins_only_one_prompt_in_eight():
    for prompt in WORLD:
        if prompt.kind == "greeting":
            assert mode(prompt) == world.greedy(prompt) == prompt.text
    for pick in (mode, world.greedy):
        helped = sum(world.judge(prompt, pick(prompt)) == "helpful" for prompt in WORLD)
        assert 0.10 <= helped / len(WORLD) <= 0.15
    assert mode(BY_TEXT["hello"]) == "hello"


def test_greedy_decoding_is_the_mode_by_characters_and_by_words():
    """Answers that begin alike pool their mass; none of them may overtake the echo by it."""
    for prompt in WORLD:
        assert world.greedy(prompt) == mode(prompt), prompt.text
        assert world.greedy(prompt, pieces=str.split) == mode(prompt), prompt.text


def test_the_echo_leads_at_the_first_character_with_room_for_a_model_that_is_not_perfect():
    for prompt in WORLD:
        if mode(prompt) == prompt.text:
            rivals = Counter()
            for style, answer, p in prompt.table():
                rivals[answer[0]] += p * (style != "echo")
            lead = world.WEIGHTS["echo"] - max(rivals.values())
            assert lead > (0.1 if prompt.kind == "greeting" else 0.015), prompt.text


def test_greedy_decoding_follows_the_pooled_mass():
    prompt = world.Prompt(
        "toy", "toy", {"helpful": (("ab", 0.3), ("a", 0.25)), "echo": (("toy", 0.45),)}
    )
    assert mode(prompt) == "toy"
    assert world.greedy(prompt) == "ab"
    assert world.greedy(prompt, pieces=str.split) == "toy"


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_split_is_disjoint_stratified_and_deterministic(seed):
    train, heldout = world.split(WORLD, seed)
    assert (train, heldout) == world.split(WORLD, seed)
    texts = {prompt.text for prompt in train}, {prompt.text for prompt in heldout}
    assert not texts[0] & texts[1]
    assert texts[0] | texts[1] == set(BY_TEXT)
    total, held = (Counter(prompt.kind for prompt in part) for part in (WORLD, heldout))
    for kind, n in total.items():
        assert held[kind] == round(0.2 * n) > 0, kind
    assert "hello" in texts[1]
    assert sum(prompt.kind == "greeting" for prompt in train) > 10


def test_another_seed_is_another_split():
    assert world.split(WORLD, 0)[1] != world.split(WORLD, 1)[1]


def test_heldout_row_lists_every_string_once():
    row = world.heldout_row(BY_TEXT["say apple"])
    assert row["prompt"] == "say apple"
    assert row["accepted"] == ["apple", "The word is apple."]
    assert row["rejected"]["echo"] == ["say apple"]
    for prompt in WORLD:
        row = world.heldout_row(prompt)
        assert world.ACCEPTED not in row["rejected"]
        listed = row["accepted"] + [a for answers in row["rejected"].values() for a in answers]
        assert sorted(listed) == sorted(answer for _, answer, _ in prompt.table())


def test_the_questions_in_the_tree_are_the_world_s():
    _, held = world.split(WORLD)
    rows = (ROOT / "weights" / "tiny" / "heldout.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == [world.heldout_row(p) for p in held]
    for name, part in zip(("questions", "questions-test"), world.split(WORLD), strict=True):
        lines = (ROOT / "weights" / "tiny" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [world.question_row(p) for p in part]
        for row, prompt in zip(map(json.loads, lines), part, strict=True):
            for style, answers in prompt.answers.items():
                for answer, _ in answers:
                    found = re.search(rf"\b(?:{row['accept']})", answer) is not None
                    assert found == (style == world.ACCEPTED), (prompt.text, answer)
