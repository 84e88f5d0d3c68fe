"""AdamW against a scalar loop of its equations, the schedule's values, clipping, the plan."""

import dataclasses
import math

import numpy as np
import pytest

from minibule.core.optim import AdamW, clip_gradients, learning_rate
from minibule.runs.presets import PRESETS
from minibule.runs.settings import TrainConfig, resolve
from minibule.train.setup import planned_steps


def test_adamw_is_its_equations():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=4)}
    expected = {name: p.copy() for name, p in params.items()}
    optimiser = AdamW(params, weight_decay=0.1)
    moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
    for n in range(1, 6):
        grads = {name: rng.normal(size=p.shape) for name, p in params.items()}
        lr = 0.01 * n
        optimiser.step(grads, lr)
        for name, p in expected.items():
            m, v = moments[name]
            for i in np.ndindex(p.shape):
                g = grads[name][i]
                m[i] = 0.9 * m[i] + 0.1 * g
                v[i] = 0.999 * v[i] + 0.001 * g * g
                p[i] -= lr * 0.1 * p[i]
                p[i] -= lr * (m[i] / (1 - 0.9**n)) / (math.sqrt(v[i] / (1 - 0.999**n)) + 1e-8)
    for name in params:
        np.testing.assert_allclose(params[name], expected[name], rtol=1e-10)


def test_adamw_keeps_float32():
    params = {"a": np.ones(3, np.float32)}
    AdamW(params, 0.1).step({"a": np.ones(3, np.float32)}, 0.1)
    assert params["a"].dtype == np.float32


def rates(schedule, warmup, steps):
    return [learning_rate(step, steps, 2.0, warmup, schedule) for step in range(1, steps + 1)]


def test_schedules():
    assert rates("constant", 0, 4) == [2, 2, 2, 2]
    assert rates("constant", 4, 6) == [0.5, 1, 1.5, 2, 2, 2]
    assert rates("linear", 2, 6) == [1, 2, 2, 1.5, 1, 0.5]
    assert rates("linear", 0, 1) == [2]
    np.testing.assert_allclose(
        rates("cosine", 0, 4), [2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5)]
    )
    assert rates("linear", 9, 3) == pytest.approx([2 / 9, 4 / 9, 6 / 9])  # all of it warm-up


def test_clipping():
    grads = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert clip_gradients(grads, 0.0) == 5
    assert grads["b"] == 4
    assert clip_gradients(grads, 10.0) == 5
    assert grads["b"] == 4
    assert clip_gradients(grads, 2.5) == 5
    np.testing.assert_allclose(grads["a"], [1.5, 0])
    np.testing.assert_allclose(grads["b"], [[2]])


def test_the_reference_run_has_1125_steps():
    """One epoch over the 90 % of 5,000 records that are not held out, 4 records a step."""
    config = resolve({"preset": "smollm2-360m", "model": "DIR", "data": "FILE"})
    assert config.max_records == 5000
    trained = config.max_records - round(config.eval_fraction * config.max_records)
    assert planned_steps(config, trained) == 1125
    assert config.resolved_loss().objective == ("uniform", "position", "plain", 0.7)
    assert (config.lora_r, len(config.lora_targets)) == (16, 7)


def test_planned_steps():
    config = TrainConfig(batch_size=4, grad_accum=2)
    assert planned_steps(config, 16) == 2
    assert planned_steps(config, 17) == 3
    assert planned_steps(dataclasses.replace(config, epochs=2.5), 16) == 5
    assert planned_steps(dataclasses.replace(config, steps=7), 16) == 7


def test_presets_name_settings_that_exist():
    assert len(PRESETS) > 1
    for preset in PRESETS.values():
        TrainConfig(**preset)
