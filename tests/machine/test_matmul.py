"""Packed 16-bit products: as exact as they say, whatever the shapes, and a whole run of them."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers import ODD, random_adapter, random_examples, random_llama

from minibule.core.llama import Llama
from minibule.core.step import gradients
from minibule.errors import InputError
from minibule.files import embedded_folder, write_json
from minibule.generate.__main__ import main as generate_main
from minibule.machine import matmul
from minibule.machine import threads as machine
from minibule.machine.half import Narrow, widened
from minibule.machine.matmul import Packed, check_installed, faster, mode_of
from minibule.methods.table import LOSSES
from minibule.models import load
from minibule.models.huggingface import config_json
from minibule.models.load import load_model, settled
from minibule.models.safetensors import narrowed
from minibule.models.save import merged_bytes, save_weights
from minibule.train.__main__ import main

NEEDED = "needs pip install '.[fast]'"


@pytest.fixture
def numkong():
    return pytest.importorskip("numkong", reason=NEEDED)


def error(y, exact):
    return np.linalg.norm(y - exact) / np.linalg.norm(exact)


def random_matrix(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def bfloat16(x):
    return widened(Narrow(narrowed(x, "BF16")))


# -- products --------------------------------------------------------------------------------------

# Rounding x and W to bfloat16 errs by up to 2^-8 of each number, of two terms by 2^-16; the errors
# of a product's terms have random signs. Of three terms there are those of float32's sums left.
TOLERANCE = {"bfloat16": 2**-7, "bfloat16x2": 2**-15, "bfloat16x3": 2**-20}


@pytest.mark.parametrize("mode", TOLERANCE)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (33, 65), (600, 129)])
@pytest.mark.parametrize("rows", [0, 1, 16, 150])
def test_products_are_as_exact_as_their_numbers(numkong, mode, keep, shape, rows):
    W = random_matrix(shape)
    x, dy = random_matrix((rows, shape[1]), 1), random_matrix((rows, shape[0]), 2)
    packed = Packed(W, mode, keep=keep)
    for y, exact in (
        (x @ packed.T, x.astype(np.float64) @ W.T.astype(np.float64)),
        (dy @ packed, dy.astype(np.float64) @ W.astype(np.float64)),
    ):
        assert y.shape == exact.shape and y.dtype == np.float32 and y.flags.c_contiguous
        if rows:
            assert error(y, exact) < TOLERANCE[mode]


def test_more_terms_are_more_exact(numkong):
    W, x = random_matrix((64, 96)), random_matrix((32, 96), 1)
    exact = x.astype(np.float64) @ W.T.astype(np.float64)
    one, two, three = (error(x @ Packed(W, mode).T, exact) for mode in TOLERANCE)
    assert 1e-3 < one < 4e-3 and 1e-6 < two < 1e-5 and three < 3e-7


def test_a_matrix_of_bfloat16_numbers_has_no_second_term(numkong):
    W, x = bfloat16(random_matrix((64, 96))), bfloat16(random_matrix((32, 96), 1))
    exact = x.astype(np.float64) @ W.T.astype(np.float64)
    for mode in TOLERANCE:  # here both are exact but for their sums
        assert error(x @ Packed(W, mode).T, exact) < 1e-6
    packs = [len(packs) for _, packs in Packed(W, "bfloat16x2")._product("x @ W.T").panels]
    other = [len(p) for _, p in Packed(W + W / 500, "bfloat16x2")._product("x @ W.T").panels]
    assert set(packs) == {1} and set(other) == {2}


def test_a_row_does_not_depend_on_the_others(numkong):
    W, x = random_matrix((300, 70)), random_matrix((200, 70), 1)
    packed = Packed(W, "bfloat16x2")
    together = x @ packed.T
    for rows in (slice(0, 1), slice(3, 20), slice(150, 200)):
        np.testing.assert_array_equal(x[rows] @ packed.T, together[rows])


@pytest.mark.parametrize("mode", TOLERANCE)
def test_nor_on_how_many_are_split_at_a_time(numkong, monkeypatch, mode):
    W, x = random_matrix((300, 70)), random_matrix((280, 70), 1)
    packed = Packed(W, mode)
    together = x @ packed.T
    monkeypatch.setattr(matmul, "MOST_SPLIT", 2 * 128 * 70)  # not all: the last part is a short one
    np.testing.assert_array_equal(x @ packed.T, together)


def test_an_x_that_is_not_in_order(numkong):
    W, x = random_matrix((7, 5)), random_matrix((12, 10), 1)
    packed = Packed(W, "bfloat16x2")
    for odd in (x[:, ::2], x[::3, :5], x.T[:10:2, :5].T[:5].T):
        np.testing.assert_array_equal(odd @ packed.T, np.ascontiguousarray(odd) @ packed.T)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_narrow_numbers_are_packed_as_wide_ones(numkong, dtype):
    narrow = Narrow(narrowed(random_matrix((40, 30)), dtype))
    x, dy = random_matrix((9, 30), 1), random_matrix((9, 40), 2)
    one, other = Packed(narrow, "bfloat16x2"), Packed(widened(narrow), "bfloat16x2")
    np.testing.assert_array_equal(x @ one.T, x @ other.T)
    np.testing.assert_array_equal(dy @ one, dy @ other)
    np.testing.assert_array_equal(one[[3, 0, 3]], narrow[[3, 0, 3]])
    assert (len(one), one.shape, one.size, one.dtype) == (40, (40, 30), 1200, np.float32)


def test_threads_give_the_same_numbers(numkong, two_threads):
    W, x = random_matrix((600, 70)), random_matrix((200, 70), 1)
    packed = Packed(W, "bfloat16x2")
    by_two = x @ packed.T
    machine.set_threads(1)
    np.testing.assert_array_equal(x @ packed.T, by_two)


def test_what_is_not_finite_stays_so(numkong):
    packed, x = Packed(random_matrix((7, 5)), "bfloat16x2"), random_matrix((3, 5), 1)
    x[0, 1], x[1, 2] = np.nan, np.inf
    with np.errstate(all="ignore"):
        finite = np.isfinite(x @ packed.T).all(axis=1)
    assert finite.tolist() == [False, False, True]


# -- models ----------------------------------------------------------------------------------------


def packed_model(model, mode, keep=True):
    weights = {
        name: W if W.ndim == 1 else Packed(W, mode, keep=keep) for name, W in model.weights.items()
    }
    return Llama(model.config, weights, model.adapter)


def distance(grads, expected):
    """How far apart two gradients are, relative to the length of the second."""
    difference = sum(np.vdot(grads[n] - g, grads[n] - g) for n, g in expected.items())
    return float(np.sqrt(difference / sum(np.vdot(g, g) for g in expected.values())))


# How far a step's gradient may be from float32's, which is 1e-6 from an exact one.
GRADIENT = {"bfloat16": 0.1, "bfloat16x2": 1e-4, "bfloat16x3": 1e-5}


@pytest.mark.parametrize("mode", GRADIENT)
@pytest.mark.parametrize("exact", [True, False], ids=["bfloat16 weights", "any weights"])
def test_gradients_are_those_of_float32(numkong, mode, exact):
    model = random_llama(ODD)
    if exact:
        model.weights = {name: bfloat16(W) for name, W in model.weights.items()}
    model.adapter = random_adapter(ODD)
    packed, examples = packed_model(model, mode), random_examples()
    for objective in ("complement", "literal", "reference"):
        expected, sums, _ = gradients(model, examples, LOSSES[objective], 512)
        found, its, _ = gradients(packed, examples, LOSSES[objective], 512)
        assert its["loss"] == pytest.approx(sums["loss"], rel=GRADIENT[mode])
        assert 0 < distance(found, expected) < GRADIENT[mode]


@pytest.fixture
def folder(tmp_path):
    """A model's folder, of float32 numbers."""
    path = tmp_path / "model"
    path.mkdir()
    save_weights(random_llama(ODD), path, "F32")
    write_json(path / "config.json", config_json(ODD, "F32"))
    return path


