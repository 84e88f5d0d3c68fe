"""What was answered in the rounds: how much of each kind was accepted, and one question's answers.

Of the held-out questions all is there that the model said, before the first round and after each.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from minibule.evaluate.sampled import Answer, Asked
from minibule.report.page import TIMES, foreign, scrolling, source, table
from minibule.report.stacks import share_bar
from minibule.runs.rounds import Rounds, kind_of

MOST_ANSWERS = 6  # different ones to a question that are shown of a round
NO_KIND = "no kind"


# -- by kind ---------------------------------------------------------------------------------------


def by_kind(rounds: Rounds) -> list[str]:
    """The section's parts: held-out questions, and those that are learnt from."""
    held = {
        n: _shares((kind_of(one.row), one.accepted) for one in asked)
        for n, asked in rounds.asked.items()
    }
    drawn = {n: _shares(samples) for n, samples in rounds.drawn.items()}
    parts = [
        _kinds("Held-out questions: accepted at temperature 1 after a round", held, "after"),
        _kinds("Questions to learn from: accepted of a round's samples, drawn before it trains",
               drawn, "in"),
    ]  # fmt: skip
    if not any(parts):
        return []
    return [*parts, source(rounds.folder, "evaluate.judge.Judge", "rounds.sample.sample_round")]


def _shares(pairs: Iterable[tuple[str, float | None]]) -> dict[str, tuple[int, float]]:
    """Of (kind, share) how many of each kind have a share, and its mean."""
    kinds: dict[str, list[float]] = {}
    for kind, share in pairs:
        if share is not None:
            kinds.setdefault(kind, []).append(share)
    return {name: (len(those), sum(those) / len(those)) for name, those in kinds.items()}


def _kinds(caption: str, shares: dict[int, dict[str, tuple[int, float]]], word: str) -> str:
    """A row a kind, a column a round; what is accepted least in the end comes first."""
    if not shares:
        return ""
    first, last = min(shares), max(shares)
    kinds = sorted(shares[last], key=lambda kind: shares[last][kind][1])
    rows = []
    for kind in kinds:
        found = [shares[n].get(kind) for n in sorted(shares)]
        cells = ["" if one is None else f"{one[1]:.0%}{share_bar(one[1])}" for one in found]
        before = shares[first].get(kind) if first != last else None
        change = "" if before is None else f"{shares[last][kind][1] - before[1]:+.0%}"
        size = f'<span class="gloss">{shares[last][kind][0]:,}</span>'
        rows.append([f"{foreign(kind or NO_KIND)}{size}", *cells, change])
    names = [f"{word} round {n}" if n else "base" for n in sorted(shares)]
    columns = ("kind, and how many", *names, "change")
    return table(f"{caption}; higher is better", columns, rows, range(1, len(columns)))


# -- one question ----------------------------------------------------------------------------------


def one_question(rounds: Rounds) -> list[str]:
    """The section's parts: the question that changed most and, if any is, the one that is worst."""
    if len(rounds.asked) < 2:
        return []
    numbers = sorted(rounds.asked)
    asked = {n: {str(one.row["prompt"]): one for one in rounds.asked[n]} for n in numbers}
    first, last = asked[numbers[0]], asked[numbers[-1]]
    shares = {  # of each question that the judge could tell about
        prompt: (before, after)
        for prompt in last
        if all(prompt in asked[n] for n in numbers)
        and (before := _judged_share(first[prompt])) is not None
        and (after := _judged_share(last[prompt])) is not None
    }
    if not shares:
        return []

    def gained(prompt: str) -> tuple[bool, float]:
        turned = last[prompt].greedy.accepted and not first[prompt].greedy.accepted
        before, after = shares[prompt]
        return turned, after - before

    most = max(shares, key=gained)
    worst = min(shares, key=lambda p: (last[p].greedy.accepted, shares[p][1]))
    shown = {"Changed most": most}
    if shares[worst][1] < 1 and worst != most:
        shown["Accepted least in the end"] = worst
    tables = [
        _through(what, prompt, numbers, [asked[n][prompt] for n in numbers])
        for what, prompt in shown.items()
    ]
    return [
        '<p class="muted">First the greedy answer, under it samples at temperature 1.</p>',
        *tables,
        source(rounds.folder, "evaluate.sampled.ask"),
    ]


def _judged_share(asked: Asked) -> float | None:
    """Share of the samples that is accepted; None where not the greedy answer, too, was judged."""
    return asked.accepted if asked.greedy.judged else None


def _through(what: str, prompt: str, numbers: Sequence[int], asked: Sequence[Asked]) -> str:
    names = [f"after round {n}" if n else "base" for n in numbers]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    cells = "".join(f"<td>{_said(one)}</td>" for one in asked)
    inside = (
        f'<table class="texts wide"><caption>{what}: {foreign(prompt)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n<tr>{cells}</tr>\n</tbody></table>"
    )
    return scrolling(f"{what}: the answers to one question", inside)


def _said(asked: Asked) -> str:
    times = Counter((_mark(sample), sample.text) for sample in asked.samples)
    lines = [
        f"<li>{mark} {foreign(answer)}{f' {TIMES}{n}' if n > 1 else ''}</li>"
        for (mark, answer), n in times.most_common(MOST_ANSWERS)
    ]
    if len(times) > MOST_ANSWERS:
        lines.append(f"<li>{len(times) - MOST_ANSWERS} more</li>")
    judged = sum(sample.judged for sample in asked.samples)
    share = "" if asked.accepted is None else f"{asked.accepted:.0%} of {judged} accepted"
    left_out = f"{len(asked.samples) - judged} not judged" if judged < len(asked.samples) else ""
    said = f"<li>{', '.join(filter(None, (share, left_out)))}</li>"
    return f'{_greedy(asked.greedy)}<ul class="sampled">{said}{"".join(lines)}</ul>'


def _mark(answer: Answer) -> str:
    return ("✓" if answer.accepted else "✗") if answer.judged else "?"


def _greedy(answer: Answer) -> str:
    """The answer under the judge's verdict on it."""
    if not answer.judged:
        tag = '<span class="tag">? not judged</span>'
    elif answer.accepted:
        tag = '<span class="tag good">✓ accepted</span>'
    else:
        tag = '<span class="tag bad">✗ rejected</span>'
    return f"{tag}{foreign(answer.text)}"
