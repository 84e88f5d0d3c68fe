"""GVM's norms, against differences of log p."""

import dataclasses

import numpy as np
import pytest
from helpers import random_adapter, random_llama

from minibule.core.counts import Example
from minibule.core.forest import pack
from minibule.core.lora import Adapter
from minibule.core.step import answer_log_probs
from minibule.rounds.norms import gradient_norms

PROMPT, ANSWER, OTHER = np.array([3, 1, 4]), (1, 5, 9, 2), (6, 5)


@pytest.fixture(scope="module")
def model():
    return dataclasses.replace(
        random_llama(dtype=np.float64), adapter=random_adapter(dtype=np.float64)
    )


def logp(model, ids):
    example = Example(PROMPT, (np.array(ids),), (1,), 1)
    return float(answer_log_probs(model, list(pack([example], "prefix", 99)), [example])[0])


def norm(model, ids):
    """From central differences of log p by every parameter, of the whole answer."""
    squares, h = 0.0, 1e-5
    params = model.adapter.params
    for name, param in params.items():
        for index in np.ndindex(param.shape):
            ends = []
            for sign in (1, -1):
                moved = param.copy()
                moved[index] += sign * h
                adapter = Adapter(model.adapter.config, params | {name: moved})
                ends.append(logp(dataclasses.replace(model, adapter=adapter), ids))
            squares += ((ends[0] - ends[1]) / (2 * h)) ** 2
    return np.sqrt(squares)


def test_a_norm_is_that_of_the_sum_over_the_answer(model):
    few = {n: p for n, p in model.adapter.params.items() if "layers.2.mlp.down" in n}
    lora = dataclasses.replace(
        model.adapter.config,
        modules=tuple(m for m in model.adapter.config.modules if "layers.2.mlp.down" in m),
    )
    small = dataclasses.replace(model, adapter=Adapter(lora, few))
    (found,) = gradient_norms(small, [PROMPT], [[ANSWER]])
    assert found == pytest.approx(norm(small, ANSWER), rel=1e-6)


def test_the_mean_is_over_the_answers_as_often_as_they_came(model):
    alone = [gradient_norms(model, [PROMPT], [[ids]])[0] for ids in (ANSWER, OTHER)]
    found = gradient_norms(model, [PROMPT, PROMPT], [[ANSWER, OTHER, ANSWER], []])
    assert found.tolist() == pytest.approx([(2 * alone[0] + alone[1]) / 3, 0])
