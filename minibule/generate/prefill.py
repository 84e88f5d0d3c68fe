"""Prompts into keys and values, and the logits after each."""

import itertools
import math
from collections.abc import Sequence
from threading import Event

import numpy as np

from minibule.core import llama
from minibule.core.llama import Llama
from minibule.core.ops import Cache, Segment, attention
from minibule.machine.matrix import Array
from minibule.machine.threads import side_by_side, threads

# Tokens of one pass: fewer would read the weights too often, more would need more memory.
LEAST_TOKENS, MOST_TOKENS = 32, 512


def prefill(model: Llama, prompts: Sequence[Array]) -> tuple[Array, list[tuple[Array, Array]]]:
    """Logits after each prompt (prompts, V); keys and values of all N tokens, a pair a layer.

    Each of these (N, K, hd). The prompts stand one behind the other in a stream, which is cut into
    chunks of about equal length: threads take them in turn, and a long prompt never computes all
    its attention weights at once. A chunk that begins inside a prompt waits, layer by layer, for
    the keys and values of the chunk before it.
    """
    ids = np.concatenate(prompts)
    lengths = np.array([len(prompt) for prompt in prompts])
    starts, ends = lengths.cumsum() - lengths, lengths.cumsum()
    layers, N = model.config.num_hidden_layers, len(ids)
    shape = (N, model.config.num_key_value_heads, model.config.head_dim)  # (N, K, hd)
    dtype = model.head.dtype
    streams = [(np.empty(shape, dtype), np.empty(shape, dtype)) for _ in range(layers)]
    cuts = np.linspace(0, N, min(N, _chunks(N)) + 1).astype(int).tolist()
    written = {(stop, layer): Event() for stop in cuts for layer in range(layers)}

    def one_chunk(chunk: slice) -> Array:
        inside = [
            (start, max(start, chunk.start), min(end, chunk.stop))
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            if start < chunk.stop and end > chunk.start
        ]
        segments = [
            Segment(slice(low - chunk.start, high - chunk.start), np.arange(start, high))
            for start, low, high in inside
        ]
        begins_inside = inside[0][0] < chunk.start

        def attend(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
            keys, values = streams[layer]
            keys[chunk], values[chunk] = k, v
            if begins_inside:
                written[chunk.start, layer].wait()
            written[chunk.stop, layer].set()
            return attention(q, keys, values, segments)

        last = ends[(ends > chunk.start) & (ends <= chunk.stop)] - 1
        positions = np.concatenate([np.arange(low, high) - start for start, low, high in inside])
        try:
            wanted = last - chunk.start
            hidden, _ = llama.forward(model, ids[chunk], positions, attend, wanted=wanted)
        finally:  # an error here must not leave the next chunk waiting
            for layer in range(layers):
                written[chunk.stop, layer].set()
        return hidden

    chunks = [slice(low, high) for low, high in itertools.pairwise(cuts)]
    hidden = np.concatenate(list(side_by_side(one_chunk, chunks)))  # (prompts, D)
    return hidden @ model.head.T, streams


def _chunks(tokens: int) -> int:
    """How many chunks a stream is cut into: a multiple of the threads, unless it is short."""
    number = threads()
    if tokens < LEAST_TOKENS * number:
        return 1
    return number * math.ceil(tokens / (MOST_TOKENS * number))
