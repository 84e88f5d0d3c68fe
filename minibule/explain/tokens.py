"""A row of a loss of rejected tokens worked through as text: what p is held to, loss, gradient."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minibule.core.complement import log_one_minus_p, log_softmax
from minibule.explain.row import (
    CHARGES,
    Anchor,
    Column,
    Row,
    anchor_of,
    explain_base,
    lets_go,
    pushed_gradient,
    token_table,
)
from minibule.explain.text import Show, decimals, decimals_for, heading, prose
from minibule.machine.matrix import Array
from minibule.methods.tokens import TokenLoss


class WorkedTokens(NamedTuple):
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
    shown = row.shown(np.exp(ref_logp))
    it = WorkedTokens(row, loss, share, f, share * df, anchor, shown)
    yield from explain_base(row, anchor, loss.needs_reference, shown)
    yield from _loss(it)
    yield from _gradient(it, shown_in)


def _loss(it: WorkedTokens) -> Iterator[str]:
    row, loss, part, number = it.row, it.loss, it.part, decimals(it.row.digits)
    n, anchor = row.counts.alike[0], it.anchor
    yield from heading(4, "The loss")
    yield from prose(
        f"Two parts: what pushes the rejected tokens down, and how far p is from p_ref. {CHARGES}"
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
        written += f" + kl KL(p || p_ref) = {value} + {anchor.share(part)}"
        value = part(row.loss_at(row.z)[0])
    yield from token_table(row, it.shown, columns)
    yield ""
    yield f"     {written} = {value}"


def _gradient(it: WorkedTokens, shown_in: str) -> Iterator[str]:
    remarks = [lets_go()] if it.loss.needs_reference else []
    made_of = f"     a = share df/dlog p          df/dlog p = {it.loss.df}{it.beta}"
    code = "methods.tokens.TokenLoss.of_rows"
    yield from pushed_gradient(it.row, it.shown, it.a, it.anchor, made_of, remarks, code, shown_in)
