"""The ranks that MPI knows: how they meet, what they share, and how they end. See `ranks`."""

import functools
import hashlib
import math
import mmap
import os
import pickle
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import minibule
from minibule.errors import InputError, Terminated
from minibule.machine.matrix import Array
from minibule.machine.ranks import Ranks, among, sendable
from minibule.machine.threads import set_threads, threads
from minibule.program import Screen

X = TypeVar("X")
Main = Callable[[list[str]], None]

# Where launchers say how many processes they have started, and which of them this one is: MPICH's
# and Intel's mpiexec, Open MPI's, Slurm's srun.
LAUNCHERS = {
    "PMI_SIZE": "PMI_RANK",
    "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK",
    "SLURM_STEP_NUM_TASKS": "SLURM_PROCID",
}
PATIENCE = 5.0  # seconds that a rank which is to leave at once waits for the others
ALIGNED = 64  # bytes: where an array may begin in shared memory


class Several(Ranks):
    """The ranks that MPI knows.

    They meet before anything is sent, and there say whether they have failed: so a rank that fails
    ends all of them, and none waits for one that has left.
    """

    def __init__(self, mpi: Any) -> None:
        self._comm = mpi.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size
        beside = self._comm.Split_type(mpi.COMM_TYPE_SHARED)
        self.beside = beside.size  # ranks on this machine, and the first of them
        self.machine = beside.bcast(self.rank)
        self.failed: tuple[int, BaseException] | None = None  # the first rank that has, and how
        self._meeting: Any = None  # a barrier that this rank has come to

    def all_gather(self, value: X) -> list[X]:
        said = self._meet(value)
        if self.failed:
            raise self.failed[1]
        return said

    def _meet(
        self, value: Any, error: BaseException | None = None, patience: float = math.inf
    ) -> list[Any]:
        """Wait until all are there, then hear what each has to say."""
        said = pickle.dumps((value, error))  # what cannot be sent fails before others wait for it
        if self._meeting is None:  # else a signal has ended the waiting
            self._meeting = self._comm.Ibarrier()
        _wait(self._meeting, patience)
        self._meeting = None
        values, errors = zip(*map(pickle.loads, self._comm.allgather(said)), strict=True)
        if self.failed is None:
            self.failed = next(((i, e) for i, e in enumerate(errors) if e is not None), None)
        return list(values)

    def fail(self, error: BaseException) -> BaseException | None:
        """Tell the others, and come back when all have put away what they had open.

        Returns the error that all end with, which another rank says; None where this one does.
        """
        at_once = isinstance(error, (KeyboardInterrupt, Terminated))
        try:
            if self.failed is None:
                self._meet(None, sendable(error), PATIENCE if at_once else math.inf)
            _wait(self._comm.Ibarrier(), math.inf)
        except BaseException:  # asked again to leave at once, or the others do not come
            self._comm.Abort(1)
        assert self.failed is not None  # noqa: S101
        rank, reason = self.failed
        return None if rank == self.rank else reason

    def all_reduce(self, arrays: Mapping[str, Array]) -> None:
        names = sorted(arrays)
        flat = np.concatenate([arrays[name].ravel() for name in names])
        parts = np.zeros((self.size, math.ceil(flat.size / self.size)), flat.dtype)
        parts.reshape(-1)[: flat.size] = flat
        theirs = np.empty_like(parts)
        self.all_gather(None)  # all have come so far; from here on nothing can go wrong but MPI
        self._comm.Alltoall(parts, theirs)  # to each rank its part of every sum,
        self._comm.Allgather(theirs.sum(axis=0), parts)  # which it adds up for all
        start = 0
        for name in names:
            array = arrays[name]
            array[...] = parts.reshape(-1)[start : start + array.size].reshape(array.shape)
            start += array.size

    def one_a_machine(self, load: Callable[[], X], what: str) -> X:
        sharing = self.all_gather((self.machine, what))
        lender = sharing.index((self.machine, what))
        lends = lender == self.rank and sharing.count(sharing[lender]) > 1
        own = load() if lends else None
        with _lent(own) if lends else nullcontext() as offer:
            offered = self.all_gather(offer)[lender]
            taken = _taken(offered) if offered else own
            self.all_gather(None)  # all have it: the lender may close it
        return load() if taken is None else taken


def _wait(request: Any, patience: float) -> None:
    """Wait without keeping a core busy, and with an ear for signals; TimeoutError after that long.

    It notices the end late by a tenth of the wait, at most.
    """
    started = time.perf_counter()
    while not request.Test():
        waited = time.perf_counter() - started
        if waited > patience:
            raise TimeoutError
        time.sleep(min(waited / 10, 0.01))


