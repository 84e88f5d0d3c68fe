"""One row of a loss, and what every explanation of one has: tables, an anchor, a checked gradient.

The numbers are those of the dense and readable form of each loss. The loss that central differences
look at is training's own (`core.head.anchored`), in float64.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minibule.core.complement import complement_loss, log_softmax
from minibule.core.counts import RowCounts
from minibule.core.head import anchored
from minibule.core.loss import RowLoss
from minibule.explain.check import STEP, central_difference, verdict
from minibule.explain.text import Show, decimals, decimals_for, heading, prose, table
from minibule.machine.matrix import Array

MOST_REJECTED = 6  # rejected tokens shown one by one
MOST_LIKELY = 3  # tokens shown of the likeliest by p, and by what it is to be
SMALL_VOCAB = 10  # up to here every token is shown, with exp(z), in fewer digits


class Row(NamedTuple):
    """A row of the loss, and what its tokens are called.

    z, z_ref (V,) float64    logits of the model, and of its frozen base
    counts                   this one row, with `attempts` where the loss asks for them
    name                     token -> the text it is shown as
    """

    z: Array
    z_ref: Array
    counts: RowCounts
    loss: RowLoss
    name: Callable[[int], str]

    @property
    def v(self) -> Array:
        """The counts, dense: (V,)."""
        return np.bincount(self.counts.entry_id, self.counts.entry_count, len(self.z))

    @property
    def p(self) -> Array:
        return np.exp(log_softmax(self.z))

    @property
    def small(self) -> bool:
        return len(self.z) <= SMALL_VOCAB

    @property
    def digits(self) -> int:
        return 4 if self.small else 6

    def loss_at(self, z: Array) -> tuple[float, Array]:
        """The row's loss and its gradient (V,) at other logits z (V,), in the dtype of z."""
        z_ref = self.z_ref.astype(z.dtype)[None]
        values, (dz,) = anchored(self.loss, z.copy()[None], z_ref, self.counts)
        return float(values["loss"][0]), dz

    def shown(self, wanted: Array) -> list[int]:
        """The tokens that matter: rejected ones, most rejected first, and the likeliest.

        By p, and by the distribution `wanted`. Of a uniform one no token is the likeliest: there
        all but the rejected ones are.
        """
        if self.small:
            return list(range(len(self.z)))
        rejected = _largest(self.v, MOST_REJECTED)
        tokens = [i for i in rejected if self.v[i] > 0] + _largest(self.p, MOST_LIKELY)
        tokens += [i for i in _largest(wanted, MOST_LIKELY) if wanted[i] > np.median(wanted)]
        return list(dict.fromkeys(tokens))


def _largest(x: Array, n: int) -> list[int]:
    return [int(i) for i in np.argsort(-x, kind="stable")[:n]]


class Column(NamedTuple):
    """A number for every token (V,), how one is written, and whether their sum means anything."""

    x: Array
    show: Show
    adds: bool = True


def token_table(row: Row, shown: list[int], columns: Mapping[str, Column]) -> Iterator[str]:
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


def prediction(row: Row) -> dict[str, Column]:
    """The columns of p: from logits to probabilities."""
    columns = {"z": Column(row.z, decimals(4 if row.small else 3), adds=False)}
    if row.small:
        columns["exp(z)"] = Column(np.exp(row.z), decimals(0))
    return columns | {"p": Column(row.p, decimals(row.digits))}


# -- what p is held to -----------------------------------------------------------------------------


class Anchor(NamedTuple):
    """kl KL(p || p_ref) of a row, which the loss has added to hold p to the base.

    terms       p log(p / p_ref), (V,), which sum to the KL
    gradient    of kl times the KL with respect to the logits, (V,)
    """

    kl: float
    terms: Array
    gradient: Array

    @property
    def formula(self) -> str:
        return f"     KL(p || p_ref) = sum_i p(i) log(p(i) / p_ref(i))          kl = {self.kl:g}"

    @property
    def slope(self) -> str:
        return "     anchor(i) = kl p(i) (log(p(i) / p_ref(i)) - KL(p || p_ref))"

    def terms_column(self, show: Show) -> dict[str, Column]:
        return {"p log(p / p_ref)": Column(self.terms, show)}

    def share(self, show: Show) -> str:
        """Its share of the loss."""
        return f"{self.kl:g} x {show(self.terms.sum())}"


def anchor_of(row: Row) -> Anchor | None:
    """The row's anchor; None where kl is 0."""
    kl = row.loss.kl
    if not kl:
        return None
    terms = row.p * (log_softmax(row.z) - log_softmax(row.z_ref))
    return Anchor(kl, terms, kl * (terms - terms.sum() * row.p))


# What is said of it, after it was named.
CHARGES = (
    "The KL charges p for what it says, and not for what it no longer says: step 5 of "
    "core/LESSON.md."
)


