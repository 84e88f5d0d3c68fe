"""Perplexity of a text against the naive way, and texts that are too short."""

import numpy as np
import pytest

from minibule.core.complement import log_softmax
from minibule.errors import InputError
from minibule.evaluate import perplexity
from minibule.evaluate.perplexity import text_perplexity
from minibule.files import embedded_folder
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model

TEXT = "A cat sat on the mat, and nobody knew why. It was hot."


@pytest.mark.parametrize("window", [3, 7, 512])
def test_it_is_the_exponential_of_the_mean(window, monkeypatch):
    monkeypatch.setattr(perplexity, "WINDOW", window)
    model, chat = load_model(embedded_folder()), load_chat(embedded_folder())
    ids, logp = chat.encode_raw(TEXT), []
    assert len(ids) > 14  # at least three windows of 7
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        rows = log_softmax(model.logits(part).astype(np.float64))
        logp += [rows[t, part[t + 1]] for t in range(len(part) - 1)]
    # Both are computed in float32.
    assert text_perplexity(model, chat, TEXT) == pytest.approx(np.exp(-np.mean(logp)), rel=1e-4)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_of_less_than_two_tokens(text):
    with pytest.raises(InputError, match="expected at least two"):
        text_perplexity(load_model(embedded_folder()), load_chat(embedded_folder()), text)
