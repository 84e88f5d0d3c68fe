"""Make minibule/core/exercises.ipynb from EXERCISES.md: the same text, its functions as cells.

python tools/notebook.py
"""

import json
import re
from typing import Any

from minibule.check.exercises import TEXT
from minibule.program import run

PLACE = TEXT.with_name("exercises.ipynb")
BEGIN = "import numpy as np\n\nfrom minibule.check.run import check"


def cells() -> list[tuple[str, str]]:
    """(kind, text) of every cell; under each cell of functions one that checks them."""
    found = [("code", BEGIN)]
    parts = re.split(
        r"^```python\n(.*?)^```\n", TEXT.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    for i, part in enumerate(parts):
        text = part.replace("import numpy as np\n", "", 1).strip() if i % 2 else part.strip()
        if i % 2:
            names = re.findall(r"^def (\w+)", text, re.M)
            found += [("code", text), ("code", "\n".join(f"check({name})" for name in names))]
        elif text:
            found.append(("markdown", text))
    title = found.pop(1)
    return [title, *found]


def notebook() -> str:
    """The file, in the fourth version of Jupyter's format."""
    made = []
    for number, (kind, text) in enumerate(cells()):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        made.append(dict(sorted(cell.items())))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main(_: list[str]) -> None:
    PLACE.write_text(notebook(), encoding="utf-8")
    print(f"{PLACE}: {len(cells())} cells")


if __name__ == "__main__":
    run(main)
