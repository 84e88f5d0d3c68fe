"""The complement distribution and its loss, dense: every token of the vocabulary in the open.

This is the loss of the objectives `literal`, `reference` and `rate`, which have a target for each
row; the default, `complement`, counts whole answers (`methods/rejected.py`). Training does not run
this file. It runs `fused.py`, which gives the same numbers from a few entries a row and is tested
against this one. Read this first: it is the formula, line by line.

A row is a context after which some rejected answer goes on. v(i) counts how often token i was
rejected there and T = sum_i v(i). What was not rejected is what we want:

    P(i) = (T - v(i) + 1) / sum_j (T - v(j) + 1)

    row loss = alpha * KL(P || p)  +  (1 - alpha) * contrast
    contrast = - sum_i w(i) log(1 - p(i))         w(i) = v(i) / T

with p the model's distribution. Beside this prior, called uniform, and this contrast, called plain,
there are two more priors and two more contrasts (LESSON.md, step 5):

  prior "reference"   P(i) is proportional to p_ref(i) (T - v(i) + 1), with p_ref the frozen base
                      model's distribution: without rejections the target is the base itself.
  prior "rate"        P(i) is proportional to p_ref(i) max(.05, (m(i) - v(i) + 1) / (m(i) + 1)),
                      with m(i) the expected attempts of token i among the sampled answers: the
                      bracket estimates the share of its attempts that was not rejected.
  contrast "choice"   w(i) = (1 - p_ref(i)) v(i) / T: where the base had no choice, as inside a
                      word, a rejected token is not to blame.
  contrast "ratio"    sum_i w(i) 2 log(1 + p(i) / p_ref(i)), w(i) = v(i) / T: its gradient by
                      log p(i) is w(i) while p(i) = p_ref(i), however small these are.

Arithmetic here is in float64.

Sources: target and alpha of `literal` are those of the model card forkjoin-ai/buleyean-smollm2-360m
on Hugging Face; the plain contrast is Welleck et al. 2019, "Neural Text Generation with
Unlikelihood Training"; the ratio is the loss of Zhang et al. 2024, "Negative Preference
Optimization", at a single token.
"""

from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from minibule.core.arguments import numbers, one_of, rejection_counts, required, share
from minibule.core.objective import MIN_RATE, OBJECTIVES, Contrast, Prior, needed, optimal_p
from minibule.errors import InputError
from minibule.machine.matrix import Array


def complement_distribution(counts: ArrayLike) -> Array:
    """The complement distribution P of rejection counts v.

    Parameters
    ----------
    counts : (..., V) array, each 0 to 1e15
        How often each token was rejected.

    Returns
    -------
    (..., V) float64
        Positive everywhere, sums to 1, and falls where counts rise.

    Raises
    ------
    InputError
        If counts has no axis, an empty last axis, or a negative or non-finite entry.

    Examples
    --------
    >>> complement_distribution([0, 2, 1])  # T = 3: weights 4, 2, 3
    array([0.44444444, 0.22222222, 0.33333333])
    """
    weights = _complement(rejection_counts(counts))
    return weights / weights.sum(axis=-1, keepdims=True)


def _complement(v: Array) -> Array:
    """T - v + 1, for counts v (..., V)."""
    return v.sum(axis=-1, keepdims=True) - v + 1


def target_distribution(
    v: Array, prior: Prior, ref_logits: Array | None = None, attempts: Array | None = None
) -> Array:
    """P (n, V) for any prior: counts v (n, V), and where it needs them ref_logits (n, V), attempts.

    attempts (n,) is max(T, total_rounds * p_ref(prefix)): how many of the sampled answers are
    expected to have come by this row; m(i) = attempts * p_ref(i).
    """
    q, kept = target_factors(v, prior, ref_logits, attempts)
    weights = q * kept
    return weights / weights.sum(axis=-1, keepdims=True)


def target_factors(
    v: Array, prior: Prior, ref_logits: Array | None = None, attempts: Array | None = None
) -> tuple[Array, Array]:
    """The two factors (n, V) whose product P is proportional to; arguments as above.

    The prior is p_ref, or 1 where it is uniform. The other says what the rejections leave of it:
    T - v + 1, or for the rate prior max(.05, (m - v + 1) / (m + 1)).
    """
    kept = _complement(v)
    if prior == "uniform":
        return np.ones_like(kept), kept
    p_ref = np.exp(log_softmax(needed(ref_logits, "ref_logits")))
    if prior == "rate":
        m = needed(attempts, "attempts")[:, None] * p_ref
        kept = np.maximum(MIN_RATE, (m - v + 1) / (m + 1))
    return p_ref, kept


