"""What a report of a bug needs to say of the machine and of what is installed.

python -m minibule.env
"""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import minibule
from minibule.errors import InputError
from minibule.machine.processor import processor
from minibule.machine.threads import threads
from minibule.models.named import NAMED
from minibule.program import run
from minibule.settings import Parser

# As pyproject.toml has them: what is always there, and what each extra brings.
PACKAGES = ("numpy", "safetensors", "tokenizers", "gguf", "tqdm", "huggingface_hub")
EXTRAS = {
    "templates": ("jinja2",),
    "parquet": ("pyarrow",),
    "fast": ("numkong",),
    "mpi": ("mpi4py", "mpich"),
    "plot": ("matplotlib",),
    "oracle": ("torch", "transformers", "peft", "trl"),
    "interop": ("llama-cpp-python",),
}
# Of the environment, what changes how or where minibule works.
VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "XDG_CACHE_HOME",
    "HF_ENDPOINT",
    "NO_COLOR",
    "PYTHONPATH",
)


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.env",
        description="Print versions, processor, BLAS, threads and extras: to go with a bug report.",
    )
    parser.parse_args(argv)
    for name, value in environment():
        print(f"{name:<11}{value}")


def environment() -> Iterator[tuple[str, str]]:
    """(name, value) of all that is worth knowing."""
    yield "minibule", f"{minibule.__version__} in {Path(minibule.__file__).parent}"
    yield "python", f"{platform.python_version()} in {sys.executable}"
    yield "system", platform.platform()
    yield "processor", processor()
    built: Any = np.show_config(mode="dicts")  # NumPy's own stub says it gives nothing
    found = built.get("SIMD Extensions", {})
    yield "SIMD", " ".join([*found.get("baseline", []), *found.get("found", [])])
    blas = built["Build Dependencies"]["blas"]
    yield "BLAS", f"{blas.get('name')} {blas.get('version')}, {threads()} threads"
    yield "packages", ", ".join(map(_versioned, PACKAGES))
    for extra, packages in EXTRAS.items():
        yield extra, ", ".join(map(_versioned, packages))
    for model in NAMED.values():
        yield "model", f"{model.name}: {_place(model.name)}"
    for name in VARIABLES:
        if name in os.environ:
            yield "set", f"{name}={os.environ[name]}"


def _versioned(package: str) -> str:
    """ "numpy 2.1.0", or "torch not installed"."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} not installed"


def _place(model: str) -> str:
    try:
        return str(NAMED[model].find())
    except InputError as error:
        return str(error).partition(". ")[0].partition(": ")[2]


if __name__ == "__main__":
    run(main)
