"""One row as a picture: the way of a rejected answer to the gradients of A and B, with its numbers.

    python -m minibule.explain --svg row.svg

Plain text: boxes on a grid of four columns and three rows, and arrows between them. Colours follow
the reader's light or dark mode. `core/way.svg` is the picture of

    python -m minibule.explain --objective reference --svg minibule/core/way.svg
"""

import textwrap
from html import escape
from typing import NamedTuple

import numpy as np

from minibule.core.complement import log_softmax, loss_parts
from minibule.core.fused import TargetLoss
from minibule.core.llama import backward
from minibule.core.lora import lora_name
from minibule.explain.adapter import one_step
from minibule.explain.row import Row
from minibule.explain.story import Passed, Scene, passed
from minibule.explain.subject import Pushed, one_pass
from minibule.explain.text import decimals, shortened
from minibule.machine.matrix import Array
from minibule.methods.tokens import TokenLoss
from minibule.wording import harmless

COLUMN, ROW, GAP_X, GAP_Y = 212, 136, 30, 44  # a box, and the room between two
LEFT, TOP = 36, 52  # of the first box
BOTTOM = 52  # under the last row: the legend
LETTER = 7.25  # width of a letter in a formula
LETTERS = int((COLUMN - 24) / LETTER)  # in a line of a box
WIDTH = 2 * LEFT + 4 * COLUMN + 3 * GAP_X
HEIGHT = TOP + 3 * ROW + 2 * GAP_Y + BOTTOM
TOKEN = 10  # columns of a token's name

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  .box { stroke-width: 1.25 }
  .rejected { fill: #fdf2df; stroke: #c98f2f }
  .forward { fill: #e9f2fc; stroke: #4d86c6 }
  .backward { fill: #e7f6ec; stroke: #459460 }
  text { fill: #1f2328; font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
  .name { font-size: 14.5px; font-weight: 600 }
  .formula, .value, .file { white-space: pre;
    font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
  .formula, .value { font-size: 12px }
  .formula { fill: #4b535c }
  .value { font-weight: 600 }
  .file { font-size: 11px; fill: #545c66 }
  .note { font-size: 12px; fill: #545c66 }
  .arrow { fill: none; stroke: #6e7781; stroke-width: 1.5; marker-end: url(#head) }
  .later { stroke-dasharray: 5 4 }
  .head { fill: #6e7781 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #12161c; stroke: #343b44 }
    .rejected { fill: #33280f; stroke: #b98a37 }
    .forward { fill: #14263b; stroke: #4f88c4 }
    .backward { fill: #12301e; stroke: #4a9866 }
    text { fill: #e6edf3 }
    .formula { fill: #c0c8d0 }
    .file, .note { fill: #a9b3be }
    .arrow { stroke: #8b949e }
    .head { fill: #8b949e }
  }
"""


class Box(NamedTuple):
    """A box of the picture: where it stands, its name, formulas and numbers, and where they are."""

    column: int
    row: int
    kind: str
    name: str
    formulas: tuple[str, ...]
    values: tuple[str, ...]
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


# From one box to the next; where they lie in one row sideways, else downwards.
ARROWS = (
    ("record", "stream"), ("stream", "llama"), ("llama", "logits"),
    ("counts", "wanted"), ("wanted", "loss"),
    ("dz", "dy"), ("dy", "lora"), ("lora", "adamw"),
    ("record", "counts"), ("llama", "wanted"), ("logits", "loss"), ("loss", "dz"),
)  # fmt: skip

LEGEND = {
    "rejected": "what was rejected",
    "forward": "what the model says of it",
    "backward": "what it learns from that",
}


# -- the numbers -----------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """A row, what its pass left, and the two tokens that are followed.

    rejected, other   the most rejected token, and the likeliest of those that were not
    """

    scene: Scene
    passed: Passed
    rejected: int
    other: int

    @property
    def row(self) -> Row:
        return self.passed.row

    def name(self, token: int) -> str:
        return shortened(self.row.name(token), TOKEN)

    def of_both(self, symbol: str, x: Array) -> tuple[str, ...]:
        """A number of each of the two tokens; x (V,)."""
        show = decimals(4)
        return tuple(
            f"{symbol}({self.name(i)}) = {show(x[i])}" for i in (self.rejected, self.other)
        )


def row_graph(scene: Scene) -> str:
    """The picture of the scene's row as SVG; the scene's adapter takes a step."""
    done = passed(scene)
    v = done.row.v
    likeliest = np.where(v > 0, -np.inf, done.row.z).argmax()
    it = Numbers(scene, done, int(v.argmax()), int(likeliest))
    return drawing(_rejected(it) | _forward(it) | _backward(it))


def _rejected(it: Numbers) -> dict[str, Box]:
    """What was rejected, and what p is compared with."""
    example, v = it.scene.subject.example, it.row.v
    said = [shortened(repr(it.scene.chat.decode(answer)), 18) for answer in example.answers]
    listed = [f"{a} x{n:,}" for a, n in zip(said, example.counts, strict=True)]
    more = [f"and {len(listed) - 3:,} more"] if len(listed) > 3 else []
    rejections = f"v({it.name(it.rejected)}) = {v[it.rejected]:,.0f}"
    p_ref = it.of_both("p_ref", np.exp(log_softmax(it.row.z_ref)))
    wanted = Box(
        1, 1, "rejected", "The base p_ref", ("asked for the same, without A and B",), p_ref,
        "core/llama.py", columns=2,
    )  # fmt: skip
    if isinstance(it.row.loss, TargetLoss):
        prior, _, contrast, _ = it.row.loss.objective
        z, z_ref, attempts = it.row.z[None], it.row.z_ref[None], it.row.counts.attempts
        parts = loss_parts(z, v[None], prior, contrast, z_ref, attempts)
        pairs = zip(p_ref, it.of_both("P", parts.P[0]), strict=True)
        wanted = wanted._replace(
            name="Target P",
            formulas=(f"P(i) proportional to {TARGETS[prior]}",),
            values=tuple("    ".join(pair) for pair in pairs),
            file="core/complement.py",
        )
    return {
        "record": Box(
            0, 0, "rejected", "Rejected answers", (f"asked: {it.scene.asked}",),
            (*listed[:3], *more), "records/records.py",
        ),
        "counts": Box(
            0, 1, "rejected", "Counts v", ("v(i): rejections of i", "T = sum_i v(i)"),
            (rejections, f"T = {v.sum():,.0f}"), "core/counts.py",
        ),
        "wanted": wanted,
    }  # fmt: skip


# What P is proportional to, by the prior.
TARGETS = {
    "uniform": "T - v(i) + 1",
    "reference": "p_ref(i) (T - v(i) + 1)",
    "rate": "p_ref(i) g(i)",
}


def _forward(it: Numbers) -> dict[str, Box]:
    """What the model says, and what the loss makes of it."""
    subject, row, objective = it.scene.subject, it.row, it.scene.config.objective
    length = np.linalg.norm(it.passed.before.hidden[subject.row])
    place = f"row {subject.row + 1:,} of {len(subject.batch.rows_at):,}"
    return {
        "stream": Box(
            1, 0, "forward", "One stream of tokens", ("the prompt once, then", "its answers"),
            (f"{len(subject.batch.ids):,} tokens", place), "core/forest.py",
        ),
        "llama": Box(
            2, 0, "forward", "Llama, forward",
            ("y = x W^T + s x A^T B^T", "block by block to hidden"), (f"|hidden| = {length:.4g}",),
            "core/llama.py",
        ),
        "logits": Box(
            3, 0, "forward", "Logits z and p", ("z = hidden head^T", "p = softmax(z)"),
            (*it.of_both("z", row.z)[:1], *it.of_both("p", row.p)), "core/head.py",
        ),
        "loss": Box(
            3, 1, "forward", f"Loss L, {objective}", _formulas(row),
            (f"L = {row.loss_at(row.z)[0]:.6g}",), _file(row),
        ),
    }  # fmt: skip


def _formulas(row: Row) -> tuple[str, ...]:
    """The loss of a row as it is written, in lines."""
    loss = row.loss
    held = (f"+ {loss.kl:g} KL(p || p_ref)",) if loss.kl else ()
    if isinstance(loss, TargetLoss):
        alpha = loss.objective.alpha
        return f"{alpha:g} KL(P || p)", f"+ {1 - alpha:g} contrast", *held
    if isinstance(loss, Pushed):
        return "sum_i a(i) log p(i)", *held
    said = f"mean of {loss.f}" if isinstance(loss, TokenLoss) else "of a row"
    return *textwrap.wrap(said, LETTERS), *held


def _file(row: Row) -> str:
    """Where the loss is computed."""
    loss: object = row.loss.of if isinstance(row.loss, Pushed) else row.loss
    return type(loss).__module__.removeprefix("minibule.").replace(".", "/") + ".py"


def _backward(it: Numbers) -> dict[str, Box]:
    """The way back, and a step of the optimiser."""
    scene, (row, before, _) = it.scene, it.passed
    loss, dz = row.loss_at(row.z)
    grads = backward(before.dhidden, before.cache)
    adapter, top = scene.adapter, scene.adapter.config.modules[-1]
    norms = [f"|d{m}| = {np.linalg.norm(grads[lora_name(top, m)]):.4g}" for m in "BA"]
    lengths = {"dz": dz, "dhidden": before.dhidden[scene.subject.row]}
    one_step(adapter, grads, scene.config)
    after = one_pass(scene.model, adapter, scene.subject.alone, it.passed.ref_hidden)
    z = scene.logits(after.hidden)
    p = (float(np.exp(log_softmax(x))[it.rejected]) for x in (row.z, z))
    return {
        "dz": Box(
            3, 2, "backward", "dz = dL/dz", ("> 0: down, < 0: up",), it.of_both("dz", dz),
            _file(row),
        ),
        "dy": Box(
            2, 2, "backward", "dhidden, ..., dy",
            ("dhidden = dz head, then", "block by block to dy"),
            tuple(f"|{name}| = {np.linalg.norm(x):.4g}" for name, x in lengths.items()),
            "core/llama.py",
        ),
        "lora": Box(
            1, 2, "backward", "dB and dA", ("dB = s dy^T (x A^T)", "dA = s (dy B)^T x"),
            (top.removeprefix("model."), *norms), "core/lora.py",
        ),
        "adamw": Box(
            0, 2, "backward", "A and B move", (f"AdamW, lr {scene.config.lr:g}; W stays",),
            (f"p({it.name(it.rejected)}):", "  " + " -> ".join(f"{x:.4g}" for x in p),
             "L:", f"  {loss:.4g} -> {row.loss_at(z)[0]:.4g}"), "core/optim.py",
        ),
    }  # fmt: skip


# -- the drawing -----------------------------------------------------------------------------------


def drawing(boxes: dict[str, Box]) -> str:
    """The boxes and the arrows between them as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" aria-labelledby="title description">',
        '<title id="title">The path of a rejected answer to the gradients of A and B</title>',
        f'<desc id="description">{_escaped(described(boxes))}</desc>',
        f"<style>{STYLE}</style>",
        '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker>',
        f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="12"/>',
        *(part for box in boxes.values() for part in drawn(box)),
        *(arrow(boxes[start], boxes[end]) for start, end in ARROWS),
        text("note", *_under(boxes["llama"]), "p_ref: without A and B"),
        *next_step(boxes["adamw"], boxes["llama"]),
        *legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def described(boxes: dict[str, Box]) -> str:
    """The boxes and arrows in words, for who does not see them."""
    said = (
        f"{box.name} ({', '.join([*box.formulas, *box.values])}; {box.file})"
        for box in boxes.values()
    )
    arrows = (f"{boxes[start].name} to {boxes[end].name}" for start, end in ARROWS)
    return f"Boxes: {'; '.join(said)}. Arrows: {'; '.join(arrows)}."


def drawn(box: Box) -> list[str]:
    """A box: its frame and its lines of text, none of them wider than the frame."""
    x, most = box.x + 14, int((box.width - 24) / LETTER)
    lines = [("formula", line) for line in box.formulas] + [("value", v) for v in box.values]
    return [
        f'<rect class="box {box.kind}" x="{box.x}" y="{box.y}" width="{box.width}" '
        f'height="{ROW}" rx="8"/>',
        text("name", x, box.y + 24, box.name),
        *(
            text(kind, x, box.y + 43 + 15 * i, shortened(harmless(line), most))
            for i, (kind, line) in enumerate(lines)
        ),
        text("file", x, box.y + ROW - 11, box.file),
    ]


def arrow(start: Box, end: Box) -> str:
    """From the edge of one box to the edge of another, in a straight line."""
    if start.row == end.row:
        y = start.y + ROW // 2
        if start.x < end.x:
            return path(f"M{start.x + start.width + 3} {y} H{end.x - 3}")
        return path(f"M{start.x - 3} {y} H{end.x + end.width + 3}")
    x = start.x + start.width // 2
    return path(f"M{x} {start.y + ROW + 3} V{end.y - 3}")


def _under(box: Box) -> tuple[int, int]:
    """Where a note stands beside the arrow that leaves a box downwards."""
    return box.x + box.width // 2 + 10, box.y + ROW + GAP_Y // 2 + 4


def next_step(first: Box, model: Box) -> list[str]:
    """The dashed way back: from the moved A and B round the edge to the model."""
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
    return f'<text class="{kind}" x="{x}" y="{y}">{_escaped(words)}</text>'


def _escaped(words: str) -> str:
    """A text from anywhere as XML that shows just this text."""
    return escape(harmless(words))


def path(line: str, kind: str = "") -> str:
    return f'<path class="arrow{kind}" d="{line}"/>'
