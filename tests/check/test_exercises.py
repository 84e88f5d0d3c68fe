"""The exercises: the text asks for what is marked, and no answer is the lesson's own."""

import ast

import numpy as np
import pytest
from helpers import ROOT

from minibule.check import whole
from minibule.check.exercises import EXERCISES, FUNCTIONS, TEXT, case_of, number_of, skeleton

SKELETON = {node.name: node for node in ast.parse(skeleton()).body if hasattr(node, "args")}


def test_the_text_has_every_function_under_its_number():
    text = TEXT.read_text(encoding="utf-8")
    assert list(SKELETON) == list(FUNCTIONS) and list(EXERCISES) == list(range(1, 12))
    for name in FUNCTIONS:
        before = text.partition(f"\ndef {name}(")[0]
        assert before.rpartition("\n## ")[2].startswith(f"{number_of(name)}. ")
    assert text.count("<details><summary>Hint</summary>") == len(EXERCISES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_skeleton_takes_and_returns_what_is_marked(name):
    node, case = SKELETON[name], case_of(name)
    assert [arg.arg for arg in node.args.args] == list(case.inputs)
    *lines, returned = node.body
    names = [n.id for n in getattr(returned.value, "elts", [returned.value])]
    assert names == list(case.answers)
    blank = [line for line in lines if isinstance(line, ast.Assign)]
    assert [line.targets[0].id for line in blank] == names
    assert all(line.value.value is ... for line in blank)
    # A function that stops on the way leaves its values, and its arguments are none of them.
    assert not case.answers.keys() & case.inputs.keys()


def test_the_answers_share_no_code_with_the_lesson():
    rooms = list((ROOT / "minibule/check").glob("*.py"))
    assert len(rooms) > 8
    for room in rooms:
        source = room.read_text(encoding="utf-8")
        assert "minibule.core" not in source and "minibule.explain" not in source, room.name


def test_adamw_is_torchs():
    torch = pytest.importorskip("torch", reason="needs pip install '.[oracle]'")
    theta = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64, requires_grad=True)
    adam = torch.optim.AdamW([theta], whole.LR, (0.9, 0.999), 1e-8, whole.DECAY)
    states = []
    for g in ([1, -2, 0.5, 0], [0.25, 1, -0.5, 0], whole.GRAD):
        theta.grad = torch.tensor(np.asarray(g, np.float64))
        adam.step()
        state = adam.state[theta]
        arrays = (theta.detach(), state["exp_avg"], state["exp_avg_sq"])
        states.append([array.numpy().copy() for array in arrays])
    np.testing.assert_allclose(states[1], whole.TWO_STEPS, rtol=1e-14)
    np.testing.assert_allclose(states[2], whole.THREE_STEPS, rtol=1e-14)
