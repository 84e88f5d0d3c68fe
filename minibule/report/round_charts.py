"""The rounds in pictures: acceptance after each, pass@k before and after, what else moved."""

from collections.abc import Sequence

from minibule.report import figures
from minibule.report.figures import Series, short
from minibule.report.page import source, text
from minibule.report.series import is_number, legend, line_through
from minibule.runs.rounds import Rounds

PASS = "eval_pass@"  # noqa: S105 - pass@k, in rounds.jsonl


def course(rounds: Rounds) -> str:
    """The share of accepted answers after each round."""
    lines = [
        _through(rounds, "eval_greedy", "greedy", "orange"),
        _through(rounds, "eval_accepted", "temperature 1", "blue"),
    ]
    drawn = [line for line in lines if line is not None]
    if not drawn:
        return ""
    inside = _drawn("Held-out answers accepted", drawn, "rounds; 0 is the base", "h2")
    by = source(rounds.folder, "evaluate.sampled.figures")
    return f'<figure class="styles">{inside}{by}</figure>'


def pass_at(rounds: Rounds) -> dict[int, list[tuple[int, float]]]:
    """By round, (k, pass@k) from the least k to the largest."""
    curves = {}
    for n, line in rounds.lines.items():
        pairs = [
            (int(key.removeprefix(PASS)), float(value))
            for key, value in line.items()
            if key.startswith(PASS) and key.removeprefix(PASS).isdecimal()
            if is_number(value)
        ]
        if pairs:
            curves[n] = sorted(pairs)
    return curves


def pictures(rounds: Rounds) -> str:
    """pass@k before and after, and the length and the distance round by round."""
    curves = pass_at(rounds)
    ends = [
        line
        for n, colour in ((rounds.last, "blue"), (0, "grey"))
        if (line := line_through(_after(n), colour, curves.get(n, ()), "points"))
    ]
    parts = []
    if ends and len(ends[0].steps) > 1:
        meaning = "k samples; the curve says whether one of them is accepted"
        parts.append(_figure("pass@k", ends if rounds.last else ends[:1], meaning))
    for key, title, meaning in (
        ("eval_tokens", "Tokens an answer", "rounds; mean length of a sample"),
        ("eval_kl", "KL(p || base)", "rounds; nats a token"),
    ):
        line = _through(rounds, key, title, "blue")
        if line is not None and len(line.steps) > 1:
            parts.append(_figure(title, [line], meaning))
    return f'<div class="charts">{"".join(parts)}</div>' if parts else ""


def _after(number: int) -> str:
    return f"after round {number}" if number else "base"


def _through(rounds: Rounds, key: str, label: str, colour: str) -> Series | None:
    """A number of every round's line, as a line to draw."""
    pairs = [
        (n, float(line[key]))
        for n, line in sorted(rounds.lines.items())
        if is_number(line.get(key))
    ]
    return line_through(label, colour, pairs, "points")


def _figure(title: str, lines: Sequence[Series], axis: str) -> str:
    return f"<figure>{_drawn(title, lines, axis, 'h3')}</figure>"


def _drawn(title: str, lines: Sequence[Series], axis: str, heading: str) -> str:
    described = "; ".join(
        f"{line.label}: "
        + ", ".join(
            f"{short(float(value))} at {step}"
            for step, value in zip(line.steps, line.values, strict=True)
        )
        for line in lines
    )
    picture = figures.line_chart(f"{title}. {described}.", lines, None, from_zero=True)
    return (
        f"<{heading}>{text(title)}</{heading}>{legend(lines)}{picture}"
        f"<figcaption>Horizontally: {text(axis)}.</figcaption>"
    )
