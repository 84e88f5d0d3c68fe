"""Records set apart, and how far the model is from their targets."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from minibule.core.counts import Example, total_weight
from minibule.core.forest import Batch, pack
from minibule.core.head import add_metrics, head_metrics
from minibule.core.llama import Llama, forward_batch
from minibule.core.objective import OBJECTIVES, Objective
from minibule.machine.threads import side_by_side, threads

# Measures that an objective's target distribution gives a meaning.
OF_THE_TARGET = ("loss", "kl", "contrast", "optimal_rejected_mass", "optimality_gap")


@np.errstate(all="ignore")
def evaluate(
    model: Llama, examples: Sequence[Example], objective: Objective | None, pass_tokens: int
) -> dict[str, float]:
    """Means over the rows of held-out examples; what they are, `fused.row_metrics` says.

    objective: None for a loss without a target distribution, of which only the rest is measured.
    """
    has_target, objective = objective is not None, objective or OBJECTIVES["reference"]
    count = total_weight(examples)

    def one_pass(batch: Batch) -> tuple[dict[str, float], int]:
        ref_hidden, _ = forward_batch(model.base, batch)
        hidden = ref_hidden
        if model.adapter:
            hidden, _ = forward_batch(model, batch)
        metrics = head_metrics(hidden, model.head, batch.rows, objective, ref_hidden, count=count)
        return metrics, len(batch.answer_entry)

    metrics: dict[str, float] = {}
    answers = sum(len(example.answers) for example in examples)
    passes = side_by_side(one_pass, pack(examples, objective.counts, pass_tokens, threads()))
    with tqdm(total=answers, desc="evaluating", unit=" answers", delay=1, leave=False) as bar:
        for more, size in passes:
            add_metrics(metrics, more)
            bar.update(size)
    metrics["first_rejected_mass"] /= metrics.pop("first")
    return {name: m for name, m in metrics.items() if has_target or name not in OF_THE_TARGET}
