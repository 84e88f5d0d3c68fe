"""Before and after: one name and one meaning for each measure, and what the numbers say."""

import re

import numpy as np
import pytest
from helpers import ODD, random_adapter, random_examples, random_llama

from minibule.core.counts import Example
from minibule.core.forest import pack
from minibule.core.fused import row_metrics
from minibule.core.objective import OBJECTIVES
from minibule.evaluate.heldout import evaluate
from minibule.evaluate.position import Position
from minibule.evaluate.questions import Replies, Reply, StyledAnswer
from minibule.methods.table import LOSSES
from minibule.runs.comparison import MEASURES, comparison_lines, comparisons, in_words
from minibule.runs.snapshot import Snapshot


def answers(exact, greedy=0.5):
    share = {"accepted": greedy, "noise": 1 - greedy}
    replies = [
        Reply(prompt, "", 0.5, StyledAnswer("c", style), [])
        for prompt, style in (("a", "accepted"), ("b", "noise"))
    ]
    return Replies(share, exact, 1.5, replies)


WAS = answers({"accepted": 0.4, "echo": 0.3, "rude": 0.1, "odd": 0.0, "flat": 0.2, "noise": 0.0})
NOW = answers({"accepted": 0.5, "echo": 0.1, "rude": 0.15, "odd": 0.05, "flat": 0.2, "noise": 0.0})


def snapshot(questions=WAS, heldout=None):
    return Snapshot({"heldout": 3}, None, questions, heldout, Position("", 1.0, []))


def measured(loss="reference"):
    model = random_llama(ODD)
    model.adapter = random_adapter(ODD)
    return evaluate(model, random_examples(), LOSSES[loss], 1000)


def test_every_measure_of_an_evaluation_has_a_name_and_a_meaning():
    assert set(measured()) | set(measured("complement")) == set(MEASURES)
    labels = [measure.label for measure in MEASURES.values()]
    assert len(set(labels)) == len(labels) and not any("_" in label for label in labels)
    for measure in MEASURES.values():
        # Each meaning stands by itself, wherever in a table its row is.
        assert measure.gloss and "the same" not in measure.gloss
        assert "probability of what was rejected" not in measure.gloss


def test_the_mean_p_of_a_rejected_token_is_the_mean_and_no_sum():
    """Two tokens rejected once each, p .3 and .2: .25 is reported, and not .5."""
    (batch,) = pack(
        [Example(np.array([0]), (np.array([0]), np.array([1])), (1, 1), 2)], "prefix", 9
    )
    z = np.log([[0.3, 0.2, 0.5]])
    values = row_metrics(z.copy(), z.copy(), batch.rows, OBJECTIVES["reference"])
    assert values["rejected_mass"] == pytest.approx([0.25])
    assert MEASURES["rejected_mass"].label == "mean p of a rejected token"


def test_the_table_is_aligned_and_has_the_differences():
    lines = list(comparison_lines(snapshot(WAS, measured()), snapshot(NOW, measured())))
    assert max(map(len, lines)) <= 100
    rows = [line for line in lines if line.startswith("  ") and "accepted (" not in line]
    header, *rows = rows
    ends = [m.end() for m in re.finditer(r"before|after|change", header)]
    numbers = 0
    for row in rows:
        if not re.match(r"  \S", row) or not re.search(r"\d\.\d{4}", row):
            continue
        cells = [m for m in re.finditer(r"[+-]?\d+\.\d{4}", row) if m.start() >= 34]
        assert [cell.end() for cell in cells] == ends, row
        before, after, change = (float(cell.group()) for cell in cells)
        assert change == pytest.approx(after - before, abs=1.01e-4)
        assert cells[2].group()[0] in "+-" or change == 0
        numbers += 1
    assert numbers == 9 + len(measured())
    assert "  P(rude)                               0.1000      0.1500     +0.0500   lower" in lines
    tables = comparisons(snapshot(WAS, {"kl": 0.5}), snapshot(NOW, {"kl": 0.25, "new": 1.0}))
    kl, new = tables[[*tables][1]]
    assert kl.measure is MEASURES["kl"] and kl.change == "-0.2500" and new.change == "nan"


def test_what_became_likelier_is_said():
    assert in_words(WAS, NOW) == [
        "Less likely than before: echo (x0.33).",
        "More likely than before: odd (from 0), rude (x1.50), accepted (x1.25).",
        "As likely as before: flat (x1.00), noise (x1.00).",
        "At temperature 1 an answer is still not accepted 50.0% of the time (before: 60.0%).",
    ]
    *_, last = in_words(NOW, WAS)
    assert last == "At temperature 1 an answer is not accepted 60.0% of the time (before: 50.0%)."
    without = "\n".join(comparison_lines(snapshot(None, measured()), snapshot(None, measured())))
    assert "likely" not in without and "temperature" not in without


def test_a_long_name_keeps_the_columns():
    was = answers({"accepted": 0.5, "x" * 80: 0.5})
    lines = list(comparison_lines(snapshot(was), snapshot(was)))
    assert max(map(len, lines)) <= 100 and any("xxx…" in line for line in lines)
