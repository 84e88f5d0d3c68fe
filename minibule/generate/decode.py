"""Answer prompts: prefill, then one token at a time from a key-value cache.

    python -m minibule.generate --model DIR --prompt "hello"

The prompts are prefilled in packed chunks, one a thread, each prompt computed once however many
samples it gets. After that every step computes one token of every sequence that has not ended.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from threading import Event
from typing import NamedTuple

import numpy as np

from minibule.config import embedded_folder
from minibule.core import llama
from minibule.core.llama import Attend, Llama
from minibule.core.ops import Array, Cache, Segment, attention, times_transposed
from minibule.errors import InputError, run
from minibule.machine.threads import side_by_side, threads
from minibule.models.load import load_model
from minibule.text.chat import Chat, load_chat

# Prompt tokens of one pass: fewer would read the weights too often, more would need more memory.
LEAST_TOKENS, MOST_TOKENS = 32, 512


class Sampling(NamedTuple):
    """How the next token is chosen.

    temperature   0 takes the likeliest token (greedy); 1 samples from the model itself
    top_k         sample among the k likeliest tokens only; 0 = all
    top_p         sample among the likeliest tokens that together have this probability
    seed          the draw; the same seed and prompt give the same answer
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def generate(
    model: Llama,
    prompts: Sequence[Array],
    *,
    stop: frozenset[int],
    max_new_tokens: int,
    sampling: Sampling,
    samples: int = 1,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[list[int]]]:
    """Continue each prompt `samples` times.

    Parameters
    ----------
    prompts : token ids, each (P,) with P >= 1
    stop : tokens that end a sequence; they are not part of the answer
    max_new_tokens : at most so many tokens of each answer
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
    sequences = np.arange(len(prompts) * samples)  # those still running
    # The draws depend on the prompt too: the same ones for all would make their answers alike.
    draws = [
        np.random.default_rng([sampling.seed, sample, *prompt.tolist()])
        for prompt in prompts
        for sample in range(samples)
    ]
    answers: list[list[int]] = [[] for _ in sequences]
    for position in range(max_new_tokens):
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


def choose(logits: Array, sampling: Sampling, u: Array) -> Array:
    """The next token of each row: logits (B, V), u (B,) uniform in [0, 1) -> (B,) ints."""
    if sampling.temperature == 0:
        return logits.argmax(axis=1)
    z = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-z, axis=1, kind="stable")  # likeliest first
    z = np.take_along_axis(z, order, axis=1)
    p = np.exp(z - z[:, :1])
    if sampling.top_k:
        p[:, sampling.top_k :] = 0
    p /= p.sum(axis=1, keepdims=True)
    cumulative = p.cumsum(axis=1)
    # Nucleus: keep a token if those before it do not yet make up top_p (so always the first).
    p[cumulative - p >= sampling.top_p] = 0
    cumulative = p.cumsum(axis=1)
    rank = (cumulative <= u[:, None] * cumulative[:, -1:]).sum(axis=1)
    return order[np.arange(len(order)), np.minimum(rank, (p > 0).sum(axis=1) - 1)]


class KeyValueCache:
    """Keys and values of B sequences of different lengths.

    keys, values: a list of (>= B, K, S, hd) arrays, one a layer, of which the first B entries
    count; lengths (B,) are how many of the S places each sequence has filled. The rest is zero,
    and takes no memory until it is written.
    """

    def __init__(self, lengths: Array) -> None:
        self.lengths = lengths
        self.keys: list[Array] = []
        self.values: list[Array] = []

    def keep(self, which: Array) -> Array:
        """Drop the sequences where `which` (B,) is False.

        The last ones move into the places of the dropped, so that little is copied. Returns the
        new order: the numbers the sequences had before.
        """
        kept = np.flatnonzero(which)
        order = np.arange(len(kept))
        holes, movers = np.flatnonzero(~which[: len(kept)]), kept[kept >= len(kept)]
        order[holes] = movers
        for arrays in (self.keys, self.values):
            for array in arrays:
                array[holes] = array[movers]
        self.lengths = self.lengths[order]
        return order

    def next_token(self) -> Attend:
        """Attention of one new token a sequence: q (B, H, hd), k and v (B, K, hd)."""
        lengths, B = self.lengths, len(self.lengths)
        places = (np.arange(B), slice(None), lengths)
        used = int(lengths.max()) + 1
        hidden = np.arange(used) > lengths[:, None]  # (B, S): not this sequence's
        mask = hidden[:, None, None] if hidden.any() else None

        def attend(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
            self.keys[layer][places] = k
            self.values[layer][places] = v
            keys, values = self.keys[layer][:B, :, :used], self.values[layer][:B, :, :used]
            _, H, hd = q.shape
            q = (q * (1 / np.sqrt(hd).astype(q.dtype))).reshape(B, keys.shape[1], -1, hd)
            scores = q @ keys.swapaxes(2, 3)  # (B, K, G, S)
            if mask is not None:
                np.copyto(scores, -np.inf, where=mask)
            scores -= scores.max(axis=-1, keepdims=True)
            weights = np.exp(scores, out=scores)
            out = weights @ values  # (B, K, G, hd)
            out /= weights.sum(axis=-1, keepdims=True)
            return out.reshape(B, H, hd), None

        return attend


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
    shape = (N, model.config.num_key_value_heads, model.config.head_dim)
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
            hidden, _ = llama.forward(
                model,
                ids[chunk],
                positions,
                attend,
                adapter=model.adapter,
                rows=last - chunk.start,
            )
        finally:  # an error here must not leave the next chunk waiting
            for layer in range(layers):
                written[chunk.stop, layer].set()
        return hidden

    chunks = [slice(low, high) for low, high in itertools.pairwise(cuts)]
    hidden = np.concatenate(list(side_by_side(one_chunk, chunks)))  # (prompts, D)

    cache = KeyValueCache(lengths.repeat(samples))
    places = int(lengths.max()) + room
    for streams, kept in ((keys, cache.keys), (values, cache.values)):
        for layer in range(layers):
            padded = np.zeros((len(cache.lengths), shape[1], places, shape[2]), model.head.dtype)
            for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
                a_prompt = padded[i * samples : (i + 1) * samples, :, : end - start]
                a_prompt[...] = streams[layer][start:end].swapaxes(0, 1)
            kept.append(padded)
            streams[layer] = streams[layer][:0].copy()  # its memory is not needed twice
    return (hidden @ model.head.T).repeat(samples, axis=0), cache


def _chunks(tokens: int) -> int:
    """How many chunks a stream is cut into: a multiple of the threads, unless it is short."""
    number = threads()
    if tokens < LEAST_TOKENS * number:
        return 1
    return number * math.ceil(tokens / (MOST_TOKENS * number))


def _decode(model: Llama, tokens: Array, cache: KeyValueCache) -> Array:
    """Logits (B, V) after one more token of each sequence."""
    hidden, _ = llama.forward(
        model, tokens, cache.lengths, cache.next_token(), adapter=model.adapter
    )
    cache.lengths = cache.lengths + 1
    return times_transposed(hidden, model.head)


def answer(model: Llama, chat: Chat, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """The greedy answer to each prompt (one user turn each)."""
    answers = generate(
        model,
        [chat.encode_prompt(prompt) for prompt in prompts],
        stop=chat.stop,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(),
    )
    return [chat.decode(samples[0]) for samples in answers]


def main(argv: list[str]) -> None:
    defaults = Sampling._field_defaults
    parser = argparse.ArgumentParser(
        prog="python -m minibule.generate", description="Answer a prompt."
    )
    parser.add_argument("--model", metavar="DIR", help="Hugging Face folder (default: embedded)")
    parser.add_argument("--adapter", metavar="DIR", help="PEFT adapter folder to put on top")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what the user says")
    parser.add_argument(
        "--raw", action="store_true", help="continue the text as it is, without the chat template"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=128,
        metavar="N",
        help="at most so many tokens of the answer (default: %(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=defaults["temperature"],
        metavar="X",
        help="0 = always the likeliest token (default), 1 = sample from the model itself",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=defaults["top_k"],
        metavar="K",
        help="sample among the K likeliest tokens only; 0 = all (default: %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=defaults["top_p"],
        metavar="P",
        help="sample among the likeliest tokens that together have this probability (default: "
        "%(default)s, all)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=defaults["seed"],
        metavar="S",
        help="of the draws (default: %(default)s)",
    )
    parser.add_argument(
        "-n", type=int, default=1, metavar="N", help="answers to sample (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    low = {"max_new_tokens": 1, "top_k": 0, "seed": 0, "n": 1}
    for name, least in low.items():
        if getattr(args, name) < least:
            parser.error(f"{name}: found {getattr(args, name)}, expected at least {least}")
    if not 0 <= args.temperature < np.inf:
        parser.error(f"--temperature: found {args.temperature}, expected a number of at least 0")
    if not 0 < args.top_p <= 1:
        parser.error(f"--top-p: found {args.top_p}, expected above 0 and at most 1")

    folder = args.model or embedded_folder()
    model, chat = load_model(folder, args.adapter), load_chat(folder)
    prompt = chat.encode_raw(args.prompt) if args.raw else chat.encode_prompt(args.prompt)
    stream = _Printer(chat) if args.n == 1 else None
    answers = generate(
        model,
        [prompt],
        stop=chat.stop,
        max_new_tokens=args.max_new_tokens,
        sampling=Sampling(args.temperature, args.top_k, args.top_p, args.seed),
        samples=args.n,
        on_token=stream,
    )
    if stream:
        print()
    else:
        for number, ids in enumerate(answers[0], start=1):
            print(f"[{number}] {chat.decode(ids)}")


class _Printer:
    """Prints an answer as it comes, holding back bytes that are not yet a whole character."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.ids: list[int] = []
        self.printed = 0

    def __call__(self, _sequence: int, token: int) -> None:
        self.ids.append(token)
        text = self.chat.decode(self.ids)
        if not text.endswith("\ufffd"):
            print(text[self.printed :], end="", flush=True)
            self.printed = len(text)


if __name__ == "__main__":
    run(main)
