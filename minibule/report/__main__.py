"""`python -m minibule.report`."""

import argparse

from minibule.program import run
from minibule.report.sections import (
    write_report,
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minibule.report",
        description="Write RUN/report.html: what a training run did, on one page.",
    )
    parser.add_argument("run", metavar="RUN", help="output folder of a training run")
    print(write_report(parser.parse_args(argv).run))


if __name__ == "__main__":
    run(main)
