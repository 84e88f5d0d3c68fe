"""Bars of length 1, cut into shares: of styles of answers, of seconds, of what is accepted."""

from collections.abc import Mapping

from minibule.evaluate.questions import ACCEPTED, NOISE
from minibule.report.page import text

MOST_NAMES = 8  # with a colour of their own
WIDE = 0.07  # share of a bar from which its number fits into it


def stacks(what: str, bars: Mapping[str, Mapping[str, float]]) -> str:
    """A bar for each name, its shares from 0 to 1 by their names, and the legend.

    All bars have the same shares, in one order; `what` they are is said to those who do not see it.
    """
    names = list(dict.fromkeys(name for shares in bars.values() for name in shares))
    described = ", ".join(
        f"{name} {', '.join(f'{shares.get(name, 0):.1%}' for shares in bars.values())}"
        for name in names
    )
    drawn = "".join(
        f'<div class="stack"><span>{text(when)}</span><div>{_segments(shares, names)}</div></div>'
        for when, shares in bars.items()
    )
    keys = "".join(
        f'<span><i class="key bar {_colour(name, i)}"></i>{text(name)}</span>'
        for i, name in enumerate(names)
    )
    return (
        f'<div role="img" aria-label="{text(f"{what}: {described}")}">{drawn}</div>'
        f'<div class="legend">{keys}</div>'
    )


def _segments(shares: Mapping[str, float], names: list[str]) -> str:
    return "".join(
        f'<i class="{_colour(name, i)}" style="flex-grow:{share:.4f}">'
        f"{f'{share:.0%}' if share >= WIDE else ''}</i>"
        for i, name in enumerate(names)
        if (share := max(0.0, shares.get(name, 0.0))) > 0
    )


def _colour(name: str, place: int) -> str:
    """The wanted style is green and noise is red; what stands between has a colour each."""
    return {ACCEPTED: "style-good", NOISE: "style-bad"}.get(name, f"style-{place % MOST_NAMES}")


def share_bar(share: float) -> str:
    """A thin bar under a number that says the same."""
    kept = min(1.0, max(0.0, share))
    return (
        f'<span class="share"><i class="style-good" style="flex-grow:{kept:.4f}"></i>'
        f'<i style="flex-grow:{1 - kept:.4f}"></i></span>'
    )
