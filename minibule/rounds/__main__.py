"""`python -m minibule.rounds`."""

from minibule.errors import InputError
from minibule.machine.mpi import together
from minibule.program import run
from minibule.rounds.loop import rounds
from minibule.rounds.presets import DEFAULT, PRESETS
from minibule.rounds.settings import DATA, DEFAULTS, ROUND, TRAINING, RoundsConfig, resolve
from minibule.runs.rounds import RoundsFolder
from minibule.settings import Parser, Source, add_flags, flags_given, read_toml


@together
def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.rounds",
        usage="%(prog)s [FLAGS]",
        description="Sample answers, judge them, train on them, again. "
        "Without arguments: the embedded model on its own questions.",
        examples=(
            "",
            "--model smollm2-135m --output runs/real --rounds 5",
            "--model smollm2-135m --data questions.jsonl --judge exact",
        ),
    )
    headings = add_flags(parser, RoundsConfig, defaults=DEFAULTS, groups=(DATA, ROUND, TRAINING))
    headings[ROUND].add_argument(
        "--preset",
        choices=PRESETS,
        help="a published system: its budget, selection, objective, samples and temperature, "
        f"where these are not given (default: {DEFAULT}, ours)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the rounds in --output, as they were set"
    )
    arguments = vars(parser.parse_args(argv))
    flags = flags_given(RoundsConfig, arguments)
    if not arguments["resume"]:
        rounds(resolve([flags], arguments["preset"] or DEFAULT))
        return
    if not arguments["output"]:
        raise InputError("--resume without --output: expected the folder of the rounds.")
    if arguments["preset"]:
        raise InputError("--resume: --preset cannot change in the middle. Leave it out.")
    file = RoundsFolder(arguments["output"]).settings
    rounds(resolve([Source(str(file), read_toml(file), False), flags]), resume=True)


if __name__ == "__main__":
    run(main)
