"""Answer prompts: prefill, then one token at a time from a key-value cache.

    python -m minibule.generate --model DIR --prompt "hello"

A prompt is prefilled once, however many samples it gets. After that every step computes one token
of every sequence that has not ended; where there are many, each thread has a share of them. As
sequences end, waiting prompts take their places ("continuous batching": Yu et al. 2022, Orca).
"""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from minibule.core import llama
from minibule.core.llama import Llama
from minibule.errors import InputError
from minibule.generate.cache import KeyValueCache
from minibule.generate.prefill import prefill
from minibule.generate.sampling import Sampling, choose
from minibule.machine.matrix import FEW, Array, for_few_rows
from minibule.machine.ranks import world
from minibule.machine.threads import side_by_side, threads
from minibule.text.chat import Chat

# Waiting prompts come in where this share of the places is free: several in one pass, which reads
# the weights once for all.
FREE = 1 / 8


class Wanted(NamedTuple):
    """What is asked of each prompt.

    stop             tokens that end a sequence; they are not part of the answer
    max_new_tokens   at most so many tokens of each answer
    sampling         how a token is chosen
    samples          how many answers
    first            the number of the first of them: which draws an answer gets depends on the
                     seed, the prompt and its number
    """

    stop: frozenset[int]
    max_new_tokens: int
    sampling: Sampling
    samples: int = 1
    first: int = 0


OnToken = Callable[[int, int], None]


def generate(
    model: Llama, prompts: Sequence[Array], wanted: Wanted, on_token: OnToken | None = None
) -> list[list[list[int]]]:
    """Continue each prompt, all of them at once.

    Parameters
    ----------
    prompts : token ids, each (P,) with P >= 1
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
    return list(generate_in_turn(model, prompts, wanted, len(prompts) * wanted.samples, on_token))


def generate_in_turn(
    model: Llama,
    prompts: Sequence[Array],
    wanted: Wanted,
    at_once: int,
    on_token: OnToken | None = None,
) -> Iterator[list[list[int]]]:
    """`generate`, in the order of the prompts, each one's answers as soon as they are there.

    at_once: the most sequences decoded at once; the samples of one prompt are in any case.
    """
    check_prompts(model, prompts, wanted)
    number = _lanes(len(prompts), at_once, wanted.samples)
    numbered, places = list(enumerate(prompts)), math.ceil(at_once / number)
    lanes = [_Lane(model, numbered[i::number], wanted, places) for i in range(number)]
    answers: list[list[list[int]]] = [[[] for _ in range(wanted.samples)] for _ in prompts]
    unfinished = [wanted.samples] * len(prompts)
    given = 0
    while given < len(prompts):
        for said in side_by_side(_Lane.advance, [lane for lane in lanes if lane.busy]):
            for sequence, token, ends in said:
                prompt, sample = divmod(sequence, wanted.samples)
                unfinished[prompt] -= ends
                if token not in wanted.stop:
                    answers[prompt][sample].append(token)
                    if on_token:
                        on_token(sequence, token)
        while given < len(prompts) and not unfinished[given]:
            done, answers[given] = answers[given], []
            yield done
            given += 1


def check_prompts(model: Llama, prompts: Sequence[Array], wanted: Wanted) -> None:
    """InputError where one of the prompts and its new tokens exceed the model's context."""
    longest = max((len(llama.check_ids(prompt, model.config)) for prompt in prompts), default=0)
    context = model.config.max_position_embeddings
    if longest + wanted.max_new_tokens > context:
        raise InputError(
            f"prompt of {longest:,} tokens: with {wanted.max_new_tokens:,} new ones it exceeds the "
            f"model's context of {context:,}. Shorten it, or ask for fewer new tokens."
        )


def _lanes(prompts: int, sequences: int, samples: int) -> int:
    """How many lanes decode so many sequences: one a thread, unless they are few.

    The fewer rows a product has, the more of its time is spent on reading the weights, and the
    better it is if all threads share it.
    """
    number = threads()
    return number if prompts >= number and sequences >= max(FEW, samples) * number else 1


