"""A row of a loss with a target worked through as text: its target, its loss, its gradient."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minibule.core.complement import LossParts, log_softmax, loss_parts, target_factors
from minibule.core.fused import TargetLoss
from minibule.core.objective import Objective, Prior
from minibule.explain.row import (
    Anchor,
    Column,
    Row,
    anchor_of,
    checked_gradient,
    prediction,
    token_table,
)
from minibule.explain.text import Show, decimals, decimals_for, heading, prose
from minibule.machine.matrix import Array


class Push(NamedTuple):
    """How a contrast is written: the whole, one token's, the same times its weight, and a."""

    contrast: str
    token: str
    weighted: str
    a: str


UNLIKELIHOOD = Push(
    "- sum_i w(i) log(1 - p(i))", "-log(1 - p)", "-w log(1 - p)", "w(i) p(i) / (1 - p(i))"
)
RATIO = Push(
    "sum_i w(i) 2 log(1 + r(i))", "2 log(1 + r)", "2 w log(1 + r)", "2 w(i) r(i) / (1 + r(i))"
)


class WorkedTarget(NamedTuple):
    """A row with its loss taken apart: what the sections on loss and gradient have in common.

    parts    the loss's and the gradient's, each (V,)
    shown    the tokens that are listed
    """

    row: Row
    objective: Objective
    parts: LossParts
    anchor: Anchor | None
    shown: list[int]

    @property
    def push(self) -> Push:
        return RATIO if self.objective.contrast == "ratio" else UNLIKELIHOOD

    @property
    def part(self) -> Show:
        """How the terms of the loss are written."""
        return decimals_for(np.append(self.parts.kl, self.parts.contrast), self.row.digits)


def explain_complement(row: Row, loss: TargetLoss, shown_in: str = "") -> Iterator[str]:
    """Three sections of text, line by line; shown_in as in `checked_gradient`."""
    prior, _, contrast, _ = loss.objective
    attempts = row.counts.attempts
    stacked = loss_parts(row.z[None], row.v[None], prior, contrast, row.z_ref[None], attempts)
    parts = LossParts(*(part[0] for part in stacked))
    it = WorkedTarget(row, loss.objective, parts, anchor_of(row), row.shown(parts.P))
    yield from explain_target(row, prior, it.shown)
    yield from _loss(it)
    yield from _gradient(it, shown_in)


def explain_target(row: Row, prior: Prior, shown: list[int]) -> Iterator[str]:
    """The section on the target P."""
    v, T, attempts = row.v, row.v.sum(), row.counts.attempts
    (q,), (kept,) = target_factors(v[None], prior, row.z_ref[None], attempts)
    share = decimals(row.digits)
    yield from heading(3, "The target P")
    yield from prose(
        "What was not rejected is what we want: the more often a token was rejected, the less "
        "probability the target P gives it, but never zero. p is what the model predicts now: "
        "exp(z) divided by its sum, where z are the logits."
    )
    number = decimals(4) if prior == "rate" else decimals(0)
    columns = {"v": Column(v, decimals(0))}
    Z = (q * kept).sum()
    product = decimals(4 if row.small else max(0, 6 - len(f"{Z:.0f}")))
    if prior == "uniform":
        yield f"     P(i) = (T - v(i) + 1) / Z          T = {T:,.0f}   Z = {Z:,.0f}"
        columns["T - v + 1"] = Column(kept, number)
    else:
        factor = "T - v + 1" if prior == "reference" else "g"
        written = "(T - v(i) + 1)" if prior == "reference" else "g(i)"
        yield f"     P(i) = p_ref(i) {written} / Z          T = {T:,.0f}   Z = {product(Z)}"
        if attempts is not None:
            yield from _rate(attempts)
        yield from prose(
            "p_ref is what the frozen base predicts: without rejections P would be p_ref."
        )
        columns[factor] = Column(kept, number, adds=False)
        columns["p_ref"] = Column(q, share)
        columns["product"] = Column(q * kept, product)
    columns["P"] = Column(q * kept / Z, share)
    yield from token_table(row, shown, columns | prediction(row))


def _rate(attempts: Array) -> Iterator[str]:
    n = f"{attempts[0]:,.4g}"
    yield f"     g(i) = max(.05, (m(i) - v(i) + 1) / (m(i) + 1))     m(i) = {n} p_ref(i)"
    yield from prose(
        f"About {n} of the sampled answers reached this point, so m(i) of them are expected to "
        "have continued with token i; g(i) estimates the share of those not rejected."
    )


def _loss(it: WorkedTarget) -> Iterator[str]:
    (_, _, contrast, alpha), parts, anchor = it.objective, it.parts, it.anchor
    part, share = it.part, decimals(it.row.digits)
    yield from heading(4, "The loss")
    yield from prose(
        "Two parts: how far p is from P, and how much probability p gives to what was rejected."
        + (" A third holds p to the base." if anchor else "")
    )
    blamed = "(1 - p_ref(i)) v(i) / T" if contrast == "choice" else "v(i) / T"
    yield "     KL(P || p) = sum_i P(i) log(P(i) / p(i))"
    yield f"     contrast   = {it.push.contrast}          w(i) = {blamed}"
    if contrast == "choice":
        yield from prose("1 - p_ref: where the base had no choice, the token is not to blame.")
    pushed = -parts.log_rest
    if contrast == "ratio":
        yield "     r(i) = p(i) / p_ref(i)"
        pushed = 2 * np.logaddexp(0, parts.logp - log_softmax(it.row.z_ref))
    columns = {
        "P log(P / p)": Column(parts.kl, part),
        "w": Column(parts.w, share),
        it.push.token: Column(pushed, share, adds=False),
        it.push.weighted: Column(parts.contrast, part),
    }
    loss, _ = it.row.loss_at(it.row.z)
    written = "alpha KL(P || p) + (1 - alpha) contrast"
    numbers = f"{alpha:g} x {part(parts.kl.sum())} + {1 - alpha:g} x {part(parts.contrast.sum())}"
    if anchor:
        yield anchor.formula
        columns |= anchor.terms_column(part)
        written, numbers = f"{written} + kl KL(p || p_ref)", f"{numbers} + {anchor.share(part)}"
    yield from token_table(it.row, it.shown, columns)
    yield ""
    yield f"     row loss = {written}"
    yield f"              = {numbers} = {part(loss)}"


def _gradient(it: WorkedTarget, shown_in: str) -> Iterator[str]:
    parts, anchor, alpha = it.parts, it.anchor, it.objective.alpha
    dz = alpha * parts.dkl + (1 - alpha) * parts.dcontrast + (anchor.gradient if anchor else 0)
    slope = decimals_for(dz, it.row.digits)
    columns = {
        "alpha(p-P)": Column(alpha * parts.dkl, slope),
        "a": Column(parts.a, it.part),
        "(1-alpha)(a-S p)": Column((1 - alpha) * parts.dcontrast, slope),
    }
    yield from heading(5, "Its gradient with respect to the logits")
    written = "     dL/dz(i) = alpha (p(i) - P(i)) + (1 - alpha) (a(i) - S p(i))"
    if anchor:
        written = f"{written} + anchor(i)"
        columns["anchor"] = Column(anchor.gradient, slope)
    yield written
    yield f"     a(i) = {it.push.a}          S = sum_i a(i) = {it.part(parts.a.sum())}"
    if anchor:
        yield anchor.slope
    code = "core.fused.row_losses"
    yield from checked_gradient(it.row, it.shown, dz, columns, code, shown_in)
