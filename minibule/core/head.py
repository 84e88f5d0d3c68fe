"""The head and the complement loss in one, from a few entries a row: `complement.py` at speed.

Every target of the three objectives is a dense prior q, corrected at the few rejected tokens:

    P(i) = q(i) g(i) / Z        g = 1 but at rejected tokens        Z = 1 - sum_e q(e) (1 - g(e))

    prior      q          g(e) at a rejected token e
    uniform    1/V        (T - v + 1) / (T + 1)
    reference  p_ref      (T - v + 1) / (T + 1)
    rate       p_ref      max(.05, (a - v + 1) / (a + 1)),  a = max(T, N p_ref(prefix)) p_ref(e)

so the loss and its gradient need a softmax of the row and sums over its entries e, and no dense
target is ever built. Logits exist for a chunk of rows at a time, never for all of them.

The softmax is kept in two parts, the row's top token m and r, the softmax of all the others:

    p(m) = exp(z(m) - lse)     1 - p(m) = exp(lse_rest - lse)     p(j) = r(j) (1 - p(m))

which keeps log(1 - p(m)) = lse_rest - lse exact when p(m) is 1 to the last bit of float32.
Sums over the vocabulary run in float32, everything of size (n,) or (entries,) in float64.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from minibule.core.complement import MIN_RATE
from minibule.core.forest import Rows
from minibule.core.objective import Objective
from minibule.machine.matrix import Array

# Logits computed at once by a thread: 2^24 float32 are 64 MB. With fewer rows at a time the matrix
# product is slow, because all of the head passes through the processor for each chunk.
CHUNK_LOGITS = 2**24


def head_loss(
    hidden: Array,
    head: Array,
    rows: Rows,
    objective: Objective,
    ref_hidden: Array | None = None,
    *,
    count: float,
) -> tuple[dict[str, float], Array]:
    """The loss of all rows, and its gradient with respect to their hidden states.

    Parameters
    ----------
    hidden : (R, D), final hidden states of the rows
    head : (V, D)
    rows : Rows
    objective : Objective
    ref_hidden : (R, D)
        The base model's hidden states, where the objective needs them.
    count : float
        What the sums over rows are divided by: the weight of all rows of the whole step, so that
        the metrics and gradients of its passes simply add up.

    Returns
    -------
    metrics : dict of str to float
        These rows' share of each metric: sum over rows of weight * value / count.
    dhidden : (R, D)
    """
    dhidden = np.empty_like(hidden)
    metrics: dict[str, float] = {}
    for c in _chunks(hidden, head, rows, objective, ref_hidden):
        values, dz = row_losses(c.z, c.z_ref, c.attempts, c.rows, objective)
        share = c.rows.weight / count
        dhidden[c.where] = (dz @ head) * share.astype(dz.dtype)[:, None]
        _add_shares(metrics, share, values)
    return metrics, dhidden


def head_metrics(
    hidden: Array,
    head: Array,
    rows: Rows,
    objective: Objective,
    ref_hidden: Array,
    *,
    count: float,
) -> dict[str, float]:
    """`head_loss` for an evaluation: all of `row_metrics`, and no gradient."""
    metrics: dict[str, float] = {}
    for c in _chunks(hidden, head, rows, objective, ref_hidden):
        values = row_metrics(c.z, c.z_ref, c.attempts, c.rows, objective)
        _add_shares(metrics, c.rows.weight / count, values)
    return metrics


def entry_log_probs(hidden: Array, head: Array, rows: Rows) -> Array:
    """log p of every entry's token in its row, (E,) float64."""
    logp = [_split_softmax(c.z, c.rows).logp for c in _chunks(hidden, head, rows)]
    return np.concatenate(logp)


