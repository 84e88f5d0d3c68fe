"""Measure minibule: a training step, generation, export, the start, and how a step's cost grows.

    python tools/bench.py dense    --model DIR                    4 x (128 + 128) tokens, no sharing
    python tools/bench.py records  --model DIR --data FILE        real records, 4 a step
    python tools/bench.py generate --model DIR                    against llama.cpp in float32
    python tools/bench.py export   --model DIR                    seconds and memory of each format
    python tools/bench.py start    --model DIR --data FILE        from the command to the first step
    python tools/bench.py growth   --model DIR [--plot FILE.svg]  tokens, answers, layers, ranks

DIR may hold random weights (tools/random_model.py). Every measurement is a process of its own; the
engines take turns, round after round, so that a drifting machine treats them alike, and ratios are
taken within a round; a cell is the median of the rounds and, in brackets, their range.

dense and records compare with torch + PEFT: same weights, adapter, records and loss. torch's side
is the strong one: logits at answer positions only, a sparse loss, fused causal attention without a
mask, no padding beyond the longest answer of its record, nothing recomputed. The loss is that of
the objective `literal`, but for the engines minibule-reference, minibule-reference-known (its later
epochs, where what the base says is known) and minibule-rate; minibule-low is training with --memory
low; minibule-bfloat16, -bfloat16x2 and -bfloat16x3 multiply as --matmul of that name does (extra
`fast`), and minibule-2x1 is two ranks of one thread each (extra `mpi`; 1x1, 1x2 and 4x1 beside it),
whose "GB of all" counts once what they share. How far an engine's losses and its first gradient are
from those of the first engine, minibule's in float32 unless another is named, is told under the
times. The share of sgemm is the step's arithmetic (matrix products only)
at the rate that NumPy's own products reach in the same process on the model's shapes. Needs the
extra `oracle`; generate needs `interop` (llama-cpp-python).

How it is done is in `benches/`.
"""

import argparse
import json
from pathlib import Path

from benches.export import EXPORT
from benches.flags import add_number
from benches.generate import GENERATE
from benches.growth import GROWTH
from benches.start import START
from benches.step import DENSE, RECORDS

from minibule.machine.mpi import together
from minibule.program import run

BENCHES = {
    "dense": DENSE,
    "records": RECORDS,
    "generate": GENERATE,
    "export": EXPORT,
    "start": START,
    "growth": GROWTH,
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cases = parser.add_subparsers(dest="case", required=True)
    for case, bench in BENCHES.items():
        sub = cases.add_parser(case)
        sub.add_argument("--model", type=Path, required=True, metavar="DIR")
        add_number(sub, "--rounds", bench.rounds, "rounds of all engines")
        sub.add_argument("--engine", choices=bench.engines, help=argparse.SUPPRESS)
        bench.add_flags(sub)
    return parser.parse_args(argv)


@together
def main(argv: list[str]) -> None:
    args = parse(argv)
    bench = BENCHES[args.case]
    if args.engine:
        print(json.dumps(bench.engines[args.engine](args)))
    else:
        bench.report(args, argv)


if __name__ == "__main__":
    run(main)
