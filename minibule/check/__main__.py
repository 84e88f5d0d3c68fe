"""`python -m minibule.check`."""

import linecache
import sys
from pathlib import Path
from typing import Any

from minibule.check.exercises import EXERCISES, skeleton
from minibule.check.run import mark, said
from minibule.errors import InputError
from minibule.files import reading, whole_file, writing
from minibule.program import run
from minibule.settings import Parser


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.check",
        description="Mark the exercises of core/EXERCISES.md in a file of yours, value by value. "
        "The file is run. Exit status 0: all that was asked for is right.",
        examples=("--skeleton mine.py", "mine.py", "mine.py 3"),
    )
    parser.add_argument("file", type=Path, metavar="FILE.py", help="your functions")
    numbers = f"exercise, 1 to {len(EXERCISES)} (default: all)"
    parser.add_argument("number", type=int, nargs="?", metavar="N", help=numbers)
    parser.add_argument(
        "--skeleton", action="store_true", help="write the file, with every function to fill in"
    )
    args = parser.parse_args(argv)
    if args.number is not None and args.number not in EXERCISES:
        raise InputError(f"exercise {args.number}: expected 1 to {len(EXERCISES)}.")
    if args.skeleton:
        write_skeleton(args.file)
        return
    functions = functions_of(args.file)
    chosen = [args.number] if args.number is not None else list(EXERCISES)
    done = 0
    for number in chosen:
        marks = []
        for name in EXERCISES[number]:
            marks.append(mark(functions.get(name), name))
            print("\n".join(marks[-1].lines()), flush=True)
        done += all(one.right for one in marks)
    if len(chosen) > 1:
        print(f"{done} of {len(chosen)} exercises are right")
    if done < len(chosen):
        sys.exit(1)


def write_skeleton(path: Path) -> None:
    """InputError where something has that name already."""
    if path.is_symlink() or path.exists():
        raise InputError(f"{path}: exists already; expected a new name.")
    with writing(path), whole_file(path) as partial:
        partial.write_text(skeleton(), encoding="utf-8")
    print(f"{path}: fill in what is `...`, then `python -m minibule.check {path} 1`")


def functions_of(path: Path) -> dict[str, Any]:
    """What the file defines, after running it; InputError names the line that cannot be run."""
    with reading(path) as file:
        source = file.read()
    try:
        code = compile(source, str(path), "exec")
        linecache.getlines(str(path))  # what is quoted is what ran, whatever is typed meanwhile
    except SyntaxError as error:
        line, text = error.lineno or 1, (error.text or "").strip()
        raise InputError(
            f"{path}, line {line}: {error.msg}" + (f": `{text}`" if text else "")
        ) from None
    except ValueError as error:  # a zero byte
        raise InputError(f"{path}: {error}; expected a Python file.") from None
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(code, names)  # noqa: S102 - the user named this file to have it run
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}, {said(error, str(path))}") from None
    return names


if __name__ == "__main__":
    run(main)
