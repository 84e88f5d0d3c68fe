"""The tools: the embedded model is made again from its seed, a random model is loadable, and the
experiments print their tables."""

import json
import re

import experiments
import make_tiny
import numpy as np
import pytest
import random_model
import world
from helpers import ROOT
from safetensors import safe_open

from minibule.core.counts import Example
from minibule.errors import InputError
from minibule.evaluate.questions import read_questions
from minibule.files import embedded_folder
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.records.records import read_records
from minibule.runs.settings import resolve
from minibule.train.__main__ import main as train


@pytest.mark.filterwarnings("ignore")  # the oracles' own deprecations
def test_torch_and_peft_come_to_the_losses_of_a_run(tmp_path, capsys):
    for library in ("torch", "transformers", "peft"):
        pytest.importorskip(library, reason="needs pip install '.[oracle]'")
    import compare_torch

    few = ["--steps=2", "--heldout=", "--probe=", "--export=none", "--eval-fraction=0"]
    few.append(f"--data={embedded_folder() / 'records.jsonl'}")
    for objective in ("rate", "complement"):
        train([*few, f"--objective={objective}", f"--output={tmp_path / objective}"])
    compare_torch.main([str(tmp_path / "rate")])
    error = re.search(r"largest relative difference (\S+);", capsys.readouterr().out)[1]
    assert float(error) < 3e-6
    with pytest.raises(InputError, match="a run of complement, expected one of literal, ref"):
        compare_torch.main([str(tmp_path / "complement")])


def test_the_embedded_models_maker_repeats_itself(tmp_path):
    def make(seed):
        rng = np.random.default_rng(seed)
        folder = tmp_path / "tiny"
        make_tiny.write_folder(folder, make_tiny.make_tokenizer(rng))
        chat = load_chat(folder)
        model = make_tiny.pretrain(chat, rng, steps=1)
        records = make_tiny.sample_records(model, chat, world.prompts()[:1], seed)
        return (folder / "tokenizer.json").read_text(), model.weights, records

    (first, weights, records), (again, weights2, records2), (_, other, _) = map(make, (0, 0, 1))
    assert first == again and records == records2
    for name, w in weights.items():
        np.testing.assert_array_equal(w, weights2[name])
        assert "norm" in name or (w != other[name]).any()


def test_the_tokenizer_in_the_tree_is_the_one_the_maker_makes():
    made = make_tiny.make_tokenizer(np.random.default_rng(0)).to_str()
    kept = (embedded_folder() / "tokenizer.json").read_text()
    assert json.loads(made) == json.loads(kept)


def test_the_embedded_records_were_rejected_and_heldout_prompts_never_asked():
    table = {prompt.text: prompt for prompt in world.prompts()}
    records = read_records(embedded_folder() / "records.jsonl")
    questions = read_questions(embedded_folder() / "heldout.jsonl")
    assert len(questions) > 50
    assert not {r.prompt for r in records} & {q.prompt for q in questions}
    # A prompt all of whose answers were accepted has no record.
    assert {r.prompt for r in records} | {q.prompt for q in questions} <= set(table)
    assert len(records) > 0.95 * (len(table) - len(questions))
    for record in records:
        assert record.total_rounds == 8 >= sum(record.counts)
        for text in record.rejected:
            assert world.judge(table[record.prompt], text) != world.ACCEPTED
    for question in questions:
        for style, texts in question.answers.items():
            expected = world.ACCEPTED if style == "accepted" else style
            assert {world.judge(table[question.prompt], text) for text in texts} == {expected}


def test_a_random_model_has_the_shapes_of_its_model(tmp_path, capsys):
    source = ROOT / "tests" / "golden" / "model"
    random_model.main(["--like", str(source), "--output", str(tmp_path / "out")])
    model = load_model(tmp_path / "out")
    assert model.config == load_model(source).config
    w = model.weights["model.layers.0.mlp.up_proj.weight"]
    assert w.std() == pytest.approx(0.02, rel=0.2)
    assert np.isfinite(model.logits([1, 2, 3])).all()
    assert (
        f"{sum(w.size for w in model.weights.values()):,} random weights" in capsys.readouterr().out
    )
    with safe_open(str(tmp_path / "out" / "model.safetensors"), "np") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - tied; the file is no dict


@pytest.fixture(scope="module")
def small_flags(tmp_path_factory):
    """For an experiment: few records and questions, and steps that make a difference."""
    questions = tmp_path_factory.mktemp("questions") / "heldout.jsonl"
    lines = (embedded_folder() / "heldout.jsonl").read_text().splitlines(keepends=True)
    questions.write_text("".join(lines[:2]))
    less = ["--max-records", "120", "--heldout", str(questions), "--eval-records", "2"]
    return [*less, "--warmup-steps", "0", "--lr", "0.01"]


OUTCOMES = {}  # of runs that several tables have, the base's among them


