"""`minibule` or `python -m minibule` lists the commands; `minibule train ...` runs one of them."""

import re
from importlib import import_module

import minibule
from minibule.errors import InputError
from minibule.program import as_typed, run
from minibule.wording import did_you_mean


def main(argv: list[str]) -> None:
    """Run the command that the first word names, as `python -m minibule.NAME` does.

    Raises InputError for a word that is none.
    """
    about = minibule.__doc__
    if about is None:
        raise InputError(
            "python -OO, or PYTHONOPTIMIZE=2, takes away the text that commands are listed in. "
            "Leave it out, or start one as python -m minibule.NAME."
        )
    commands = re.findall(r"^    python -m minibule\.(\w+)", about, re.MULTILINE)
    name, *arguments = argv or ["--help"]
    if name in ("--help", "-h"):
        listed = about.partition("Commands, ")[2].partition("\n\nThe code")[0]
        print(as_typed(f"Commands, {listed}"))
    elif name == "--version":
        print(f"minibule {minibule.__version__}")
    elif name in commands:
        module = import_module(f"minibule.{name}")
        if hasattr(module, "__path__"):  # a folder, and not one file
            module = import_module(f"minibule.{name}.__main__")
        module.main(arguments)
    else:
        raise InputError(
            f"{name}: no such command{did_you_mean(name, commands)}\n"
            "`python -m minibule` lists the commands."
        )


def command() -> None:
    """The console script `minibule`."""
    run(main)


if __name__ == "__main__":
    run(main)
