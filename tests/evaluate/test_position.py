"""One position: its distributions by the plainest formulas, and only those that the loss has."""

import numpy as np
import pytest

from minibule.core.complement import complement_loss
from minibule.core.objective import OBJECTIVES
from minibule.evaluate.position import telling_position
from minibule.files import embedded_folder
from minibule.methods.table import LOSSES
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.records.records import read_records
from minibule.text.examples import tokenize


@pytest.fixture(scope="module")
def asked():
    model, chat = load_model(embedded_folder()), load_chat(embedded_folder())
    records = read_records(embedded_folder() / "records.jsonl")[:4]
    return model, chat, tokenize(records, chat, 512)


def position(asked, loss):
    model, chat, examples = asked
    found = telling_position(model, chat, examples, loss, 640)
    assert found and found.tokens and any(token.rejected for token in found.tokens)
    return found


@pytest.mark.parametrize("name", ["literal", "reference", "rate", "complement", "ratio", "npo"])
def test_a_target_is_shown_where_the_loss_has_one(asked, name):
    for token in position(asked, LOSSES[name]).tokens:
        known = name in OBJECTIVES
        assert (token.target is not None) == (token.optimum is not None) == known


def test_an_optimum_has_no_gradient(asked):
    """Of the tokens that are kept p* is known; it sums to less than 1, as the others have some."""
    loss = LOSSES["reference"]
    found = position(asked, loss)
    optimum = np.array([token.optimum for token in found.tokens])
    base, v = (np.array([getattr(t, n) for t in found.tokens]) for n in ("base", "rejected"))
    assert 0 < optimum.sum() < 1
    # All other tokens as one: they were not rejected, and keep one share of P together.
    z, z_ref = (np.log(np.append(p, 1 - p.sum()))[None] for p in (optimum, base))
    counts = np.append(v, 0)[None]
    _, _, contrast, alpha = loss.objective
    _, dz = complement_loss(
        z, counts, alpha, prior="reference", contrast=contrast, ref_logits=z_ref
    )
    assert np.abs(dz).max() < 1e-5
