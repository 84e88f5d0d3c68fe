"""The same training in torch and PEFT, written to be obviously right: the oracle of the tests.

Nothing here is shared with minibule but the records' token ids and the objective's name: every
(prompt, answer) runs alone through transformers, counts are dense, autograd does the gradients.
Needs the extra `oracle`.
"""

from collections.abc import Sequence

import torch
from peft import PeftModel

from minibule.core.counts import Example
from minibule.core.objective import Objective


def step_gradients(model: PeftModel, examples: Sequence[Example], objective: Objective) -> float:
    """The mean complement loss over all rows of the examples; adds its gradients to `.grad`.

    Each answer's share goes backward at once, so that only one answer's graph is ever held.
    """
    count = sum(len(answer) for example in examples for answer in example.answers)
    total = 0.0
    for example in examples:
        for k in range(len(example.answers)):
            loss = row_losses(model, example, k, objective).sum() / count
            loss.backward()
            total += loss.item()
    return total


def row_losses(model: PeftModel, example: Example, k: int, objective: Objective) -> torch.Tensor:
    """The loss of each row of answer k, (n_k,) float64."""
    answer = example.answers[k]
    ids = torch.tensor([*example.prompt.tolist(), *answer.tolist()])[None]
    rows = slice(len(example.prompt) - 1, -1)  # the positions whose next token is the answer's
    logp = model(ids).logits[0, rows].double().log_softmax(-1)
    v = torch.zeros_like(logp)
    for t in range(len(answer)):
        for other, c in zip(example.answers, example.counts, strict=True):
            same_prefix = other[:t].tolist() == answer[:t].tolist()
            if len(other) > t and (objective.counts == "position" or same_prefix):
                v[t, other[t]] += c
    T = v.sum(-1, keepdim=True)

    if objective.needs_reference:
        with torch.no_grad(), model.disable_adapter():
            logp_ref = model(ids).logits[0, rows].double().log_softmax(-1)
        p_ref = logp_ref.exp()
    if objective.prior == "uniform":
        weights = T - v + 1
    elif objective.prior == "reference":
        weights = p_ref * (T - v + 1)
    else:
        path = logp_ref[torch.arange(len(answer)), torch.tensor(answer)].cumsum(0)
        prefix = torch.cat([torch.zeros(1, dtype=path.dtype), path[:-1]]).exp()[:, None]
        a = torch.maximum(T, example.total_rounds * prefix) * p_ref
        weights = p_ref * ((a - v + 1) / (a + 1)).clamp(min=0.05)
    P = weights / weights.sum(-1, keepdim=True)
    w = v / T
    if objective.contrast == "choice":
        w = w * (1 - p_ref)

    kl = (P * (P.log() - logp)).sum(-1)
    contrast = -(w * torch.log(-torch.expm1(logp))).sum(-1)
    return objective.alpha * kl + (1 - objective.alpha) * contrast
