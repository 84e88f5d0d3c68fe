"""Answer prompts: prefill, then one token at a time from a key-value cache.

    python -m minibule.generate --model DIR --prompt "hello"

All prompts are prefilled in one packed pass, each computed once however many samples it gets.
After that every step computes one token of every sequence that has not ended.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from minibule import llama
from minibule.chat import Chat, load_chat
from minibule.checkpoint import load_model
from minibule.config import embedded_folder
from minibule.errors import InputError, run
from minibule.llama import Llama
from minibule.ops import Array, Cache, Segment, attention


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
        sequences, tokens = sequences[running], tokens[running]
        cache.keep(running)
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

    keys, values: a list of (B, K, S, hd) arrays, one a layer; lengths (B,) are how many of the S
    places each sequence has filled.
    """

    def __init__(self, lengths: Array) -> None:
        self.lengths = lengths
        self.keys: list[Array] = []
        self.values: list[Array] = []

    def keep(self, which: Array) -> None:
        """Drop the sequences where `which` (B,) is False."""
        if which.all():
            return
        self.lengths = self.lengths[which]
        for layer in range(len(self.keys)):
            self.keys[layer] = self.keys[layer][which]
            self.values[layer] = self.values[layer][which]

    def attend(self, layer: int, q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
        """Attention of one new token a sequence; q (B, H, hd), k and v (B, K, hd)."""
        sequences = np.arange(len(q))
        keys, values = self.keys[layer], self.values[layer]
        keys[sequences, :, self.lengths] = k
        values[sequences, :, self.lengths] = v
        used = int(self.lengths.max()) + 1
        keys, values = keys[:, :, :used], values[:, :, :used]  # (B, K, S, hd)
        B, H, hd = q.shape
        scores = q.reshape(B, keys.shape[1], -1, hd) @ keys.swapaxes(2, 3)  # (B, K, G, S)
        scores *= 1 / np.sqrt(hd).astype(q.dtype)
        scores -= np.where(np.arange(used) > self.lengths[:, None], np.inf, 0)[:, None, None]
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights /= weights.sum(axis=-1, keepdims=True)
        return (weights @ values).reshape(B, H, hd), None


def _prefill(
    model: Llama, prompts: Sequence[Array], samples: int, room: int
) -> tuple[Array, KeyValueCache]:
    """Logits after each prompt (B, V), and the cache of all B = prompts * samples sequences."""
    lengths = np.array([len(prompt) for prompt in prompts])
    ends = lengths.cumsum()
    spans = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
    segments = [Segment(span, np.arange(span.start, span.stop)) for span in spans]
    cache = KeyValueCache(lengths.repeat(samples))
    places = int(lengths.max()) + room

    def attend(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
        for x, kept in ((k, cache.keys), (v, cache.values)):
            padded = np.zeros((len(prompts), x.shape[1], places, x.shape[2]), x.dtype)
            for i, span in enumerate(spans):
                padded[i, :, : lengths[i]] = x[span].swapaxes(0, 1)
            kept.append(padded.repeat(samples, axis=0))  # (B, K, S, hd)
        return attention(q, k, v, segments)

    hidden, _ = llama.forward(
        model,
        np.concatenate(prompts),
        np.concatenate([np.arange(n) for n in lengths]),
        attend,
        adapter=model.adapter,
        rows=ends - 1,
    )
    return (hidden @ model.head.T).repeat(samples, axis=0), cache


def _decode(model: Llama, tokens: Array, cache: KeyValueCache) -> Array:
    """Logits (B, V) after one more token of each sequence."""
    hidden, _ = llama.forward(model, tokens, cache.lengths, cache.attend, adapter=model.adapter)
    cache.lengths = cache.lengths + 1
    return hidden @ model.head.T


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
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="(128)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=defaults["temperature"],
        metavar="X",
        help="0 = always the likeliest token (default), 1 = sample from the model itself",
    )
    parser.add_argument("--top-k", type=int, default=defaults["top_k"], metavar="K", help="0 = all")
    parser.add_argument(
        "--top-p", type=float, default=defaults["top_p"], metavar="P", help="above 0 to 1 = all"
    )
    parser.add_argument("--seed", type=int, default=defaults["seed"], metavar="S", help="(0)")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="samples (1)")
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
