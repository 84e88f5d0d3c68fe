"""The greedy answers to held-out prompts, before and after."""

from minibule.evaluate.questions import ACCEPTED, NOISE, Answers
from minibule.report.page import foreign, scrolling, source, text
from minibule.runs.read import Run

FIRST_ANSWERS = 8  # seen at once, the others when asked for
SHOWN_ANSWERS = 200  # of the held-out prompts; all are in after.json


def greedy_answers(run: Run) -> list[str]:
    """The section's parts: how many turned, the first answers, and the others folded away."""
    snapshots = [("before", run.before), ("after", run.after)]
    asked = [(when, s.questions) for when, s in snapshots if s and s.questions]
    if not asked:
        return []
    number = min(len(answers.texts) for _, answers in asked)
    # What is still not accepted comes first, then what has changed.
    order = sorted(range(number), key=lambda i: _interest([a.styles[i] for _, a in asked]))
    shown = order[:SHOWN_ANSWERS]
    parts = []
    if len(asked) == 2:
        parts.append(f"<p>{_turned(asked[0][1], asked[1][1], number)}</p>")
    if len(shown) < number:
        parts.append(
            f'<p class="muted">{len(shown):,} of {number:,}; all are in '
            "<code>before.json</code> and <code>after.json</code>.</p>"
        )
    parts.append(_answer_table("Greedy answers", asked, shown[:FIRST_ANSWERS]))
    if len(shown) > FIRST_ANSWERS:
        rest = _answer_table("More greedy answers", asked, shown[FIRST_ANSWERS:])
        more = f"{len(shown) - FIRST_ANSWERS:,} more answers"
        parts.append(f"<details><summary>{more}</summary>{rest}</details>")
    return [*parts, source("evaluate/questions.py", "generate/decode.py")]


def _interest(styles: list[str]) -> int:
    if styles[-1] != ACCEPTED:
        return 0
    return 1 if styles[0] != ACCEPTED else 2


def _turned(was: Answers, now: Answers, number: int) -> str:
    pairs = list(zip(was.styles, now.styles, strict=False))
    gained = sum(before != ACCEPTED == after for before, after in pairs)
    lost = sum(before == ACCEPTED != after for before, after in pairs)
    left = sum(after != ACCEPTED for _, after in pairs)
    return (
        f"{_count(gained).capitalize()} of {number:,} became acceptable and {_count(lost)} became "
        f"unacceptable; after training {_count(left) + ' are not' if left else 'all are'} accepted."
    )


def _count(number: int) -> str:
    return f"{number:,}" if number else "none"


def _answer_table(label: str, asked: list[tuple[str, Answers]], places: list[int]) -> str:
    head = "".join(f'<th scope="col">{when}</th>' for when in ("prompt", *(w for w, _ in asked)))
    body = "\n".join(
        f'<tr><th scope="row">{foreign(asked[0][1].prompts[i])}</th>'
        + "".join(f"<td>{_tag(a.styles[i])}{foreign(a.texts[i])}</td>" for _, a in asked)
        + "</tr>"
        for i in places
    )
    inside = (
        f'<table class="texts" aria-label="{label}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )
    return scrolling(label, inside)


def _tag(style: str) -> str:
    kind = {ACCEPTED: " good", NOISE: " bad"}.get(style, "")
    sign = {ACCEPTED: "✓ ", NOISE: "✗ "}.get(style, "")
    return f'<span class="tag{kind}">{sign}{text(style)}</span>'