# -- memory that the ranks of a machine share ------------------------------------------------------

Offer = tuple[int, int, bytes, bytes, list[tuple[int, int]]]


@contextmanager
def _lent(value: Any) -> Iterator[Offer | None]:
    """In the block other processes can take `value`, with its arrays in memory that all share.

    Memory of no name, which goes when the last of them does; /dev/shm, often small in a container,
    is not needed. None where the system has none, and for what cannot be sent: matrices that
    another library has packed.

    Of the offer: process, file, a secret at its beginning, all but the arrays, where each array is.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        data = pickle.dumps(value, 5, buffer_callback=buffers.append)
        file = os.memfd_create("minibule")
    except (TypeError, AttributeError, pickle.PicklingError, OSError):
        yield None
        return
    secret, places, end = os.urandom(ALIGNED), list[tuple[int, int]](), ALIGNED
    for buffer in buffers:
        size = buffer.raw().nbytes
        places.append((end, end + size))
        end += math.ceil(size / ALIGNED) * ALIGNED
    try:
        os.ftruncate(file, end)
        with mmap.mmap(file, end) as memory:
            memory[:ALIGNED] = secret
            for buffer, (start, stop) in zip(buffers, places, strict=True):
                memory[start:stop] = buffer.raw()
        yield os.getpid(), file, secret, data, places
    finally:
        os.close(file)


def _taken(offer: Offer) -> Any:
    """What is lent, or None where it cannot be opened: a container may hide it."""
    process, number, secret, data, places = offer
    try:
        with open(f"/proc/{process}/fd/{number}", "rb") as file:  # noqa: PTH123 - no path of a disk
            memory = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    except (OSError, ValueError):
        return None
    if memory[:ALIGNED] != secret:  # another process of that number
        return None
    return pickle.loads(data, buffers=[memory[start:stop] for start, stop in places])  # noqa: S301


# -- a program's ranks -----------------------------------------------------------------------------


def together(main: Main) -> Main:
    """`main` as it runs on every rank that a launcher has started; without one, as it is.

    The first rank prints. What ends one of them ends all of them, with its words and its status.
    """

    @functools.wraps(main)
    def on_every_rank(argv: list[str]) -> None:
        rank, size = _launched()
        if size == 1:
            main(argv)
            return
        shown = sys.stderr
        if rank:
            sys.stdout = sys.stderr = Screen.on(None)
        several = _connected(size)
        try:
            with among(several):
                several.check_alike({"minibule": _version()})
                main(argv)
                several.all_gather(None)  # until then, one of the others may fail
        except BaseException as error:
            theirs = several.fail(error)
            if theirs:
                sys.stderr = Screen.on(None)
                raise theirs from None
            sys.stderr = shown
            if rank:
                print(f"rank {rank} on {platform.node()}:", file=sys.stderr)
            raise

    return on_every_rank


def _launched() -> tuple[int, int]:
    """This process's number among those that a launcher has started, and how many they are."""
    for size, rank in LAUNCHERS.items():
        number, many = os.environ.get(rank, "0"), os.environ.get(size, "")
        if many.isdecimal() and number.isdecimal() and int(many) > 1:
            return int(number), int(many)
    return 0, 1


def _connected(size: int) -> Several:
    """The ranks as MPI knows them; InputError where it does not know as many.

    The threads of matrix products become those that are a rank's share of its machine.
    """
    try:
        mpi: Any = import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"this is one of {size} processes, which need mpi4py ({error}). "
            "Install it with: pip install '.[mpi]'"
        ) from None
    if mpi.COMM_WORLD.size != size:
        library = mpi.Get_library_version().splitlines()[0].strip("\0 ")
        raise InputError(
            f"one of {size} processes, of which {library} knows {mpi.COMM_WORLD.size}: they were "
            "started by another MPI. Expected its own mpiexec, or srun with the --mpi it knows."
        )
    several = Several(mpi)
    cores = os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if sys.platform == "linux" else cores
    share = bound if bound < cores else max(1, cores // several.beside)
    if threads() > share:
        set_threads(share)
    if hasattr(signal, "SIGUSR1"):  # what a batch system sends before the time is up
        signal.signal(signal.SIGUSR1, lambda *_: signal.raise_signal(signal.SIGTERM))
    return several


def _version() -> str:
    """minibule's version, and a digest of its code."""
    house = Path(minibule.__file__).parent
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(house.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{minibule.__version__} ({digest.hexdigest()})"
