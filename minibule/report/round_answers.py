"""What was answered in the rounds: how much of each kind was accepted, and one question's answers.

Of the held-out questions all is there that the model said, before the first round and after each.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from minibule.evaluate.sampled import Answer, Asked
from minibule.report.page import foreign, scrolling, source, table
from minibule.report.stacks import share_bar
from minibule.runs.rounds import Rounds, kind_of

TIMES = "\u00d7"
MOST_ANSWERS = 6  # different ones to a question that are shown of a round
NO_KIND = "no kind"


# -- by kind ---------------------------------------------------------------------------------------


def by_kind(rounds: Rounds) -> list[str]:
    """The section's parts: held-out questions, and those that are learnt from."""
    held = {
        n: _shares((kind_of(one.row), _accepted(one)) for one in asked)
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


def _accepted(asked: Asked) -> float:
    return sum(sample.accepted for sample in asked.samples) / len(asked.samples)


def _shares(pairs: Iterable[tuple[str, float]]) -> dict[str, tuple[int, float]]:
    """Of (kind, share) how many there are of each kind, and their mean share."""
    kinds: dict[str, list[float]] = {}
    for kind, share in pairs:
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
        change = f"{shares[last][kind][1] - shares[first].get(kind, (0, 0.0))[1]:+.0%}"
        size = f'<span class="gloss">{shares[last][kind][0]:,}</span>'
        rows.append([f"{foreign(kind) or NO_KIND}{size}", *cells, change if first != last else ""])
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
    prompts = [prompt for prompt in last if all(prompt in asked[n] for n in numbers)]
    if not prompts:
        return []

    def gained(prompt: str) -> tuple[bool, float]:
        turned = last[prompt].greedy.accepted and not first[prompt].greedy.accepted
        return turned, _accepted(last[prompt]) - _accepted(first[prompt])

    most = max(prompts, key=gained)
    worst = min(prompts, key=lambda p: (last[p].greedy.accepted, _accepted(last[p])))
    shown = {"Changed most": most}
    if _accepted(last[worst]) < 1 and worst != most:
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
    times = Counter((sample.text, sample.accepted) for sample in asked.samples)
    lines = [
        f"<li>{'✓' if accepted else '✗'} {foreign(answer)}{f' {TIMES}{n}' if n > 1 else ''}</li>"
        for (answer, accepted), n in times.most_common(MOST_ANSWERS)
    ]
    if len(times) > MOST_ANSWERS:
        lines.append(f"<li>{len(times) - MOST_ANSWERS} more</li>")
    share = f"<li>{_accepted(asked):.0%} of {len(asked.samples)} accepted</li>"
    return f'{_greedy(asked.greedy)}<ul class="sampled">{share}{"".join(lines)}</ul>'


def _greedy(answer: Answer) -> str:
    kind, word = ("good", "✓ accepted") if answer.accepted else ("bad", "✗ rejected")
    return f'<span class="tag {kind}">{word}</span>{foreign(answer.text)}'
