"""`python -m minibule.train`."""

from minibule.errors import InputError
from minibule.machine.mpi import together
from minibule.program import run
from minibule.runs.settings import add_arguments, resolve
from minibule.settings import Parser
from minibule.train.dry_run import dry_run
from minibule.train.loop import train
from minibule.train.resume import resumed_settings


@together
def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.train",
        usage="%(prog)s [FLAGS]",
        description="Train a LoRA adapter from rejection records. "
        "Without arguments: the embedded model on its embedded records.",
        examples=(
            "",
            "--model smollm2-135m --data samples.jsonl --output runs/real --export gguf:q8_0",
            "--resume --output runs/real",
        ),
    )
    heading = add_arguments(parser)
    heading.add_argument(
        "--resume", action="store_true", help="go on with the run in --output, with its settings"
    )
    heading.add_argument(
        "--dry-run", action="store_true", help="check everything, try a few steps, write nothing"
    )
    arguments = vars(parser.parse_args(argv))
    if arguments["resume"] and arguments["dry_run"]:
        raise InputError("--dry-run rehearses a new run, --resume goes on with an old one.")
    if arguments["dry_run"]:
        dry_run(resolve(arguments), arguments["config"])
    elif arguments["resume"]:
        train(resumed_settings(arguments), resume=True)
    else:
        train(resolve(arguments), settings_file=arguments["config"])


if __name__ == "__main__":
    run(main)
