"""`python -m minibule.report`."""

from pathlib import Path

from minibule.program import run
from minibule.report.rounds import write_rounds_report
from minibule.report.sections import write_report
from minibule.runs.rounds import RoundsFolder
from minibule.settings import Parser


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.report",
        description="Write RUN/report.html: what a training run, or rounds, did, on one page.",
        examples=("runs/tiny", "runs/tiny-rounds"),
    )
    parser.add_argument("run", metavar="RUN", help="output folder of a training run or of rounds")
    folder = Path(parser.parse_args(argv).run)
    rounds = RoundsFolder(folder).settings.exists()
    print((write_rounds_report if rounds else write_report)(folder))


if __name__ == "__main__":
    run(main)
