"""Keys and values of the tokens so far, so that none is computed twice."""

from collections.abc import Sequence

import numpy as np

from minibule.core.llama import Attend
from minibule.core.ops import Cache
from minibule.core.shapes import LlamaConfig
from minibule.machine.matrix import Array


class KeyValueCache:
    """Keys and values of B sequences; what they have of the P prompts they continue is there once.

    Samples of a prompt also read it together, in one product.

    prompt (B,)           which of the prompts each sequence continues, a number below P
    sample (B,)           its number among the samples of that prompt
    lengths (B,)          how many tokens of its own it has here, those after the prompt
    prompt_lengths (P,)   of each prompt
    """

    def __init__(
        self,
        config: LlamaConfig,
        dtype: "np.dtype[np.floating]",
        prompts: tuple[int, int],
        sequences: tuple[int, int],
    ) -> None:
        """prompts, sequences: how many there may be, and how many tokens of each."""
        K, hd = config.num_key_value_heads, config.head_dim
        self.most_prompts, longest = prompts
        most, new = sequences

        def empty(number: int, tokens: int) -> list[Array]:
            shape = (2, number, K, tokens, hd)  # keys, values
            return [np.zeros(shape, dtype) for _ in range(config.num_hidden_layers)]

        self.of_prompts, self.own = empty(self.most_prompts, longest), empty(most, new)
        self.prompt, self.sample, self.lengths = (np.empty(0, int) for _ in range(3))
        self.prompt_lengths = np.empty(0, int)

    @property
    def free_prompts(self) -> int:
        return self.most_prompts - len(self.prompt_lengths)

    @property
    def positions(self) -> Array:
        """(B,): where the next token of each sequence stands."""
        return self.prompt_lengths[self.prompt] + self.lengths

    def join(self, layers: Sequence[tuple[Array, Array]], lengths: Array, samples: int) -> None:
        """Add prompts of these lengths, each continued by so many sequences.

        layers: keys and values of each layer, (N, K, hd), the prompts one behind the other.
        """
        before, more = len(self.prompt_lengths), len(lengths)
        ends = lengths.cumsum()
        for place, (start, end) in enumerate(zip(ends - lengths, ends, strict=True), before):
            for arrays, keys_and_values in zip(self.of_prompts, layers, strict=True):
                for array, stream in zip(arrays, keys_and_values, strict=True):
                    array[place, :, : end - start] = stream[start:end].swapaxes(0, 1)
        self.prompt_lengths = np.append(self.prompt_lengths, lengths)
        self.prompt = np.append(self.prompt, np.arange(before, before + more).repeat(samples))
        self.sample = np.append(self.sample, np.tile(np.arange(samples), more))
        self.lengths = np.append(self.lengths, np.zeros(more * samples, int))

    def keep(self, which: Array) -> Array:
        """Drop the sequences where `which` (B,) is False, and prompts that none continues any more.

        The last ones move into the places of the dropped, so that little is copied. Returns the
        new order: the numbers the sequences had before.
        """
        order = _moved(which, self.own, self.lengths)
        self.prompt, self.sample = self.prompt[order], self.sample[order]
        self.lengths = self.lengths[order]
        continued = np.bincount(self.prompt, minlength=len(self.prompt_lengths)) > 0
        prompts = _moved(continued, self.of_prompts, self.prompt_lengths)
        numbers = np.zeros(len(continued), int)
        numbers[prompts] = np.arange(len(prompts))
        self.prompt, self.prompt_lengths = numbers[self.prompt], self.prompt_lengths[prompts]
        return order

    def next_token(self) -> Attend:
        """Attention of one new token a sequence: q (B, H, hd), k and v (B, K, hd)."""
        B, P, samples = len(self.lengths), len(self.prompt_lengths), int(self.sample.max()) + 1
        longest, used = int(self.prompt_lengths.max()), int(self.lengths.max()) + 1
        here = (np.arange(B), slice(None), self.lengths)
        among = (self.prompt, slice(None), self.sample)
        hidden = np.concatenate(  # (B, longest + used): not this sequence's
            (
                np.arange(longest) >= self.prompt_lengths[self.prompt, None],
                np.arange(used) > self.lengths[:, None],
            ),
            axis=1,
        )
        mask = hidden[:, None, None] if hidden.any() else None

        def by_prompt(x: Array, M: Array) -> Array:
            """x (B, K, G, n) times the M (P, K, n, m) of its prompt: (B, K, G, m)."""
            _, K, G, n = x.shape
            stacked = np.zeros((P, K, samples, G, n), x.dtype)
            stacked[among] = x
            y = stacked.reshape(P, K, samples * G, n) @ M
            together: Array = y.reshape(P, K, samples, G, -1)[among]
            return together

        def attend(layer: int, q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
            prompt_keys, prompt_values = self.of_prompts[layer][:, :P, :, :longest]
            keys, values = self.own[layer][:, :B, :, :used]
            keys[here], values[here] = k, v
            _, H, hd = q.shape
            q = (q * (1 / np.sqrt(hd).astype(q.dtype))).reshape(B, keys.shape[1], -1, hd)
            scores = np.concatenate(  # (B, K, G, longest + used)
                (by_prompt(q, prompt_keys.swapaxes(2, 3)), q @ keys.swapaxes(2, 3)), axis=-1
            )
            if mask is not None:
                np.copyto(scores, -np.inf, where=mask)
            scores -= scores.max(axis=-1, keepdims=True)
            weights = np.exp(scores, out=scores)
            out = by_prompt(weights[..., :longest], prompt_values)  # (B, K, G, hd)
            out += weights[..., longest:] @ values
            out /= weights.sum(axis=-1, keepdims=True)
            return out.reshape(B, H, hd), None

        return attend


def _moved(which: Array, layers: Sequence[Array], lengths: Array) -> Array:
    """Move the last of the entries that are kept, where `which`, into the places of the dropped.

    layers: arrays (2, entries, K, tokens, hd), in which each entry has as many tokens as `lengths`
    say. Returns the numbers that the kept ones had before, in order.
    """
    kept = np.flatnonzero(which)
    order = np.arange(len(kept))
    holes, movers = np.flatnonzero(~which[: len(kept)]), kept[kept >= len(kept)]
    order[holes] = movers
    if len(holes):
        used = int(lengths[movers].max())
        for arrays in layers:
            arrays[:, holes, :, :used] = arrays[:, movers, :, :used]
    return order