@pytest.mark.parametrize("low", [True, False])
def test_a_loaded_model_keeps_its_numbers(numkong, folder, low):
    """Products are packed; whoever asks for the numbers themselves gets those of the file."""
    plain, packed = load_model(folder), load_model(folder, matmul="bfloat16x2", low=low)
    kinds = {name: isinstance(W, Packed) for name, W in packed.weights.items()}
    assert kinds["lm_head.weight"] and kinds["model.layers.2.mlp.down_proj.weight"]
    assert not kinds["model.embed_tokens.weight"] and not kinds["model.norm.weight"]
    for name, W in plain.weights.items():
        np.testing.assert_array_equal(packed.weights[name][:], W)
    ids = np.arange(9)
    np.testing.assert_allclose(packed.logits(ids), plain.logits(ids), atol=1e-4)
    assert merged_bytes(packed) == 4 * sum(
        W.size for name, W in plain.weights.items() if kinds[name]
    )


def test_low_memory_gives_the_same_bits(numkong, folder):
    models = [load_model(folder, matmul="bfloat16x2", low=low) for low in (False, True)]
    steps = []
    for model in models:
        model.adapter = random_adapter(ODD)
        steps.append(gradients(model, random_examples(), LOSSES["complement"], 512)[0])
    assert steps[0].keys() == steps[1].keys() != set()
    for name, grad in steps[0].items():
        assert grad.tobytes() == steps[1][name].tobytes()


