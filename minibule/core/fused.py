"""The loss with a target distribution, from a few entries a row: `complement.py` at speed.

Every target of the three objectives is a dense prior q, corrected at the few rejected tokens:

    P(i) = q(i) g(i) / Z        g = 1 but at rejected tokens        Z = 1 - sum_e q(e) (1 - g(e))

    prior      q          g(e) at a rejected token e
    uniform    1/V        (T - v + 1) / (T + 1)
    reference  p_ref      (T - v + 1) / (T + 1)
    rate       p_ref      max(.05, (m - v + 1) / (m + 1)),  m = max(T, N p_ref(prefix)) p_ref(e)

so the loss and its gradient need a softmax of the row and sums over its entries e, and no dense
target is ever built. Sums over the vocabulary run in the dtype of the logits, float32 in training;
everything of size (n,) or (entries,) in float64.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minibule.core.counts import Counts, RowCounts
from minibule.core.loss import RowLoss, Values
from minibule.core.objective import MIN_RATE, Objective, Prior, needed, optimal_p
from minibule.core.softmax import SplitSoftmax, per_row, split_softmax
from minibule.machine.matrix import Array


@dataclass(frozen=True)
class TargetLoss(RowLoss):
    """alpha KL(P || p) + (1 - alpha) contrast, as the objective says."""

    objective: Objective
    kl: float = 0.0

    def __str__(self) -> str:
        return f"{self.objective}, kl {self.kl:g}" if self.kl else str(self.objective)

    @property
    def counts(self) -> Counts:
        return self.objective.counts

    @property
    def needs_reference(self) -> bool:
        return self.objective.needs_reference

    @property
    def needs_attempts(self) -> bool:
        return self.objective.prior == "rate"

    @property
    def prior(self) -> Prior | None:
        return self.objective.prior

    def of_rows(self, z: Array, z_ref: Array | None, rows: RowCounts) -> tuple[Values, Array]:
        return row_losses(z, z_ref, rows, self.objective)


def row_losses(
    z: Array, z_ref: Array | None, rows: RowCounts, objective: Objective
) -> tuple[Values, Array]:
    """Loss and metrics of n rows, each (n,), and the gradient dz (n, V) of each row's loss.

    z, z_ref: (n, V) logits of the model and of its base, both overwritten; rows: the counts, with
    attempts for the rate prior. The dense form of the same is `complement.complement_loss`.
    """
    values, p, target = _compare(z, z_ref, rows, objective)
    return values, _gradient(p, target, rows, objective)


def row_metrics(z: Array, z_ref: Array | None, rows: RowCounts, objective: Objective) -> Values:
    """What an evaluation reports of n rows, each (n,); arguments as in `row_losses`.

    On top of the loss and its parts: entropy in nats, kl_to_base = KL(p_ref || p), the rejected
    mass of the answers' first positions (`first` says which rows those are), and where alpha > 0
    the rejected mass of p*, the optimum of the row, and the optimality gap, the total variation
    between p and p*.
    """
    z_kept = z.copy()
    values, p, target = _compare(z, z_ref, rows, objective)
    probabilities = p.dense()
    values["entropy"] = p.lse - np.vecdot(probabilities, z_kept)
    values["first"] = (rows.depth == 0).astype(np.float64)
    values["first_rejected_mass"] = values["first"] * values["rejected_mass"]
    if objective.alpha > 0:
        at_entries, gap = _optimum(p, probabilities, target, rows, objective)
        share = rows.entry_count / rows.total[rows.entry_row]
        values["optimal_rejected_mass"] = per_row(share * at_entries, rows.entry_row, len(z))
        values["optimality_gap"] = gap
    return values


class _Target(NamedTuple):
    """The target of n rows: P = q g / Z, with g = 1 but at the entries.

    dense (n, V)       p_ref where the prior is built on it, else None: q = 1/V
    q, g, w (E,)       prior, correction and contrast weight at the entries
    Z (n,)
    ref_logp (E,)      log p_ref of the entries, where the contrast is the ratio's
    """

    dense: Array | None
    q: Array
    g: Array
    w: Array
    Z: Array
    ref_logp: Array | None


def _compare(
    z: Array, z_ref: Array | None, rows: RowCounts, objective: Objective
) -> tuple[Values, SplitSoftmax, _Target]:
    """The softmax of z, the rows' targets, and how far apart the two are."""
    (n, vocab), row = z.shape, rows.entry_row
    T, v = rows.total[row], rows.entry_count  # (E,)
    w, ref_logp = v / T, None
    values: Values = {}

    # KL(q || p) = sum_j q_j (log q_j - log p_j), first for the uniform q, then for p_ref.
    if objective.prior == "uniform":
        z_mean = z.mean(axis=1, dtype=np.float64)
    if z_ref is not None:
        shift = z_ref - z
    p = split_softmax(z, rows)
    if objective.prior == "uniform":
        dense, logq = None, np.full(len(row), -np.log(vocab))
        kl_prior = p.lse - z_mean - np.log(vocab)
    if z_ref is not None:
        ref = split_softmax(z_ref, rows)
        p_ref = ref.dense()
        kl_ref = np.vecdot(p_ref, shift) - ref.lse + p.lse
        values["kl_to_base"] = kl_ref
        if objective.prior != "uniform":
            dense, logq, kl_prior = p_ref, ref.logp, kl_ref
        if objective.contrast == "choice":
            w = w * np.exp(ref.log_rest)
        elif objective.contrast == "ratio":
            ref_logp = ref.logp

    q = np.exp(logq)
    if objective.prior == "rate":
        m = needed(rows.attempts, "attempts")[row] * q
        g = np.maximum(MIN_RATE, (m - v + 1) / (m + 1))
    else:
        g = (T - v + 1) / (T + 1)
    cut = q * (1 - g)
    Z = 1 - per_row(cut, row, n)
    P = q * g / Z[row]

    # sum_j P_j (log P_j - log p_j), with log P = log q + log g - log Z.
    kl = (kl_prior - per_row(cut * (logq - p.logp), row, n)) / Z
    kl += per_row(P * np.log(g), row, n) - np.log(Z)
    pushed = -p.log_rest if ref_logp is None else 2 * np.logaddexp(0, p.logp - ref_logp)
    contrast = per_row(w * pushed, row, n)
    values["loss"] = objective.alpha * kl + (1 - objective.alpha) * contrast
    values["kl"], values["contrast"] = kl, contrast
    values["rejected_mass"] = per_row(v / T * np.exp(p.logp), row, n)
    return values, p, _Target(dense, q, g, w, Z, ref_logp)


