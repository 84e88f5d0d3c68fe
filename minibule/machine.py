"""What the machine is asked: how much memory this process takes, and how many threads it may."""

import ctypes
import os
import sys
from pathlib import Path

import numpy as np

from minibule.errors import InputError


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


def set_threads(threads: int) -> None:
    """Let NumPy's matrix products use that many threads; 0 leaves it as it is.

    NumPy has no call for it, so the OpenBLAS that its wheels carry is asked directly.
    """
    if threads == 0:
        return
    cores = os.cpu_count() or 1
    if threads > cores:  # they would wait for each other without end
        raise InputError(f"--threads {threads}: the machine has {cores} cores.")
    folder = Path(np.__file__).parent
    for library in [
        *folder.parent.glob("numpy.libs/*openblas*"),
        *folder.glob(".dylibs/*openblas*"),
    ]:
        for symbol in ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_"):
            set_num_threads = getattr(ctypes.CDLL(str(library)), symbol, None)
            if set_num_threads is not None:
                set_num_threads(threads)
                return
    raise InputError(
        f"--threads {threads}: this NumPy does not carry OpenBLAS, whose threads minibule can set. "
        f"Set OMP_NUM_THREADS={threads} in the environment instead."
    )
