"""The softmax of a row in two parts, its top token and all the others: log(1 - p) exactly.

    p(m) = exp(z(m) - lse)     1 - p(m) = exp(lse_rest - lse)     p(j) = r(j) (1 - p(m))

with m the row's top token and r the softmax of all the others. log(1 - p(m)) = lse_rest - lse stays
exact when p(m) is 1 to the last bit of float32. Sums over the vocabulary run in the dtype of the
logits, everything of size (n,) or (entries,) in float64.
"""

from typing import NamedTuple

import numpy as np

from minibule.core.counts import RowCounts
from minibule.machine.matrix import Array


class SplitSoftmax(NamedTuple):
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


def split_softmax(z: Array, rows: RowCounts) -> SplitSoftmax:
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
    return SplitSoftmax(
        others, 1 / total, top, z_top - lse, log_rest_top, lse, logp, log_rest, is_top
    )


def per_row(values: Array, row: Array, n: int) -> Array:
    """(E,) -> (n,): the sum over each row's entries."""
    return np.bincount(row, values, n)


def log_probs_backward(dlogp: Array, p: SplitSoftmax, rows: RowCounts) -> Array:
    """dz (n, V) from dlogp (E,), written over p.

    log p(e) = z(e) - logsumexp(z), so dz = sum over the row's entries of dlogp(e) (onehot(e) - p).
    """
    row = rows.entry_row
    dz = p.dense()
    dz *= -per_row(dlogp, row, len(dz)).astype(dz.dtype)[:, None]
    dz[row, rows.entry_id] += dlogp.astype(dz.dtype)  # a row names each token once
    return dz


class Anchor(NamedTuple):
    """What holds n rows to their base: KL(p || q) (n,), and dz (n, V) of so many times that."""

    kl: Array
    dz: Array


def anchor(z: Array, z_held: Array, times: float) -> Anchor:
    """KL(p || q) of each row, and `times` its gradient; p, q of z, z_held (n, V).

    With t = log p - log q:  KL = sum_j p_j t_j,  dKL/dz_j = p_j (t_j - KL).
    """
    t = _log_softmax(z)
    p = np.exp(t)
    t -= _log_softmax(z_held)
    value = np.vecdot(p, t)
    t -= value[:, None]
    t *= p
    t *= times
    return Anchor(value.astype(np.float64), t)


def _log_softmax(z: Array) -> Array:
    """log p (n, V) of logits, in their dtype."""
    z = z - z.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return z
