"""A step's gradients: every example forward, its loss, and back."""

from collections.abc import Sequence

from minibule.core.forest import Batch, Example, pack, total_weight
from minibule.core.head import add_metrics, head_loss
from minibule.core.llama import Llama, backward, forward_batch
from minibule.core.objective import Objective
from minibule.machine.matrix import Array
from minibule.machine.threads import side_by_side, threads

Sums = dict[str, float]


def gradients(
    model: Llama,
    examples: Sequence[Example],
    objective: Objective,
    pass_tokens: int,
    recompute: bool = False,
) -> tuple[dict[str, Array], Sums, int]:
    """Gradients of the mean loss over all rows of some examples, the metrics, and the tokens.

    Every pass divides by the rows of the whole step, so however the step is cut into passes, their
    sum is the same. `recompute` is `llama.forward`'s.
    """
    count = total_weight(examples)

    def one_pass(batch: Batch) -> tuple[dict[str, Array], Sums, int]:
        """Forward, loss and backward of one packed stream."""
        ref_hidden = forward_batch(model.base, batch)[0] if objective.needs_reference else None
        hidden, cache = forward_batch(model, batch, keep=True, recompute=recompute)
        metrics, dhidden = head_loss(
            hidden, model.head, batch.rows, objective, ref_hidden, count=count
        )
        return backward(dhidden, cache), metrics, len(batch.ids)

    passes = side_by_side(one_pass, pack(examples, objective.counts, pass_tokens, threads()))
    grads, metrics, tokens = next(passes)
    for more_grads, more_metrics, more_tokens in passes:
        for name, grad in more_grads.items():
            grads[name] += grad
        add_metrics(metrics, more_metrics)
        tokens += more_tokens
    return grads, metrics, tokens
