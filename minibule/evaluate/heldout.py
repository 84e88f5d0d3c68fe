"""Records set apart: the loss there, and what the model makes of rejected tokens."""

from collections.abc import Sequence

import numpy as np

from minibule.core.counts import Example, row_count
from minibule.core.forest import Batch, pack
from minibule.core.fused import TargetLoss
from minibule.core.head import add_metrics, entropy_and_kl, head_metrics, summed
from minibule.core.llama import Llama, forward_batch
from minibule.core.loss import Loss, RowLoss, SeparableLoss
from minibule.core.objective import OBJECTIVES
from minibule.core.step import answers_of, completed_log_probs, places_of
from minibule.machine.ranks import world
from minibule.machine.threads import side_by_side, threads
from minibule.progress import passing_bar

# Measures of a `TargetLoss`: of its two parts, and of the p* that minimises them.
OF_THE_OBJECTIVE = ("kl", "contrast", "optimal_rejected_mass", "optimality_gap")


@np.errstate(all="ignore")
def evaluate(
    model: Llama, examples: Sequence[Example], loss: Loss | None, pass_tokens: int
) -> dict[str, float]:
    """Means over the rows of held-out examples; what they are, `fused.row_metrics` says.

    "loss" is the loss that is trained, with its "anchor" where it has one: left out if it is not of
    rejected answers alone. Only a `TargetLoss` has what is OF_THE_OBJECTIVE. None: of no
    loss at all.
    """
    objective, own = OBJECTIVES["reference"], loss
    rejected = loss is not None and loss.uses == "rejected"  # of held-out records only these count
    separable = loss if rejected and isinstance(loss, SeparableLoss) else None
    meaningless: tuple[str, ...] = OF_THE_OBJECTIVE
    if isinstance(loss, TargetLoss):
        objective, meaningless = loss.objective, ()
        own = loss if loss.kl else None  # without an anchor all of it is measured as it is
    elif not (separable or isinstance(loss, RowLoss)):
        own, meaningless = None, ("loss", *OF_THE_OBJECTIVE)
    count, answers = row_count(examples), answers_of(examples)

    def one_pass(batch: Batch) -> tuple[dict[str, float], int]:
        ref_hidden, _ = forward_batch(model.base, batch)
        hidden = ref_hidden
        if model.adapter:
            hidden, _ = forward_batch(model, batch)
        metrics = head_metrics(
            hidden, model.head, batch.rows, objective, ref_hidden, own, total_rows=count
        )
        if separable:
            base = ref_hidden if separable.needs_reference else None
            x = completed_log_probs(batch, hidden, model.head, base)
            part, _ = separable.part(answers, places_of(batch, examples), x)
            add_metrics(metrics, {"loss": part})
        return metrics, len(batch.answer_entry)

    metrics: dict[str, float] = {}
    batches = pack(examples, objective.counts, pass_tokens, threads(), world())
    passes = side_by_side(one_pass, batches)
    with passing_bar(total=len(answers.length), desc="evaluating", unit=" answers") as bar:
        for more, size in passes:
            add_metrics(metrics, more)
            bar.update(size)
    metrics = summed(world().all_gather(metrics))
    metrics["first_rejected_mass"] /= metrics.pop("first")
    return {name: m for name, m in metrics.items() if name not in meaningless}


@np.errstate(all="ignore")
def mean_entropy_and_kl(
    model: Llama, examples: Sequence[Example], pass_tokens: int
) -> dict[str, float]:
    """Means over the tokens of the examples' answers, in nats: "entropy" of p, "kl" KL(p || base).

    Of answers that were sampled from the model, each as often as it came, they are estimates for
    what it says.
    """
    count = row_count(examples)

    def one_pass(batch: Batch) -> dict[str, float]:
        ref_hidden, _ = forward_batch(model.base, batch)
        hidden = forward_batch(model, batch)[0] if model.adapter else ref_hidden
        return entropy_and_kl(hidden, model.head, batch.rows, ref_hidden, total_rows=count)

    batches = pack(examples, "prefix", pass_tokens, threads(), world())
    return summed(world().all_gather(summed(side_by_side(one_pass, batches))))