def contrast_weights(v: Array, contrast: Contrast, ref_logits: Array | None = None) -> Array:
    """w (n, V): v/T, times 1 - p_ref for the choice contrast; 0 in a row without rejections."""
    T = v.sum(axis=-1, keepdims=True)
    w = v / np.where(T > 0, T, 1)
    if contrast == "choice":
        w = w * (1 - np.exp(log_softmax(needed(ref_logits, "ref_logits"))))
    return w


def complement_loss(
    logits: ArrayLike,
    counts: ArrayLike,
    alpha: float = OBJECTIVES["literal"].alpha,
    *,
    prior: Prior = OBJECTIVES["literal"].prior,
    contrast: Contrast = OBJECTIVES["literal"].contrast,
    ref_logits: ArrayLike | None = None,
    attempts: ArrayLike | None = None,
) -> tuple[float, Array]:
    """Mean complement loss over n rows, and its gradient.

    Parameters
    ----------
    logits : (n, V), finite, V >= 2
    counts : (n, V), each 0 to 1e15
    alpha : share of KL(P || p), 0 to 1; the contrast's is 1 - alpha
    prior, contrast : see the top of the file; the default is the objective `literal`
    ref_logits : (n, V), the base model's logits in the same contexts, where prior or contrast
        asks for them
    attempts : (n,), for prior "rate" only

    Returns
    -------
    loss : float
    dlogits : (n, V), dtype of `logits` (float64 for whole numbers)
        alpha (p - P) + (1 - alpha) (a - (sum_i a_i) p), over n, with a_i = w_i p_i / (1 - p_i), or
        for the ratio 2 w_i p_i / (p_i + p_ref,i).

    Raises
    ------
    InputError
        If shapes differ, there is no row, a number is not finite or out of its range, prior or
        contrast is none of those, or an input that they need is missing.
    """
    z, v = numbers(logits, "logits"), rejection_counts(counts)
    if z.ndim != 2 or z.shape != v.shape or len(z) == 0 or z.shape[1] < 2:
        raise InputError(
            f"complement_loss: found logits {z.shape} and counts {v.shape}, "
            "expected one shape (n, V) for both, n >= 1, V >= 2."
        )
    share(alpha, "complement_loss: found alpha")
    one_of(prior, "prior", get_args(Prior))
    one_of(contrast, "contrast", get_args(Contrast))
    asks = f"prior {prior!r}" if prior != "uniform" else None
    if contrast != "plain" and asks is None:
        asks = f"contrast {contrast!r}"
    z_ref = required(ref_logits, "ref_logits", asks, v.shape)
    m = required(attempts, "attempts", "prior 'rate'" if prior == "rate" else None, v.shape[:1])
    if m is not None and np.any(m < 0):
        raise InputError(f"attempts: found {m.min():g}, expected numbers from 0 on.")
    parts = loss_parts(z, v, prior, contrast, z_ref, m)
    loss = np.mean(np.sum(alpha * parts.kl + (1 - alpha) * parts.contrast, axis=-1))
    dlogits = (alpha * parts.dkl + (1 - alpha) * parts.dcontrast) / len(z)
    return float(loss), dlogits.astype(z.dtype)


class LossParts(NamedTuple):
    """What the loss of n rows and its gradient are put together from, token by token: all (n, V).

    P, w              target distribution and contrast weights
    logp, log_rest    log p(i) and log(1 - p(i))
    kl, contrast      P(i) log(P(i) / p(i)) and -w(i) log(1 - p(i)), or for the ratio's contrast
                      w(i) 2 log(1 + p(i) / p_ref(i)), which sum to a row's KL and contrast
    a                 dcontrast / dlog p(i): w(i) p(i) / (1 - p(i)), or 2 w(i) p(i) / (p(i) +
                      p_ref(i))
    dkl, dcontrast    the gradients of the two sums with respect to the logits
    """

    P: Array
    w: Array
    logp: Array
    log_rest: Array
    kl: Array
    contrast: Array
    a: Array
    dkl: Array
    dcontrast: Array


