"""What the base says, computed once: the same numbers from wherever they are taken."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from helpers import random_adapter, random_examples, random_llama

from minibule.core import llama
from minibule.core.forest import pack
from minibule.core.llama import forward_base, forward_batch
from minibule.core.lora import init_adapter
from minibule.core.shapes import LoraConfig, module_names
from minibule.core.step import gradients
from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.methods.pairs import DPO
from minibule.methods.table import LOSSES
from minibule.methods.tokens import Ratio
from minibule.runs import output
from minibule.train import loop as train_module
from minibule.train import reference as reference_module
from minibule.train.__main__ import main
from minibule.train.reference import Reference, most_bytes

RECORDS = embedded_folder() / "records.jsonl"  # named, so that no questions are asked
FEW = (f"--data={RECORDS}", "--probe=", "--eval-fraction=0", "--export=none", "--lora-r=2")
QUICK = (*FEW, "--max-records=6", "--batch-size=2", "--order=file", "--save-every=1")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model():
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    return model


@pytest.fixture
def examples():
    examples = random_examples(records=7)
    return [*examples, examples[0]._replace(answers=examples[0].answers[::-1])]


@pytest.fixture
def swept():
    """Makes stores that know all they are asked."""
    with contextlib.ExitStack() as stack:
        yield lambda *given: _swept(stack, *given)


def _swept(stack, model, examples, limit, pass_tokens=64):
    reference = stack.enter_context(Reference(model, examples, Path(), limit))
    assert list(reference.sweep(pass_tokens))[-1] == len(examples)
    return reference


@pytest.mark.parametrize("rows", [0, 1, 7, 10**6])
@pytest.mark.parametrize("block", [1, 4000, 2**26])
def test_it_is_what_the_base_says_however_the_batches_are_cut(
    two_threads, model, examples, rows, block, swept, monkeypatch
):
    """In memory, in the file, or in both; some answers of a record in another batch."""
    monkeypatch.setattr(reference_module, "BLOCK_BYTES", block)
    row_bytes = 8 * model.config.hidden_size
    for swept_in in (1, 64):
        reference = swept(model, examples, rows * row_bytes, swept_in)
        for some in (examples, examples[::-2], examples[3:4]):
            for pass_tokens in (1, 16, 1000):
                for batch in pack(some, "position", pass_tokens):
                    expected = forward_batch(model.base, batch)[0]
                    found = reference.hidden(batch, some)
                    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)
    assert reference._rows * row_bytes < most_bytes(model, examples)  # some rows are shared
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "loss", [LOSSES["reference"], LOSSES["rate"], Ratio(kl=0.3), DPO(kl=0.1), LOSSES["complement"]]
)
def test_gradients_are_the_same(model, examples, loss, swept, two_threads):
    if loss.uses == "both":
        examples = [
            example._replace(rewards=tuple(np.arange(len(example.answers)) % 2.0))
            for example in examples
        ]
    reference = swept(model, examples, 1000)
    grads, metrics, tokens = gradients(model, examples[2:6], loss, 24)
    known, said, same = gradients(model, examples[2:6], loss, 24, known=reference.hidden)
    assert same == tokens and said == pytest.approx(metrics, rel=1e-10)
    for name, grad in grads.items():
        np.testing.assert_allclose(known[name], grad, atol=1e-11 * np.abs(grad).max())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("layers", [[0, 1], [1], [0]])
def test_the_base_goes_on_from_the_lowest_layer_that_learns(
    examples, layers, recompute, monkeypatch
):
    """To the same bits, and without computing what lies below once more."""
    model = random_llama()
    model.adapter = init_adapter(
        LoraConfig(2, 4.0, module_names(layers, ("q_proj", "up_proj")), False), model.config, 0
    )
    for param in model.adapter.params.values():
        param += 0.1
    (batch,) = pack(examples, "prefix", 10**6)
    expected = forward_batch(model.base, batch)[0]
    hidden, cache = forward_batch(model, batch, keep=True, recompute=recompute)
    computed, block_forward = [], llama.block_forward
    monkeypatch.setattr(
        llama,
        "block_forward",
        lambda run, layer, x: computed.append(layer) or block_forward(run, layer, x),
    )
    np.testing.assert_array_equal(forward_base(cache), expected)
    assert computed == list(range(min(layers), model.config.num_hidden_layers))
    assert not np.allclose(hidden, expected)


# -- a run -----------------------------------------------------------------------------------------


def losses(run):
    return [json.loads(x)["loss"] for x in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", ["complement", "reference", "npo"])
def test_a_run_asks_the_base_once(objective, monkeypatch):
    asked = []
    monkeypatch.setattr(
        reference_module,
        "forward_batch",
        lambda model, batch: asked.append(batch) or forward_batch(model, batch),
    )
    common = (*QUICK, "--steps=9", f"--objective={objective}")
    main([*common, "--output=once"])
    once = len(asked)
    main([*common, "--output=file", "--reference-memory=1e-6"])
    assert len(asked) == 2 * once > 0
    assert losses("file") == losses("once")
    main([*common, "--output=each", "--reference-memory=0"])
    assert len(asked) == 2 * once
    assert losses("each") == pytest.approx(losses("once"), rel=1e-5) and len(losses("each")) == 9
    assert {path.name for path in Path("file").iterdir()} == {
        path.name for path in Path("each").iterdir()
    }


@pytest.mark.parametrize(
    "more", ["--steps=3", "--steps=9 --objective=literal", "--steps=0 --epochs=1"]
)
def test_no_run_asks_beforehand_what_is_asked_once_or_never(more, monkeypatch):
    monkeypatch.setattr(train_module, "reference_of", None)
    main([*QUICK, *more.split(), "--output=run"])


def test_a_run_that_was_stopped_asks_again_and_goes_on_to_the_same_bytes(monkeypatch):
    common = (*QUICK, "--steps=6", "--reference-memory=1e-6")
    main([*common, "--output=whole"])
    take_step = train_module.take_step

    def interrupted(setup, optimiser, step, reference):
        if step == 5:
            raise KeyboardInterrupt
        return take_step(setup, optimiser, step, reference)

    with monkeypatch.context() as patched:
        patched.setattr(train_module, "take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            main([*common, "--output=parts"])
    main([*common, "--resume", "--output=parts"])
    weights = "adapter/adapter_model.safetensors"
    assert Path("parts", weights).read_bytes() == Path("whole", weights).read_bytes()
    assert losses("parts") == losses("whole")


def test_the_disk_must_have_room_for_what_memory_has_not(monkeypatch):
    class Usage:
        free = 2 * 10**6

    monkeypatch.setattr(output.shutil, "disk_usage", lambda _: Usage)
    common = (*FEW, "--keep=1", "--save-every=0", "--dry-run")
    main([*common, "--output=run"])
    with pytest.raises(InputError, match="the run writes about"):
        main([*common, "--reference-memory=1e-9", "--output=run"])
