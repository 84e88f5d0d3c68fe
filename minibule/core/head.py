"""The vocabulary head and whatever stands on it: logits for a chunk of rows at a time.

(R, V) logits would be the largest array of all, so they never exist at once: a chunk of rows goes
through the head, its loss and the loss's gradient, and back through the head, and is forgotten.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from minibule.core.counts import RowCounts, expected_attempts
from minibule.core.fused import row_metrics
from minibule.core.loss import Loss, RowLoss, Values
from minibule.core.objective import Objective
from minibule.core.softmax import Anchor, anchor, log_probs_backward, split_softmax
from minibule.machine.matrix import Array, Matrix

# Logits computed at once by a thread: 2^24 float32 are 64 MB. With fewer rows at a time the matrix
# product is slow, because all of the head passes through the processor for each chunk.
CHUNK_LOGITS = 2**24


def head_loss(
    hidden: Array,
    head: Matrix,
    rows: RowCounts,
    loss: RowLoss,
    ref_hidden: Array | None = None,
    *,
    total_rows: float,
) -> tuple[dict[str, float], Array]:
    """The loss of all rows, and its gradient with respect to their hidden states.

    Parameters
    ----------
    hidden : (R, D), final hidden states of the rows
    head : (V, D)
    rows : RowCounts
    loss : RowLoss
    ref_hidden : (R, D)
        The base model's hidden states, where the loss needs them.
    total_rows : float
        What the sums over rows are divided by: the weight of all rows of the whole step, so that
        the metrics and gradients of its passes simply add up.

    Returns
    -------
    metrics : dict of str to float
        These rows' share of each metric: sum over rows of weight * value / total_rows.
    dhidden : (R, D)
    """
    dhidden = np.empty_like(hidden)
    metrics: dict[str, float] = {}
    for c in _chunks(hidden, head, rows, ref_hidden, loss.needs_attempts):
        values, dz = anchored(loss, c.z, c.z_ref, c.rows)  # (n,) each, (n, V)
        share = c.rows.weight / total_rows
        dhidden[c.where] = (dz @ head) * share.astype(dz.dtype)[:, None]
        _add_shares(metrics, share, values)
    return metrics, dhidden


def anchored(loss: RowLoss, z: Array, z_ref: Array | None, rows: RowCounts) -> tuple[Values, Array]:
    """`loss.of_rows` with the anchor added to "loss" and to dz; z, z_ref are overwritten."""
    held = _held(z, z_ref, loss.kl)
    values, dz = loss.of_rows(z, z_ref if loss.needs_reference else None, rows)
    if held:
        values["anchor"] = held.kl
        values["loss"] = values["loss"] + loss.kl * held.kl
        dz += held.dz
    return values, dz


def _held(z: Array, z_ref: Array | None, kl: float) -> Anchor | None:
    """The anchor, of a loss that has one. To be asked first: the loss itself overwrites z."""
    return anchor(z, z_ref, kl) if kl and z_ref is not None else None


def head_metrics(
    hidden: Array,
    head: Matrix,
    rows: RowCounts,
    objective: Objective,
    ref_hidden: Array,
    loss: Loss | None = None,
    *,
    total_rows: float,
) -> dict[str, float]:
    """What an evaluation reports: `fused.row_metrics`, and over it what `loss` says itself.

    Of a loss of answers, that is only its anchor. hidden, ref_hidden: (R, D), the model's and its
    base's; the other arguments are those of `head_loss`.
    """
    metrics: dict[str, float] = {}
    for c in _chunks(hidden, head, rows, ref_hidden, objective.prior == "rate"):
        own: Values = {}
        if isinstance(loss, RowLoss) and c.z_ref is not None:
            own, _ = anchored(loss, c.z.copy(), c.z_ref.copy(), c.rows)
        elif loss:
            own["loss"] = np.zeros(len(c.z))
            if held := _held(c.z, c.z_ref, loss.kl):
                own["anchor"] = held.kl
                own["loss"] += loss.kl * held.kl
        values = row_metrics(c.z, c.z_ref, c.rows, objective) | own
        _add_shares(metrics, c.rows.weight / total_rows, values)
    return metrics


def entropy_and_kl(
    hidden: Array, head: Matrix, rows: RowCounts, ref_hidden: Array, *, total_rows: float
) -> dict[str, float]:
    """These rows' share of the means of the entropy of p and of KL(p || p_ref), in nats.

    hidden, ref_hidden (R, D): of the model and of its base; `total_rows` as in `head_loss`.
    """
    metrics: dict[str, float] = {}
    both = zip(_chunks(hidden, head, rows), _chunks(ref_hidden, head, rows), strict=True)
    for c, ref in both:
        kl = anchor(c.z, ref.z, 0.0).kl
        z = c.z.copy()
        p = split_softmax(c.z, c.rows)
        values = {"entropy": p.lse - np.vecdot(p.dense(), z), "kl": kl}
        _add_shares(metrics, c.rows.weight / total_rows, values)
    return metrics


def entry_log_probs(hidden: Array, head: Matrix, rows: RowCounts) -> Array:
    """log p of every entry's token in its row, (E,) float64."""
    chunks = _chunks(hidden, head, rows)
    return np.concatenate([split_softmax(c.z, c.rows).logp for c in chunks])


