"""What the machine is asked: memory taken, time passed, and to compute on all cores."""

import contextvars
import ctypes
import functools
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from minibule.errors import InputError

X = TypeVar("X")
Y = TypeVar("Y")


def seconds_since(started: float) -> float:
    """Seconds since perf_counter was at `started`; some, also where a clock stands or is set back.

    What is divided by them is finite, and what is summed does not shrink.
    """
    return max(time.perf_counter() - started, 1e-9)


def memory_gb() -> float:
    """Resident memory of this process now, in GB (10^9 bytes); the peak where now is unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return peak_memory_gb()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def peak_memory_gb() -> float:
    """The most resident memory this process has taken so far, in GB; 0 where unknown."""
    try:
        import resource  # Unix only
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


# -- threads ---------------------------------------------------------------------------------------


def threads() -> int:
    """How many threads NumPy's matrix products use now; 1 where that cannot be known."""
    blas = _openblas()
    return blas.get_num_threads() if blas else 1


def set_threads(number: int) -> None:
    """Let NumPy's matrix products use that many threads; 0 leaves it as it is."""
    if number == 0:
        return
    cores = os.cpu_count() or 1
    if number > cores:  # they would wait for each other without end
        raise InputError(f"--threads {number}: the machine has {cores} cores.")
    blas = _openblas()
    if blas is None:
        raise InputError(
            f"--threads {number}: this NumPy does not carry OpenBLAS, whose threads minibule can "
            f"set. Set OMP_NUM_THREADS={number} in the environment instead."
        )
    blas.set_num_threads(number)


def side_by_side(function: Callable[[X], Y], items: Iterable[X]) -> Iterator[Y]:
    """function(item) of every item, in order, on as many threads as matrix products may use.

    Each call has one thread to itself, and with it one core: that also keeps all cores busy in
    the element-wise work between two products, which NumPy does on one thread. A single item is
    computed as usual. (Threads, because NumPy lets go of the interpreter while it computes.)
    """
    _keep_freed_memory()
    items = iter(items)
    first = list(itertools.islice(items, 2))
    blas, number = _openblas(), threads()
    if len(first) < 2 or blas is None or number == 1:
        yield from map(function, itertools.chain(first, items))
        return
    blas.set_num_threads(1)
    try:
        with ThreadPoolExecutor(number) as pool:
            pending: deque[Future[Y]] = deque()
            for item in itertools.chain(first, items):
                # A copy of the context carries np.errstate over to the thread.
                pending.append(pool.submit(contextvars.copy_context().run, function, item))
                if len(pending) > number:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    finally:
        blas.set_num_threads(number)


def in_parallel(function: Callable[[X], object], items: Sequence[X]) -> None:
    """function(item) of every item, on as many threads as matrix products may use by now.

    For the parts of one product: within `side_by_side` that is one thread, the caller's own.
    """
    number = min(threads(), len(items))

    def share(first: int) -> None:
        for item in items[first::number]:
            function(item)

    others = [
        _pool().submit(contextvars.copy_context().run, share, first) for first in range(1, number)
    ]
    share(0)
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads that wait for what `in_parallel` gives them."""
    return ThreadPoolExecutor(os.cpu_count())


@functools.cache
def _keep_freed_memory() -> None:
    """Let C's allocator keep what is freed for the next array, instead of returning it each time.

    The arrays of a layer come and go, and the system would clear every page of them anew. Only
    glibc can be told.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # of <malloc.h>
        mallopt(trim_threshold, 2**30)
        mallopt(mmap_threshold, 2**25)  # the largest it takes


class _OpenBLAS(NamedTuple):
    get_num_threads: Callable[[], int]
    set_num_threads: Callable[[int], None]


@functools.cache
def _openblas() -> _OpenBLAS | None:
    """The OpenBLAS that NumPy's wheels carry: NumPy itself has no call for its threads."""
    folder = Path(np.__file__).parent
    for path in [*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")]:
        library = ctypes.CDLL(str(path))
        for prefix in ("scipy_openblas", "openblas"):
            if hasattr(library, f"{prefix}_set_num_threads64_"):
                return _OpenBLAS(
                    getattr(library, f"{prefix}_get_num_threads64_"),
                    getattr(library, f"{prefix}_set_num_threads64_"),
                )
    return None
