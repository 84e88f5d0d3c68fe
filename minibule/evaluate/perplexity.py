"""How well a model expects a text."""

import math

from minibule.core.counts import Example
from minibule.core.forest import pack
from minibule.core.llama import Llama
from minibule.core.step import answer_log_probs
from minibule.errors import InputError
from minibule.machine.threads import threads
from minibule.text.chat import Chat

WINDOW = 512  # tokens, at most, that the model sees at once


def text_perplexity(model: Llama, chat: Chat, text: str) -> float:
    """Perplexity of a plain text, a token: exp of the mean of -log p.

    The text is cut into windows of `WINDOW` tokens, the first of each being given; InputError for
    a text of fewer than two.
    """
    ids = chat.encode_raw(text)
    size = min(WINDOW, model.config.max_position_embeddings)
    windows = [ids[i : i + size] for i in range(0, len(ids) - 1, size)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise InputError(f"text to measure: found {len(ids)} token, expected at least two.")
    examples = [Example(window[:1], (window[1:],), (1,), 1) for window in windows]
    batches = list(pack(examples, "prefix", size, threads()))
    logp = answer_log_probs(model, batches, examples).sum()
    return math.exp(-logp / sum(len(window) - 1 for window in windows))
