"""Several ranks: what is shared out adds up to the whole."""

import numpy as np
import pytest
from helpers import random_adapter, random_examples, random_llama

from minibule.core.forest import pack
from minibule.core.step import gradients
from minibule.errors import InputError
from minibule.machine import ranks
from minibule.machine.ranks import Ranks, world
from minibule.methods.table import LOSSES

# -- shares ----------------------------------------------------------------------------------------


class One(Ranks):
    """A rank that is asked for its share alone."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_ranks_batches_are_all_batches(size, threads):
    examples = random_examples(records=5)
    shares = [list(pack(examples, "prefix", 30, threads, One(rank, size))) for rank in range(size)]
    assert sum(len(share) > 0 for share in shares) > 1
    answers = [tuple(a) for share in shares for batch in share for a in batch.answer.tolist()]
    assert sorted(answers) == [
        (i, k) for i, e in enumerate(examples) for k in range(len(e.answers))
    ]
    tokens = [sum(len(batch.ids) for batch in share) for share in shares]
    whole = sum(len(b.ids) for b in pack(examples, "prefix", 30, threads * size))
    assert sum(tokens) <= 2 * whole
    if size < 7:
        assert max(tokens) < 0.8 * sum(tokens)


@pytest.mark.parametrize("size", [2, 9])  # 9: more than there are passes
@pytest.mark.parametrize("objective", ["literal", "sft"])
def test_the_shares_of_a_step_add_up_to_it(objective, size, monkeypatch):
    model = random_llama(dtype=np.float64)
    model.adapter = random_adapter(dtype=np.float64)
    examples = [e._replace(rewards=(1.0,) * len(e.answers)) for e in random_examples(records=2)]
    if objective == "literal":
        examples = random_examples(records=2)
    grads, metrics, tokens = gradients(model, examples, LOSSES[objective], 200)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(ranks, "_world", One(rank, size))
        shares.append(gradients(model, examples, LOSSES[objective], 200))
    assert len({share[2] for share in shares}) > 1 and sum(s[2] for s in shares) >= tokens
    for name, grad in grads.items():
        np.testing.assert_allclose(sum(s[0][name] for s in shares), grad, rtol=1e-9, atol=1e-12)
    assert sum(s[1].get("loss", 0) for s in shares) == pytest.approx(metrics["loss"], rel=1e-12)


def test_a_process_by_itself_is_all_ranks():
    assert world() is ranks.ALONE and world().leads
    assert world().all_gather("x") == ["x"]
    assert world().map(lambda some: [2 * x for x in some], [1, 2, 3]) == [2, 4, 6]
    assert world().first(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        world().first(divmod, 7, 0)
    world().check_alike({"lr": 1})


def test_what_a_rank_maps_it_computes_by_itself(monkeypatch):
    monkeypatch.setattr(ranks, "_world", One(1, 3))
    seen = []

    def function(some):
        seen.extend((x, world().size) for x in some)
        return [None] * len(some)

    with pytest.raises(ValueError):  # what the others have is missing
        world().map(function, range(7))
    assert seen == [(1, 1), (4, 1)] and world().size == 3


def test_ranks_that_were_given_something_else_are_named(monkeypatch):
    first = {"lr": 0.1, "the model": "af", "threads": 1}
    given = [("a", first), ("b", first), ("c", first | {"lr": 0.2, "the model": "0b"})]
    monkeypatch.setattr(Ranks, "all_gather", lambda *_: given)
    with pytest.raises(InputError) as error:
        world().check_alike(first)
    assert str(error.value).splitlines()[1:] == [
        "  rank 2 on c: lr 0.2, 0.1 on rank 0",
        "  rank 2 on c: the model 0b, af on rank 0",
    ]
