"""Damage every kind of file that minibule reads, and see that none of them gets the better of it.

    python tools/mutate.py [--seed S] [--kind KIND --case N]

Each case takes a good file, damages it in a way drawn from the seed, and reads it as the commands
do; or puts a link, a pipe or a device beside or in the place of what a command reads and writes. It
must end in one of two ways: *loaded*, and what was loaded works (a model's logits are finite and of
the right shape, records become tokens), or *refused* with an InputError. Anything else is a
failure: a traceback, a library's warning, a crash, a number that is not finite, a control character
in what it says, a file changed that is not its own, more than 5 seconds, or more memory than twice
the file (of a template 400 times: all may be text to cut into tokens) and a constant. And so are
logits, or a chat template's text, that differ from those that transformers, PEFT or llama.cpp
compute of the same damaged file, where these are installed.

With --kind and --case one case is run by itself. How it is done is in `mutation/`.
"""

import argparse
import sys

from mutation.cases import good_files, mutate, run_case, warm

from minibule.errors import InputError
from minibule.program import run


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--kind", nargs="+", help="only these kinds of files")
    parser.add_argument("--case", type=int, metavar="N", help="only this case of that kind")
    parser.add_argument("--cases", type=int, metavar="N", help="so many of each kind")
    args = parser.parse_args(argv)
    with good_files() as (folder, known):
        chosen = args.kind or list(known)
        if not set(chosen) <= set(known) or (args.case is not None and len(chosen) > 1):
            raise InputError(
                f"--kind: expected one or, without --case, more of {', '.join(known)}."
            )
        if args.case is not None:
            warm(folder, known[chosen[0]])
            print(*run_case(folder, chosen[0], known[chosen[0]], args.seed, args.case), sep="\n")
            return
        counts = {name: args.cases or known[name].cases for name in chosen}
        failures = 0
        print(
            f"{'kind':18}   cases loaded refused failed  other agree unsure  slowest  most memory"
        )
        for name, tally in mutate(folder, known, args.seed, counts):
            results, compared = tally.results, tally.compared
            print(
                f"{name:18} {counts[name]:7,} {results['loaded']:6,} {results['refused']:7,} "
                f"{results['failed']:6,} {compared.total():6,} {compared['agrees']:5,} "
                f"{compared.total() - compared['agrees']:6,} {tally.slowest:6.2f} s "
                f"{tally.memory / 1e6:8.1f} MB",
                flush=True,
            )
            for failure in tally.failures[:200]:
                print(f"  {name} {failure}", file=sys.stderr)
            failures += len(tally.failures)
    if failures:
        raise InputError(f"{failures:,} cases failed; --kind KIND --case N repeats one.")


if __name__ == "__main__":
    run(main)
