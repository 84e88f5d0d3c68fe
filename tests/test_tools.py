"""The tools: the embedded model is made again from its seed, and a random model is loadable."""

import json

import numpy as np
import pytest
from conftest import ROOT
from safetensors import safe_open

from minibule.chat import load_chat
from minibule.checkpoint import load_model
from minibule.config import embedded_folder
from minibule.heldout import read_questions
from minibule.records import read_records


@pytest.fixture
def tools(monkeypatch):
    """The tools folder on the path, as it is when a tool runs."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def test_the_embedded_models_maker_repeats_itself(tools, tmp_path):
    import make_tiny
    import world

    def make(seed):
        rng = np.random.default_rng(seed)
        folder = tmp_path / "tiny"
        make_tiny.write_folder(folder, make_tiny.make_tokenizer(rng))
        chat = load_chat(folder)
        model = make_tiny.pretrain(chat, rng, steps=2)
        records = make_tiny.sample_records(model, chat, world.prompts()[:3], seed)
        return (folder / "tokenizer.json").read_text(), model.weights, records

    (first, weights, records), (again, weights2, records2), (_, other, _) = map(make, (0, 0, 1))
    assert first == again and records == records2
    for name, w in weights.items():
        np.testing.assert_array_equal(w, weights2[name])
        assert "norm" in name or (w != other[name]).any()


def test_the_tokenizer_in_the_tree_is_the_one_the_maker_makes(tools):
    import make_tiny

    made = make_tiny.make_tokenizer(np.random.default_rng(0)).to_str()
    kept = (embedded_folder() / "tokenizer.json").read_text()
    assert json.loads(made) == json.loads(kept)


def test_the_embedded_records_were_rejected_and_heldout_prompts_never_asked(tools):
    import world

    table = {prompt.text: prompt for prompt in world.prompts()}
    records = read_records(embedded_folder() / "records.jsonl")
    questions = read_questions(embedded_folder() / "heldout.jsonl")
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


def test_a_random_model_has_the_shapes_of_its_model(tools, tmp_path, capsys):
    import random_model

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
