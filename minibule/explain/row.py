"""One row of the loss worked through as text: its target, its loss and its gradient.

The numbers are those of `complement.py`, the dense and readable form. All that is computed here are
sums over the tokens that are not shown, and the central differences that check the gradient.
"""

import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from minibule.core.complement import complement_loss, loss_parts, target_factors
from minibule.core.counts import RowCounts
from minibule.core.fused import row_losses
from minibule.core.objective import Objective
from minibule.machine.matrix import Array

WIDTH = 100  # columns of the text
MOST_REJECTED = 6  # rejected tokens shown one by one
MOST_LIKELY = 3  # tokens shown of the likeliest by p, and by P
SMALL_VOCAB = 10  # up to here every token is shown, with exp(z), in fewer digits
STEP = 1e-5  # h of the central differences in float64: near the cube root of its precision
AGREE = 1e-6  # of the largest entry: the error of central differences themselves is h^2 times
#               the third derivative, some 1e-10, and that of rounding, which `verdict` adds

Show: TypeAlias = Callable[[float], str]


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


def explain_row(row: Row) -> Iterator[str]:
    """Three sections of text, line by line: the row's target, its loss, its gradient."""
    (prior, _, contrast, alpha), v, T = row.objective, row.v, row.v.sum()
    reference = (row.z_ref[None], row.attempts)
    (q,), (kept,) = target_factors(v[None], prior, *reference)
    parts = loss_parts(row.z[None], v[None], prior, contrast, *reference)
    P, w, logp, log_rest, kl, unlikely, a, dkl, dcontrast = (part[0] for part in parts)
    p = np.exp(logp)
    small = len(p) <= SMALL_VOCAB
    shown, share = row.shown(p, P), decimals(4 if small else 6)

    def token_table(columns: Mapping[str, Column]) -> Iterator[str]:
        return _token_table(row, shown, columns)

    yield from heading(3, "The target P")
    yield from prose(
        "What was not rejected is what we want: the more often a token was rejected, the less the "
        "target P gives it, and never nothing. p is what the model says now: exp(z) divided by "
        "its sum, z being the logits."
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
                f"About {n} of the sampled answers came by here, so n(i) of them are expected to "
                "have gone on with token i; g(i) estimates the share of those not rejected."
            )
        yield from prose("p_ref is what the frozen base says: without rejections P would be p_ref.")
        columns[factor] = Column(kept, number, adds=False)
        columns["p_ref"] = Column(q, share)
        columns["product"] = Column(q * kept, product)
    columns |= {"P": Column(P, share), "z": Column(row.z, decimals(4 if small else 3), adds=False)}
    if small:
        columns["exp(z)"] = Column(np.exp(row.z), decimals(0))
    yield from token_table(columns | {"p": Column(p, share)})

    yield from heading(4, "The loss")
    yield from prose("Two parts: how far p is from P, and how much p says of what was rejected.")
    blamed = "(1 - p_ref(i)) v(i) / T" if contrast == "choice" else "v(i) / T"
    yield "     KL(P || p) = sum_i P(i) log(P(i) / p(i))"
    yield f"     contrast   = - sum_i w(i) log(1 - p(i))          w(i) = {blamed}"
    if contrast == "choice":
        yield from prose("1 - p_ref: where the base had no choice, a token is not to blame.")
    part = decimals_for(np.append(kl, unlikely), 4 if small else 6)
    yield from token_table(
        {
            "P log(P / p)": Column(kl, part),
            "w": Column(w, share),
            "-log(1 - p)": Column(-log_rest, share, adds=False),
            "-w log(1 - p)": Column(unlikely, part),
        }
    )
    loss, dz = row.loss(row.z)
    kl_part = f"{alpha:g} x {part(kl.sum())}"
    contrast_part = f"{1 - alpha:g} x {part(unlikely.sum())}"
    yield ""
    yield "     row loss = alpha KL(P || p) + (1 - alpha) contrast"
    yield f"              = {kl_part} + {contrast_part} = {part(loss)}"

    yield from heading(5, "Its gradient with respect to the logits")
    yield "     dL/dz(i) = alpha (p(i) - P(i)) + (1 - alpha) (a(i) - S p(i))"
    yield f"     a(i) = w(i) p(i) / (1 - p(i))          S = sum_i a(i) = {part(a.sum())}"
    yield from prose(
        "Learning goes against it: where it is positive, the token's logit falls. The last column "
        f"asks the loss L itself, with that logit moved up and down by h = {STEP:g}:"
    )
    yield "     numeric(i) = (L(z(i) + h) - L(z(i) - h)) / 2h"
    moved = row.z.copy()
    numeric = np.full(len(p), np.nan)  # the tokens that are not shown are not asked
    for i in shown:
        numeric[i] = central_difference(lambda: row.loss(moved)[0], moved, i)
    slope = decimals_for(dz, 4 if small else 6)
    yield from token_table(
        {
            "alpha(p-P)": Column(alpha * dkl, slope),
            "a": Column(a, part),
            "(1-alpha)(a-S p)": Column((1 - alpha) * dcontrast, slope),
            "dL/dz": Column(dz, slope),
            "numeric": Column(numeric, slope, adds=False),
        }
    )
    yield ""
    yield from prose(
        verdict(numeric[shown], dz[shown], row.z)
        + " The sum is 0: one number added to every logit changes no p."
    )
    z, z_ref = (x[None].astype(np.float32) for x in (row.z, row.z_ref))
    needed = z_ref if row.objective.needs_reference else None
    _, (fused,) = row_losses(z, needed, row.counts._replace(attempts=row.attempts), row.objective)
    yield from prose(
        "Training gets the same from one softmax and the rejected tokens, in float32 "
        f"(fused.row_losses): all {len(p):,} of dL/dz to within {np.abs(fused - dz).max():.1e}."
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


# -- numeric check ---------------------------------------------------------------------------------


def central_difference(f: Callable[[], float], x: Array, index: int | tuple[int, ...]) -> float:
    """(f(x + h) - f(x - h)) / 2h, one entry of x moved in place and put back; x float64."""
    kept = x[index]
    x[index] = kept + STEP
    above = f()
    x[index] = kept - STEP
    below = f()
    x[index] = kept
    return (above - below) / (2 * STEP)


def verdict(numeric: Array, gradient: Array, z: Array) -> str:
    """Whether central differences are the gradient; z are the logits that the loss is made of."""
    error, largest = np.abs(numeric - gradient).max(), np.abs(gradient).max()
    # A loss of logits z is rounded to about eps |z|, which the division by 2h makes larger.
    rounding = 10 * np.finfo(np.float64).eps * max(1, np.abs(z).max()) / STEP
    agree = "They agree" if error <= AGREE * largest + rounding else "THEY DO NOT AGREE"
    relative = error / largest if largest else error
    return f"{agree}: the relative difference is {relative:.1e}."


# -- text ------------------------------------------------------------------------------------------


def heading(number: int, title: str) -> Iterator[str]:
    """A section's title; no other line begins with a digit."""
    yield ""
    yield f"{number}. {title}"


def prose(sentences: str) -> Iterator[str]:
    """Sentences, broken into lines."""
    yield from textwrap.wrap(
        sentences, WIDTH, initial_indent="   ", subsequent_indent="   ", break_on_hyphens=False
    )


def table(header: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Lines of a table: its first `left` columns to the left, all others to the right."""
    lines = [header, *body]
    widths = [max(columns_of(line[i]) for line in lines) for i in range(len(header))]
    gap = 3 if sum(widths) + 3 * len(widths) + 2 <= WIDTH else 2
    for line in lines:
        cells = [" " * (5 - gap)]
        for i, (cell, width) in enumerate(zip(line, widths, strict=True)):
            space = " " * (width - columns_of(cell))
            cells.append(cell + space if i < left else space + cell)
        yield (" " * gap).join(cells).rstrip()


def decimals(digits: int) -> Show:
    """Numbers with so many decimals; those of eight digits and more as powers of ten."""
    return lambda x: f"{x:z,.{digits}f}" if abs(x) < 1e7 else f"{x:.3g}"  # z: no -0.000


def decimals_for(x: Array, digits: int) -> Show:
    """As `decimals`, but with powers of ten where the largest of x would keep less than two."""
    if 0 < np.abs(x).max() < 100 * 10.0**-digits:
        return lambda number: f"{number:.2e}"
    return decimals(digits)


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def shortened(text: str, width: int) -> str:
    """The text in at most `width` columns, its middle left out where it has more."""
    if columns_of(text) <= width:
        return text
    half = (width - 5) // 2
    begin, end = text[:half], text[-half:]
    while columns_of(begin) > half:
        begin = begin[:-1]
    while columns_of(end) > half:
        end = end[1:]
    return f"{begin} ... {end}"
