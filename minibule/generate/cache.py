"""Keys and values of the tokens so far, so that none is computed twice."""

import numpy as np

from minibule.core.llama import Attend
from minibule.core.ops import Cache
from minibule.machine.matrix import Array


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
