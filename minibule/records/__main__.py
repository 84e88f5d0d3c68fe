"""`python -m minibule.records`."""

import argparse
from pathlib import Path

from minibule.errors import InputError
from minibule.files import check_new, new_output, real_path
from minibule.program import run
from minibule.records.formats import KNOWN
from minibule.records.records import (
    Record,
    Summary,
    check_output,
    read_file,
    shown,
    write_records,
)
from minibule.settings import Parser


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.records",
        description="Check and count files of rejected answers, and convert them to one format.",
        epilog=KNOWN,
        examples=(
            "samples.jsonl",
            "monday.jsonl tuesday.jsonl.gz",
            "preferences.parquet --output canonical.jsonl",
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = ".jsonl, .json (an array), either with .gz, or .parquet (needs pyarrow)"
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=kinds)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="canonical.jsonl",
        help="write the records of all files as canonical JSON lines; records of equal prompt in "
        "different files are kept as separate records (default: only check and count)",
    )
    args = parser.parse_args(argv)
    if args.output:
        check_output(args.output)
        if real_path(args.output) in map(real_path, args.files):
            raise InputError(f"{shown(args.output)}: is an input too, expected another name")
        check_new(args.output)

    total = Summary(f"all {len(args.files)} files")
    records: list[Record] = []
    errors: list[str] = []
    for path in args.files:
        try:
            found, summary = read_file(path, progress=True, unrejected=True)
        except InputError as error:
            errors.append(str(error))  # the other files are checked all the same
            continue
        print(summary)
        total.tally += summary.tally
        total.formats += summary.formats
        if args.output:
            records += found
    if errors:
        raise InputError("\n".join(errors))
    if len(args.files) > 1:
        print(total)
    if args.output:
        with new_output(args.output) as place:
            write_records(records, place)
        print(f"{shown(args.output)}: {len(records):,} records written")


if __name__ == "__main__":
    run(main)
