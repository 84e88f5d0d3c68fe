"""Llama, forward and backward: what SmolLM2 computes, and how its LoRA adapters learn.

`forward` turns a packed stream of T tokens into final hidden states, `backward` right under it is
its mirror, read from the bottom up. Both go through `block_forward` and `block_backward`, one
transformer block:

    x = x + o_proj(attention(rope(q_proj(n)), rope(k_proj(n)), v_proj(n)))   n = rms_norm(x)
    x = x + down_proj(swiglu(gate_proj(n), up_proj(n)))                      n = rms_norm(x)

and these through `project` and `project_backward`, a linear layer with or without its adapter.
The vocabulary head is not here: it belongs to the loss, which never forms all its logits at once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minibule.core import ops
from minibule.core.forest import MAX_SEGMENT, Batch
from minibule.core.lora import (
    Adapter,
    lora_linear,
    lora_linear_backward,
    lora_name,
    lowest_layer,
)
from minibule.core.ops import Cache, Segment
from minibule.core.shapes import LlamaConfig, module_name
from minibule.errors import InputError
from minibule.machine.matrix import Array, Matrix

# attend(layer, q, k, v) -> (out, cache): how queries find their keys and values. Training reads
# them from the packed stream, generation from its key-value cache.
Attend = Callable[[int, Array, Array, Array], tuple[Array, Cache]]


@dataclass
class Llama:
    """A model: shapes, weights under their Hugging Face names, and the adapter if it has one.

    Attributes
    ----------
    config : LlamaConfig
    weights : mapping of str to float32 Matrix
        Linear weights are (out, in), those of the norms arrays (D,). Read only: nothing here
        changes them.
    adapter : Adapter or None
        What learns. Without one it is the weights that do.
    """

    config: LlamaConfig
    weights: Mapping[str, Matrix]
    adapter: Adapter | None = None

    @property
    def base(self) -> "Llama":
        """The same weights without the adapter."""
        return dataclasses.replace(self, adapter=None)

    @property
    def head(self) -> Matrix:
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
        (T, vocab_size), the dtype of the weights: float32, or float64 in checks of gradients

        Raises
        ------
        InputError
            If ids is empty, not one-dimensional, not whole numbers, or out of range.
        """
        tokens = check_ids(ids, self.config)
        hidden, _ = forward(self, tokens, *one_sequence(len(tokens)))
        return hidden @ self.head.T


def check_ids(ids: Sequence[int] | Array, config: LlamaConfig) -> Array:
    """`ids` as an integer array, or an InputError that says what is wrong with it."""
    try:
        tokens = np.asarray(ids)
    except ValueError:  # rows of different lengths
        raise InputError("token ids: found sequences of different lengths, expected one.") from None
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
    starts = range(0, length, MAX_SEGMENT)
    stops = (min(start + MAX_SEGMENT, length) for start in starts)
    segments = [Segment(slice(a, b), positions[:b]) for a, b in zip(starts, stops, strict=True)]
    return positions, attend_to(segments)


def attend_to(segments: Sequence[Segment]) -> Attend:
    """Attention within the packed stream itself."""
    return lambda _layer, q, k, v: ops.attention(q, k, v, segments)


def forward_batch(
    model: Llama, batch: Batch, keep: bool = False, recompute: bool = False
) -> tuple[Array, "ForwardCache"]:
    """`forward` of a packed batch: hidden states (R, D) of its rows, and cache."""
    attend = attend_to(batch.segments)
    return forward(model, batch.ids, batch.positions, attend, batch.rows_at, keep, recompute)


# -- the whole model -------------------------------------------------------------------------------


class Pass(NamedTuple):
    """What all blocks of one pass share.

    rotation      cos and sin of RoPE for every token, each (T, 1, hd/2)
    attend        how queries find their keys and values
    wanted (R,)   the tokens whose final hidden states are wanted; None: all T
    """

    model: Llama
    rotation: tuple[Array, Array]
    attend: Attend
    wanted: Array | None

    def wanted_of(self, layer: int) -> Array | None:
        """The tokens whose output of a block is wanted: below the last one, all are looked at."""
        return self.wanted if layer == self.model.config.num_hidden_layers - 1 else None


class ForwardCache(NamedTuple):
    """What `backward` needs of a forward pass, of the layers from the lowest that learns up.

    blocks    layer -> its cache; or, to compute these once more,
    inputs    layer -> what went into it, (T, D)
    """

    run: Pass
    embedding: Cache
    blocks: dict[int, "BlockCache"]
    inputs: dict[int, Array]
    norm: Cache


