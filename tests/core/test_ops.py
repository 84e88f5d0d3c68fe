"""Every backward against central differences in float64, with a random cotangent."""

import numpy as np
import pytest
from helpers import (
    GRADIENT_TOLERANCE,
    SLOPE_TOLERANCE,
    backward_errors,
    normal,
    slope_error,
)

from minibule.core import ops
from minibule.core.ops import Segment

# Two trees in one stream: a root of 4 with two children (3 and 2 tokens), the first of which has a
# child of its own (2), and a lone root of 3.
SEGMENTS = [
    Segment(slice(0, 4), np.arange(4)),
    Segment(slice(4, 7), np.arange(7)),
    Segment(slice(7, 9), np.arange(9)),
    Segment(slice(9, 11), np.r_[0:4, 9:11]),
    Segment(slice(11, 14), np.arange(11, 14)),
]
POSITIONS = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 5, 0, 1, 2])
COS, SIN = ops.rope_table(POSITIONS, 4, 10000.0, np.float64)


# name -> (inputs, forward returning (y, cache), backward returning the inputs' gradients)
PAIRS = {
    "linear": (normal((5, 3), (7, 3)), ops.linear, ops.linear_backward),
    "embedding": (
        normal((6, 5)),
        lambda E: ops.embedding(np.array([0, 2, 2, 5, 2]), E),
        lambda dy, cache: (ops.embedding_backward(dy, cache),),
    ),
    "rms_norm": (
        normal((5, 7), (7,)),
        lambda x, w: ops.rms_norm(x, w, 1e-5),
        ops.rms_norm_backward,
    ),
    "rope": (
        normal((14, 3, 4)),
        lambda x: (ops.rope(x, COS, SIN), None),
        lambda dy, cache: (ops.rope_backward(dy, COS, SIN),),
    ),
    "attention": (
        normal((14, 6, 4), (14, 2, 4), (14, 2, 4)),  # H = 6, K = 2
        lambda q, k, v: ops.attention(q, k, v, SEGMENTS),
        ops.attention_backward,
    ),
    "swiglu": (normal((5, 7), (5, 7)), ops.swiglu, ops.swiglu_backward),
    "cross_entropy": (
        normal((5, 7)),
        lambda z: ops.cross_entropy(z, np.array([0, 6, 3, 3, 1])),
        lambda dy, cache: (dy * ops.cross_entropy_backward(cache),),
    ),
}


@pytest.mark.parametrize("blocks", ["one", "several"])
@pytest.mark.parametrize("name", PAIRS)
def test_backward_is_the_gradient(name, blocks, monkeypatch):
    if blocks == "several":  # of the rows that are worked on at once, the last a short one
        monkeypatch.setattr(ops, "BLOCK_NUMBERS", 14)
    assert max(backward_errors(*PAIRS[name])) < GRADIENT_TOLERANCE


def test_the_check_rejects_a_gradient_that_is_off_by_a_thousandth():
    (x, W), forward, backward = PAIRS["linear"]

    def off(dy, cache):
        dx, dW = backward(dy, cache)
        return 1.001 * dx, dW

    first, second = backward_errors((x, W), forward, off)
    assert first > 100 * GRADIENT_TOLERANCE > second


def test_the_slope_of_all_entries_shows_one_that_is_off_by_a_thousandth():
    x, w = normal((30, 10), (30, 10))

    def error(off):
        dx = w * np.cos(x)
        dx[7, 3] += off * np.abs(dx).max()
        return slope_error(lambda: np.sum(w * np.sin(x)), [x], [dx])

    assert error(0) < SLOPE_TOLERANCE / 10 < 10 * SLOPE_TOLERANCE < error(1e-3)


@pytest.mark.parametrize("name", ["attention", "swiglu"])
def test_the_check_rejects_a_backward_that_takes_one_input_for_another(name):
    """Keys for values, the gate for up: two inputs of one shape must not be one array."""
    inputs, forward, backward = PAIRS[name]

    def wrong(dy, _cache):
        _, cache = forward(*inputs[:-1], inputs[-2])
        return backward(dy, cache)

    assert max(backward_errors(inputs, forward, wrong)) > 100 * GRADIENT_TOLERANCE


@pytest.mark.parametrize("name", PAIRS)
def test_backward_leaves_its_cache_alone(name):
    inputs, forward, backward = PAIRS[name]
    y, cache = forward(*inputs)
    dy = np.ones(np.shape(y))
    first = [g.copy() for g in backward(dy, cache)]
    for a, b in zip(first, backward(dy, cache), strict=True):
        np.testing.assert_array_equal(a, b)


# The tables of "rope" above are float64; rope_table's dtype is tested on its own.
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "rope"])
def test_float32_stays_float32(name):
    inputs, forward, backward = PAIRS[name]
    inputs = [x.astype(np.float32) for x in inputs]
    y, cache = forward(*inputs)
    assert np.asarray(y).dtype == np.float32 or isinstance(y, float)
    for g in backward(np.ones(np.shape(y), np.float32), cache):
        assert g.dtype == np.float32


def test_rope_table_has_the_dtype_asked_for():
    assert all(t.dtype == np.float32 for t in ops.rope_table(POSITIONS, 4, 1e4, np.float32))


def test_attention_is_the_naive_sum():
    q, k, v = PAIRS["attention"][0]
    out, _ = ops.attention(q, k, v, SEGMENTS)
    group = q.shape[1] // k.shape[1]
    for rows, keys in SEGMENTS:
        for token in range(rows.start, rows.stop):
            # Every ancestor's token, and its own segment's up to itself.
            seen = [j for j in keys if j <= token]
            for head in range(q.shape[1]):
                scores = np.array([q[token, head] @ k[j, head // group] for j in seen]) / 2
                weights = np.exp(scores) / np.exp(scores).sum()
                expected = sum(w * v[j, head // group] for w, j in zip(weights, seen, strict=True))
                np.testing.assert_allclose(out[token, head], expected, rtol=1e-12)


def test_rope_turns_the_two_halves_of_a_head():
    (x,) = normal((14, 3, 4))
    y = ops.rope(x, COS, SIN)
    for token, position in enumerate(POSITIONS):
        for i, theta in enumerate([1.0, 10000 ** (-2 / 4)]):
            turned = complex(*x[token, 1, [i, i + 2]]) * np.exp(1j * position * theta)
            np.testing.assert_allclose(y[token, 1, [i, i + 2]], [turned.real, turned.imag])


def test_sigmoid_takes_any_number():
    gate = np.array([[-1e4, -100.0, 0.0, 100.0, 1e4]], np.float32)
    a, cache = ops.swiglu(gate, np.ones_like(gate))
    np.testing.assert_allclose(a, [[0, 0, 0, 100, 1e4]], atol=1e-30)
    assert np.isfinite(ops.swiglu_backward(np.ones_like(gate), cache)).all()
