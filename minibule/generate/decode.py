"""Answer prompts: prefill, then one token at a time from a key-value cache.

    python -m minibule.generate --model DIR --prompt "hello"

The prompts are prefilled in packed chunks, one a thread, each prompt computed once however many
samples it gets. After that every step computes one token of every sequence that has not ended.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from threading import Event

import numpy as np

from minibule.core import llama
from minibule.core.llama import Llama
from minibule.core.ops import Cache, Segment, attention
from minibule.errors import InputError
from minibule.generate.cache import KeyValueCache
from minibule.generate.sampling import Sampling, choose
from minibule.machine.matrix import Array, for_few_rows
from minibule.machine.ranks import world
from minibule.machine.threads import side_by_side, threads
from minibule.text.chat import Chat

# Prompt tokens of one pass: fewer would read the weights too often, more would need more memory.
LEAST_TOKENS, MOST_TOKENS = 32, 512


@np.errstate(all="ignore")  # what comes of too large numbers is looked at
def generate(
    model: Llama,
    prompts: Sequence[Array],
    *,
    stop: frozenset[int],
    max_new_tokens: int,
    sampling: Sampling,
    samples: int = 1,
    first: int = 0,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[list[int]]]:
    """Continue each prompt `samples` times.

    Parameters
    ----------
    prompts : token ids, each (P,) with P >= 1
    stop : tokens that end a sequence; they are not part of the answer
    max_new_tokens : at most so many tokens of each answer
    first : the number of the first sample; which draws one gets depends on the seed, the prompt and
        its number
    on_token : called with (sequence, token) as each token of sequence = prompt * samples + sample
        is chosen

    Returns
    -------
    answers[prompt][sample] : list of token ids

    Raises
    ------
    InputError
        If a prompt and max_new_tokens exceed the model's context.
    """
    longest = max(len(llama.check_ids(prompt, model.config)) for prompt in prompts)
    context = model.config.max_position_embeddings
    if longest + max_new_tokens > context:
        raise InputError(
            f"prompt of {longest:,} tokens: with {max_new_tokens:,} new ones it exceeds the "
            f"model's context of {context:,}. Shorten it, or ask for fewer new tokens."
        )
    logits, cache = _prefill(model, prompts, samples, max_new_tokens)
    few = {name: for_few_rows(W) for name, W in model.weights.items()}
    model = dataclasses.replace(model, weights=few)
    sequences = np.arange(len(prompts) * samples)  # those still running
    # The draws depend on the prompt too: the same ones for all would make their answers alike.
    draws = [
        np.random.default_rng([sampling.seed, sample, *prompt.tolist()])
        for prompt in prompts
        for sample in range(first, first + samples)
    ]
    answers: list[list[int]] = [[] for _ in sequences]
    for position in range(max_new_tokens):
        if not np.isfinite(logits).all():
            raise InputError(
                "the model's numbers exceed float32: its weights, or its adapter's, are too large."
            )
        u = np.array([draws[i].random() for i in sequences])
        tokens = choose(logits, sampling, u)
        running = np.array([token not in stop for token in tokens])
        for sequence, token in zip(sequences[running], tokens[running], strict=True):
            answers[sequence].append(int(token))
            if on_token:
                on_token(int(sequence), int(token))
        if not running.any() or position + 1 == max_new_tokens:
            break
        order = cache.keep(running)
        sequences, tokens = sequences[order], tokens[order]
        logits = _decode(model, tokens, cache)
    return [answers[i : i + samples] for i in range(0, len(answers), samples)]


def _prefill(
    model: Llama, prompts: Sequence[Array], samples: int, room: int
) -> tuple[Array, KeyValueCache]:
    """Logits after each prompt (B, V), and the cache of all B = prompts * samples sequences.

    The prompts stand one behind the other in a stream of N tokens, which is cut into chunks of
    about equal length: threads take them in turn, and a long prompt never computes all its
    attention weights at once. A chunk that begins inside a prompt waits, layer by layer, for the
    keys and values of the chunk before it.
    """
    ids = np.concatenate(prompts)
    lengths = np.array([len(prompt) for prompt in prompts])
    starts, ends = lengths.cumsum() - lengths, lengths.cumsum()
    layers, N = model.config.num_hidden_layers, len(ids)
    shape = (N, model.config.num_key_value_heads, model.config.head_dim)  # (N, K, hd)
    keys, values = ([np.empty(shape, model.head.dtype) for _ in range(layers)] for _ in "kv")
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
            keys[layer][chunk], values[layer][chunk] = k, v
            if begins_inside:
                written[chunk.start, layer].wait()
            written[chunk.stop, layer].set()
            return attention(q, keys[layer], values[layer], segments)

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

    cache = KeyValueCache(lengths.repeat(samples))
    for streams, kept in ((keys, cache.keys), (values, cache.values)):
        for layer in range(layers):
            kept.append(_one_each(streams[layer], lengths, samples, int(lengths.max()) + room))
            streams[layer] = streams[layer][:0].copy()  # its memory is not needed twice
    return (hidden @ model.head.T).repeat(samples, axis=0), cache  # (B, V)


def _one_each(stream: Array, lengths: Array, samples: int, places: int) -> Array:
    """Keys or values of the prompts, (N, K, hd) one behind the other, each for every sample of its.

    Returns (B, K, places, hd): those of a sequence first, then zeros.
    """
    _, K, hd = stream.shape
    padded = np.zeros((len(lengths) * samples, K, places, hd), stream.dtype)
    ends = lengths.cumsum()
    for i, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        a_prompt = padded[i * samples : (i + 1) * samples, :, :length]  # (samples, K, length, hd)
        a_prompt[...] = stream[end - length : end].swapaxes(0, 1)
    return padded


def _chunks(tokens: int) -> int:
    """How many chunks a stream is cut into: a multiple of the threads, unless it is short."""
    number = threads()
    if tokens < LEAST_TOKENS * number:
        return 1
    return number * math.ceil(tokens / (MOST_TOKENS * number))


def _decode(model: Llama, tokens: Array, cache: KeyValueCache) -> Array:
    """Logits (B, V) after one more token of each sequence."""
    hidden, _ = llama.forward(model, tokens, cache.lengths, cache.next_token())
    cache.lengths = cache.lengths + 1
    return hidden @ model.head.T


def answer(model: Llama, chat: Chat, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """The greedy answer to each prompt (one user turn each)."""

    def texts(prompts: Sequence[str]) -> list[str]:
        answers = generate(
            model,
            [chat.encode_prompt(prompt) for prompt in prompts],
            stop=chat.stop,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(),
        )
        return [chat.decode(samples[0]) for samples in answers]

    return world().map(texts, prompts)