def forward(
    model: Llama,
    ids: Array,
    positions: Array,
    attend: Attend,
    wanted: Array | None = None,
    keep: bool = False,
    recompute: bool = False,
) -> tuple[Array, ForwardCache]:
    """Final hidden states (R, D) of the `wanted` tokens; of all where it is None.

    Parameters
    ----------
    ids, positions : (T,) int
        Tokens of the stream, and the place of each in its own sequence.
    attend : Attend
    wanted : (R,) int, places in the stream
    keep : bool
        Whether the cache is to serve `backward`. With an adapter only the blocks from its lowest
        layer up are kept: nothing below them learns.
    recompute : bool
        Keep only what goes into each block, and have `backward` compute the block once more: less
        memory, more work, the same numbers. Source: Chen et al. 2016, "Training Deep Nets with
        Sublinear Memory Cost".
    """
    config, weights = model.config, model.weights
    x, embedding = ops.embedding(ids, weights["model.embed_tokens.weight"])  # (T, D)
    rotation = ops.rope_table(positions, config.head_dim, config.rope_theta, x.dtype)
    run = Pass(model, rotation, attend, wanted)
    lowest = lowest_layer(model.adapter.config.modules) if model.adapter else 0
    blocks: dict[int, BlockCache] = {}
    inputs: dict[int, Array] = {}
    for layer in range(config.num_hidden_layers):
        y, block = block_forward(run, layer, x)
        if keep and layer >= lowest:
            if recompute:
                inputs[layer] = x
            else:
                blocks[layer] = block
        x = y
        del y, block  # else they would live on beside the next block's
    hidden, norm = final_norm(model, x)
    return hidden, ForwardCache(run, embedding, blocks, inputs, norm)


def forward_base(cache: ForwardCache) -> Array:
    """Final hidden states (R, D) of the model without its adapter, for the same tokens.

    Up to the lowest layer that learns it is the same model: only the layers from there on are
    computed, from what went into that one.
    """
    run = cache.run._replace(model=cache.run.model.base)
    inputs = cache.inputs | {layer: block.x for layer, block in cache.blocks.items()}
    lowest = min(inputs)
    x = inputs[lowest]
    for layer in range(lowest, run.model.config.num_hidden_layers):
        x = block_forward(run, layer, x)[0]
    return final_norm(run.model, x)[0]


def backward(dhidden: Array, cache: ForwardCache) -> dict[str, Array]:
    """Gradients of every trained array, by name, from dhidden (R, D).

    With an adapter: of its A and B, and of nothing else. Without one: of every weight of the base
    model but the head, which is not part of `forward` (where it is tied, the caller adds its
    share to "model.embed_tokens.weight").
    """
    run, grads = cache.run, dict[str, Array]()
    dx, dw = ops.rms_norm_backward(dhidden, cache.norm)  # (R, D)
    for layer in sorted(cache.blocks | cache.inputs, reverse=True):
        if layer in cache.inputs:
            block = all_but_the_last_product(run, layer, cache.inputs[layer])
        else:
            block = cache.blocks[layer]
        dx = block_backward(run, layer, dx, block, grads)
        del block  # else it would live on beside the next one that is recomputed
    if run.model.adapter is None:
        grads["model.norm.weight"] = dw
        grads["model.embed_tokens.weight"] = ops.embedding_backward(dx, cache.embedding)
    return grads


# -- one block -------------------------------------------------------------------------------------


class BlockCache(NamedTuple):
    """What `block_backward` needs of a block, but for what is quickly worked out again.

    x (T, D)         what went in
    attention        the cache of the attention
    o (R, H * hd)    its output, of the wanted tokens
    mid (R, D)       the stream between the two halves, of the wanted tokens
    gate, up (R, F)  the arguments of SwiGLU
    """

    x: Array
    attention: Cache
    o: Array
    mid: Array
    gate: Array
    up: Array


def block_forward(run: Pass, layer: int, x: Array) -> tuple[Array, BlockCache]:
    """One transformer block: x (T, D) -> (R, D); the equations are at the top of the file."""
    cache = all_but_the_last_product(run, layer, x)
    h, _ = ops.swiglu(cache.gate, cache.up)  # (R, F)
    return cache.mid + project(run.model, layer, "down_proj", h), cache


def all_but_the_last_product(run: Pass, layer: int, x: Array) -> BlockCache:
    """The block up to SwiGLU: all that its backward needs, which leaves out down_proj."""
    model, wanted = run.model, run.wanted_of(layer)
    n, _ = norm(model, layer, "input_layernorm", x)
    q = ops.rope(by_head(model, project(model, layer, "q_proj", n)), *run.rotation)  # (T, H, hd)
    k = ops.rope(by_head(model, project(model, layer, "k_proj", n)), *run.rotation)  # (T, K, hd)
    v = by_head(model, project(model, layer, "v_proj", n))  # (T, K, hd)
    o, attention = run.attend(layer, q, k, v)
    o = flat(o)  # (T, H * hd)
    mid = x
    if wanted is not None:  # from here on each token is by itself
        mid, o = x[wanted], o[wanted]
    mid = mid + project(model, layer, "o_proj", o)  # (R, D)
    n, _ = norm(model, layer, "post_attention_layernorm", mid)
    gate, up = (project(model, layer, name, n) for name in ("gate_proj", "up_proj"))  # (R, F)
    return BlockCache(x, attention, o, mid, gate, up)


