"""One position of one record, looked at closely: what the model expects, and what it should."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minibule.core.complement import contrast_weights, log_softmax, optimum, target_distribution
from minibule.core.counts import Example
from minibule.core.forest import pack
from minibule.core.fused import TargetLoss
from minibule.core.llama import Llama, forward_batch
from minibule.core.loss import Loss
from minibule.machine.matrix import Array
from minibule.text.chat import Chat

LOOKED_AT = 8  # records among which a telling position is looked for
TOP_TOKENS = 24  # likeliest tokens kept of each distribution there
CONTEXT_LETTERS = 400  # kept of the text before it


class Token(NamedTuple):
    """A token of a `Position`.

    rejected      v, how often it was rejected there
    base, model   its probability under the base, and under the model
    target        in P; None for a loss without a target distribution
    optimum       in p*, the distribution that minimises a `TargetLoss`; None for another loss, and
                  where alpha = 0 and there is none
    """

    id: int
    text: str
    rejected: float
    base: float
    model: float
    target: float | None
    optimum: float | None


class Position(NamedTuple):
    """The first position of a record's answers: what stands before it, T, the likeliest tokens."""

    context: str
    total: float
    tokens: list[Token]


def telling_position(
    model: Llama,
    chat: Chat,
    examples: Sequence[Example],
    loss: Loss,
    pass_tokens: int,
) -> Position | None:
    """The first position of one of the first records, with the dense functions of `complement`.

    Which one follows from the base model alone, so it is the same before and after: the one where
    v/T p_ref (1 - p_ref), summed, is largest. There rejected tokens are likely, and others too.
    None where nothing was rejected.
    """
    rejected = [example for example in examples if any(example.rejections)][:LOOKED_AT]
    if not rejected:
        return None
    # Of the answers only the first tokens: each record has one row, at the end of its prompt.
    first = [e._replace(answers=tuple(a[:1] for a in e.answers)) for e in rejected]
    z_ref = np.empty((len(first), model.config.vocab_size))
    for batch in pack(first, loss.counts, pass_tokens):
        examples_there = np.unique(batch.answer[:, 0])
        z_ref[examples_there] = forward_batch(model.base, batch)[0] @ model.head.T
    counts = np.zeros(z_ref.shape)
    for row, example in enumerate(first):
        np.add.at(counts[row], [int(a[0]) for a in example.answers], example.rejections)
    totals = counts.sum(axis=1, keepdims=True)
    p_ref = np.exp(log_softmax(z_ref))
    best = int((counts / totals * p_ref * (1 - p_ref)).sum(axis=1).argmax())

    example, v, ref = first[best], counts[[best]], z_ref[[best]]
    total = float(totals[best, 0])
    attempts = np.array([max(total, example.total_rounds)])  # p_ref of an empty prefix is 1
    P = target_distribution(v, loss.prior, ref, attempts) if loss.prior else None
    p_star = _optimum(loss, P, v, ref)
    (batch,) = pack([example], loss.counts, pass_tokens=len(example.prompt))
    hidden, _ = forward_batch(model, batch)
    p = np.exp(log_softmax(hidden @ model.head.T))[0]

    seen = [p_ref[best], p, *([] if P is None else P)]
    likely = [np.argsort(-x, kind="stable")[:TOP_TOKENS] for x in seen]
    kept = np.unique(np.concatenate([*likely, *[a[:1] for a in example.answers]]))
    tokens = [
        Token(
            int(i),
            chat.token_text(int(i)),
            float(v[0, i]),
            float(p_ref[best, i]),
            float(p[i]),
            None if P is None else float(P[0, i]),
            None if p_star is None else float(p_star[0, i]),
        )
        for i in kept
    ]
    text = str(chat.tokenizer.decode(example.prompt.tolist(), skip_special_tokens=False))
    return Position(text[-CONTEXT_LETTERS:], total, tokens)


def _optimum(loss: Loss, P: Array | None, v: Array, z_ref: Array) -> Array | None:
    """p* (1, V), where the loss is a `TargetLoss` that has one."""
    if P is None or not isinstance(loss, TargetLoss) or loss.objective.alpha == 0:
        return None
    _, _, contrast, alpha = loss.objective
    beside = np.exp(log_softmax(z_ref)) if contrast == "ratio" else None
    return optimum(P, contrast_weights(v, contrast, z_ref), alpha, beside)
