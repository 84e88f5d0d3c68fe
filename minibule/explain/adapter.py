"""The gradient on its way into the LoRA pairs, and what one step of the optimiser does with it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from minibule.core.complement import log_softmax
from minibule.core.llama import Llama
from minibule.core.lora import Adapter, lora_name, lowest_layer
from minibule.core.optim import AdamW, clip_gradients
from minibule.errors import InputError
from minibule.explain.check import AdapterCheck
from minibule.explain.row import Row
from minibule.explain.subject import Subject
from minibule.explain.text import decimals, decimals_for, heading, prose, table
from minibule.machine.matrix import Array
from minibule.runs.settings import TrainConfig


def explain_lora(
    adapter: Adapter, module: str, row: Row, dhidden: Array, check: AdapterCheck
) -> Iterator[str]:
    """How the gradient comes to the uppermost LoRA pair, and what it is there."""
    yield from heading(6, "On into LoRA")
    yield from prose(
        "The head takes the gradient to the model's last hidden state: dhidden = dz head. From "
        "there it runs down through the layers to the output y of every adapted projection, as dy. "
        "The uppermost is"
    )
    yield f"     {module}"
    yield f"     y  = x W^T + s (x A^T) B^T          s = {adapter.config.scaling(module):g}"
    yield "     dB = s dy^T (x A^T)          dA = s (dy B)^T x          no dW: W is frozen"
    yield from prose(
        "Where each is largest, the loss is evaluated again: that entry of B or A moved up and "
        "down, the whole model run in float64."
    )
    above = [_sizes("dz", row.loss_at(row.z)[1]), _sizes("dhidden", dhidden)]
    yield from check.lines(adapter, module, "BA", above)
    if not np.any(adapter.params[lora_name(module, "B")]):
        yield from prose(
            "A fresh adapter has B = 0, so that it changes nothing yet. Then dA = s (dy B)^T x is "
            "0 too: the first step moves B alone."
        )


def explain_another(adapter: Adapter, module: str, model: Llama, subject: Subject) -> Iterator[str]:
    """The gradient of another pair, with a loss whose gradient comes from several branches."""
    mean = subject.around
    tokens, rows = subject.place.position + 1, len(mean.batch.rows_at)
    yield ""
    yield from prose(
        "The same check further down, where the gradient arrives through attention, RoPE, RMSNorm, "
        "SwiGLU and the residuals. The loss here is the mean over every answer's first "
        f"{tokens:,} tokens, {rows:,} rows, so that the gradients of answers that share a prompt "
        "must be added up. The pair is that of"
    )
    yield f"     {module}"
    matrices = "BA" if np.any(adapter.params[lora_name(module, "B")]) else "B"
    yield from AdapterCheck(model, mean).lines(adapter, module, matrices)


def module_to_check(name: str, modules: Sequence[str]) -> str:
    """The module that `name` is the end of, by default the first of the lowest layer.

    InputError if it is none, or not the only one.
    """
    if not name:
        lowest = f"model.layers.{lowest_layer(modules)}."
        return next(module for module in modules if module.startswith(lowest))
    found = [module for module in modules if f".{module}".endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    problem = f"{len(found):,} adapted modules end so" if found else "no adapted module ends so"
    raise InputError(
        f"--module {name}: {problem}. Expected the name of one of {len(modules):,}, from "
        f"{modules[0]} to {modules[-1]}."
    )


def _sizes(name: str, x: Array) -> list[str]:
    return [name, f"({len(x)},)", f"{np.linalg.norm(x):.3g}", "", "", ""]


# -- one step --------------------------------------------------------------------------------------


def one_step(adapter: Adapter, grads: Mapping[str, Array], config: TrainConfig) -> float:
    """One step of AdamW from rest, at the whole rate, in place; by how much `grads` say that the
    loss changes.

    That is sum_i dL/dtheta_i (theta_i after - theta_i before), the loss being straight. The step
    itself is made of clipped gradients, which are no longer those of the loss: a copy is clipped.
    """
    before = {n: p.copy() for n, p in adapter.params.items()}
    clipped = {n: g.copy() for n, g in grads.items()}
    clip_gradients(clipped, config.max_grad_norm)
    AdamW(adapter.params, config.weight_decay).step(clipped, config.lr)
    return sum(float(np.vdot(grads[n], p - before[n])) for n, p in adapter.params.items())


def explain_step(
    lr: float, row: Row, z: Array, losses: tuple[float, float], predicted: float
) -> Iterator[str]:
    """What the step did: p of the tokens that matter, and the loss, before and after."""
    before, after = np.exp(log_softmax(row.z)), np.exp(log_softmax(z))
    yield from heading(7, "One step")
    yield from prose(
        f"One step of AdamW on this row alone, all pairs, learning rate {lr:g}. "
        "Adam's first step moves every entry by about the learning rate, however small or large "
        "its gradient is."
    )
    share = decimals(6)
    rest = np.ones(len(before), bool)
    shown = row.shown(before)
    rest[shown] = False
    body = [
        [
            row.name(i),
            decimals(0)(row.v[i]),
            *map(share, (before[i], after[i], after[i] - before[i])),
        ]
        for i in shown
    ]
    was, now = before[rest].sum(), after[rest].sum()
    body.append([f"all others ({rest.sum():,})", "0", *map(share, (was, now, now - was))])
    yield from table(["token", "v", "p before", "p after", "change"], body)
    yield from _against_the_gradient(row, z, shown)
    show = decimals_for(np.array(losses), 6)
    yield from prose(
        f"The row's loss: {show(losses[0])} -> {show(losses[1])}, a change of "
        f"{show(losses[1] - losses[0])}. The gradient times the change of every entry predicted "
        f"{show(predicted)}; the rest is curvature."
    )


def _against_the_gradient(row: Row, z: Array, shown: Sequence[int]) -> Iterator[str]:
    """The shown logits that did not go where a step in z would have taken them."""
    dz, change = row.loss_at(row.z)[1], z - row.z
    show = decimals(4)
    odd = [
        f"{row.name(i)} {show(row.z[i])} -> {show(z[i])}" for i in shown if dz[i] * change[i] > 0
    ]
    if odd:
        yield from prose(
            "All logits share the weights, so some of them went with their gradient instead of "
            f"against it: {', '.join(odd)}."
        )
