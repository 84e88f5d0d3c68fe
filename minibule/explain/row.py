"""One row of the loss worked through as text: its target, its loss and its gradient.

The numbers are those of `complement.py`, the dense and readable form. All that is computed here are
sums over the tokens that are not shown, and the central differences that check the gradient.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from minibule.core.complement import LossParts, complement_loss, loss_parts, target_factors
from minibule.core.counts import RowCounts
from minibule.core.fused import row_losses
from minibule.core.objective import Objective
from minibule.explain.check import STEP, central_difference, verdict
from minibule.explain.text import Show, decimals, decimals_for, heading, prose, table
from minibule.machine.matrix import Array

MOST_REJECTED = 6  # rejected tokens shown one by one
MOST_LIKELY = 3  # tokens shown of the likeliest by p, and by P
SMALL_VOCAB = 10  # up to here every token is shown, with exp(z), in fewer digits


class Row(NamedTuple):
    """A row of the loss, and what its tokens are called.

    z, z_ref (V,) float64    logits of the model, and of its frozen base
    attempts (1,) float64    for the rate prior, else None
    counts                   this one row
    name                     token -> the text it is shown as
    """

    z: Array
    z_ref: Array
    attempts: Array | None
    counts: RowCounts
    objective: Objective
    name: Callable[[int], str]

    @property
    def v(self) -> Array:
        """The counts, dense: (V,)."""
        return np.bincount(self.counts.entry_id, self.counts.entry_count, len(self.z))

    def loss(self, z: Array) -> tuple[float, Array]:
        """The row's loss and its gradient (V,) at other logits z (V,)."""
        loss, dz = complement_loss(
            z[None],
            self.v[None],
            self.objective.alpha,
            prior=self.objective.prior,
            contrast=self.objective.contrast,
            ref_logits=self.z_ref[None],
            attempts=self.attempts,
        )
        return loss, dz[0]

    def shown(self, p: Array, P: Array) -> list[int]:
        """The tokens that matter: rejected ones, most rejected first, and the likeliest by p and P.

        Of a uniform target no token is: there all but the rejected ones are the likeliest.
        """
        if len(p) <= SMALL_VOCAB:
            return list(range(len(p)))
        rejected = _largest(self.v, MOST_REJECTED)
        tokens = [i for i in rejected if self.v[i] > 0] + _largest(p, MOST_LIKELY)
        tokens += [i for i in _largest(P, MOST_LIKELY) if P[i] > np.median(P)]
        return list(dict.fromkeys(tokens))


def _largest(x: Array, n: int) -> list[int]:
    return [int(i) for i in np.argsort(-x, kind="stable")[:n]]


class Column(NamedTuple):
    """A number for every token (V,), how one is written, and whether their sum means anything."""

    x: Array
    show: Show
    adds: bool = True


class Worked(NamedTuple):
    """A row with its loss taken apart: what the three sections have in common.

    parts    the loss's and the gradient's, each (V,)
    shown    the tokens that are listed
    """

    row: Row
    parts: LossParts
    shown: list[int]

    @property
    def digits(self) -> int:
        return 4 if self.small else 6

    @property
    def small(self) -> bool:
        return len(self.row.z) <= SMALL_VOCAB

    @property
    def p(self) -> Array:
        return np.exp(self.parts.logp)

    @property
    def part(self) -> Show:
        """How the terms of the loss are written."""
        return decimals_for(np.append(self.parts.kl, self.parts.contrast), self.digits)

    def table(self, columns: Mapping[str, Column]) -> Iterator[str]:
        return _token_table(self.row, self.shown, columns)


def worked(row: Row) -> Worked:
    """The row's loss, taken apart."""
    prior, _, contrast, _ = row.objective
    stacked = loss_parts(row.z[None], row.v[None], prior, contrast, row.z_ref[None], row.attempts)
    parts = LossParts(*(part[0] for part in stacked))
    return Worked(row, parts, row.shown(np.exp(parts.logp), parts.P))


def explain_row(row: Row, shown_in: str = "") -> Iterator[str]:
    """Three sections of text, line by line: the row's target, its loss, its gradient.

    shown_in: where the reader will see what a step in the weights does to the logits.
    """
    it = worked(row)
    yield from _target(it)
    yield from _loss(it)
    yield from _gradient(it, shown_in)


def _target(it: Worked) -> Iterator[str]:
    row, prior, v, T = it.row, it.row.objective.prior, it.row.v, it.row.v.sum()
    (q,), (kept,) = target_factors(v[None], prior, row.z_ref[None], row.attempts)
    small, share = it.small, decimals(it.digits)
    yield from heading(3, "The target P")
    yield from prose(
        "What was not rejected is what we want: the more often a token was rejected, the less "
        "probability the target P gives it, but never zero. p is what the model predicts now: "
        "exp(z) divided by its sum, where z are the logits."
    )
    number = decimals(4) if prior == "rate" else decimals(0)
    columns = {"v": Column(v, decimals(0))}
    Z = (q * kept).sum()
    product = decimals(4 if small else max(0, 6 - len(f"{Z:.0f}")))
    if prior == "uniform":
        yield f"     P(i) = (T - v(i) + 1) / Z          T = {T:,.0f}   Z = {Z:,.0f}"
        columns["T - v + 1"] = Column(kept, number)
    else:
        factor = "T - v + 1" if prior == "reference" else "g"
        written = "(T - v(i) + 1)" if prior == "reference" else "g(i)"
        yield f"     P(i) = p_ref(i) {written} / Z          T = {T:,.0f}   Z = {product(Z)}"
        if row.attempts is not None:
            n = f"{row.attempts[0]:,.4g}"
            yield f"     g(i) = max(.05, (n(i) - v(i) + 1) / (n(i) + 1))     n(i) = {n} p_ref(i)"
            yield from prose(
                f"About {n} of the sampled answers reached this point, so n(i) of them are "
                "expected to have continued with token i; g(i) estimates the share of those not "
                "rejected."
            )
        yield from prose(
            "p_ref is what the frozen base predicts: without rejections P would be p_ref."
        )
        columns[factor] = Column(kept, number, adds=False)
        columns["p_ref"] = Column(q, share)
        columns["product"] = Column(q * kept, product)
    columns |= {
        "P": Column(it.parts.P, share),
        "z": Column(row.z, decimals(4 if small else 3), adds=False),
    }
    if small:
        columns["exp(z)"] = Column(np.exp(row.z), decimals(0))
    yield from it.table(columns | {"p": Column(it.p, share)})