def block_backward(
    run: Pass, layer: int, dx: Array, cache: BlockCache, grads: dict[str, Array]
) -> Array:
    """`block_forward` upside down: from dx of its output (R, D) to dx of its input (T, D).

    Adds the gradients of what this block trains to `grads`.
    """
    model, wanted = run.model, run.wanted_of(layer)

    # x = mid + down_proj(swiglu(gate_proj(n), up_proj(n)))
    h, swiglu = ops.swiglu(cache.gate, cache.up)
    n, norm_cache = norm(model, layer, "post_attention_layernorm", cache.mid)
    dh = project_backward(model, layer, "down_proj", dx, h, grads)
    dgate, dup = ops.swiglu_backward(dh, swiglu)
    dn = project_backward(model, layer, "gate_proj", dgate, n, grads)
    dn += project_backward(model, layer, "up_proj", dup, n, grads)
    dx = dx + norm_backward(model, layer, "post_attention_layernorm", dn, norm_cache, grads)

    # mid = x + o_proj(attention(rope(q_proj(n)), rope(k_proj(n)), v_proj(n)))
    n, norm_cache = norm(model, layer, "input_layernorm", cache.x)
    do = project_backward(model, layer, "o_proj", dx, cache.o, grads)
    if wanted is not None:  # the others had no part in the output
        do, dx = (scattered(d, wanted, len(cache.x)) for d in (do, dx))
    dq, dk, dv = ops.attention_backward(by_head(model, do), cache.attention)
    dq, dk = ops.rope_backward(dq, *run.rotation), ops.rope_backward(dk, *run.rotation)
    dn = project_backward(model, layer, "q_proj", flat(dq), n, grads)
    dn += project_backward(model, layer, "k_proj", flat(dk), n, grads)
    dn += project_backward(model, layer, "v_proj", flat(dv), n, grads)
    return dx + norm_backward(model, layer, "input_layernorm", dn, norm_cache, grads)


# -- its parts -------------------------------------------------------------------------------------


def project(model: Llama, layer: int, name: str, x: Array) -> Array:
    """A projection of a block, with its adapter if it has one: x (T, in) -> (T, out)."""
    module = module_name(layer, name)
    W = model.weights[f"{module}.weight"]
    pair = model.adapter.pair(module) if model.adapter else None
    y, _ = lora_linear(x, W, *pair) if pair else ops.linear(x, W)
    return y


def project_backward(
    model: Llama, layer: int, name: str, dy: Array, x: Array, grads: dict[str, Array]
) -> Array:
    """dx of `project`; adds what learns to `grads`: W without an adapter, else A and B, or none."""
    module = module_name(layer, name)
    W = model.weights[f"{module}.weight"]
    if model.adapter is None:
        dx, grads[f"{module}.weight"] = ops.linear_backward(dy, (x, W))
        return dx
    pair = model.adapter.pair(module)
    if pair is None:  # frozen
        return dy @ W
    dx, dA, dB = lora_linear_backward(dy, (x, W, *pair))
    grads[lora_name(module, "A")], grads[lora_name(module, "B")] = dA, dB
    return dx


def final_norm(model: Llama, x: Array) -> tuple[Array, Cache]:
    """The RMSNorm after the last block, (R, D) -> (R, D), and its cache."""
    return ops.rms_norm(x, model.weights["model.norm.weight"][:], model.config.rms_norm_eps)


def norm(model: Llama, layer: int, name: str, x: Array) -> tuple[Array, Cache]:
    """An RMSNorm of a block, (T, D) -> (T, D), and its cache."""
    weight = model.weights[f"model.layers.{layer}.{name}.weight"][:]
    return ops.rms_norm(x, weight, model.config.rms_norm_eps)


def norm_backward(
    model: Llama, layer: int, name: str, dn: Array, cache: Cache, grads: dict[str, Array]
) -> Array:
    """dx of `norm`; adds its weight's gradient to `grads` where there is no adapter."""
    dx, dweight = ops.rms_norm_backward(dn, cache)
    if model.adapter is None:
        grads[f"model.layers.{layer}.{name}.weight"] = dweight
    return dx


def by_head(model: Llama, x: Array) -> Array:
    """(T, heads * hd) -> (T, heads, hd)."""
    return x.reshape(len(x), -1, model.config.head_dim)


def flat(x: Array) -> Array:
    """(T, heads, hd) -> (T, heads * hd)."""
    return x.reshape(len(x), -1)


def scattered(d: Array, places: Array, length: int) -> Array:
    """(R, n) -> (T, n): the rows of d at their places in the stream, zeros elsewhere."""
    full = np.zeros((length, d.shape[1]), d.dtype)
    full[places] = d
    return full
