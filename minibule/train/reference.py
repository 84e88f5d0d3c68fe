"""What the frozen base says of every row, computed once: a store, and no part of the lesson.

The base does not learn, so its final hidden states depend on the record alone: where a record is
trained on more than once, they are looked up instead of computed again.
"""

import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from minibule.core.counts import Example, row_count
from minibule.core.forest import Batch, pack
from minibule.core.llama import Llama, forward_batch
from minibule.machine.matrix import Array
from minibule.machine.ranks import world
from minibule.machine.threads import side_by_side, threads

# Of the examples that are swept at once, at most, unless one has more; for a moment their rows are
# there three times.
BLOCK_BYTES = 2**26


def most_bytes(model: Llama, examples: Sequence[Example]) -> int:
    """What a store of the examples takes if no two answers begin alike; else it takes less."""
    return row_count(examples) * model.config.hidden_size * model.head.dtype.itemsize


class Reference:
    """The base's final hidden states (D,) of each row of some examples.

    A row is found by the first answer that passes through it and its depth there. In memory are as
    many rows as fit into `limit` bytes, the others in a file of `folder` that has no name: it is
    gone with the process, however that ends. A run that goes on asks the base again, which says the
    same.
    """

    def __init__(
        self, model: Llama, examples: Sequence[Example], folder: Path | None, limit: float
    ) -> None:
        """An empty store; `sweep` fills it."""
        self._model, self._examples = model.base, examples
        width, dtype = model.config.hidden_size, model.head.dtype
        self._row_bytes = width * dtype.itemsize
        kept = int(min(limit, most_bytes(model, examples))) // self._row_bytes
        self._kept = np.empty((kept, width), dtype)  # takes memory as it is written
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._reading = threading.Lock()
        self._rows = 0
        # By id: for each answer the number of the row at its depth 0, were all of its rows its own.
        self._first: dict[int, Array] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def sweep(self, pass_tokens: int) -> Iterator[int]:
        """Compute all rows; gives how many examples are done by now. Ranks share the work."""
        done = 0
        for block in self._blocks():
            batches = list(pack(block, "prefix", pass_tokens, threads(), world()))
            hidden = side_by_side(self._hidden, batches)
            mine = [(_keys(b), h) for b, h in zip(batches, hidden, strict=True)]
            everywhere = [one for rank in world().all_gather(mine) for one in rank]
            keys, rows = (np.concatenate(parts) for parts in zip(*everywhere, strict=True))
            # A prompt whose answers went to several passes has its row in each: one is kept.
            keys, which = np.unique(keys, axis=0, return_index=True)
            self._add(block, keys, rows[which])
            done += len(block)
            yield done

    def _blocks(self) -> Iterator[Sequence[Example]]:
        """The examples in order, as many at once as BLOCK_BYTES has room for."""
        sizes = [row_count([example]) * self._row_bytes for example in self._examples]
        begin, taken = 0, 0
        for place, size in enumerate(sizes):
            if place > begin and taken + size > BLOCK_BYTES:
                yield self._examples[begin:place]
                begin, taken = place, 0
            taken += size
        yield self._examples[begin:]

    def _hidden(self, batch: Batch) -> Array:
        return forward_batch(self._model, batch)[0]

    def _add(self, block: Sequence[Example], keys: Array, rows: Array) -> None:
        """Append rows (n, D), sorted by their keys (n, 3)."""
        for example in block:
            self._first[id(example)] = np.zeros(len(example.answers), int)
        begins = np.flatnonzero(np.any(np.diff(keys[:, :2], axis=0, prepend=-1), axis=1))
        for place in begins:
            number, answer, depth = keys[place]
            self._first[id(block[number])][answer] = self._rows + place - depth
        room = min(len(rows), max(0, len(self._kept) - self._rows))
        self._kept[self._rows : self._rows + room] = rows[:room]
        self._file.write(rows[room:].data)
        self._rows += len(rows)

    def hidden(self, batch: Batch, examples: Sequence[Example]) -> Array:
        """(R, D) of a batch that `pack` has made of some of the examples."""
        number, answer, depth = _keys(batch).T
        firsts = [self._first[id(example)] for example in examples]
        rows = depth + np.array([firsts[n][k] for n, k in zip(number, answer, strict=True)])
        return self._read(rows)

    def _read(self, rows: Array) -> Array:
        """The rows of these numbers (R,): (R, D)."""
        kept = rows < len(self._kept)
        found = np.empty((len(rows), *self._kept.shape[1:]), self._kept.dtype)
        found[kept] = self._kept[rows[kept]]
        filed = np.flatnonzero(~kept)
        filed = filed[np.argsort(rows[filed], kind="stable")]
        for run in np.split(filed, np.flatnonzero(np.diff(rows[filed]) != 1) + 1):
            if len(run):  # rows that follow one another, as those of an answer do
                found[run] = self._from_file(int(rows[run[0]]), len(run))
        return found

    def _from_file(self, first: int, number: int) -> Array:
        with self._reading:
            self._file.seek(self._row_bytes * (first - len(self._kept)))
            data = self._file.read(self._row_bytes * number)
        return np.frombuffer(data, self._kept.dtype).reshape(number, -1)


def _keys(batch: Batch) -> Array:
    """(R, 3): of each row its example, the first answer that passes through it, its depth there."""
    return np.column_stack([batch.row_answer, batch.rows.depth])