def _loss(it: Worked) -> Iterator[str]:
    (_, _, contrast, alpha), parts = it.row.objective, it.parts
    part, share = it.part, decimals(it.digits)
    yield from heading(4, "The loss")
    yield from prose(
        "Two parts: how far p is from P, and how much probability p gives to what was rejected."
    )
    blamed = "(1 - p_ref(i)) v(i) / T" if contrast == "choice" else "v(i) / T"
    yield "     KL(P || p) = sum_i P(i) log(P(i) / p(i))"
    yield f"     contrast   = - sum_i w(i) log(1 - p(i))          w(i) = {blamed}"
    if contrast == "choice":
        yield from prose("1 - p_ref: where the base had no choice, the token is not to blame.")
    yield from it.table(
        {
            "P log(P / p)": Column(parts.kl, part),
            "w": Column(parts.w, share),
            "-log(1 - p)": Column(-parts.log_rest, share, adds=False),
            "-w log(1 - p)": Column(parts.contrast, part),
        }
    )
    loss, _ = it.row.loss(it.row.z)
    kl_part = f"{alpha:g} x {part(parts.kl.sum())}"
    contrast_part = f"{1 - alpha:g} x {part(parts.contrast.sum())}"
    yield ""
    yield "     row loss = alpha KL(P || p) + (1 - alpha) contrast"
    yield f"              = {kl_part} + {contrast_part} = {part(loss)}"


def _gradient(it: Worked, shown_in: str) -> Iterator[str]:
    row, parts, shown, alpha = it.row, it.parts, it.shown, it.row.objective.alpha
    _, dz = row.loss(row.z)
    yield from heading(5, "Its gradient with respect to the logits")
    yield "     dL/dz(i) = alpha (p(i) - P(i)) + (1 - alpha) (a(i) - S p(i))"
    yield f"     a(i) = w(i) p(i) / (1 - p(i))          S = sum_i a(i) = {it.part(parts.a.sum())}"
    yield from prose(
        "A step in z against the gradient lowers the logit of a token where it is positive. "
        "Training has no such step: it moves weights that all logits share, and Adam moves each "
        "of them by about as much, so that single logits may go the other way."
        + (f" {shown_in} shows it." if shown_in else "")
    )
    yield from prose(
        f"The last column evaluates the loss L itself, with that logit moved by h = {STEP:g} up "
        "and down:"
    )
    yield "     numeric(i) = (L(z(i) + h) - L(z(i) - h)) / 2h"
    moved = row.z.copy()
    numeric = np.full(len(dz), np.nan)  # only for the tokens that are shown
    for i in shown:
        numeric[i] = central_difference(lambda: row.loss(moved)[0], moved, i)
    slope = decimals_for(dz, it.digits)
    yield from it.table(
        {
            "alpha(p-P)": Column(alpha * parts.dkl, slope),
            "a": Column(parts.a, it.part),
            "(1-alpha)(a-S p)": Column((1 - alpha) * parts.dcontrast, slope),
            "dL/dz": Column(dz, slope),
            "numeric": Column(numeric, slope, adds=False),
        }
    )
    yield ""
    yield from prose(
        verdict(numeric[shown], dz[shown], row.z)
        + " The sum is 0: adding the same number to every logit changes no p."
    )
    z, z_ref = (x[None].astype(np.float32) for x in (row.z, row.z_ref))
    needed = z_ref if row.objective.needs_reference else None
    _, (fused,) = row_losses(z, needed, row.counts._replace(attempts=row.attempts), row.objective)
    error = np.abs(fused - dz).max()
    yield from prose(
        "Training computes the same from one softmax and the rejected tokens, in float32 "
        f"(core.fused.row_losses): all {len(dz):,} of dL/dz to within {error:.1e}."
    )


def _token_table(row: Row, shown: list[int], columns: Mapping[str, Column]) -> Iterator[str]:
    """The shown tokens, all others together, and the sums; a sum without meaning is left out."""
    others = np.setdiff1d(np.arange(len(row.z)), shown)

    def together(c: Column) -> str:
        if c.adds:
            return c.show(c.x[others].sum())
        return f"each {c.show(c.x[others][0])}" if np.ptp(c.x[others]) == 0 else ""

    body = [[row.name(i), *(c.show(c.x[i]) for c in columns.values())] for i in shown]
    if len(others):
        body.append([f"all others ({len(others):,})", *map(together, columns.values())])
    body.append(["sum", *(c.show(c.x.sum()) if c.adds else "" for c in columns.values())])
    yield from table(["token", *columns], body)