@pytest.mark.parametrize(
    ("table", "labels"),
    [
        ("objectives", ["literal, but prior reference", "rate, alpha .7"]),
        ("alpha", ["reference, alpha 0", "rate, alpha 0.5"]),
        ("knobs", ["uniform, position, plain", "reference, prefix, choice"]),
        ("data", ["10 records", "1 answer a record", "15 steps", "all records, 90 steps"]),
        ("unlikelihood", ["unlikelihood, lr 1e-4", "literal, lr 3e-4"]),
        ("steps", ["alpha 0.3, lr 1e-3, 90 steps", "alpha 0.7, lr 1e-3, 120 steps"]),
    ],
)
def test_each_experiment_prints_a_table_with_its_rows(
    small_flags, capsys, monkeypatch, table, labels
):
    def measure_here(runs):  # without workers, and equal runs once
        for run in runs:
            if repr(run) not in OUTCOMES:
                OUTCOMES[repr(run)] = experiments.measure(*run)
        return [OUTCOMES[repr(run)] for run in runs]

    def one_step(row):  # long enough that every figure shows it
        return row._replace(settings=row.settings | {"steps": "1", "lr": "0.01"})

    full = experiments.TABLES[table]
    short = full._replace(rows={name: one_step(full.rows[name]) for name in labels})
    monkeypatch.setitem(experiments.TABLES, table, short)
    monkeypatch.setattr(experiments, "measure_all", measure_here)
    experiments.main([table, "--seeds", "1", *small_flags])

    printed, _, verdict = capsys.readouterr().out.partition("\n\n")
    header, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()
    ]
    assert header == ["", *experiments.COLUMNS, '"hello"']
    assert [row[0] for row in rows] == ["base", *labels]
    for name, *figures, hello in rows:
        untrained = name == "base" or short.rows[name].settings.get("alpha") == "0"
        assert [figure == "" for figure in figures] == [False] * 5 + [untrained]
        assert hello
    assert rows[0][5] == ".0000" and all(float(row[5]) > 0 for row in rows[1:])  # KL(base, p)
    assert verdict.startswith("on every seed greedy accepted > .95")


@pytest.mark.parametrize("table", experiments.TABLES)
def test_the_settings_of_every_row_can_be_trained_with(table):
    """Each known and in its range, and those of the loss of one kind: else an InputError."""
    for row in experiments.TABLES[table].rows.values():
        resolve(row.settings).resolved_loss()


def test_an_experiments_seeds_and_data_are_runs_of_their_own_in_worker_processes(
    small_flags, capfd, monkeypatch
):
    rows = {
        "some": experiments.vary("steps=1", records=1, answers=1),
        "all": experiments.vary("steps=1"),
    }
    monkeypatch.setitem(experiments.TABLES, "data", experiments.Table(rows, seeds=3))
    experiments.main(["data", "--seeds", "2", "--seed", "7", *small_flags])
    out, err = capfd.readouterr()
    cells = [line.split(" | ") for line in out.splitlines() if "of 2)" in line]
    assert [row[0] for row in cells] == ["| some", "| all"]
    kl = [row[5] for row in cells]  # "mean (lowest-highest)"
    assert all(re.fullmatch(r"\.\d{4} \(\.\d{4}-\.\d{4}\)", spread) for spread in kl)
    assert kl[0] != kl[1]
    assert "5/5" in err and "step" not in err  # the runs' own progress bars are not shown


def test_fewer_records_are_some_of_more_and_fewer_answers_the_first():
    examples = [
        Example(np.array([n]), (np.array([1]), np.array([2, n])), (3, 1), 8) for n in range(20)
    ]

    def numbers(records, seed=0):
        return {int(e.prompt[0]) for e in experiments.fewer(examples, records, 0, seed)}

    assert numbers(0) == set(range(20)) and len(numbers(5)) == 5
    assert numbers(5) < numbers(10) and numbers(5) != numbers(5, seed=1)
    with pytest.raises(InputError, match="found 20 training records, expected at least 21"):
        numbers(21)
    (first, *_) = experiments.fewer(examples, 0, 1, seed=0)
    assert first.counts == (3,) and [a.tolist() for a in first.answers] == [[1]]


def test_an_experiment_shows_the_mean_the_spread_and_the_commonest_answer():
    assert experiments.cell([0.1, 0.3], ".3f") == ".200 (.100-.300)"
    assert experiments.cell([0.12341, 0.12339], ".3f") == ".123"
    assert experiments.cell([1.0, 1.5], ".2f") == "1.25 (1.00-1.50)"
    assert experiments.cell([], ".3f") == ""
    assert experiments.said(["b", "a|c", "b"]) == "b (2 of 3)"
    assert experiments.said(["a|\nc"]) == "a\\| c"
    assert experiments.said(["x" * 30]) == "x" * 22 + "..."


@pytest.mark.parametrize(
    "worse",
    [{"greedy accepted": 0.95}, {"P(accepted)": 0.74}, {"noise": 0.031}, {"perplexity": 1.18}],
)
def test_a_row_that_misses_one_demand_on_one_seed_is_not_named(capsys, worse):
    good = {"greedy accepted": 0.96, "P(accepted)": 0.75, "noise": 0.03, "perplexity": 1.17}
    both = [experiments.Outcome(good, ""), experiments.Outcome(good | worse, "")]
    base = [experiments.Outcome({"greedy accepted": 0.2, "perplexity": 1.17}, "")]
    experiments.print_rule({"base": base, "good": both[:1], "half": both, "bad": both[1:]})
    assert capsys.readouterr().out.endswith("not above the base's: good\n")


def test_an_experiment_needs_a_seed():
    with pytest.raises(InputError, match="--seeds 0: expected at least 1"):
        experiments.main(["data", "--seeds", "0"])
