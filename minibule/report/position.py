"""One position, looked at closely: what the model expects there, and what it was taught to."""

from collections.abc import Mapping, Sequence

from minibule.evaluate.position import Position, Token
from minibule.report import figures
from minibule.report.figures import Bars
from minibule.report.page import TIMES, code, foreign, source, table, text
from minibule.runs.read import Run

SHOWN_TOKENS = 10  # of the position's likeliest
MOVED = 0.001  # of probability: less is no movement worth a sentence


def one_position(run: Run) -> list[str]:
    """The section's parts; none where the run has not come to that."""
    before = run.before.position if run.before else None
    after = run.after.position if run.after else None
    seen = after or before
    if seen is None:
        return []
    bars = _bars(before, after, seen.total)
    said = "".join(f"<p>{text(sentence)}</p>" for sentence in in_words(before, after))
    wanted = ", and what the objective wants it to expect" if _has_target(bars) else ""
    optimum = ["core.complement.optimum"] if _has_optimum(bars) else []
    return [
        "<p>Here the model is about to begin its answer:</p>",
        code(seen.context, "context"),
        f"<p>What it expects as the first token{wanted}. Tokens with a {TIMES} began rejected "
        f"answers, {seen.total:g} in all.</p>",
        f'<div class="columns">{_picture(bars)}<div>{said}{_tokens(bars)}</div></div>',
        source(run.folder, "evaluate.position.telling_position", *optimum),
    ]


def in_words(before: Position | None, after: Position | None) -> list[str]:
    """How far the most rejected token has come, and one that went where nobody wanted it."""
    if before is None or after is None:
        return []
    was = {token.id: token.model for token in before.tokens}
    known = [token for token in after.tokens if token.id in was]
    said = []
    rejected = [token for token in known if token.rejected]
    if rejected:
        token = max(rejected, key=lambda t: (t.rejected, was[t.id]))
        said.append(
            f"{_quoted(token)} began {token.rejected:g} of the {after.total:g} rejected answers. "
            f"Its probability went from {was[token.id]:.3f} to {token.model:.3f}"
            f"{_of_target(token, '; the target P is')}{_way(token, was[token.id])}."
        )
    others = [token for token in known if not token.rejected]
    fallen = [
        token
        for token in others
        if token.target is not None
        and token.target >= was[token.id]
        and was[token.id] - token.model > MOVED
    ]
    risen = [token for token in others if token.model - was[token.id] > MOVED]
    if fallen:
        token = max(fallen, key=lambda t: was[t.id] - t.model)
        said.append(
            f"{_quoted(token)} was never rejected here, and its target is {token.target:.3f}. Yet "
            f"it fell from {was[token.id]:.3f} to {token.model:.3f}: all tokens share the weights "
            "that were trained, so single ones can go the other way."
        )
    elif risen:
        token = max(risen, key=lambda t: t.model - was[t.id])
        said.append(
            f"Of the others, {_quoted(token)} gained most, from {was[token.id]:.3f} to "
            f"{token.model:.3f}{_of_target(token, '; its target is')}."
        )
    return said


def _of_target(token: Token, words: str) -> str:
    """The words with the token's target after them; nothing where it has none."""
    return "" if token.target is None else f"{words} {token.target:.3f}"


def _way(token: Token, was: float) -> str:
    """How much of the way from `was` to p* the token has gone."""
    if token.optimum is None:
        return ""
    gone = (was - token.model) / (was - token.optimum) if was != token.optimum else 1.0
    way = f"{gone:.0%} of the way there" if gone >= 0 else "training went the other way"
    return f" and the optimum p* {token.optimum:.3f}: {way}"


def _quoted(token: Token) -> str:
    return f"“{token_name(token.text)}”"


def _bars(before: Position | None, after: Position | None, total: float) -> list[Bars]:
    was = {token.id: token for token in before.tokens} if before else {}
    now = {token.id: token for token in after.tokens} if after else {}
    tokens = sorted((was | now).values(), key=lambda t: -max(_model(t, was), _model(t, now)))
    # The likeliest, and whatever the target or the rejections make worth seeing.
    shown = sorted(
        tokens,
        key=lambda t: -max(_model(t, was), _model(t, now), t.target or 0, t.rejected / total),
    )[:SHOWN_TOKENS]
    return [
        Bars(
            token_name(token.text) + (f" {TIMES}{token.rejected:g}" if token.rejected else ""),
            token.rejected > 0,
            was[token.id].model if token.id in was else None,
            now[token.id].model if token.id in now else None,
            token.target,
            token.optimum,
        )
        for token in tokens
        if token in shown
    ]


def _has_target(bars: Sequence[Bars]) -> bool:
    return any(row.target is not None for row in bars)


def _has_optimum(bars: Sequence[Bars]) -> bool:
    return any(row.optimum is not None for row in bars)


def _model(token: Token, known: Mapping[int, Token]) -> float:
    return known[token.id].model if token.id in known else 0.0


def token_name(token: str) -> str:
    """A token's text so that it can be seen: spaces as ␣, invisible characters as escapes."""
    shown = "".join(
        "␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in token
    )
    return shown if len(shown) <= 12 else shown[:11] + "…"


def _picture(bars: Sequence[Bars]) -> str:
    alt = "Probabilities of the likeliest tokens before and after training"
    keys = [
        '<span><i class="key bar grey"></i>before</span>',
        '<span><i class="key bar blue"></i>after</span>',
    ]
    caption = f"{TIMES}n: rejected n times here."
    if _has_target(bars):
        keys.append('<span><i class="key upright orange"></i>target P</span>')
        alt += ", with the target P"
        pulls = "P is what the KL part pulls towards"
        if _has_optimum(bars):
            keys.append('<span><i class="key diamond orange"></i>optimum p*</span>')
            alt += " and the optimum p*"
            pulls += "; p* minimises KL and contrast together"
        caption = f"{pulls}. {caption}"
    picture = figures.bar_chart(f"{alt}. The table has the numbers.", bars)
    return (
        f'<figure><h3>Probability of a token</h3><div class="legend">{"".join(keys)}</div>'
        f"{picture}<figcaption>{caption}</figcaption></figure>"
    )


def _tokens(bars: Sequence[Bars]) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    caption, columns = "Probability of a token", ["token", "before", "after"]
    if _has_target(bars):
        caption, columns = f"{caption}; P is the target", [*columns, "P"]
    if _has_optimum(bars):
        caption, columns = f"{caption}, p* the optimum", [*columns, "p*"]
    rows = [
        [
            f"<code>{foreign(row.label)}</code>",
            *map(number, (row.before, row.after, row.target, row.optimum)),
        ][: len(columns)]
        for row in bars
    ]
    return table(caption, columns, rows, range(1, len(columns)))