def add_metrics(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Add the shares of more rows, in place."""
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value


def _add_shares(metrics: dict[str, float], share: Array, values: Mapping[str, Array]) -> None:
    add_metrics(metrics, {name: float(share @ value) for name, value in values.items()})


class _Chunk(NamedTuple):
    """n rows: where they stand, what they count, their logits (n, V), attempts (n,) for `rate`."""

    where: slice
    rows: Rows
    z: Array
    z_ref: Array | None
    attempts: Array | None


def _chunks(
    hidden: Array,
    head: Array,
    rows: Rows,
    objective: Objective | None = None,
    ref_hidden: Array | None = None,
) -> Iterator[_Chunk]:
    """Cut the rows so that a chunk's logits number about CHUNK_LOGITS."""
    needs_attempts = objective is not None and objective.prior == "rate"
    ref_logp = np.empty(0)  # log p_ref of the entries so far
    chunks = math.ceil(len(hidden) * len(head) / CHUNK_LOGITS)
    size = math.ceil(len(hidden) / chunks)
    for start in range(0, len(rows.weight), size):
        chunk = slice(start, start + size)
        part, attempts = rows.part(chunk), None
        z_ref = None if ref_hidden is None else ref_hidden[chunk] @ head.T
        if needs_attempts and z_ref is not None:
            ref_logp = np.append(ref_logp, _split_softmax(z_ref.copy(), part).logp)
            so_far = rows.part(slice(start + size))  # what stands before a row decides
            attempts = expected_attempts(so_far, ref_logp)[chunk]
        yield _Chunk(chunk, part, hidden[chunk] @ head.T, z_ref, attempts)


def expected_attempts(rows: Rows, ref_logp: Array) -> Array:
    """max(T, N p_ref(prefix)), (R,): sampled answers expected to have come by each row."""
    prefix, _ = path_log_probs(rows, ref_logp)
    return np.maximum(rows.total, rows.rounds * np.exp(prefix))


def path_log_probs(rows: Rows, logp: Array) -> tuple[Array, Array]:
    """log p of the answer up to each row (R,), and up to and with each entry's token (E,)."""
    prefix, path = np.zeros(len(rows.weight)), np.empty(len(logp))
    starts = np.searchsorted(rows.entry_row, np.arange(len(prefix) + 1))
    for row, parent in enumerate(rows.parent_entry):  # a row's parent entry stands before it
        if parent >= 0:
            prefix[row] = path[parent]
        entries = slice(starts[row], starts[row + 1])
        path[entries] = prefix[row] + logp[entries]
    return prefix, path


def row_losses(
    z: Array, z_ref: Array | None, attempts: Array | None, rows: Rows, objective: Objective
) -> tuple[dict[str, Array], Array]:
    """Loss and metrics of n rows, each (n,), and the gradient dz (n, V) of each row's loss.

    z, z_ref: (n, V) logits of the model and of its base, both overwritten; attempts: (n,) for the
    rate prior; rows: the counts. The dense form of the same is `complement.complement_loss`.
    """
    values, p, target = _compare(z, z_ref, attempts, rows, objective)
    return values, _gradient(p, target, rows, objective)


def row_metrics(
    z: Array, z_ref: Array | None, attempts: Array | None, rows: Rows, objective: Objective
) -> dict[str, Array]:
    """What an evaluation reports of n rows, each (n,); arguments as in `row_losses`.

    On top of the loss and its parts: entropy in nats, kl_to_base = KL(p_ref || p), the rejected
    mass of the answers' first positions (`first` says which rows those are), and where alpha > 0
    the rejected mass of p*, the optimum of the row, and the optimality gap, the total variation
    between p and p*.
    """
    z_kept = z.copy()
    values, p, target = _compare(z, z_ref, attempts, rows, objective)
    probabilities = p.dense()
    values["entropy"] = p.lse - np.vecdot(probabilities, z_kept)
    values["first"] = (rows.depth == 0).astype(np.float64)
    values["first_rejected_mass"] = values["first"] * values["rejected_mass"]
    if objective.alpha > 0:
        at_entries, gap = _optimum(p, probabilities, target, rows, objective)
        share = rows.entry_count / rows.total[rows.entry_row]
        values["optimal_rejected_mass"] = _per_row(share * at_entries, rows.entry_row, len(z))
        values["optimality_gap"] = gap
    return values


# -- the softmax in two parts ----------------------------------------------------------------------


class _Softmax(NamedTuple):
    """Softmax of n rows of logits: the top token m, all the others, and the entries.

    others (n, V)      exp(z - highest of the others); 0 at the top token
    scale (n,)         1 / sum of `others`: r = others * scale
    top (n,)           m
    log_p_top, log_rest_top (n,)      log p(m) and log(1 - p(m))
    lse (n,)           logsumexp(z)
    logp, log_rest (E,)               log p(e) and log(1 - p(e)) of the entries
    is_top (E,)        whether the entry is its row's top token
    """

    others: Array
    scale: Array
    top: Array
    log_p_top: Array
    log_rest_top: Array
    lse: Array
    logp: Array
    log_rest: Array
    is_top: Array

    def write(self, r_factor: Array, top_value: Array) -> Array:
        """others -> r * r_factor, with top_value at the top token; in place, (n, V)."""
        out = self.others
        out *= (self.scale * r_factor).astype(out.dtype)[:, None]
        out[np.arange(len(out)), self.top] = top_value
        return out

    def dense(self) -> Array:
        """p itself, (n, V), in place of `others`."""
        return self.write(np.exp(self.log_rest_top), np.exp(self.log_p_top))


def _split_softmax(z: Array, rows: Rows) -> _Softmax:
    """The softmax of z (n, V), V >= 2, which is overwritten."""
    n, row = np.arange(len(z)), rows.entry_row
    top = z.argmax(axis=1)
    z_top = z[n, top].astype(np.float64)
    z_entry = z[row, rows.entry_id].astype(np.float64)
    z[n, top] = -np.inf
    highest = z.max(axis=1, keepdims=True)
    z -= highest
    others = np.exp(z, out=z)
    total = others.sum(axis=1).astype(np.float64)
    lse_rest = highest[:, 0] + np.log(total)
    lse = np.logaddexp(z_top, lse_rest)
    logp = z_entry - lse[row]
    is_top = rows.entry_id == top[row]
    log_rest_top = -np.logaddexp(0, z_top - lse_rest)
    # Any other token has p <= 1/2, where log1p(-p) is exact.
    log_rest = np.where(is_top, log_rest_top[row], np.log1p(-np.exp(np.where(is_top, -1, logp))))
    return _Softmax(others, 1 / total, top, z_top - lse, log_rest_top, lse, logp, log_rest, is_top)


# -- target, loss, gradient ------------------------------------------------------------------------


class _Target(NamedTuple):
    """The target of n rows: P = q g / Z, with g = 1 but at the entries.

    dense (n, V)       p_ref where the prior is built on it, else None: q = 1/V
    q, g, w (E,)       prior, correction and contrast weight at the entries
    Z (n,)
    """

    dense: Array | None
    q: Array
    g: Array
    w: Array
    Z: Array


def _compare(
    z: Array, z_ref: Array | None, attempts: Array | None, rows: Rows, objective: Objective
) -> tuple[dict[str, Array], _Softmax, _Target]:
    """The softmax of z, the rows' targets, and how far apart the two are."""
    (n, vocab), row = z.shape, rows.entry_row
    T, v = rows.total[row], rows.entry_count  # (E,)
    w = v / T
    values: dict[str, Array] = {}

    # KL(q || p) = sum_j q_j (log q_j - log p_j), first for the uniform q, then for p_ref.
    if objective.prior == "uniform":
        z_mean = z.mean(axis=1, dtype=np.float64)
    if z_ref is not None:
        shift = z_ref - z
    p = _split_softmax(z, rows)
    if objective.prior == "uniform":
        dense, logq = None, np.full(len(row), -np.log(vocab))
        kl_prior = p.lse - z_mean - np.log(vocab)
    if z_ref is not None:
        ref = _split_softmax(z_ref, rows)
        p_ref = ref.dense()
        kl_ref = np.vecdot(p_ref, shift) - ref.lse + p.lse
        values["kl_to_base"] = kl_ref
        if objective.prior != "uniform":
            dense, logq, kl_prior = p_ref, ref.logp, kl_ref
        if objective.contrast == "choice":
            w = w * np.exp(ref.log_rest)

    q = np.exp(logq)
    if attempts is not None:
        a = attempts[row] * q
        g = np.maximum(MIN_RATE, (a - v + 1) / (a + 1))
    else:
        g = (T - v + 1) / (T + 1)
    cut = q * (1 - g)
    Z = 1 - _per_row(cut, row, n)
    P = q * g / Z[row]

    # sum_j P_j (log P_j - log p_j), with log P = log q + log g - log Z.
    kl = (kl_prior - _per_row(cut * (logq - p.logp), row, n)) / Z
    kl += _per_row(P * np.log(g), row, n) - np.log(Z)
    contrast = -_per_row(w * p.log_rest, row, n)
    values["loss"] = objective.alpha * kl + (1 - objective.alpha) * contrast
    values["kl"], values["contrast"] = kl, contrast
    values["rejected_mass"] = _per_row(v / T * np.exp(p.logp), row, n)
    return values, p, _Target(dense, q, g, w, Z)


def _gradient(p: _Softmax, target: _Target, rows: Rows, objective: Objective) -> Array:
    """dz = alpha (p - P) + (1 - alpha) (a - (sum_i a_i) p), a_i = w_i p_i / (1 - p_i); (n, V).

    Written over p, and over what is dense of the target.

    For the top token m, a_m is unbounded as p_m nears 1, but its part of the gradient is not:
    w_m p_m at m, and -w_m p_m r_j elsewhere. So for every j but m, both p_j = r_j (1 - p_m) and
    the contrast's gradient are r_j times a number of the row.
    """
    alpha, row, n = objective.alpha, rows.entry_row, len(p.top)
    odds = np.exp(np.where(p.is_top, -np.inf, p.logp - p.log_rest))
    a = target.w * odds  # of the entries but the top token
    a_sum = _per_row(a, row, n)
    w_top = _per_row(np.where(p.is_top, target.w, 0), row, n)
    p_top, rest = np.exp(p.log_p_top), np.exp(p.log_rest_top)
    dz = p.write(
        rest * (alpha - (1 - alpha) * a_sum) - (1 - alpha) * w_top * p_top,
        p_top * (alpha + (1 - alpha) * (w_top - a_sum)),
    )
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
    p: _Softmax, dense_p: Array, target: _Target, rows: Rows, objective: Objective
) -> tuple[Array, Array]:
    """p* at the entries (E,), and the total variation between p and p*, (n,).

    It is `complement.optimum` from the entries alone.

    Where nothing was rejected p* = alpha P / lambda, one multiple of the prior; only the entries
    need the root, and sum p* = 1 is alpha (1 - sum_e P_e) / lambda + sum_e p*_e = 1.
    """
    alpha, row, n = objective.alpha, rows.entry_row, len(p.top)
    aP = alpha * target.q * target.g / target.Z[row]  # (E,)
    c = (1 - alpha) * target.w
    unrejected = np.maximum(alpha - _per_row(aP, row, n), 0)  # (n,)

    def p_star(lam: Array) -> Array:
        b = lam[row] + c + aP
        return 2 * aP / (b + np.sqrt(np.maximum(b * b - 4 * lam[row] * aP, 0)))

    low, high = np.zeros(n), np.full(n, alpha)  # alpha bounds lambda, see `optimum`
    for _ in range(100):
        lam = (low + high) / 2
        too_much = unrejected / lam + _per_row(p_star(lam), row, n) > 1
        low, high = np.where(too_much, lam, low), np.where(too_much, high, lam)
    factor = alpha / (target.Z * high)  # p* = factor * q where nothing was rejected
    if target.dense is None:
        gap = np.abs(dense_p - (factor / dense_p.shape[1]).astype(dense_p.dtype)[:, None])
    else:
        gap = np.abs(dense_p - factor.astype(dense_p.dtype)[:, None] * target.dense)
    at_entries = p_star(high)
    gap[row, rows.entry_id] = np.abs(np.exp(p.logp) - at_entries)
    return at_entries, gap.sum(axis=1, dtype=np.float64) / 2


def _per_row(values: Array, row: Array, n: int) -> Array:
    """(E,) -> (n,): the sum over each row's entries."""
    return np.bincount(row, values, n)
