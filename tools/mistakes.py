"""Seven classic mistakes, planted one by one in a copy of the project: who notices?

    python tools/mistakes.py

Prints the table of minibule/core/EXERCISES.md, in some minutes: the lesson's tests, plain
`python -m minibule.explain`, `python -m minibule.check` on filled-in exercises with the same
mistake, and what the demo's training ends at. (Damaged *files* are the business of mutate.py.)
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from minibule.program import run

ROOT = Path(__file__).parent.parent
ANSWERS = "tests/check/answers.py"  # the exercises, filled in


class Place(NamedTuple):
    """A text that stands once in a file, and what the mistake makes of it."""

    file: str
    right: str
    wrong: str


class Mistake(NamedTuple):
    """noticed_by: the test of the lesson that sees it; the other two: where it is made."""

    noticed_by: str
    code: Place
    learner: Place


MISTAKES = {
    "LoRA: the scaling forgotten on the way to dx and dA": Mistake(
        "tests/core/test_lora.py::test_backward_is_the_gradient[one block]",
        Place("minibule/core/lora.py", "du = scaling * (dy @ B)", "du = dy @ B"),
        Place(ANSWERS, "du = s * (dy @ B)", "du = dy @ B"),
    ),
    "RMSNorm: without the projection, as if rms did not depend on x": Mistake(
        "tests/core/test_ops.py::test_backward_is_the_gradient[rms_norm-one]",
        Place("minibule/core/ops.py", "\n    g -= n\n", "\n    pass\n"),
        Place(ANSWERS, "(dn - n * (dn * n).mean(axis=-1, keepdims=True))", "dn"),
    ),
    "contrast: a = w p / (1 - p) in place of w p at j = i": Mistake(
        "tests/core/test_complement.py::test_dense_gradient[uniform-position-plain-0.7]",
        Place("minibule/core/complement.py", "w * p - others * p", "a - others * p"),
        Place(ANSWERS, "w * p - others * p", "a - others * p"),
    ),
    "RoPE: turned the same way again": Mistake(
        "tests/core/test_ops.py::test_backward_is_the_gradient[rope-one]",
        Place("minibule/core/ops.py", "rope(dy, cos, -sin)", "rope(dy, cos, sin)"),
        Place(ANSWERS, "rope(dy, cos, -sin)", "rope(dy, cos, sin)"),
    ),
    "forest: keys that several segments read get the last one's gradient": Mistake(
        "tests/core/test_ops.py::test_backward_is_the_gradient[attention-one]",
        Place("minibule/core/ops.py", "dk[keys] +=", "dk[keys] ="),
        Place(ANSWERS, "dk[keys, h // G] +=", "dk[keys, h // G] ="),
    ),
    "softmax: without the sum over what was looked at": Mistake(
        "tests/core/test_ops.py::test_backward_is_the_gradient[attention-one]",
        Place("minibule/core/ops.py", "\n        ds -= inner\n", "\n        pass\n"),
        Place(ANSWERS, "att * (datt - inner)", "att * datt"),
    ),
    "block: the residual forgotten": Mistake(
        "tests/core/test_llama.py::"
        "test_adapter_gradients_are_the_gradient_of_the_loss[uniform-position-plain-0.7]",
        Place(
            "minibule/core/llama.py",
            'return dx + norm_backward(model, layer, "input_layernorm"',
            'return norm_backward(model, layer, "input_layernorm"',
        ),
        Place(ANSWERS, "dx = dmid + rms_norm_backward", "dx = rms_norm_backward"),
    ),
}


def copy_to(folder: Path) -> Path:
    """What `git clone` gives of the package, its model and the lesson's tests, and more quickly."""
    for part in ("minibule", "weights/tiny", "tests/core", "tests/check"):
        shutil.copytree(ROOT / part, folder / part)
    for file in ("pyproject.toml", "tests/conftest.py", "tests/helpers.py"):
        shutil.copy(ROOT / file, folder / file)
    return folder


def plant(folder: Path, place: Place) -> None:
    """Make the mistake in the copy, in the one place where it can be made."""
    path = folder / place.file
    text = path.read_text(encoding="utf-8")
    if text.count(place.right) != 1:
        raise ValueError(f"{place.file}: {text.count(place.right)} times {place.right!r}")
    path.write_text(text.replace(place.right, place.wrong), encoding="utf-8")


def python(folder: Path, *arguments: str) -> tuple[int, str]:
    """`python ARGUMENTS` in the copy: what it returns and prints. Nothing else is on its path."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST"))}
    env["OPENBLAS_NUM_THREADS"] = "1"  # small matrices: threads would only wait for each other
    command = [sys.executable, *arguments]
    done = subprocess.run(  # noqa: S603 - our own commands
        command, cwd=folder, env=env, capture_output=True, encoding="utf-8", check=False
    )
    return done.returncode, done.stdout + done.stderr


def tests(folder: Path, *names: str) -> tuple[int, str]:
    """The plain command `pytest NAMES`, whose way to the copy is pyproject.toml alone (-P)."""
    apart = f"--basetemp={folder / 'tmp'}"  # not among what other runs left
    return python(folder, "-P", "-m", "pytest", "--tb=no", "-rf", apart, *names)


def explain(folder: Path) -> tuple[int, str]:
    """How many of its checks do not agree, and all that it prints."""
    status, out = python(folder, "-m", "minibule.explain")
    if status or "One step" not in out:
        raise RuntimeError(out)
    return out.count("THEY DO NOT AGREE"), out


def check(folder: Path) -> tuple[int, list[str]]:
    """Its status on the filled-in exercises, and what it says of values that are not right."""
    status, out = python(folder, "-m", "minibule.check", ANSWERS)
    if "exercises are right" not in out:
        raise RuntimeError(out)
    return status, wrong_values(out)


def wrong_values(out: str) -> list[str]:
    """What check says of values that are not right, each with its name."""
    rows = re.findall(r"^      (\w+) ++(?!exact|within|looked)(.*)$", out, re.M)
    return [f"`{name}`: {words}" for name, words in rows]


def trained(folder: Path) -> str:
    """What the demo ends at: greedy acceptance, and the exact P(accepted)."""
    command = ["-m", "minibule.train", "--export", "none", "--output", "runs/here", "--overwrite"]
    status, out = python(folder, *command)
    if status:
        raise RuntimeError(out)
    greedy, exact = (
        re.search(rf"{label} +\S+ +(\S+)", out)[1]
        for label in ("greedy answer accepted", r"P\(accepted answer\), exact")
    )
    return f"{greedy}, {exact}"


def row(name: str, mistake: Mistake | None) -> str:
    """A line of the table; None: with no mistake."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_to(Path(scratch))
        noticed_by = {other.noticed_by for other in MISTAKES.values()}
        if mistake:
            noticed_by = {mistake.noticed_by}
            for place in (mistake.code, mistake.learner):
                plant(folder, place)
        failed, _ = tests(folder, *noticed_by)
        disagree, _ = explain(folder)
        wrong, said = check(folder)
        seen = ["caught" if found else "-" for found in (failed, disagree, wrong)]
        return f"| {' | '.join([name, *seen, said[0] if said else '', trained(folder)])} |"


def main(_: list[str]) -> None:
    print("| mistake | tests | `explain` | `check` | which says | training: greedy, P(accepted) |")
    print("|---|---|---|---|---|---|")
    print(row("none", None), flush=True)
    for name, mistake in MISTAKES.items():
        print(row(name, mistake), flush=True)


if __name__ == "__main__":
    run(main)