class _Lane:
    """Sequences that are decoded together, at most `places`, and the prompts that wait to be.

    sequences (B,)   prompt * samples + sample of each
    tokens (B,)      the last token of each, which the cache does not have yet
    """

    def __init__(
        self, model: Llama, waiting: Sequence[tuple[int, Array]], wanted: Wanted, places: int
    ) -> None:
        few = {name: for_few_rows(W) for name, W in model.weights.items()}
        self.model, self.decoded = model, dataclasses.replace(model, weights=few)
        self.waiting, self.wanted, self.places = deque(waiting), wanted, max(places, wanted.samples)
        # Twice as many prompts as fill the places: of some, only few samples still run.
        prompts = min(len(waiting), places, 2 * math.ceil(places / wanted.samples))
        longest = max(len(prompt) for _, prompt in waiting)
        self.cache = KeyValueCache(
            model.config,
            model.head.dtype,
            prompts=(prompts, longest),
            sequences=(self.places, wanted.max_new_tokens),
        )
        self.draws: dict[int, np.random.Generator] = {}
        self.sequences, self.tokens = np.empty(0, int), np.empty(0, int)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or len(self.sequences))

    @np.errstate(all="ignore")  # what comes of too large numbers is looked at
    def advance(self) -> list[tuple[int, int, bool]]:
        """One more token of each sequence, or the first ones of some that join.

        Returns (sequence, token, whether it ends with it) of each.
        """
        joining = self._joining()
        old = len(self.sequences) if joining else 0
        logits = self._join(joining) if joining else self._next()  # of the sequences from `old` on
        if not np.isfinite(logits).all():
            raise InputError(
                "the model's numbers exceed float32: its weights, or its adapter's, are too large."
            )
        sequences = self.sequences[old:].tolist()
        u = np.array([self.draws[sequence].random() for sequence in sequences])
        chosen = choose(logits, self.wanted.sampling, u)
        full = self.cache.lengths[old:] + 1 == self.wanted.max_new_tokens
        ends = full | np.isin(chosen, list(self.wanted.stop))
        self.tokens = np.append(self.tokens[:old], chosen)
        for sequence in np.array(sequences)[ends]:
            del self.draws[sequence]
        order = self.cache.keep(np.append(np.ones(old, bool), ~ends))
        self.sequences, self.tokens = self.sequences[order], self.tokens[order]
        return list(zip(sequences, chosen.tolist(), ends.tolist(), strict=True))

    def _joining(self) -> list[tuple[int, Array]]:
        """The prompts that now come in: none, or several together."""
        samples, free = self.wanted.samples, self.places - len(self.sequences)
        if free < max(samples, FREE * self.places):
            return []
        number = min(len(self.waiting), free // samples, self.cache.free_prompts)
        return [self.waiting.popleft() for _ in range(number)]

    def _join(self, joining: Sequence[tuple[int, Array]]) -> Array:
        """Logits (b, V) after the prompts, of each of their samples."""
        wanted = self.wanted
        for number, prompt in joining:
            for i in range(wanted.samples):
                # They depend on the prompt too: the same for all would make their answers alike.
                seed = [wanted.sampling.seed, wanted.first + i, *prompt.tolist()]
                self.draws[number * wanted.samples + i] = np.random.default_rng(seed)
                self.sequences = np.append(self.sequences, number * wanted.samples + i)
        prompts = [prompt for _, prompt in joining]
        logits, layers = prefill(self.model, prompts)
        self.cache.join(layers, np.array([len(prompt) for prompt in prompts]), wanted.samples)
        return logits.repeat(wanted.samples, axis=0)

    def _next(self) -> Array:
        """Logits (B, V) after one more token of each sequence."""
        hidden, _ = llama.forward(
            self.decoded, self.tokens, self.cache.positions, self.cache.next_token()
        )
        self.cache.lengths = self.cache.lengths + 1
        return hidden @ self.decoded.head.T


def answer(model: Llama, chat: Chat, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
    """The greedy answer to each prompt (one user turn each)."""

    def texts(prompts: Sequence[str]) -> list[str]:
        answers = generate(
            model,
            [chat.encode_prompt(prompt) for prompt in prompts],
            Wanted(chat.stop, max_new_tokens, Sampling()),
        )
        return [chat.decode(samples[0]) for samples in answers]

    return world().map(texts, prompts)
