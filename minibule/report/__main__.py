"""`python -m minibule.report`."""

from minibule.program import run
from minibule.report.sections import write_report
from minibule.settings import Parser


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.report",
        description="Write RUN/report.html: what a training run did, on one page.",
        examples=("runs/tiny",),
    )
    parser.add_argument("run", metavar="RUN", help="output folder of a training run")
    print(write_report(parser.parse_args(argv).run))


if __name__ == "__main__":
    run(main)