def _gradient(p: SplitSoftmax, target: _Target, rows: RowCounts, objective: Objective) -> Array:
    """dz = alpha (p - P) + (1 - alpha) (a - (sum_i a_i) p), a_i = dcontrast/dlog p_i; (n, V).

    a_i = w_i p_i / (1 - p_i), or for the ratio's contrast 2 w_i sigmoid(log p_i - log p_ref,i).
    Written over p, and over what is dense of the target.

    The top token m stands apart. As p_m nears 1, a_m grows without bound or m's gradient is a
    difference of equals; but its part of the gradient is plain: b = a_m (1 - p_m) at m, which for
    unlikelihood is w_m p_m, and -b r_j elsewhere. So for every j but m, both p_j = r_j (1 - p_m)
    and the contrast's gradient are r_j times a number of the row.
    """
    alpha, row, n = objective.alpha, rows.entry_row, len(p.top)
    p_top, rest = np.exp(p.log_p_top), np.exp(p.log_rest_top)
    if target.ref_logp is None:
        a = target.w * np.exp(np.where(p.is_top, -np.inf, p.logp - p.log_rest))
        b = p_top * per_row(np.where(p.is_top, target.w, 0), row, n)
    else:
        a = 2 * target.w / (1 + np.exp(target.ref_logp - p.logp))
        b = rest * per_row(np.where(p.is_top, a, 0), row, n)
        a[p.is_top] = 0
    a_sum = per_row(a, row, n)  # of the entries but m
    both = alpha - (1 - alpha) * a_sum
    dz = p.write(rest * both - (1 - alpha) * b, p_top * both + (1 - alpha) * b)
    # - alpha P = - alpha q / Z, plus what the entries lack of it.
    weight = (alpha / target.Z).astype(dz.dtype)[:, None]
    if target.dense is None:
        dz -= weight / dz.shape[1]
    else:
        dz -= np.multiply(target.dense, weight, out=target.dense)
    lacking = alpha * target.q * (1 - target.g) / target.Z[row]
    dz[row, rows.entry_id] += (lacking + (1 - alpha) * a).astype(dz.dtype)
    return dz


def _optimum(
    p: SplitSoftmax, dense_p: Array, target: _Target, rows: RowCounts, objective: Objective
) -> tuple[Array, Array]:
    """p* at the entries (E,), and the total variation between p and p*, (n,).

    It is `complement.optimum` from the entries alone.

    Where nothing was rejected p* = alpha P / lambda, one multiple of the prior; only the entries
    need the root, and sum p* = 1 is alpha (1 - sum_e P_e) / lambda + sum_e p*_e = 1.
    """
    alpha, row, n = objective.alpha, rows.entry_row, len(p.top)
    aP = alpha * target.q * target.g / target.Z[row]  # (E,)
    c = (1 - alpha) * target.w
    unrejected = np.maximum(alpha - per_row(aP, row, n), 0)  # (n,)

    p_ref = None if target.ref_logp is None else np.exp(target.ref_logp)

    def p_star(lam: Array) -> Array:
        return optimal_p(lam[row], aP, c, p_ref)

    low, high = np.zeros(n), np.full(n, alpha)  # alpha bounds lambda, see `optimum`
    for _ in range(100):
        lam = (low + high) / 2
        too_much = unrejected / lam + per_row(p_star(lam), row, n) > 1
        low, high = np.where(too_much, lam, low), np.where(too_much, high, lam)
    factor = alpha / (target.Z * high)  # p* = factor * q where nothing was rejected
    if target.dense is None:
        gap = np.abs(dense_p - (factor / dense_p.shape[1]).astype(dense_p.dtype)[:, None])
    else:
        gap = np.abs(dense_p - factor.astype(dense_p.dtype)[:, None] * target.dense)
    at_entries = p_star(high)
    gap[row, rows.entry_id] = np.abs(np.exp(p.logp) - at_entries)
    return at_entries, gap.sum(axis=1, dtype=np.float64) / 2
