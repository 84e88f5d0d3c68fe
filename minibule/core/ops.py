"""The layers of Llama as pairs of plain functions: forward, and right under it backward.

Every forward returns `(output, cache)`. Its backward takes `(dout, cache)`, where `dout` is the
gradient of some scalar with respect to the output (same shape), and returns the gradients in the
order of the forward's arguments. (Two are simpler: RoPE needs only cos and sin again, and
cross-entropy, whose output is the loss itself, takes no dout.) A cache is never changed. The dtype
that comes in goes out: the model runs in float32, the gradient checks run the same code in float64.

Letters used for shapes:

    T  tokens of the packed stream       V  vocabulary
    D  hidden_size                       F  intermediate_size
    H  num_attention_heads               K  num_key_value_heads (GQA: H = K * G)
    hd head_dim                          r  LoRA rank
    S  tokens one segment attends to     t  tokens of one segment
    R  rows: positions whose next token counts in the loss; n of them in a chunk
    E  entries: answers' tokens at rows  A  answers of a step

In the formulas of the loss T is the sum of a row's counts, as in LESSON.md.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from minibule.machine.matrix import Array, Matrix

Cache: TypeAlias = Any

# Numbers of an array that the widest element-wise work takes at once: 128 kB of float32.
BLOCK_NUMBERS = 2**15


# -- linear ----------------------------------------------------------------------------------------


def linear(x: Array, W: Matrix) -> tuple[Array, Cache]:
    """y = x W^T, with x (T, in), W (out, in) as Hugging Face stores it, y (T, out)."""
    return x @ W.T, (x, W)


def linear_backward(dy: Array, cache: Cache) -> tuple[Array, Array]:
    """dx = dy W and dW = dy^T x."""
    x, W = cache
    return dy @ W, dy.T @ x


# -- embedding -------------------------------------------------------------------------------------


def embedding(ids: Array, E: Matrix) -> tuple[Array, Cache]:
    """x[t] = E[ids[t]], with ids (T,) integers in [0, V), E (V, D), x (T, D)."""
    return E[ids], (ids, E.shape)


def embedding_backward(dx: Array, cache: Cache) -> Array:
    """dE[i] is the sum of dx[t] over all t with ids[t] = i. (ids have no gradient.)"""
    ids, shape = cache
    dE = np.zeros(shape, dx.dtype)
    np.add.at(dE, ids, dx)  # unlike dE[ids] += dx, this adds up repeated ids
    return dE


# -- RMSNorm ---------------------------------------------------------------------------------------


def rms_norm(x: Array, w: Array, eps: float) -> tuple[Array, Cache]:
    """y = w * x / sqrt(mean(x^2) + eps) over the last axis; x (T, D), w (D,).

    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".
    """
    rstd = 1 / np.sqrt(np.vecdot(x, x)[:, None] / x.shape[-1] + eps)  # (T, 1)
    y = x * rstd
    y *= w
    return y, (x, w, rstd)


def rms_norm_backward(dy: Array, cache: Cache) -> tuple[Array, Array]:
    """With n = x * rstd and g = w * dy:  dx = rstd * (g - n * mean(g * n)),  dw = sum_t dy * n.

    The second term is rstd's own dependence on x: moving x along itself leaves n where it is.
    """
    x, w, rstd = cache
    n = x * rstd
    dw = np.einsum("td,td->d", dy, n)
    g = dy * w
    n *= np.vecdot(g, n)[:, None] / x.shape[-1]
    g -= n
    g *= rstd
    return g, dw


# -- RoPE ------------------------------------------------------------------------------------------


def rope_table(positions: Array, head_dim: int, theta: float, dtype: Any) -> tuple[Array, Array]:
    """cos and sin of position * theta^(-2i/hd), each (T, 1, hd/2); worked out in float64.

    Source: Su et al. 2021, "RoFormer".
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)  # (hd/2,)
    angles = positions[:, None, None] * frequencies  # (T, 1, hd/2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate each pair (x[i], x[i + hd/2]) of a head by +angle; x (T, heads, hd).

    This is Hugging Face's half-split kind. llama.cpp pairs (x[2i], x[2i + 1]) instead, which is
    why the GGUF writer permutes the rows of q_proj and k_proj.
    """
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)


def rope_backward(dy: Array, cos: Array, sin: Array) -> Array:
    """The transpose of a rotation is the rotation by -angle."""
    return rope(dy, cos, -sin)


# -- attention -------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """A run of tokens in the packed stream, and what it may look at.

    tokens: slice   where its t tokens lie in the stream
    keys: (S,) int  positions in the stream of all it attends to: every token of its ancestors,
                    then its own t tokens, the latter causally
    """

    tokens: slice
    keys: Array


def attention(q: Array, k: Array, v: Array, segments: Sequence[Segment]) -> tuple[Array, Cache]:
    """softmax(q k^T / sqrt(hd)) v, segment by segment; q (T, H, hd), k and v (T, K, hd).

    Grouped-query attention: query head h reads key and value head h // G, so the G query heads of
    a group are stacked into one matrix product. The weights are not kept: at (H, t, S) they are
    the largest arrays of the model, and backward works them out again from q, k and the scores'
    logsumexp. Sources: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer
    Models"; Dao et al. 2022, "FlashAttention", for the logsumexp.
    """
    out = np.empty_like(q)  # (T, H, hd)
    kv_heads = k.shape[1]
    lses = []
    for tokens, keys in segments:
        t = tokens.stop - tokens.start
        weights = _scores(_by_group(q[tokens], kv_heads), _by_head(k[keys]), t)
        highest = weights.max(axis=-1, keepdims=True)
        weights -= highest
        np.exp(weights, out=weights)
        total = weights.sum(axis=-1, keepdims=True)  # (K, G*t, 1)
        out[tokens] = _ungroup(weights @ _by_head(v[keys]) / total, t)
        lses.append(highest + np.log(total))
    return out, (q, k, v, out, lses, segments)


def attention_backward(dout: Array, cache: Cache) -> tuple[Array, Array, Array]:
    """With s = q k^T / sqrt(hd) the scores of a segment, w = exp(s - lse) and o = w v:

    dv = w^T do     dw = do v^T     ds = w * (dw - sum_S(w * dw))
    dq = ds k / sqrt(hd)            dk = ds^T q / sqrt(hd)

    The sum over S equals sum_hd(do * o), which is cheaper (Dao et al. 2022, "FlashAttention").
    The gradients of an ancestor's keys and values add up over all segments that read them.
    """
    q, k, v, out, lses, segments = cache
    dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
    kv_heads = k.shape[1]
    for (tokens, keys), lse in zip(segments, lses, strict=True):
        t = tokens.stop - tokens.start
        q_g, k_h, v_h = _by_group(q[tokens], kv_heads), _by_head(k[keys]), _by_head(v[keys])
        do = _by_group(dout[tokens], kv_heads)  # (K, G*t, hd)
        inner = np.sum(do * _by_group(out[tokens], kv_heads), axis=-1, keepdims=True)  # (K, G*t, 1)
        weights = _scores(q_g, k_h, t)  # (K, G*t, S)
        weights -= lse
        np.exp(weights, out=weights)
        ds = do @ v_h.swapaxes(1, 2)  # (K, G*t, S): dw, made ds in place
        ds -= inner
        ds *= weights
        dq[tokens] = _ungroup(ds @ k_h, t)
        # A segment names each key once, so += on the gathered positions is safe.
        dk[keys] += (ds.swapaxes(1, 2) @ q_g).swapaxes(0, 1)  # (S, K, hd)
        dv[keys] += (weights.swapaxes(1, 2) @ do).swapaxes(0, 1)
    scale = _score_scale(q)
    dq *= scale
    dk *= scale
    return dq, dk, dv


def _scores(q: Array, k: Array, t: int) -> Array:
    """Scores (K, G*t, S) of q (K, G*t, hd) and k (K, S, hd), -inf where a token may not look.

    The segment's own t tokens are the last of the S keys; of those, token i sees tokens <= i.
    """
    scores = (q * _score_scale(q)) @ k.swapaxes(1, 2)
    own = scores.reshape(len(q), -1, t, k.shape[1])[..., -t:]  # (K, G, t, t), a view
    own += _causal_mask(t, scores.dtype)
    return scores


def _score_scale(q: Array) -> Any:
    """1 / sqrt(hd), in the dtype of q."""
    return 1 / np.sqrt(q.shape[-1]).astype(q.dtype)


@functools.lru_cache(maxsize=64)
def _causal_mask(t: int, dtype: Any) -> Array:
    """(t, t), -inf where the key comes after the query, else 0."""
    return np.triu(np.full((t, t), -np.inf, dtype), k=1)


def _by_head(x: Array) -> Array:
    """(S, K, hd) -> (K, S, hd)."""
    return x.swapaxes(0, 1)


def _by_group(x: Array, kv_heads: int) -> Array:
    """(t, H, hd) -> (K, G*t, hd): the query heads that share a key head, one under the other."""
    t, _, hd = x.shape
    return x.reshape(t, kv_heads, -1, hd).transpose(1, 2, 0, 3).reshape(kv_heads, -1, hd)


def _ungroup(x: Array, t: int) -> Array:
    """(K, G*t, hd) -> (t, H, hd), the inverse of `_by_group`."""
    kv_heads, _, hd = x.shape
    return x.reshape(kv_heads, -1, t, hd).transpose(2, 0, 1, 3).reshape(t, -1, hd)


# -- SwiGLU ----------------------------------------------------------------------------------------


def swiglu(gate: Array, up: Array) -> tuple[Array, Cache]:
    """h = silu(gate) * up with silu(g) = g * sigmoid(g); all (T, F).

    Source: Shazeer 2020, "GLU Variants Improve Transformer".
    """
    h = np.empty_like(gate)
    for rows in _row_blocks(gate):
        s = sigmoid(gate[rows])
        s *= gate[rows]
        np.multiply(s, up[rows], out=h[rows])
    return h, (gate, up)


def swiglu_backward(dh: Array, cache: Cache) -> tuple[Array, Array]:
    """With s = sigmoid(g) and silu'(g) = s + g s (1 - s) = s + silu(g) - s silu(g):

    dgate = dh up silu'(gate)      dup = dh silu(gate)
    """
    gate, up = cache
    dgate, dup = np.empty_like(gate), np.empty_like(up)
    for rows in _row_blocks(gate):
        s = sigmoid(gate[rows])
        silu = gate[rows] * s
        np.multiply(dh[rows], silu, out=dup[rows])
        slope = s + silu
        s *= silu
        slope -= s
        slope *= up[rows]
        np.multiply(slope, dh[rows], out=dgate[rows])
    return dgate, dup


def _row_blocks(x: Array) -> Iterator[slice]:
    """Slices of rows of x (T, F), small enough that a few such blocks stay in a core's cache."""
    size = max(1, BLOCK_NUMBERS // x.shape[1])
    return (slice(start, start + size) for start in range(0, len(x), size))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), for any x."""
    s = np.negative(x)
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right answer, 0
        np.exp(s, out=s)
    s += 1
    return np.divide(1, s, out=s)


# -- cross-entropy (pretraining) -------------------------------------------------------------------


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Cache]:
    """Mean over R rows of -log softmax(logits)[target]; logits (R, V), targets (R,) integers."""
    z = logits - logits.max(axis=1, keepdims=True)
    logp = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return -float(np.mean(logp[np.arange(len(targets)), targets])), (logp, targets)


def cross_entropy_backward(cache: Cache) -> Array:
    """dlogits = (softmax - onehot(target)) / R."""
    logp, targets = cache
    dlogits = np.exp(logp)
    dlogits[np.arange(len(targets)), targets] -= 1
    dlogits /= len(targets)
    return dlogits
