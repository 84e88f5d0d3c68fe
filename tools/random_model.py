"""Write a model folder of SmolLM2-360M's exact shapes with random weights and the real tokenizer.

    python tools/random_model.py --like FOLDER --output DIR

FOLDER holds the real config.json and tokenizer files, but need not hold the weights. What comes
out computes nonsense at exactly the real model's cost, which is what measurements need.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from minibule.core.llama import Llama
from minibule.errors import InputError
from minibule.files import whole_folder
from minibule.models.huggingface import COMPANIONS, load_config
from minibule.models.save import save_weights
from minibule.program import run


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Normal(0, 0.02) matrices as the model starts its training with, norms around 1."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(0, 0.02, shape).astype(np.float32)
        if len(shape) > 1
        else rng.uniform(0.8, 1.2, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--like", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    args = parser.parse_args(argv)
    if args.output.exists():
        raise InputError(f"{args.output}: exists already; expected a new name.")
    config = load_config(args.like)
    model = Llama(config, random_weights(config.tensor_shapes(), args.seed))
    with whole_folder(args.output) as partial:
        for name in (*COMPANIONS, "config.json"):
            if (args.like / name).exists():
                shutil.copy(args.like / name, partial / name)
        save_weights(model, partial, "BF16")
    numbers = sum(w.size for w in model.weights.values())
    print(f"{args.output}: {numbers:,} random weights, BF16")


if __name__ == "__main__":
    run(main)