def loss_parts(
    z: Array,
    v: Array,
    prior: Prior,
    contrast: Contrast,
    ref_logits: Array | None,
    attempts: Array | None,
) -> LossParts:
    """The parts of `complement_loss`, of whose arguments z and v are (n, V)."""
    P = target_distribution(v, prior, ref_logits, attempts)
    w = contrast_weights(v, contrast, ref_logits)

    logp = log_softmax(z)
    log_rest = log_one_minus_p(z)
    p = np.exp(logp)
    kl = P * (np.log(np.where(P > 0, P, 1)) - logp)  # 0 where p_ref is too small for a float64
    if contrast == "ratio":
        x = logp - log_softmax(needed(ref_logits, "ref_logits"))
        a = 2 * w / (1 + np.exp(-x))
        dcontrast = a - a.sum(axis=-1, keepdims=True) * p
        return LossParts(P, w, logp, log_rest, kl, 2 * w * np.logaddexp(0, x), a, p - P, dcontrast)

    # d/dz_j of -log(1 - p_i) is p_i at j = i and -p_i p_j / (1 - p_i) elsewhere. With the odds
    # o_i = p_i / (1 - p_i) that is o_i ([i=j] - p_j), but at p_i near 1 the odds explode while
    # the gradient stays bounded, so j = i is written out as p_i; and what the top token, alone able
    # to come near 1, does to the others as p_j / (1 - p_top), the softmax of these.
    top = np.arange(z.shape[1]) == z.argmax(axis=-1)[:, None]
    with np.errstate(over="ignore"):
        a = w * np.exp(np.where(w > 0, logp - log_rest, -np.inf))
    below = np.where(top, 0, a)
    others = below.sum(axis=-1, keepdims=True) - below  # sum over i != j of a_i, without the top's
    shares = np.where(top, 0, np.exp(np.minimum(logp - log_rest[top][:, None], 0)))
    pushed = w * p - others * p - (w * p)[top][:, None] * shares
    return LossParts(P, w, logp, log_rest, kl, -w * log_rest, a, p - P, pushed)


def optimum(P: Array, w: Array, alpha: float, p_ref: Array | None = None) -> Array:
    """p*, the distribution that minimises the objective of each row, to machine precision.

    With c_i = (1 - alpha) w_i and lambda the multiplier of sum p = 1, stationarity of
    alpha KL(P || p) + (1 - alpha) contrast is a quadratic in each p_i (`optimal_p`) with one root
    in [0, 1]. It falls as lambda rises, so lambda is found by bisection.

    Parameters
    ----------
    P, w : (n, V) target distribution and contrast weights
    alpha : above 0, at most 1
    p_ref : (n, V) the base model's distribution, for the ratio's contrast, whose rows must have a
        token of weight 0; None: unlikelihood

    Returns
    -------
    (n, V) float64, each row summing to 1
    """
    aP, c = alpha * P, (1 - alpha) * w

    def p_of(lam: Array) -> Array:
        return optimal_p(lam, aP, c, p_ref)

    # Stationarity times p_i, summed over i, says that lambda <= alpha. Any token that was not
    # rejected has lambda = alpha P_i / p_i > 0: the ratio needs one; with unlikelihood all may have
    # been rejected, and then lambda may be negative.
    high = np.full((len(aP), 1), alpha)
    low = high - 1 if p_ref is None else np.zeros_like(high)
    while p_ref is None and np.any(short := p_of(low).sum(axis=-1, keepdims=True) < 1):
        low = np.where(short, 2 * low - 1, low)
    for _ in range(200):  # beyond the last bit of a float64
        middle = (low + high) / 2
        too_much = p_of(middle).sum(axis=-1, keepdims=True) > 1
        low, high = np.where(too_much, middle, low), np.where(too_much, high, middle)
    p = p_of(high)
    return p / p.sum(axis=-1, keepdims=True)


def optimality_gap(
    logits: Array, P: Array, w: Array, alpha: float, p_ref: Array | None = None
) -> Array:
    """Total variation between the model's p and p*, (n,), 0 (optimal) to 1.

    logits, P, w, p_ref: (n, V); alpha above 0, as in `optimum`.
    """
    p = np.exp(log_softmax(logits))
    return np.abs(p - optimum(P, w, alpha, p_ref)).sum(axis=-1) / 2


def log_softmax(z: Array) -> Array:
    """log p(i) = z(i) - logsumexp(z) over the last axis, in float64."""
    z = z.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def log_one_minus_p(z: Array) -> Array:
    """log(1 - p_i) for every i of z (n, V), exact however close p_i comes to 1.

    Only a row's top token can have p > 1/2. For it, 1 - p is what the others have together:
    log(1 - p) = logsumexp(z without i) - logsumexp(z). For the others log1p(-p) is exact.
    """
    logp = log_softmax(z)
    n, top = np.arange(len(z)), z.argmax(axis=-1)
    others = z.astype(np.float64)
    z_top = others[n, top]
    others[n, top] = -np.inf
    highest = others.max(axis=-1, keepdims=True)
    log_others = highest[:, 0] + np.log(np.exp(others - highest).sum(axis=-1))
    p = np.exp(logp)
    p[n, top] = 0  # its log1p is replaced below
    result = np.log1p(-p)
    result[n, top] = -np.logaddexp(0, z_top - log_others)
    return result
