"""`dense` and `records`: a training step, beside torch's and minibule's own other ways."""

import argparse
from collections.abc import Mapping
from statistics import median

from benches.flags import add_data, add_names, add_number
from benches.minibule_step import run_minibule
from benches.names import KNOWN, RANKS, objective_of, ranks_of
from benches.timing import distances
from benches.turns import Bench, Engine, Result, in_turn, print_table, spread

from minibule.machine.matmul import TERMS


def run_torch(args: argparse.Namespace) -> Result:
    from benches import torch_step  # torch takes memory that minibule's steps must not be charged

    return torch_step.run_torch(args)


ENGINES: dict[str, Engine] = {
    "minibule": run_minibule,
    "minibule-low": run_minibule,
    "minibule-reference": run_minibule,
    f"minibule-reference{KNOWN}": run_minibule,
    "minibule-rate": run_minibule,
    **{f"minibule-{mode}": run_minibule for mode in TERMS},
    **dict.fromkeys((f"minibule-{name}" for name in RANKS), run_minibule),
    "torch-float32": run_torch,
    "torch-bfloat16": run_torch,
}


def bench_step(args: argparse.Namespace, argv: list[str]) -> None:
    results = in_turn(args.engines, argv, args.rounds)
    columns = ["s/step", "tokens/s", "peak GB"]
    columns += ["GB of all"] if any(map(ranks_of, args.engines)) else []
    first = args.engines[0]
    print_table(results, columns, {"time": (first, "s/step"), "memory": (first, "peak GB")})
    for name in args.engines:
        if "share of sgemm" in results[name][0]:
            rate, share = (
                spread(results[name], key) for key in ("sgemm GFLOP/s", "share of sgemm")
            )
            print(f"\n{name}: share of sgemm {share}, sgemm {rate} GFLOP/s")
    print_distances(results)


def print_distances(results: Mapping[str, list[Result]]) -> None:
    """A table of the engines that have the first one's loss, where there are others."""
    engines = [name for name in results if objective_of(name) == "literal"]
    if len(engines) < 2:
        return
    first, *others = engines
    print(f"\nHow far from {first}, relative to it: the losses at most, and the first gradient\n")
    print("| engine | losses | gradient |\n|---|---|---|")
    for name in others:
        pairs = zip(results[name], results[first], strict=True)
        far = [distances(result, other) for result, other in pairs]
        loss, gradient = (median(one[key] for one in far) for key in ("loss", "gradient"))
        print(f"| {name} | {loss:.1e} | {gradient:.1e} |")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_names(parser, "--engines", ENGINES, ("minibule", "torch-float32", "torch-bfloat16"))
    add_number(parser, "--steps", 2, "counted steps")


def add_flags_of_records(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    add_flags(parser)


DENSE = Bench(ENGINES, bench_step, add_flags)
RECORDS = Bench(ENGINES, bench_step, add_flags_of_records)
