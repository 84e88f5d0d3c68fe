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
the objective `literal`, but for the engines minibule-reference and minibule-rate; minibule-low is
training with --memory low; minibule-bfloat16, -bfloat16x2 and -bfloat16x3 multiply as --matmul of
that name does (extra `fast`), and minibule-2x1 is two ranks of one thread each (extra `mpi`; 1x1,
1x2 and 4x1 beside it), whose "GB of all" counts once what they share. How far an engine's losses
and its first gradient are from those of the first engine, minibule's in float32 unless another is
named, is told under the times. The share of sgemm is the step's arithmetic (matrix products only)
at the rate that NumPy's own products reach in the same process on the model's shapes. Needs the
extra `oracle`; generate needs `interop` (llama-cpp-python).
"""

import argparse
import json
from pathlib import Path

from benches.export import EXPORTS, bench_export, export_one
from benches.generate import GENERATE_ENGINES, bench_generate
from benches.growth import GROWTH, bench_growth, growth_point
from benches.start import STARTS, bench_start
from benches.step import STEP_ENGINES, bench_step

from minibule.machine.mpi import together
from minibule.program import run

BENCHES = {
    "dense": (bench_step, STEP_ENGINES.get),
    "records": (bench_step, STEP_ENGINES.get),
    "generate": (bench_generate, GENERATE_ENGINES.get),
    "export": (bench_export, lambda name: export_one if name in EXPORTS else None),
    "start": (bench_start, STARTS.get),
    "growth": (bench_growth, lambda name: growth_point if name.split("=")[0] in GROWTH else None),
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cases = parser.add_subparsers(dest="case", required=True)

    def names(text: str) -> list[str]:
        return text.split(",")

    for case in BENCHES:
        sub = cases.add_parser(case)
        sub.add_argument("--model", type=Path, required=True, metavar="DIR")
        rounds = 1 if case == "growth" else 5
        sub.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"({rounds})")
        sub.add_argument("--engine", help=argparse.SUPPRESS)
        if case in ("dense", "records", "generate", "export"):
            sub.add_argument("--engines", type=names, metavar="A,B", help="(all that are there)")
        if case in ("records", "start"):
            sub.add_argument("--data", type=Path, required=True, metavar="FILE")
        if case in ("dense", "records", "growth"):
            steps = 1 if case == "growth" else 2
            sub.add_argument(
                "--steps", type=int, default=steps, metavar="N", help=f"counted steps ({steps})"
            )
        if case == "generate":
            for flag, value, text in (
                ("--prompt", 512, "tokens prefilled"),
                ("--context", 128, "tokens before those decoded"),
                ("--new", 64, "tokens decoded of one sequence"),
                ("--new-batch", 16, "tokens decoded of each of a batch"),
                ("--batch", 16, "sequences of a batch"),
                ("--sampled", 64, "sequences of a batch that is sampled, too"),
            ):
                sub.add_argument(
                    flag, type=int, default=value, metavar="N", help=f"{text} ({value})"
                )
            sub.add_argument("--gguf", type=Path, help=argparse.SUPPRESS)
        if case == "growth":
            sub.add_argument("--tables", type=names, metavar="A,B", help=f"of {','.join(GROWTH)}")
            sub.add_argument(
                "--most", type=int, default=4096, metavar="N", help="of anything (4096)"
            )
            sub.add_argument("--plot", type=Path, metavar="FILE.svg")
    args = parser.parse_args(argv)
    given = [*(getattr(args, "engines", None) or []), *([args.engine] if args.engine else [])]
    for name in given:
        if not BENCHES[args.case][1](name):
            parser.error(f"engine {name}: {args.case} has none of that name")
    for table in getattr(args, "tables", None) or []:
        if table not in GROWTH:
            parser.error(f"--tables {table}: expected some of {','.join(GROWTH)}")
    return args


@together
def main(argv: list[str]) -> None:
    args = parse(argv)
    bench, engine = BENCHES[args.case]
    if args.engine:
        print(json.dumps(engine(args.engine)(args)))
    else:
        bench(args, argv)


if __name__ == "__main__":
    run(main)