def test_a_model_that_changes_meanwhile_is_noticed(numkong, folder):
    packed = load_model(folder, matmul="bfloat16")
    other = random_llama(ODD, seed=5)
    save_weights(other, folder, "F32")
    with pytest.raises(InputError, match="has changed since it was read"):
        packed.weights["lm_head.weight"][:]


def test_a_tied_head_is_packed_and_looked_up(numkong):
    model = load_model(embedded_folder(), matmul="bfloat16x2")
    assert isinstance(model.head, Packed)
    plain = load_model(embedded_folder())
    np.testing.assert_array_equal(model.head[[5, 0, 5]], plain.head[[5, 0, 5]])


# -- which of them ---------------------------------------------------------------------------------


def test_auto_takes_the_faster(monkeypatch, numkong):
    W, clock = random_matrix((40, 30)), iter([])
    monkeypatch.setattr(matmul.time, "perf_counter", lambda: next(clock))
    for seconds, mode in (((3.0, 1.0), "bfloat16x2"), ((1.1, 1.0), "float32")):
        moments = [0.0]
        for duration in seconds * matmul.TRIALS:
            moments += [moments[-1] + duration, moments[-1] + duration]
        clock = iter(moments)
        assert faster(W, 4) == mode


def test_auto_leaves_a_small_model_to_numpy(numkong, monkeypatch):
    monkeypatch.setattr(load, "faster", lambda W, rows: "bfloat16x2")
    assert settled("auto", embedded_folder()) == "float32"
    monkeypatch.setattr(load, "SMALL_MODEL", 0)
    assert settled("auto", embedded_folder()) == "bfloat16x2"
    assert settled("bfloat16", "not even there") == "bfloat16"


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(matmul, "_numkong", lambda: None)
    assert faster(random_matrix((4, 3)), 1) == "float32"
    assert mode_of(load_model(embedded_folder(), matmul="auto").head) == "float32"
    with pytest.raises(InputError, match="--matmul bfloat16x2: needs numkong: pip install"):
        load_model(embedded_folder(), matmul="bfloat16x2")
    with pytest.raises(InputError, match="--matmul bfloat16: needs numkong"):
        settled("bfloat16", embedded_folder())
    check_installed("float32")


# -- a run -----------------------------------------------------------------------------------------


def run(folder, *flags):
    main(["--steps", "2", "--eval-fraction", "0", "--output", folder, *flags])
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_run_and_its_settings(numkong, tmp_path, monkeypatch, capsys):
    """A run says how it multiplied, writes what it would write, and goes on only in that way."""
    monkeypatch.chdir(tmp_path)
    usual = run("usual", "--export", "hf,gguf:f16")
    assert "products" not in capsys.readouterr().out  # too small to gain by it
    packed = run("packed", "--matmul", "bfloat16x2", "--export", "hf,gguf:f16")
    assert packed == pytest.approx(usual, rel=1e-4) and packed != usual
    settings = [
        tomllib.loads(Path(name, "config.toml").read_text()) for name in ("usual", "packed")
    ]
    assert [one["matmul"] for one in settings] == ["float32", "bfloat16x2"]
    for file in ("merged/model.safetensors", "model-f16.gguf"):
        assert Path("packed", file).stat().st_size == Path("usual", file).stat().st_size
    with pytest.raises(InputError, match="matmul: 'bfloat16x2' there, 'float32' now"):
        main(["--resume", "--output", "packed", "--matmul", "float32"])
    main(["--resume", "--output", "packed"])


def test_an_answer_by_itself_and_how_it_was_multiplied_beside_it(numkong, capsys):
    generate_main(["--prompt=hello", "--matmul=float32"])
    usual = capsys.readouterr()
    assert not usual.err
    generate_main(["--prompt=hello", "--matmul=bfloat16x2"])
    assert capsys.readouterr() == (usual.out, "products   bfloat16x2\n")


@pytest.mark.parametrize("mode", ["float16", "", None])
def test_no_such_mode(mode):
    with pytest.raises(InputError, match=rf"matmul: found {mode!r}, expected one of auto, float32"):
        load_model(embedded_folder(), matmul=mode)
