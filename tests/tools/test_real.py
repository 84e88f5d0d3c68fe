"""The table of the real model: how it is put together, and that it goes on where it stopped."""

import json

import numpy as np
import pytest
import real
from helpers import random_adapter, random_examples, random_llama

from minibule.errors import InputError

BASE = {"greedy": 0.5, "T=1": 0.25, "pass": 1.0, "tokens": 20.0, "perplexity": 10.0}


def outcome(row="a", lr="1e-4", seed=0, **more):
    return {"row": row, "lr": lr, "seed": seed, "seconds": 60.0} | BASE | more


def test_the_table_has_a_line_for_each_row_and_rate():
    outcomes = [outcome(), outcome(seed=1, greedy=0.75), outcome("b", "3e-4", **{"T=1": 0.1})]
    head, rule, base, *lines = real.table(BASE, outcomes, asked=4)
    assert head.startswith("| | lr | greedy | T=1 | pass@4 |") and "margin" not in head
    assert rule.count("|") == head.count("|") == base.count("|")
    assert base.startswith("| base | | .50 | .25 | 1.00 | 20 |")
    assert len(lines) == 2
    assert lines[0].startswith("| a | 1e-4 | .62 (.50-.75) | .25 |")
    assert lines[1].startswith("| b | 3e-4 | .50 | .10 |")


def test_rows_are_ordered_by_their_worst_run():
    outcomes = [outcome("a"), outcome("a", "3e-4", **{"T=1": 0.2}), outcome("b", **{"T=1": 0.22})]
    assert list(real.worst(outcomes, BASE))[2:] == ["- b: 0.22 (1 runs)", "- a: 0.20 (2 runs)"]


def test_the_margin_is_what_training_did_to_accepted_answers_less_rejected_ones():
    model = random_llama(dtype=np.float64)
    examples = [
        e._replace(rewards=tuple(np.arange(len(e.answers)) % 2.0)) for e in random_examples()
    ]
    model.adapter = random_adapter(dtype=np.float64)

    def logp(model, example, answer):
        z = model.logits([*example.prompt, *answer[:-1]])[len(example.prompt) - 1 :]
        rows = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return rows[np.arange(len(answer)), answer].sum()

    margins = []
    for e in examples:
        gains = [logp(model, e, a) - logp(model.base, e, a) for a in e.answers]
        good = np.array(e.rewards) > 0
        margins.append(np.mean(np.array(gains)[good]) - np.mean(np.array(gains)[~good]))
    assert real.margin(model, examples) == pytest.approx(np.mean(margins), rel=1e-9)


def test_every_row_names_settings_that_are():
    for settings in real.ROWS.values():
        given = dict(pair.split("=") for pair in settings.split())
        assert real.resolve({"model": "m", "data": "d"} | given).resolved_loss()


def test_an_unknown_row_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown nonsense"):
        real.main(["--folder", str(tmp_path), "--rows", "nonsense"])


def test_runs_that_are_there_are_not_done_again(tmp_path, monkeypatch):
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(outcome()) + "\n")
    monkeypatch.setattr(real, "ProcessPoolExecutor", _NoPool)
    (found,) = real.measure_all([real.Run("a", "1e-4", 0)], None, results)
    assert found["row"] == "a"


class _NoPool:
    def __init__(self, *_):
        pass

    def submit(self, *_):
        raise AssertionError("a run is done again")

    def shutdown(self, **_):
        pass
