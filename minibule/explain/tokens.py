"""A row of a loss of rejected tokens worked through as text: what p is held to, loss, gradient."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minibule.core.complement import log_one_minus_p, log_softmax
from minibule.explain.complement import explain_target
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
from minibule.methods.tokens import TokenLoss


class Worked(NamedTuple):
    """A row with its loss taken apart.

    share, f, a    v / answers through the row, f of the loss, and share df/dlog p; each (V,)
    shown          the tokens that are listed
    """

    row: Row
    loss: TokenLoss
    share: Array
    f: Array
    a: Array
    anchor: Anchor | None
    shown: list[int]

    @property
    def part(self) -> Show:
        """How the terms of the loss are written."""
        held = self.anchor.terms if self.anchor else 0
        return decimals_for(np.append(self.share * self.f, held), self.row.digits)

    @property
    def beta(self) -> str:
        """The loss's own number, if it has one."""
        beta = getattr(self.loss, "beta", None)
        return "" if beta is None else f"          beta = {beta:g}"


def explain_tokens(row: Row, loss: TokenLoss, shown_in: str = "") -> Iterator[str]:
    """Three sections of text, line by line; shown_in as in `checked_gradient`."""
    logp, ref_logp = log_softmax(row.z), log_softmax(row.z_ref)
    f, df = loss.token(logp, log_one_minus_p(row.z[None])[0], ref_logp)
    share, anchor = row.v / row.counts.alike[0], anchor_of(row)
    shown = row.shown(anchor.wanted if anchor else np.exp(ref_logp))
    it = Worked(row, loss, share, f, share * df, anchor, shown)
    if loss.prior:
        yield from explain_target(row, loss.prior, shown)
    else:
        yield from _base(it)
    yield from _loss(it)
    yield from _gradient(it, shown_in)


def _base(it: Worked) -> Iterator[str]:
    """The section on what a loss without a target begins with."""
    row, asks_base = it.row, it.loss.needs_reference or it.anchor
    yield from heading(3, "The base p_ref" if asks_base else "The prediction p")
    yield from prose(
        "There is no target. p is what the model predicts now: exp(z) divided by its sum, where z "
        "are the logits."
        + (" p_ref is what the frozen base predicts." if asks_base else "")
        + (" p is held to it: what was not rejected is to stay as it was." if it.anchor else "")
    )
    columns = {"v": Column(row.v, decimals(0))}
    if asks_base:
        columns["p_ref"] = Column(np.exp(log_softmax(row.z_ref)), decimals(row.digits))
    yield from token_table(row, it.shown, columns | prediction(row))


def _loss(it: Worked) -> Iterator[str]:
    row, loss, part, number = it.row, it.loss, it.part, decimals(it.row.digits)
    n, anchor = row.counts.alike[0], it.anchor
    yield from heading(4, "The loss")
    yield from prose(
        f"Two parts: what pushes the rejected tokens down, and how far p is from {anchor.q}."
        " The KL charges p for what it says, and not for what it no longer says: step 5 of "
        "core/LESSON.md."
        if anchor
        else "It is only what pushes the rejected tokens down: with kl = 0, p is held to nothing."
    )
    base = "          r = p / p_ref" if loss.needs_reference else ""
    yield f"     f = {loss.f}{base}{it.beta}"
    yield f"     share(i) = v(i) / n          n = {n:,.0f}, the answers that begin as this one does"
    columns = {"share": Column(it.share, decimals_for(it.share, row.digits))}
    if loss.needs_reference:
        r = np.exp(log_softmax(row.z) - log_softmax(row.z_ref))
        columns["r"] = Column(r, number, adds=False)
    columns |= {"f": Column(it.f, number, adds=False), "share f": Column(it.share * it.f, part)}
    written, value = "row loss = sum_i share(i) f(i)", part(float(it.share @ it.f))
    if anchor:
        yield anchor.formula
        columns |= anchor.terms_column(part)
        written += f" + kl KL(p || {anchor.q}) = {value} + {anchor.share(part)}"
        value = part(row.loss_at(row.z)[0])
    yield from token_table(row, it.shown, columns)
    yield ""
    yield f"     {written} = {value}"


def _gradient(it: Worked, shown_in: str) -> Iterator[str]:
    row, a, anchor = it.row, it.a, it.anchor
    pushed = a - a.sum() * row.p
    dz = pushed + (anchor.gradient if anchor else 0)
    number, slope = decimals_for(a, row.digits), decimals_for(dz, row.digits)
    columns = {"a": Column(a, number), "a-S p": Column(pushed, slope)}
    yield from heading(5, "Its gradient with respect to the logits")
    yield f"     dL/dz(i) = a(i) - S p(i){' + anchor(i)' if anchor else ''}"
    yield f"     a = share df/dlog p          df/dlog p = {it.loss.df}{it.beta}"
    yield f"     S = sum_i a(i) = {number(a.sum())}"
    remarks = ["That follows from d log p(i) / dz(j) = [i=j] - p(j), step 4 of core/LESSON.md."]
    if it.loss.needs_reference:
        remarks.append(
            "The slope of f is 1 where p = p_ref, never above 2, and next to nothing where p is "
            "far below p_ref: what is gone is left alone."
        )
    if anchor:
        yield anchor.slope
        columns["anchor"] = Column(anchor.gradient, slope)
        if not np.any(anchor.terms):
            remarks.append("The anchor does not pull yet: p is still p_ref.")
    yield from prose(" ".join(remarks))
    code = "methods.tokens.TokenLoss.rows"
    yield from checked_gradient(row, it.shown, dz, columns, code, shown_in)