def explain_base(
    row: Row, anchor: Anchor | None, needs_reference: bool, shown: list[int]
) -> Iterator[str]:
    """The section on what a loss without a target begins with."""
    asks_base = needs_reference or anchor
    yield from heading(3, "The base p_ref" if asks_base else "The prediction p")
    yield from prose(
        "There is no target. p is what the model predicts now: exp(z) divided by its sum, where z "
        "are the logits."
        + (" p_ref is what the frozen base predicts." if asks_base else "")
        + (" p is held to it: what was not rejected is to stay as it was." if anchor else "")
    )
    columns = {"v": Column(row.v, decimals(0))}
    if asks_base:
        columns["p_ref"] = Column(np.exp(log_softmax(row.z_ref)), decimals(row.digits))
    yield from token_table(row, shown, columns | prediction(row))


# -- the gradient, checked -------------------------------------------------------------------------


def lets_go(of: str = "") -> str:
    """What a bounded ratio's slope does; of: what r is a ratio of, as "(y)"."""
    return (
        f"The slope of f is 1 where p{of} = p_ref{of}, never above 2, and next to nothing where "
        f"p{of} is far below p_ref{of}: what is gone is left alone."
    )


def pushed_gradient(
    row: Row,
    shown: list[int],
    a: Array,
    anchor: Anchor | None,
    made_of: str,
    remarks: list[str],
    code: str,
    shown_in: str,
) -> Iterator[str]:
    """The section on the gradient of sum_i a(i) log p(i), whose slopes a (V,) stand still.

    made_of: the line that says what a is. code, shown_in as in `checked_gradient`.
    """
    pushed = a - a.sum() * row.p
    dz = pushed + (anchor.gradient if anchor else 0)
    number, slope = decimals_for(a, row.digits), decimals_for(dz, row.digits)
    columns = {"a": Column(a, number), "a-S p": Column(pushed, slope)}
    yield from heading(5, "Its gradient with respect to the logits")
    yield f"     dL/dz(i) = a(i) - S p(i){' + anchor(i)' if anchor else ''}"
    yield made_of
    yield f"     S = sum_i a(i) = {number(a.sum())}"
    said = ["That follows from d log p(i) / dz(j) = [i=j] - p(j), step 4 of core/LESSON.md."]
    said += [_coefficient(row, a, number), *remarks]
    if anchor:
        yield anchor.slope
        columns["anchor"] = Column(anchor.gradient, slope)
        if not np.any(anchor.terms):
            said.append("The anchor does not pull yet: p is still p_ref.")
    yield from prose(" ".join(said))
    yield from checked_gradient(row, shown, dz, columns, code, shown_in)
    yield from _lesson_checked(row, shown)


def _coefficient(row: Row, a: Array, number: Show) -> str:
    """The same gradient as papers write it, with the numbers of the token rejected most."""
    i = int(row.v.argmax())
    c, p, name = -a[i], row.p[i], row.name(i)
    return (
        "Each rejected token adds c (p - e), with the coefficient c = -a and e = 1 at the token, "
        f"else 0: {name} adds {number(c)} x ({decimals(row.digits)(p)} - 1) = "
        f"{number(c * (p - 1))} at {name} itself, and {number(c)} p everywhere else."
    )


def _lesson_checked(row: Row, shown: Sequence[int]) -> Iterator[str]:
    """The same row under the loss that the lesson derives by hand."""
    z = row.z[None].copy()
    dz = complement_loss(z, row.v[None])[1][0, shown]
    numeric = [
        central_difference(lambda: complement_loss(z, row.v[None])[0], z, (0, i)) for i in shown
    ]
    yield from prose(
        "The same check of the loss whose gradient step 4 of core/LESSON.md derives, literal, in "
        f"this row (core.complement.complement_loss): {verdict(np.array(numeric), dz, row.z)}"
    )


def checked_gradient(
    row: Row, shown: list[int], dz: Array, columns: Mapping[str, Column], code: str, shown_in: str
) -> Iterator[str]:
    """A table of the gradient dz (V,) and the columns it is made of, its slopes, and a verdict.

    code: what computes it in training. shown_in: where the reader will see what a step in the
    weights does to the logits.
    """
    yield from prose(
        "A step in z against the gradient lowers the logit of a token where it is positive. "
        "Training has no such step: it moves weights that all logits share, and Adam moves each "
        "of them by about as much, so that single logits may go the other way."
        + (f" {shown_in} names any that does." if shown_in else "")
    )
    yield from prose(
        f"The last column evaluates the loss L itself, with that logit moved by h = {STEP:g} up "
        "and down:"
    )
    yield "     numeric(i) = (L(z(i) + h) - L(z(i) - h)) / 2h"
    moved = row.z.copy()
    numeric = np.full(len(dz), np.nan)  # only for the tokens that are shown
    for i in shown:
        numeric[i] = central_difference(lambda: row.loss_at(moved)[0], moved, i)
    slope = decimals_for(dz, row.digits)
    both = {"dL/dz": Column(dz, slope), "numeric": Column(numeric, slope, adds=False)}
    yield from token_table(row, shown, {**columns, **both})
    yield ""
    yield from prose(
        verdict(numeric[shown], dz[shown], row.z)
        + " The sum is 0: adding the same number to every logit changes no p."
    )
    if row.loss.kl:
        code += ", core.softmax.anchor"
    error = np.abs(row.loss_at(row.z.astype(np.float32))[1] - dz).max()
    yield from prose(
        "Training computes the same from one softmax and the rejected tokens, in float32 "
        f"({code}): all {len(dz):,} of dL/dz to within {error:.1e}."
    )
