"""Llama, forward and backward: what SmolLM2 computes, and how its LoRA adapters learn.

`forward` turns a packed stream of T tokens into final hidden states, `backward` right under it is
its mirror, read from the bottom up. Both go through `block_forward` and `block_backward`, one
transformer block:

    x = x + o_proj(attention(rope(q_proj(n)), rope(k_proj(n)), v_proj(n)))   n = rms_norm(x)
    x = x + down_proj(swiglu(gate_proj(n), up_proj(n)))                      n = rms_norm(x)

The vocabulary head is not here: it belongs to the loss, which never forms all its logits at once.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minibule.core import ops
from minibule.core.forest import Batch
from minibule.core.lora import Adapter, lora_linear, lora_linear_backward, lora_name, lowest_layer
from minibule.core.ops import Cache, Segment
from minibule.core.shapes import LlamaConfig, module_name
from minibule.errors import InputError
from minibule.machine.matrix import Array

# attend(layer, q, k, v) -> (out, cache): how queries find their keys and values. Training reads
# them from the packed stream, generation from its key-value cache.
Attend = Callable[[int, Array, Array, Array], tuple[Array, Cache]]


@dataclass
class Llama:
    """A model: shapes, weights under their Hugging Face names, and the adapter if it has one.

    Attributes
    ----------
    config : LlamaConfig
    weights : dict of str to float32 array
        Linear weights are (out, in). Read only: nothing here changes them. A large one may be a
        `narrow.Narrow` that stands for its array.
    adapter : Adapter or None
    """

    config: LlamaConfig
    weights: dict[str, Array]
    adapter: Adapter | None = None

    @property
    def head(self) -> Array:
        """The vocabulary head (V, D): the embedding again, where the two are tied."""
        tied = self.config.tie_word_embeddings
        return self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]

    def logits(self, ids: Sequence[int] | Array) -> Array:
        """Next-token logits after every position of one sequence.

        Parameters
        ----------
        ids : (T,) integers in [0, vocab_size), T >= 1

        Returns
        -------
        (T, vocab_size) float32

        Raises
        ------
        InputError
            If ids is empty, not one-dimensional, not whole numbers, or out of range.
        """
        tokens = check_ids(ids, self.config)
        hidden, _ = forward(self, tokens, *one_sequence(len(tokens)), adapter=self.adapter)
        return hidden @ self.head.T


def check_ids(ids: Sequence[int] | Array, config: LlamaConfig) -> Array:
    """`ids` as an integer array, or an InputError that says what is wrong with it."""
    tokens = np.asarray(ids)
    if tokens.ndim != 1 or tokens.size == 0 or tokens.dtype.kind not in "iu":
        raise InputError(
            f"token ids: found shape {tokens.shape} of {tokens.dtype}, "
            "expected one sequence of at least one whole number."
        )
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise InputError(
            f"token ids: found {tokens.min()} to {tokens.max()}, "
            f"expected 0 to {config.vocab_size - 1} (vocab_size - 1)."
        )
    return tokens


def one_sequence(length: int) -> tuple[Array, Attend]:
    """Positions and attention of a single sequence, for `forward`."""
    positions = np.arange(length)
    return positions, attend_to([Segment(slice(0, length), positions)])


def attend_to(segments: Sequence[Segment]) -> Attend:
    """Attention within the packed stream itself."""
    return lambda _layer, q, k, v: ops.attention(q, k, v, segments)


def forward_batch(
    model: Llama,
    batch: Batch,
    adapter: Adapter | None,
    keep: bool = False,
    recompute: bool = False,
) -> tuple[Array, "ForwardCache"]:
    """`forward` on the rows of a packed batch: hidden states (R, D) and cache."""
    return forward(
        model,
        batch.ids,
        batch.positions,
        attend_to(batch.segments),
        adapter=adapter,
        rows=batch.stream,
        keep=keep,
        recompute=recompute,
    )


# -- the whole model -------------------------------------------------------------------------------


class ForwardCache(NamedTuple):
    """What `backward` needs of a forward pass: the blocks from `first` up, and the final norm."""

    model: Llama
    adapter: Adapter | None
    embedding: Cache
    first: int
    blocks: list[Cache | Callable[[], tuple[Array, Cache]]]
    norm: Cache


def forward(
    model: Llama,
    ids: Array,
    positions: Array,
    attend: Attend,
    *,
    adapter: Adapter | None,
    rows: Array | None = None,
    keep: bool = False,
    recompute: bool = False,
) -> tuple[Array, ForwardCache]:
    """Final hidden states (R, D) of the stream's `rows`; of all its tokens where rows is None.

    Parameters
    ----------
    ids, positions : (T,) integers
        Tokens, and the place of each in its own sequence.
    attend : Attend
    adapter : Adapter or None
        None computes the frozen base model.
    rows : (R,) integers in [0, T), each at most once
    keep : bool
        Whether the cache is to serve `backward`. With an adapter only the blocks from its lowest
        layer up are kept: nothing below them learns.
    recompute : bool
        Keep little more than what goes into each block, and have `backward` compute the block once
        more: less memory, more work, the same numbers. Source: Chen et al. 2016, "Training Deep
        Nets with Sublinear Memory Cost".
    """
    config, weights = model.config, model.weights
    x, embedding_cache = ops.embedding(ids, weights["model.embed_tokens.weight"])  # (T, D)
    rotation = ops.rope_table(positions, config.head_dim, config.rope_theta, x.dtype)
    first = lowest_layer(adapter.config.modules) if adapter else 0
    blocks: list[Cache | Callable[[], tuple[Array, Cache]]] = []
    last = config.num_hidden_layers - 1
    for layer in range(config.num_hidden_layers):
        wanted = rows if layer == last else None
        block = functools.partial(block_forward, x, layer, model, adapter, rotation, attend, wanted)
        x, block_cache = block()
        if keep and layer >= first:
            down = block_cache.projections["down_proj"]
            blocks.append(functools.partial(block, down=down) if recompute else block_cache)
        del block, block_cache  # else they would live on beside the next block's
    hidden, norm_cache = ops.rms_norm(x, weights["model.norm.weight"], config.rms_norm_eps)
    return hidden, ForwardCache(model, adapter, embedding_cache, first, blocks, norm_cache)


def backward(dhidden: Array, cache: ForwardCache) -> dict[str, Array]:
    """Gradients of every trained array, by name, from dhidden (R, D).

    With an adapter: of its A and B, and of nothing else. Without one: of every weight of the base
    model but the head, which is not part of `forward` (where it is tied, the caller adds its
    share to "model.embed_tokens.weight").
    """
    grads: dict[str, Array] = {}
    dx, dw = ops.rms_norm_backward(dhidden, cache.norm)  # (R, D)
    for block in reversed(cache.blocks):
        _, block_cache = block() if callable(block) else (None, block)
        dx = block_backward(dx, block_cache, grads)
    if cache.adapter is None:
        grads["model.norm.weight"] = dw
        grads["model.embed_tokens.weight"] = ops.embedding_backward(dx, cache.embedding)
    return grads


# -- one block -------------------------------------------------------------------------------------


class BlockCache(NamedTuple):
    """What `block_backward` needs of a block, but for what is quickly worked out again.

    rows          of which tokens the block's output is wanted; None: of all
    norms         the arguments of the two RMSNorms: (x, w, eps)
    projections   name -> the cache of its linear layer without the layer's input
    attention     the cache of the attention
    gate, up      the arguments of SwiGLU
    """

    layer: int
    trains_base: bool
    rotation: tuple[Array, Array]
    rows: Array | None
    norms: tuple[Cache, Cache]
    projections: Mapping[str, Cache]
    attention: Cache
    gate: Array
    up: Array


def block_forward(
    x: Array,
    layer: int,
    model: Llama,
    adapter: Adapter | None,
    rotation: tuple[Array, Array],
    attend: Attend,
    rows: Array | None = None,
    down: Cache | None = None,
) -> tuple[Array, BlockCache]:
    """One transformer block on the stream x (T, D); the equations are at the top of the file.

    rows: (R,), the tokens whose output (R, D) is wanted, in the last block: the others are only
    looked at, as keys and values.

    down: what an earlier call has cached of down_proj. The block's output is known then, and the
    call is for the cache alone: it leaves out that last product, and returns x without it.
    """
    config, weights = model.config, model.weights
    prefix = f"model.layers.{layer}."
    caches: dict[str, Cache] = {}

    def project(x: Array, name: str) -> Array:
        module = module_name(layer, name)
        pair = adapter.pair(module) if adapter else None
        W = weights[f"{module}.weight"]
        y, (_, *caches[name]) = lora_linear(x, W, *pair) if pair else ops.linear(x, W)
        return y

    def heads(x: Array) -> Array:
        return x.reshape(len(x), -1, config.head_dim)  # (T, heads * hd) -> (T, heads, hd)

    norm1 = (x, weights[prefix + "input_layernorm.weight"], config.rms_norm_eps)
    n, _ = ops.rms_norm(*norm1)
    q = ops.rope(heads(project(n, "q_proj")), *rotation)  # (T, H, hd)
    k = ops.rope(heads(project(n, "k_proj")), *rotation)  # (T, K, hd)
    v = heads(project(n, "v_proj"))  # (T, K, hd)
    o, attention = attend(layer, q, k, v)
    o = o.reshape(len(x), -1)
    if rows is not None:
        x, o = x[rows], o[rows]  # from here on each token is by itself
    x = x + project(o, "o_proj")

    norm2 = (x, weights[prefix + "post_attention_layernorm.weight"], config.rms_norm_eps)
    n, _ = ops.rms_norm(*norm2)
    gate, up = project(n, "gate_proj"), project(n, "up_proj")  # (T, F)
    if down is None:
        a, _ = ops.swiglu(gate, up)
        x = x + project(a, "down_proj")
    else:
        caches["down_proj"] = down
    return x, BlockCache(
        layer, adapter is None, rotation, rows, (norm1, norm2), caches, attention, gate, up
    )


def block_backward(dx: Array, cache: BlockCache, grads: dict[str, Array]) -> Array:
    """`block_forward` upside down: from dx of its output (R, D) to dx of its input (T, D).

    Adds the gradients of what this block trains to `grads`.
    """

    def project_backward(dy: Array, x: Array, name: str) -> Array:
        module = module_name(cache.layer, name)
        saved = (x, *cache.projections[name])
        if cache.trains_base:
            dx, grads[f"{module}.weight"] = ops.linear_backward(dy, saved)
            return dx
        if len(saved) == 2:  # a frozen linear layer without an adapter: (x, W)
            _, W = saved
            return dy @ W
        dx, grads[lora_name(module, "A")], grads[lora_name(module, "B")] = lora_linear_backward(
            dy, saved
        )
        return dx

    def norm_backward(dn: Array, norm: Cache, name: str) -> Array:
        dx, dw = ops.rms_norm_backward(dn, norm)
        if cache.trains_base:
            grads[f"model.layers.{cache.layer}.{name}.weight"] = dw
        return dx

    def scattered(d: Array) -> Array:
        full = np.zeros((len(cache.attention[0]), d.shape[1]), d.dtype)
        full[cache.rows] = d
        return full  # (R, ...) -> (T, ...): what was not wanted has no gradient

    def flat(x: Array) -> Array:
        return x.reshape(len(x), -1)  # (T, heads, hd) -> (T, heads * hd)

    # x = x + down_proj(swiglu(gate_proj(n), up_proj(n)))
    a, swiglu = ops.swiglu(cache.gate, cache.up)
    n, norm = ops.rms_norm(*cache.norms[1])
    dgate, dup = ops.swiglu_backward(project_backward(dx, a, "down_proj"), swiglu)
    dn = project_backward(dgate, n, "gate_proj")
    dn += project_backward(dup, n, "up_proj")
    dx = dx + norm_backward(dn, norm, "post_attention_layernorm")

    # x = x + o_proj(attention(rope(q_proj(n)), rope(k_proj(n)), v_proj(n)))
    q, _, _, o, *_ = cache.attention
    n, norm = ops.rms_norm(*cache.norms[0])
    if cache.rows is None:
        do = project_backward(dx, flat(o), "o_proj")
    else:
        do = scattered(project_backward(dx, flat(o)[cache.rows], "o_proj"))
        dx = scattered(dx)
    dq, dk, dv = ops.attention_backward(do.reshape(q.shape), cache.attention)
    dq, dk = ops.rope_backward(dq, *cache.rotation), ops.rope_backward(dk, *cache.rotation)
    dn = project_backward(flat(dq), n, "q_proj")
    dn += project_backward(flat(dk), n, "k_proj")
    dn += project_backward(flat(dv), n, "v_proj")
    return dx + norm_backward(dn, norm, "input_layernorm")
