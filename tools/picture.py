"""Draw the way of a rejected answer to the gradients of A and B: minibule/core/way.svg.

    python tools/picture.py                    write the file
    python tools/picture.py --output FILE.svg  write another

Plain text, made from the two tables below: boxes on a grid of four columns and three rows, and
arrows between them. Colours follow the reader's light or dark mode.
"""

import argparse
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

PLACE = Path(__file__).parent.parent / "minibule" / "core" / "way.svg"

COLUMN, ROW, GAP_X, GAP_Y = 202, 100, 32, 46  # a box, and the room between two
LEFT, TOP = 36, 52  # of the first box
BOTTOM = 52  # under the last row: the legend
LETTER, NAME_LETTER = 7.25, 8.6  # width of a letter in a formula or file, and in a name
WIDTH = 2 * LEFT + 4 * COLUMN + 3 * GAP_X
HEIGHT = TOP + 3 * ROW + 2 * GAP_Y + BOTTOM

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  .box { stroke-width: 1.25 }
  .rejected { fill: #fdf2df; stroke: #c98f2f }
  .forward { fill: #e9f2fc; stroke: #4d86c6 }
  .backward { fill: #e7f6ec; stroke: #459460 }
  text { fill: #1f2328; font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
  .name { font-size: 14.5px; font-weight: 600 }
  .formula, .file { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
  .formula { font-size: 12px }
  .file { font-size: 11px; fill: #5c656f }
  .note { font-size: 12px; fill: #5c656f }
  .arrow { fill: none; stroke: #6e7781; stroke-width: 1.5; marker-end: url(#head) }
  .later { stroke-dasharray: 5 4 }
  .head { fill: #6e7781 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #12161c; stroke: #343b44 }
    .rejected { fill: #33280f; stroke: #b98a37 }
    .forward { fill: #14263b; stroke: #4f88c4 }
    .backward { fill: #12301e; stroke: #4a9866 }
    text { fill: #e6edf3 }
    .file, .note { fill: #a3adb8 }
    .arrow { stroke: #8b949e }
    .head { fill: #8b949e }
  }
"""


class Box(NamedTuple):
    """A box of the picture: where it stands, its name, its formulas, and the file that has them."""

    column: int
    row: int
    kind: str
    name: str
    formulas: tuple[str, ...]
    file: str
    columns: int = 1

    @property
    def x(self) -> int:
        return LEFT + self.column * (COLUMN + GAP_X)

    @property
    def y(self) -> int:
        return TOP + self.row * (ROW + GAP_Y)

    @property
    def width(self) -> int:
        return self.columns * COLUMN + (self.columns - 1) * GAP_X


BOXES = {
    "record": Box(
        0, 0, "rejected", "Rejected answers",
        ("asked: hi", "rejected: hi, twice"), "records/records.py",
    ),
    "stream": Box(
        1, 0, "forward", "One stream of tokens",
        ("each prompt in it once,", "for all its answers"), "core/forest.py",
    ),
    "llama": Box(
        2, 0, "forward", "Llama, forward",
        ("y = x W^T + s x A^T B^T", "block by block: hidden"), "core/llama.py",
    ),
    "logits": Box(
        3, 0, "forward", "Logits z and p",
        ("z = hidden head^T", "p = softmax(z)"), "core/head.py",
    ),
    "counts": Box(
        0, 1, "rejected", "Counts v",
        ("v(i): rejections of i", "T = sum_i v(i)"), "core/counts.py",
    ),
    "target": Box(
        1, 1, "rejected", "Target P, contrast weights w",
        ("P(i) proportional to p_ref(i) (T - v(i) + 1)", "w(i) = (1 - p_ref(i)) v(i) / T"),
        "core/fused.py", columns=2,
    ),
    "loss": Box(
        3, 1, "forward", "Loss L",
        ("alpha KL(P || p)", "+ (1 - alpha) contrast"), "core/fused.py",
    ),
    "dz": Box(
        3, 2, "backward", "dz = dL/dz",
        ("alpha (p - P)", "+ (1 - alpha) dcontrast"), "core/fused.py",
    ),
    "dy": Box(
        2, 2, "backward", "dhidden, ..., dy",
        ("dhidden = dz head, then", "block by block to dy"), "core/llama.py",
    ),
    "lora": Box(
        1, 2, "backward", "dB and dA",
        ("dB = s dy^T (x A^T)", "dA = s (dy B)^T x"), "core/lora.py",
    ),
    "adamw": Box(
        0, 2, "backward", "A and B move",
        ("AdamW on dA and dB;", "W stays as it is"), "core/optim.py",
    ),
}  # fmt: skip

# From one box to the next; where they lie in one row sideways, else downwards.
ARROWS = (
    ("record", "stream"), ("stream", "llama"), ("llama", "logits"),
    ("counts", "target"), ("target", "loss"),
    ("dz", "dy"), ("dy", "lora"), ("lora", "adamw"),
    ("record", "counts"), ("llama", "target"), ("logits", "loss"), ("loss", "dz"),
)  # fmt: skip

LEGEND = {
    "rejected": "what was rejected",
    "forward": "what the model says of it",
    "backward": "what it learns from that",
}


def drawing() -> str:
    """The whole picture as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="title description">',
        '<title id="title">The path of a rejected answer to the gradients of A and B</title>',
        f'<desc id="description">{escape(described())}</desc>',
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker>',
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12"/>',
        *(part for box in BOXES.values() for part in drawn(box)),
        *(arrow(BOXES[start], BOXES[end]) for start, end in ARROWS),
        *next_step(),
        *legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def described() -> str:
    """The boxes and arrows in words, for who does not see them."""
    boxes = (f"{box.name} ({', '.join(box.formulas)}; {box.file})" for box in BOXES.values())
    arrows = (f"{BOXES[start].name} to {BOXES[end].name}" for start, end in ARROWS)
    return f"Boxes: {'; '.join(boxes)}. Arrows: {'; '.join(arrows)}."


def drawn(box: Box) -> list[str]:
    """A box: its frame and its lines of text, none of them wider than the frame."""
    widths = {line: len(line) * LETTER for line in (*box.formulas, box.file)}
    for line, width in (widths | {box.name: len(box.name) * NAME_LETTER}).items():
        if width > box.width - 24:
            raise ValueError(f"{line!r} is too long for the box {box.name!r}")
    x = box.x + 14
    return [
        f'<rect class="box {box.kind}" x="{box.x}" y="{box.y}" width="{box.width}" '
        f'height="{ROW}" rx="8"/>',
        text("name", x, box.y + 25, box.name),
        *(text("formula", x, box.y + 46 + 16 * i, line) for i, line in enumerate(box.formulas)),
        text("file", x, box.y + 85, box.file),
    ]


def arrow(start: Box, end: Box) -> str:
    """From the edge of one box to the edge of another, in a straight line."""
    if start.row == end.row:
        y = start.y + ROW // 2
        if start.x < end.x:
            return path(f"M{start.x + start.width + 3} {y} H{end.x - 3}")
        return path(f"M{start.x - 3} {y} H{end.x + end.width + 3}")
    x = start.x + start.width // 2
    line = path(f"M{x} {start.y + ROW + 3} V{end.y - 3}")
    if start.name == BOXES["llama"].name:
        line += "\n" + text("note", x + 10, end.y - GAP_Y // 2 + 4, "p_ref: without A and B")
    return line


def next_step() -> list[str]:
    """The dashed way back: from the moved A and B round the edge to the model."""
    first, model = BOXES["adamw"], BOXES["llama"]
    edge, top, x = LEFT // 2, TOP // 2, model.x + model.width // 2
    return [
        path(f"M{first.x - 3} {first.y + ROW // 2} H{edge} V{top} H{x} V{model.y - 3}", " later"),
        text("note", LEFT, top + 16, "the next step"),
    ]


def legend() -> list[str]:
    """Three colours and what they mean, under the last row."""
    parts, y = [], HEIGHT - BOTTOM // 2
    for column, (kind, meaning) in enumerate(LEGEND.items()):
        x = LEFT + column * (COLUMN + GAP_X)
        parts.append(
            f'<rect class="box {kind}" x="{x}" y="{y - 7}" width="14" height="14" rx="3"/>'
        )
        parts.append(text("note", x + 22, y + 4, meaning))
    return parts


def text(kind: str, x: int, y: int, words: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(words)}</text>'


def path(line: str, kind: str = "") -> str:
    return f'<path class="arrow{kind}" d="{line}"/>'


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=PLACE, metavar="FILE.svg")
    parser.parse_args(argv).output.write_text(drawing(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
