"""How long the gradients of accepted answers are, by which GVM-RAFT divides its samples."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from minibule.core.counts import Example
from minibule.core.llama import Llama
from minibule.core.step import gradients
from minibule.machine.matrix import Array
from minibule.machine.ranks import world
from minibule.methods.rewarded import SFT
from minibule.progress import passing_bar


def gradient_norms(
    model: Llama, prompts: Sequence[Array], answers: Sequence[Sequence[Sequence[int]]]
) -> Array:
    """The mean over a prompt's answers of |d(-log p of the answer) / d adapter|, (prompts,).

    Sums run over an answer's tokens, so that long ones count more. The length is that of the
    gradient of all the adapter's parameters: in the source (`budget.GVM`) it is the embedding's,
    which here is frozen. 0 where there is no answer.

    model: with an adapter; prompts: ids, each (P,); answers: of each prompt the ids of those that
    were accepted, none of them empty.
    """

    def means(items: Sequence[tuple[Array, Sequence[Sequence[int]]]]) -> list[float]:
        bar = passing_bar(items, desc="weighing", unit=" prompts")
        return [_mean_norm(model, prompt, several) for prompt, several in bar]

    return np.array(world().map(means, list(zip(prompts, answers, strict=True))))


def _mean_norm(model: Llama, prompt: Array, answers: Sequence[Sequence[int]]) -> float:
    return sum(
        times / len(answers) * _norm(model, prompt, np.array(ids))
        for ids, times in Counter(map(tuple, answers)).items()
    )


def _norm(model: Llama, prompt: Array, ids: Array) -> float:
    example = Example(prompt, (ids,), (1,), 1, rewards=(1.0,))
    grads, _, _ = gradients(model, [example], SFT(), len(prompt) + len(ids))
    squares = sum(float(np.vdot(grad, grad)) for grad in grads.values())
    return len(ids) * float(np.sqrt(squares))  # SFT's loss is the mean over the tokens
