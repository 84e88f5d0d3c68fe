"""A learner's functions: marked value by value, and no bug of theirs is a traceback of ours."""

import importlib.util
import linecache

import numpy as np
import pytest
from helpers import ROOT

from minibule.check.exercises import FUNCTIONS
from minibule.check.run import check, mark
from minibule.errors import InputError


def filled_in():
    spec = importlib.util.spec_from_file_location("answers", ROOT / "tests/check/answers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written(source, name="softmax", file="mine.py"):
    """A function as a learner wrote it, with a file of its own."""
    names = {"np": np}
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), names)  # noqa: S102 - our own text
    return names[name]


def said(source, name="softmax"):
    return "\n".join(mark(written(source, name), name).lines())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_filled_in_rightly_is_right(name):
    marked = mark(getattr(filled_in(), name), name)
    assert marked.right and not marked.unlooked, list(marked.lines())


def test_the_first_wrong_value_is_named_and_those_after_it_are_not_looked_at():
    out = said(
        "def lora_linear_backward(dy, x, W, A, B, s):\n"
        "    u = x @ A.T\n"
        "    return u, dy.T @ u, 1, 2, 3\n",
        "lora_linear_backward",
    )
    assert out.splitlines() == [
        " 4  lora_linear_backward",
        "      u    exact",
        "      dB   off by a factor 0.588235 = 1 / s everywhere",
        "      not looked at: du, dA, dx",
    ]


def test_what_was_worked_out_before_an_error_is_marked():
    out = said(
        "def rms_norm(x, gamma, eps):\n"
        "    rms = np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)\n"
        "    n = x / rms.ravel()\n",
        "rms_norm",
    )
    assert "rms   exact" in out and "not looked at: n, y" in out
    assert "line 3: `n = x / rms.ravel()`: ValueError: operands could not be broadcast" in out


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 / 0", "line 2: `return 1 / 0`: ZeroDivisionError: division by zero"),
        ("return undefined", "line 2: `return undefined`: NameError: name 'undefined'"),
        ("att = ...; return att * 2", "uses a value that is not filled in yet"),
        ("return softmax(score)", "line 2: `return softmax(score)`: RecursionError"),
        ("raise SystemExit(0)", "line 2: `raise SystemExit(0)` ends the program"),
        ("raise Exception", "line 2: `raise Exception`: Exception"),
        ("pass", "it returns nothing; expected `return att`"),
        ("return score, score", "it returns 2 values; expected `return att`"),
        ("score -= 1; return score", "it changes its argument score; expected a new array"),
        ("return ...", " 6  softmax: not filled in yet"),
        ("return np.exp(score) / np.exp(score).sum(-1, keepdims=True)", "att   nan at [1, 0]"),
        ("raise ValueError('\\x1b[2J' + 'x' * 999)", "ValueError: \\x1b[2Jxxx"),
    ],
)
def test_a_bug_is_told_by_its_line(body, words):
    out = said(f"def softmax(score):\n    {body}\n")
    assert words in out and "Traceback" not in out
    assert all(len(line) < 500 for line in out.splitlines())


def test_other_arguments_and_no_function():
    out = said("def softmax(x, axis):\n    return x\n")
    assert "its arguments are (x, axis), expected (score)" in out
    for nothing in (None, 3, np.exp):
        marked = mark(nothing, "softmax")
        assert not marked.right and "expected `def softmax(...)`" in "\n".join(marked.lines())


def test_each_function_gets_inputs_of_its_own():
    spoils = written("def softmax(score):\n    score[...] = 0\n    return score\n")
    assert not mark(spoils, "softmax").right
    assert mark(filled_in().softmax, "softmax").right


def test_ctrl_c_says_where_it_was(capsys):
    endless = written("def softmax(score):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        mark(endless, "softmax")
    assert capsys.readouterr().out == "softmax, line 2: `raise KeyboardInterrupt`\n"


def test_a_function_is_known_by_its_name(capsys):
    check(filled_in().softmax)
    assert capsys.readouterr().out == " 6  softmax\n      att   exact\n"
    with pytest.raises(InputError, match=r"softmx: no exercise; did you mean softmax\?"):
        check(written("def softmx(score): ...\n", "softmx"))


def test_the_largest_number_of_the_whole_row_makes_the_others_underflow():
    def log_one_minus_p(z, i):
        m = z.max(axis=-1, keepdims=True)
        total = m[:, 0] + np.log(np.exp(z - m).sum(axis=-1))
        rest = z.copy()
        rest[np.arange(len(z)), i] = -np.inf
        others = m[:, 0] + np.log(np.exp(rest - m).sum(axis=-1))
        return total, others, others - total, z

    words = " ".join(mark(log_one_minus_p, "log_one_minus_p").lines())
    assert "others the largest of the whole row was taken away" in " ".join(words.split())
