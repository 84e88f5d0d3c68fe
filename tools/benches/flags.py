"""Flags that several benches have, each with its default in its help."""

import argparse
from collections.abc import Callable, Collection
from pathlib import Path


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, metavar="FILE")


def add_number(
    parser: argparse.ArgumentParser, flag: str, default: int, text: str, least: int = 1
) -> None:
    kind, text = at_least(least), f"{text} ({default})"
    parser.add_argument(flag, type=kind, default=default, metavar="N", help=text)


def add_names(
    parser: argparse.ArgumentParser, flag: str, known: Collection[str], default: Collection[str]
) -> None:
    """A flag of names separated by commas, all of them known."""
    shown = ", ".join(default) if len(default) < len(known) else "all"
    text = f"of {', '.join(known)} ({shown})"
    kind = some_of(known)
    parser.add_argument(flag, type=kind, default=list(default), metavar="A,B", help=text)


def at_least(least: int) -> Callable[[str], int]:
    """A `type` of arguments: whole numbers from `least` on."""

    def number(text: str) -> int:
        found = int(text)
        if found < least:
            raise argparse.ArgumentTypeError(f"found {found}, expected at least {least}")
        return found

    return number


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """A `type` of arguments: "A,B" -> ["A", "B"], where both are known."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                expected = ", ".join(known)
                raise argparse.ArgumentTypeError(f"found {name}, expected some of {expected}")
        return found

    return names
