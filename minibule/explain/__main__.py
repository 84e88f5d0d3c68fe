"""`python -m minibule.explain`."""

import os
import sys
from pathlib import Path

from minibule.errors import InputError
from minibule.explain.picture import row_graph
from minibule.explain.story import Scene, explain, explain_tiny_vocab, explained_loss, scene_of
from minibule.explain.subject import Place
from minibule.files import check_new, new_output
from minibule.program import leave_if_unread, print_bold, run
from minibule.runs.settings import add_settings, resolve
from minibule.settings import Parser


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m minibule.explain",
        description="Work through one gradient with its numbers: counts, target, loss, gradient, "
        "LoRA, one step. Without arguments: the embedded model and the first of its records.",
        examples=("", "--tiny-vocab", "--record 2 --answer 1 --position 2 --objective literal"),
    )
    _add_flags(parser)
    knobs = ("objective", "prior", "counts", "contrast", "alpha", "kl", "beta")
    add_settings(parser, ["model", "data", *knobs, "lr", "max_length"])
    arguments = vars(parser.parse_args(argv))
    if arguments["tiny_vocab"]:
        free = ("tiny_vocab", *knobs)
        given = [n for n, value in arguments.items() if value is not None and n not in free]
        if given:
            flags = ", ".join("--" + n.replace("init_", "").replace("_", "-") for n in given)
            raise InputError(f"--tiny-vocab is a world of its own: leave out {flags}.")
        config = resolve(arguments | {"objective": arguments["objective"] or "literal"})
        loss = explained_loss(config)
        print(f"objective  {config.objective}: {loss}")
        lines = explain_tiny_vocab(loss)
    else:
        config = resolve(arguments)
        if arguments["svg"]:
            check_new(Path(arguments["svg"]), "--svg")
        chosen = {n: arguments[n] for n in Place._fields if arguments[n] is not None}
        scene = scene_of(config, Place(**chosen), arguments["module"] or "")
        if arguments["svg"]:
            _draw(scene, Path(arguments["svg"]))
            return
        lines = explain(scene)
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in lines:
        (print_bold if bold and line[:1].isdigit() else print)(line)
        sys.stdout.flush()
        leave_if_unread()


def _add_flags(parser: Parser) -> None:
    """Which row is explained, and how."""
    which = {
        "record": "record of the data",
        "answer": "which of its rejected answers",
        "position": "which token of the answer the row predicts",
    }
    for name, meaning in which.items():
        parser.add_argument(
            f"--{name}",
            type=int,
            metavar="N",
            help=f"{meaning}, counting from 1 (default: {getattr(Place(), name)})",
        )
    parser.add_argument(
        "--tiny-vocab",
        action="store_true",
        help="five tokens and round numbers instead of a model; the objective is the published "
        "one, literal, unless --objective names another",
    )
    parser.add_argument(
        "--adapter",
        dest="init_adapter",
        metavar="DIR",
        help="PEFT adapter folder to put on the model (default: a fresh one)",
    )
    parser.add_argument(
        "--module",
        metavar="NAME",
        help="adapted projection whose gradient is checked beside the uppermost one's, such as "
        "layers.2.self_attn.k_proj (default: the first of the lowest layer)",
    )
    parser.add_argument(
        "--svg", metavar="FILE", help="draw the row as a graph with its numbers, instead of text"
    )


def _draw(scene: Scene, path: Path) -> None:
    with new_output(path, "--svg") as place:
        place.write_text(row_graph(scene), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    run(main)
