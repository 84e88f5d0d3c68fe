"""Ranks: one run on several processes, of one machine or of many, by MPI.

    pip install '.[mpi]'                                               mpi4py, and MPICH as a wheel
    mpiexec -n 2 python -m minibule.train ...                          one machine
    mpiexec -hosts one,two -n 4 python -m minibule.train ...           several; Open MPI: -host
    mpiexec -f HOSTS -n 4 python -m minibule.train ...                 a line a machine, as one:2;
                                                                       Open MPI: --hostfile
    srun -K -N 2 --ntasks-per-node 2 --mpi=pmi2 python -m minibule.train ...   Slurm; Open MPI: pmix

and in the same way `minibule.rounds`. One rank a machine is the rule: its threads share a step too,
and need less memory. Several are for a machine of many cores or sockets; each then gets its share
of them. All machines need the same minibule, and the model and the data under the names that the
command gives; rounds, also the folder that they write. What one rank was given other than the
first ends the run before its first step.

Each rank computes a share of every step (`core.passes`), the gradients are added up, and all take
the same step of the optimiser. Evaluation and sampling are shared out by prompt. The first rank
prints, and writes. So many ranks give the same bytes each time; another number of them gives other
last digits, some 1e-7 of the loss, as does another kind of machine, or number of threads.

Ctrl-C, or SIGTERM to mpiexec, ends a run after the step, with a checkpoint: with MPICH and Intel
MPI. Open MPI 5 gives its ranks a quarter of a second: what is lost is what came after the last
checkpoint, unless `kill -USR1` tells its mpiexec, and all ranks, first. Under Slurm that is
`scancel -s USR1 JOB`, which `--signal=USR1@120` does by itself two minutes before the time is up;
Ctrl-C at srun kills. Where a rank is killed, mpiexec ends the others at once; srun does so with -K,
after its KillWait of half a minute, and without it never. As root, in a container, Open MPI asks
for --allow-run-as-root, and --map-by :OVERSUBSCRIBE for more ranks than cores; the others for
nothing.

What it costs. The adapter's P numbers are sent once each way: 8 P (N - 1) / N bytes a step from
each of N ranks. A step takes about

    C max(1 / N, 1 / A) + 8 P (N - 1) / N / (bytes a second) + U

C: seconds of its passes on one rank; A: how many pieces they fall into, at most as many as answers,
with the prompt again in each; U: the optimiser and all that each rank does for itself. For
SmolLM2-360M and r = 16, P = 8.7 million, that is 35 MB with 2 ranks and 68 MB with 64: .57 s at
1 Gbit/s, .06 s at 10. Where a step of 4 records takes 8 s, 2 ranks take 4.3 s at 1 Gbit/s and 4.1 s
at 10. 64 ranks take no less than 12 answers allow, 1.3 and .8 s: to use them, raise --batch-size to
some 64 records, which then take 2.6 and 2.1 s. Where C / N is below .6 s, 1 Gbit/s takes more
time than the passes.

Measured, where nothing has to be sent far: 4 records of 256 tokens, that model, two cores. One rank
of one thread takes 16.6 s a step; for two the formula says 8.5 s, and they take 9.5 (9.0 to 10.4),
since two busy cores are slower than one; for four, on the same two cores, it says 8.5, and they
take 10.8 (10.3 to 11.4), as they also change places. See tools/BENCHMARKS.md.

Ranks of one machine share the memory of the base's weights, on Linux; each has its own adapter,
gradients and passes, its own of what --matmul packs, and of what --reference-memory keeps.
"""

import pickle
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from minibule.errors import InputError, listed
from minibule.machine.matrix import Array

X = TypeVar("X")
Y = TypeVar("Y")


class Ranks:
    """The processes of a run, this one `rank` of `size`. This class: a process by itself.

    All of them run the same program, so they come by the same calls of these methods in the same
    order. What may turn out differently on each, a clock or the disk, is asked by way of `first`.
    """

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this is the first: the one that prints and writes."""
        return self.rank == 0

    def all_gather(self, value: X) -> list[X]:
        """The values of all ranks, in order."""
        return [value]

    def all_reduce(self, arrays: Mapping[str, Array]) -> None:
        """Add up the arrays of all ranks, in place; of each rank the same names and shapes.

        In the order of the ranks, whatever MPI it is: the sums are the same each time.
        """

    def one_a_machine(self, load: Callable[[], X], what: str) -> X:
        """What `load` gives, whose arrays are once in the memory of each machine, to be read only.

        what: only ranks that name the same share.
        """
        return load()

    def first(self, function: Callable[..., X], *arguments: Any) -> X:
        """What the function gives the first rank, which alone calls it, or raises there."""
        done: Any = None
        problem: Exception | None = None
        if self.leads:
            try:
                done = function(*arguments)
            except Exception as error:
                problem = error
        done, raised = self.all_gather((done, problem and sendable(problem)))[0]
        if raised:
            raise problem or raised
        return done

    def map(self, function: Callable[[Sequence[X]], Sequence[Y]], items: Sequence[X]) -> list[Y]:
        """function(items), of which each rank has computed a share, by itself."""
        mine = items[self.rank :: self.size]
        with among(ALONE):
            done = function(mine) if mine else []
        whole: list[Any] = [None] * len(items)
        for rank, share in enumerate(self.all_gather(done)):
            whole[rank :: self.size] = share
        return whole

    def check_alike(self, given: Mapping[str, Any]) -> None:
        """InputError that names what other ranks were given other than the first."""
        expected, *others = self.all_gather((platform.node(), given))
        problems = [
            f"rank {rank} on {machine}: {name} {_shown(theirs[name])}, {_shown(value)} on rank 0"
            for rank, (machine, theirs) in enumerate(others, start=1)
            for name, value in expected[1].items()
            if theirs[name] != value
        ]
        if problems:
            raise InputError(f"the ranks of a run are to be given the same:\n{listed(problems)}")


def sendable(error: BaseException) -> BaseException:
    """The error, or where it cannot be sent to another process what it says."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - one's own
    except Exception:
        return RuntimeError(repr(error))
    return error


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


ALONE = _world = Ranks()


def world() -> Ranks:
    """The ranks that this process is one of."""
    return _world


@contextmanager
def among(ranks: Ranks) -> Iterator[None]:
    """In the block, this process is one of these."""
    global _world
    before, _world = _world, ranks
    try:
        yield
    finally:
        _world = before
