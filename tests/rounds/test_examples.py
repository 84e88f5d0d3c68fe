"""From samples to what is trained on: the sampled ids, with what a selection makes of rewards."""

import numpy as np
import pytest

from minibule.evaluate.judge import JUDGES
from minibule.files import embedded_folder
from minibule.methods.table import LOSSES
from minibule.models.chat_files import load_chat
from minibule.records.records import Record
from minibule.rounds.examples import examples_of, groups_of
from minibule.rounds.groups import signed
from minibule.rounds.sample import Sample
from minibule.rounds.select import SELECTIONS
from minibule.text.examples import tokenize


@pytest.fixture(scope="module")
def chat():
    return load_chat(embedded_folder())


def sample(text, ids, reward, number=0, ended=True, prompt="hello"):
    return Sample(prompt, text, reward >= 0.5, reward, ended, [*ids], number)


def learned(drawn, chat, objective, selection="all", usual=None):
    """Of each example: answers, counts, rewards."""
    chosen = SELECTIONS[selection]
    groups = groups_of(drawn, JUDGES["exact"], chosen, usual)
    found = examples_of(
        chosen(groups, np.random.default_rng(0), 0.0), drawn, chat, LOSSES[objective]
    )
    return [([a.tolist() for a in e.answers], e.counts, e.rewards) for e in found], found


def test_the_sign_of_a_reward_says_whether_it_was_accepted():
    rewards = [0.0, 0.49999, 0.5, 1.0, -3.0, 1e9, None]
    found = signed(rewards)
    assert (found[:-1] > 0).tolist() == [False, False, True, True, False, True]
    assert np.isnan(found[-1])
    assert np.diff(found[:4]) == pytest.approx(np.diff(rewards[:4]))


def test_sampled_ids_are_trained_though_their_text_has_others(chat):
    (usual,) = chat.encode_answers(["white"])
    ids = chat.encode_answers(list("white"))
    other = [int(token) for one in ids for token in one]
    assert chat.decode(other) == "white" and other != usual.tolist()
    drawn = [[sample("white", other, 0.0), sample("white", usual.tolist(), 0.0, 1)]]
    (plain, _) = learned(drawn, chat, "complement")
    assert plain == [([other, usual.tolist()], (1, 1), ())]


def test_the_default_learns_what_records_of_the_samples_would_teach(chat):
    """As far as a text has the tokens that were sampled: counts, rounds and order are the same."""
    texts = ["hello", "go away", "hello", "hi there", "", "  ", "go away"]
    rewards = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    ids = [one.tolist() for one in chat.encode_answers(texts)]
    drawn = [[sample(*both, i) for i, both in enumerate(zip(texts, ids, rewards, strict=True))], []]
    _, (found,) = learned(drawn, chat, "complement", "pooled")
    (expected,) = tokenize([Record("hello", ("hello", "go away"), (2, 2), 7)], chat, 200)
    assert found.prompt.tolist() == expected.prompt.tolist()
    assert [a.tolist() for a in found.answers] == [a.tolist() for a in expected.answers]
    assert found[2:] == expected[2:]


def test_the_end_is_trained_where_the_model_came_to_it(chat):
    drawn = [
        [sample("a", [5], 1.0), sample("a", [5], 1.0, 1, ended=False), sample("", [], 0.0, 2)],
    ]
    end = chat.end_of_turn
    assert learned(drawn, chat, "w-reinforce")[0] == [
        ([[5, end], [5], [end]], (1, 1, 1), (1.0, 1.0, 0.0))
    ]
    assert learned(drawn, chat, "sft")[0] == [([[5, end], [5]], (1, 1), (1.0, 1.0))]
    assert learned(drawn, chat, "nsr")[0] == []  # an empty answer has nothing but its end


def test_a_loss_gets_the_sorts_it_learns_from(chat):
    right, wrong = sample("a", [5], 1.0), sample("b", [6], 0.0, 1)
    drawn = [[right, wrong], [right._replace(prompt="x")] * 2, [wrong._replace(prompt="y")]]
    end = chat.end_of_turn
    assert learned(drawn, chat, "nsr")[0] == [([[6]], (1,), ()), ([[6]], (1,), ())]
    assert learned(drawn, chat, "sft")[0] == [
        ([[5, end]], (1,), (1.0,)),
        ([[5, end]], (2,), (1.0,)),
    ]
    assert learned(drawn, chat, "dpo")[0] == [([[5, end], [6, end]], (1, 1), (1.0, 0.0))]
    assert len(learned(drawn, chat, "kto")[0]) == 3


def test_grades_reach_the_losses_that_go_by_them(chat):
    """Rewards of .1 and .4 are both rejections, and yet one is better."""
    drawn = [[sample("a", [5], 0.1), sample("b", [6], 0.4, 1)], [sample("c", [7], 0.4)] * 2]
    ((_, counts, rewards),), _ = learned(drawn, chat, "grpo")  # the second has but one reward
    assert counts == (1, 1) and rewards == pytest.approx((-0.4, -0.1))
    assert learned(drawn, chat, "dpo")[0] == []
    assert [rewards for _, _, rewards in learned(drawn, chat, "w-reinforce")[0]] == [(), ()]
    _, (example, _) = learned(drawn, chat, "reinforce")
    assert example.rejections == (1, 1)


def test_what_is_kept_twice_counts_twice(chat):
    drawn = [[sample("a", [5], 1.0), sample("b", [6], 0.0, 1), sample("c", [7], 0.0, 2)]]
    ((answers, counts, _),), _ = learned(drawn, chat, "w-reinforce", "bon")
    assert (len(answers), counts) == (1, (3,))  # three draws, all of them of the best


def test_par_compares_with_the_base_s_own_samples(chat):
    drawn = [[sample("a", [5], 0.7)], [sample("b", [6], 0.7, prompt="x")]]
    usual = [[sample("c", [7], 0.2), sample("c", [7], 0.2, 1)], []]
    ((_, _, rewards),), _ = learned(drawn, chat, "reinforce", "par", usual)  # x has no usual ones
    assert rewards == pytest.approx((1 / (1 + np.exp(-0.5)) - 0.5,))


def test_a_majority_is_of_what_is_said(chat):
    said = ["Four.", "four", "five"]
    drawn = [[sample(text, [5 + i], float(i < 2), i) for i, text in enumerate(said)]]
    (group,) = groups_of(drawn, JUDGES["exact"], SELECTIONS["majority"])
    assert group.says[0] == group.says[1] != group.says[2]
    assert len(set(group.answers)) == 3
