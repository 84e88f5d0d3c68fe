"""The exercises as a notebook: it is the text, and runs, blank and filled in, without Jupyter."""

import ast
import json

import notebook
from helpers import ROOT

from minibule.check.exercises import FUNCTIONS

ANSWERS = (ROOT / "tests/check/answers.py").read_text(encoding="utf-8")
FILLED = {
    node.name: ast.get_source_segment(ANSWERS, node)
    for node in ast.parse(ANSWERS).body
    if isinstance(node, ast.FunctionDef)
}


def run(fill, capsys):
    """What the cells print, run one after another as Jupyter does."""
    names = {}
    cells = json.loads(notebook.PLACE.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile(fill("".join(cell["source"])), "cell", "exec"), names)  # noqa: S102 - our own
    return capsys.readouterr().out


def test_the_notebook_is_the_text():
    assert notebook.PLACE.read_text(encoding="utf-8") == notebook.notebook()
    kinds = [kind for kind, _ in notebook.cells()]
    assert kinds.count("code") > 20 and kinds[0] == "markdown"


def test_blank_it_says_so(capsys):
    out = run(lambda cell: cell, capsys)
    assert out.count(": not filled in yet\n") == len(FUNCTIONS)


def test_filled_in_all_of_it_is_right(capsys):
    def fill(cell):
        names = [node.name for node in ast.parse(cell).body if isinstance(node, ast.FunctionDef)]
        if "check(complement_distribution)" in cell:  # what answers.py has beside the exercises
            return FILLED["log_sum_exp"] + "\n" + FILLED["softmax"] + "\n" + cell
        return "\n\n".join(FILLED[name] for name in names) or cell

    out = run(fill, capsys)
    verdicts = [line for line in out.splitlines() if line.startswith("      ")]
    assert len(verdicts) > 60
    assert all(line.split()[1] in ("exact", "within") for line in verdicts), out
