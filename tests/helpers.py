"""What several test files need: small random models, and where optional material lies."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minibule.core.counts import Example
from minibule.core.llama import Llama
from minibule.core.lora import Adapter, init_adapter
from minibule.core.loss import Answers, Uses
from minibule.core.shapes import PROJECTIONS, LlamaConfig, LoraConfig, module_names

ROOT = Path(__file__).parent.parent

# Odd sizes, H != K, hd != D / H, an untied head: nothing fits by accident.
ODD = LlamaConfig(
    hidden_size=10,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    intermediate_size=13,
    vocab_size=37,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
)


def printed_by(code: str) -> str:
    """What Python prints that runs `code` with this tree's minibule."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    return done.stdout


def random_llama(
    config: LlamaConfig = ODD, seed: int = 0, dtype: type = np.float32, std: float = 0.3
) -> Llama:
    """Random weights with norm weights away from 1: a norm that is left out shows."""
    rng = np.random.default_rng(seed)
    weights = {
        name: rng.uniform(0.5, 1.5, shape) if len(shape) == 1 else rng.normal(0, std, shape)
        for name, shape in config.tensor_shapes().items()
    }
    return Llama(config, {name: w.astype(dtype) for name, w in weights.items()})


def random_adapter(
    config: LlamaConfig = ODD,
    seed: int = 1,
    dtype: type = np.float32,
    layers: range | None = None,
    targets: tuple[str, ...] = tuple(PROJECTIONS),
    r: int = 3,
    rslora: bool = False,
) -> Adapter:
    """An adapter with B != 0: at B = 0 a wrong dA would not show."""
    layers = range(config.num_hidden_layers) if layers is None else layers
    lora = LoraConfig(r, 5.0, module_names(layers, targets), rslora)
    adapter = init_adapter(lora, config, seed)
    rng = np.random.default_rng(seed)
    for name, p in adapter.params.items():
        if ".lora_B." in name:
            p[...] = rng.normal(0, 0.2, p.shape)
    return Adapter(lora, {name: p.astype(dtype) for name, p in adapter.params.items()})


def random_examples(seed=0, records=3, vocab=ODD.vocab_size):
    """Records whose answers often begin alike, some of them twice."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(records):
        base = rng.integers(0, vocab, 6)
        answers = []
        for _ in range(rng.integers(2, 6)):
            answer = rng.integers(0, vocab, rng.integers(1, 7))
            shared = rng.integers(0, len(answer) + 1)
            answer[:shared] = base[:shared]
            answers.append(answer)
        counts = tuple(int(c) for c in rng.integers(1, 4, len(answers)))
        prompt = rng.integers(0, vocab, rng.integers(1, 6))
        examples.append(Example(prompt, tuple(answers), counts, sum(counts) + 3))
    return examples


def random_answers(uses: Uses = "any", seed: int = 0) -> tuple[Answers, np.ndarray]:
    """The answers to four prompts, each given up to three times, and a log p for each."""
    rng, sizes = np.random.default_rng(seed), (2, 4, 3, 5)
    n = sum(sizes)
    of_both_sorts = np.concatenate([np.arange(size) % 2.0 for size in sizes])
    answers = Answers(
        length=rng.integers(1, 9, n),
        times=rng.integers(1, 4, n).astype(float),
        reward={"rejected": np.zeros(n), "accepted": np.ones(n)}.get(uses, of_both_sorts),
        record=np.repeat(np.arange(4), sizes),
    )
    return answers, rng.normal(scale=4, size=n)


def each_time(answers: Answers) -> list[int]:
    """The answers one by one: one that was given three times stands there three times."""
    return np.repeat(np.arange(len(answers.times)), answers.times.astype(int)).tolist()


def each_pair(answers: Answers) -> list[tuple[int, int]]:
    """The accepted and the rejected one of every two answers to a prompt, one by one."""
    each, record, reward = each_time(answers), answers.record, answers.reward
    return [(w, k) for w in each for k in each if record[w] == record[k] and reward[w] > reward[k]]


def shared(path: str) -> Path:
    """A file of the shared material, or a skip where it is not there."""
    folder = Path(os.environ.get("MINIBULE_SHARED", ROOT.parent / "shared"))
    if not (folder / path).exists():
        pytest.skip(f"{folder / path} is not there; MINIBULE_SHARED names the folder")
    return folder / path


def normal(*shapes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """An array of each shape, drawn one after another: two of one shape differ."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape) for shape in shapes)


def central_difference(f, x: np.ndarray, index: tuple[int, ...], step: float = 1e-5) -> float:
    """(f(x + h) - f(x - h)) / 2h of the scalar function f, moving one entry of x in place."""
    kept = x[index]
    x[index] = kept + step
    above = f()
    x[index] = kept - step
    below = f()
    x[index] = kept
    return (above - below) / (2 * step)


def gradient_error(f, x: np.ndarray, dx: np.ndarray, entries: int | None = None) -> float:
    """Largest error of the gradient dx of f at x, relative to the largest entry of the gradient.

    All entries are checked, or a random sample of them.
    """
    assert x.dtype == np.float64 and dx.shape == x.shape
    indices = list(np.ndindex(x.shape))
    if entries is not None and entries < len(indices):
        chosen = np.random.default_rng(0).choice(len(indices), entries, replace=False)
        indices = [indices[i] for i in chosen]
    numeric = np.array([central_difference(f, x, index) for index in indices])
    given = np.array([dx[index] for index in indices])
    return float(np.abs(numeric - given).max() / np.abs(numeric).max())


def slope_error(f, xs: list[np.ndarray], dxs: list[np.ndarray], step: float = 1e-5) -> float:
    """Error of the gradients dxs of f at xs along one random direction, relative to their length.

    One central difference for all entries of all xs together: for functions that are slow. Of 300
    entries one that is off by a thousandth shows as about 1e-3 / 300.
    """
    assert len(xs) == len(dxs) > 0
    assert all(x.dtype == np.float64 and x.shape == dx.shape for x, dx in zip(xs, dxs, strict=True))
    rng, kept = np.random.default_rng(2), [x.copy() for x in xs]
    directions = [rng.normal(size=x.shape) for x in xs]
    length = np.sqrt(sum(np.vdot(d, d) for d in directions))
    values = []
    for way in (step, -step):
        for x, before, direction in zip(xs, kept, directions, strict=True):
            x[...] = before + way / length * direction
        values.append(f())
    for x, before in zip(xs, kept, strict=True):
        x[...] = before
    slope = (values[0] - values[1]) / (2 * step)
    given = sum(np.vdot(dx, d) for dx, d in zip(dxs, directions, strict=True)) / length
    return float(abs(slope - given) / np.sqrt(sum(np.vdot(dx, dx) for dx in dxs)))


# Of a step of the whole model in float64 the difference errs by up to 1e-9.
SLOPE_TOLERANCE = 1e-8

# A central difference with step 1e-5 in float64 errs by about 1e-10 (its own h^2 and rounding);
# a wrong factor of 1.001 errs by 1e-3.
GRADIENT_TOLERANCE = 1e-6


def backward_errors(inputs, forward, backward) -> list[float]:
    """`gradient_error` of backward for each of the inputs, under a random cotangent."""
    y, cache = forward(*inputs)
    dy = np.random.default_rng(1).normal(size=np.shape(y))
    grads = backward(dy, cache)
    assert len(grads) == len(inputs) > 0
    return [
        gradient_error(lambda: np.sum(dy * forward(*inputs)[0]), x, dx)
        for x, dx in zip(inputs, grads, strict=True)
    ]