def entry_log_probs_backward(
    dlogp: Array,
    hidden: Array,
    head: Matrix,
    rows: RowCounts,
    kl: float = 0.0,
    ref_hidden: Array | None = None,
    *,
    total_rows: float = 1.0,
) -> tuple[dict[str, float], Array, Array]:
    """From dlogp (E,) to dhidden (R, D), the logits worked out once more.

    Returns metrics, dhidden, and log p of the entries (E,). With kl, which needs ref_hidden (R, D),
    the loss has kl times the mean KL(p || p_ref) added: the metrics are these rows' share of it,
    `total_rows` as in `head_loss`.
    """
    dhidden, logp = np.empty_like(hidden), np.empty(len(dlogp))
    metrics: dict[str, float] = {}
    for c in _chunks(hidden, head, rows, ref_hidden):
        held = _held(c.z, c.z_ref, kl)
        p = split_softmax(c.z, c.rows)
        entries = rows.entries(c.where)
        logp[entries] = p.logp
        dz = log_probs_backward(dlogp[entries], p, c.rows)
        if held:
            share = c.rows.weight / total_rows
            dz += held.dz * share.astype(dz.dtype)[:, None]
            _add_shares(metrics, share, {"loss": kl * held.kl, "anchor": held.kl})
        dhidden[c.where] = dz @ head
    return metrics, dhidden, logp


def add_metrics(total: dict[str, float], more: Mapping[str, float]) -> None:
    """Add the shares of more rows, in place."""
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value


def summed(shares: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The shares of metrics, added up."""
    total: dict[str, float] = {}
    for share in shares:
        add_metrics(total, share)
    return total


def _add_shares(metrics: dict[str, float], share: Array, values: Mapping[str, Array]) -> None:
    add_metrics(metrics, {name: float(share @ value) for name, value in values.items()})


class _Chunk(NamedTuple):
    """n rows: where they stand, what they count, their logits and those of the base (n, V)."""

    where: slice
    rows: RowCounts
    z: Array
    z_ref: Array | None


def _chunks(
    hidden: Array,
    head: Matrix,
    rows: RowCounts,
    ref_hidden: Array | None = None,
    needs_attempts: bool = False,
) -> Iterator[_Chunk]:
    """Cut the rows so that a chunk's logits number about CHUNK_LOGITS."""
    ref_logp = np.empty(0)  # log p_ref of the entries so far
    chunks = math.ceil(len(hidden) * len(head) / CHUNK_LOGITS)
    size = math.ceil(len(hidden) / chunks)
    for start in range(0, len(rows.weight), size):
        chunk = slice(start, start + size)
        part = rows.part(chunk)
        z_ref = None if ref_hidden is None else ref_hidden[chunk] @ head.T
        if needs_attempts and z_ref is not None:
            ref_logp = np.append(ref_logp, split_softmax(z_ref.copy(), part).logp)
            so_far = rows.part(slice(start + size))  # what stands before a row decides
            part = part._replace(attempts=expected_attempts(so_far, ref_logp)[chunk])
        yield _Chunk(chunk, part, hidden[chunk] @ head.T, z_ref)
