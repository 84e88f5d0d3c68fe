"""The tables of the real model and of systems of rounds: what is in them, and that they go on."""

import dataclasses
import json

import numpy as np
import pytest
import real
import systems
from helpers import random_adapter, random_examples, random_llama
from tables import begun_with

from minibule.errors import InputError
from minibule.files import embedded_folder

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
    asked = []
    monkeypatch.setattr(real, "in_workers", lambda function, jobs, what: asked.append(jobs) or [])
    (found,) = real.measure_all([real.Run("a", "1e-4", 0)], None, results)
    assert found["row"] == "a" and asked == [[]]


def test_a_folder_has_one_table(tmp_path):
    """Of other settings, what lies there would be shown as theirs."""
    for _ in range(2):
        begun_with(tmp_path / "new", {"asked": 4, "data": None})
    with pytest.raises(InputError, match=r"new: its table was begun with asked 4, not 8\. "):
        begun_with(tmp_path / "new", {"asked": 8, "data": None})


# -- systems of rounds -----------------------------------------------------------------------------


def test_systems_side_by_side(tmp_path, monkeypatch, capsys):
    """One of which finds nothing to learn, and stays the base; and again, without any work."""
    lines = (embedded_folder() / "questions.jsonl").read_text().splitlines(keepends=True)
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(lines[:6]))
    config_of = systems.config_of

    def few(run, given):
        short = {"max_new_tokens": 1} if run.preset == "raft" else {"max_new_tokens": 24}
        files = {"data": str(questions), "heldout": str(questions)}
        return dataclasses.replace(config_of(run, given), **files, **short)

    def here(function, jobs, what):
        return [(number, function(*job)) for number, job in enumerate(jobs)]

    monkeypatch.setattr(systems, "config_of", few)
    monkeypatch.setattr(systems, "in_workers", here)
    folder = tmp_path / "table"
    command = ["--presets=nsr,nsr:2,raft", "--rounds=1", "--samples=4", f"--folder={folder}"]
    systems.main(command)
    table = capsys.readouterr().out
    rows = ([c.strip() for c in row.split("|")] for row in table.splitlines()[2:])
    base, nsr, twice, raft = rows
    assert (base[1], nsr[1], twice[1], raft[1]) == ("base", "nsr", "nsr:2", "raft")
    assert nsr[2] == "0.0003" and nsr[10] and nsr[11].endswith("k")
    first, second = (folder / f"{name}-0.0003-0" for name in ("nsr", "nsr-2"))
    samples = "round-001/samples.jsonl"
    assert (first / samples).read_bytes() == (second / samples).read_bytes()
    steps = [len((x / "round-001/metrics.jsonl").read_text().splitlines()) for x in (first, second)]
    assert steps == [2, 3]  # 6 records once or twice, 4 a step
    assert raft[10] == "" and raft[11] == raft[12] == "0k"
    monkeypatch.setattr(systems, "rounds", None)
    systems.main(command)
    assert capsys.readouterr().out == table
    with pytest.raises(InputError, match="begun with samples 4, not 5"):
        systems.main([*command, "--samples=5"])
    with pytest.raises(InputError, match="--presets raft:0: found 0 passes"):
        systems.main(["--presets=raft:0", *command[1:]])
