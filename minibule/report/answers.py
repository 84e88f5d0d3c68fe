"""What was answered to held-out prompts, before and after: greedily, and drawn at temperature 1."""

from collections import Counter
from collections.abc import Sequence

from minibule.evaluate.questions import ACCEPTED, NOISE, Replies, Reply, StyledAnswer
from minibule.report.page import TIMES, foreign, scrolling, source, table, text
from minibule.runs.read import Run

FIRST_ANSWERS = 8  # prompts seen at once, the others when asked for
SHOWN_ANSWERS = 200  # of the held-out prompts; all are in after.json

Pair = tuple[Reply, Reply]  # to the same prompt, before and after


def answers(run: Run) -> list[str]:
    """The section's parts: how many turned, each kind, the worst answers, the others folded away.

    What the model does worst after training comes first.
    """
    snapshots = [("before", run.before), ("after", run.after)]
    asked = [(when, s.questions) for when, s in snapshots if s and s.questions]
    if not asked:
        return []
    whens = [when for when, _ in asked]
    rows = sorted(zip(*(a.replies for _, a in asked), strict=False), key=_worst_first)
    shown = rows[:SHOWN_ANSWERS]
    parts = []
    if len(asked) == 2:
        parts = [f"<p>{_turned(asked[0][1], asked[1][1])}</p>", _kinds(rows)]
    if len(shown) < len(rows):
        parts.append(
            f'<p class="muted">{len(shown):,} of {len(rows):,}; all are in '
            "<code>before.json</code> and <code>after.json</code>.</p>"
        )
    parts.append(_answer_table("The worst first", whens, shown[:FIRST_ANSWERS]))
    if len(shown) > FIRST_ANSWERS:
        rest = _answer_table("More answers", whens, shown[FIRST_ANSWERS:])
        more = f"{len(shown) - FIRST_ANSWERS:,} more prompts"
        parts.append(f"<details><summary>{more}</summary>{rest}</details>")
    return [*parts, source(run.folder, "evaluate.questions.ask", "generate.decode.generate")]


def _worst_first(replies: Sequence[Reply]) -> tuple[bool, float]:
    return replies[-1].greedy.style == ACCEPTED, replies[-1].accepted


def _turned(was: Replies, now: Replies) -> str:
    pairs = [
        (a.greedy.style, b.greedy.style) for a, b in zip(was.replies, now.replies, strict=False)
    ]
    gained = sum(before != ACCEPTED == after for before, after in pairs)
    lost = sum(before == ACCEPTED != after for before, after in pairs)
    left = sum(after != ACCEPTED for _, after in pairs)
    return (
        f"{_count(gained).capitalize()} of {len(pairs):,} greedy answers became acceptable and "
        f"{_count(lost)} became unacceptable; after training "
        f"{_count(left) + ' are not' if left else 'all are'} accepted."
    )


def _count(number: int) -> str:
    return f"{number:,}" if number else "none"


def _kinds(pairs: Sequence[Sequence[Reply]]) -> str:
    """A line for each kind of prompt, the one that is accepted least first."""
    kinds: dict[str, list[Sequence[Reply]]] = {}
    for pair in pairs:
        kinds.setdefault(pair[0].kind, []).append(pair)
    if len(kinds) < 2:
        return ""
    rows = []
    for kind, those in kinds.items():
        greedy, exact = (
            [sum(share(pair[when]) for pair in those) / len(those) for when in (0, 1)]
            for share in (_greedily, _exactly)
        )
        change = exact[1] - exact[0]
        good = f'<span class="{"good" if change > 0 else "bad"}">{change:+.2f}</span>'
        cells = [*(f"{x:.0%}" for x in greedy), *(f"{x:.2f}" for x in exact)]
        rows.append((exact[1], [foreign(kind or "no kind"), f"{len(those):,}", *cells, good]))
    rows.sort(key=lambda row: row[0])
    times = ("greedy before", "after", "T = 1 before", "after", "change")
    caption = "Share of accepted answers to each kind of prompt; higher is better"
    numbers = table(caption, ("", "prompts", *times), [cells for _, cells in rows], range(1, 7))
    return f'<div class="narrow">{numbers}</div>'


def _greedily(reply: Reply) -> float:
    return float(reply.greedy.style == ACCEPTED)


def _exactly(reply: Reply) -> float:
    return reply.accepted


def _answer_table(label: str, whens: Sequence[str], rows: Sequence[Sequence[Reply]]) -> str:
    head = "".join(f'<th scope="col">{when}</th>' for when in ("prompt", *whens))
    body = "\n".join(
        f'<tr><th scope="row">{foreign(replies[0].prompt)}{_kind(replies[0].kind)}</th>'
        + "".join(f"<td>{_said(reply)}</td>" for reply in replies)
        + "</tr>"
        for replies in rows
    )
    caption = (
        f"{label}: the greedy answer, and under it what came at temperature 1 "
        "and how likely an accepted answer is there"
    )
    inside = (
        f'<table class="texts"><caption>{caption}</caption><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )
    return scrolling(label, inside)


def _kind(kind: str) -> str:
    return f'<span class="gloss">{foreign(kind)}</span>' if kind else ""


def _said(reply: Reply) -> str:
    """A cell: the greedy answer, and the sampled ones."""
    lines = [
        f"<li>{_sign(answer.style)}{foreign(answer.text)}{_style(answer)}"
        f"{f' {TIMES}{times}' if times > 1 else ''}</li>"
        for answer, times in Counter(reply.samples).items()
    ]
    sampled = f'<ul class="sampled"><li>{reply.accepted:.0%} accepted</li>{"".join(lines)}</ul>'
    return f"{_tag(reply.greedy.style)}{foreign(reply.greedy.text)}{sampled}"


def _tag(style: str) -> str:
    kind = {ACCEPTED: " good", NOISE: " bad"}.get(style, "")
    return f'<span class="tag{kind}">{_sign(style)}{text(style)}</span>'


def _sign(style: str) -> str:
    return "✓ " if style == ACCEPTED else "✗ "


def _style(answer: StyledAnswer) -> str:
    return "" if answer.style == ACCEPTED else f" ({text(answer.style)})"
