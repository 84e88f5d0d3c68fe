"""Before and after training, compared: a table of measures, and what it says in words.

Both the terminal and the report print from here, so a measure has one name and one meaning.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from minibule.evaluate.questions import ACCEPTED, NOISE, Replies
from minibule.runs.snapshot import Snapshot

WIDTH = 100  # columns of the terminal's text
LABEL = 34  # columns of a label there

Better = Literal["higher", "lower", ""]


class Measure(NamedTuple):
    """What a number is called, what it means in a line, and which way is better, if either.

    by: the function that computes it, as "core.softmax.anchor".
    """

    label: str
    gloss: str
    better: Better = ""
    by: str = "core.fused.row_metrics"


HELDOUT = "evaluate.heldout.evaluate"
ASKED = "evaluate.questions.ask"

# The measures of `evaluate`, by their key in metrics.jsonl, before.json and after.json.
MEASURES = {
    "loss": Measure("loss", "what training minimises", "lower", HELDOUT),
    "kl": Measure("KL(P || p)", "nats: how far the model is from the target P", "lower"),
    "contrast": Measure("contrast", "summed over the rejected tokens: pushes them down", "lower"),
    "anchor": Measure(
        "anchor",
        "nats: KL(p || base), how far p is from what it is held to",
        by="core.softmax.anchor",
    ),
    "rejected_mass": Measure(
        "mean p of a rejected token",
        "each weighted by how often it was rejected, v/T; mean over all rows",
        "lower",
    ),
    "first_rejected_mass": Measure(
        "mean p of a rejected first token",
        "mean p of a rejected token, in the rows of the answers' first tokens alone",
        "lower",
    ),
    "optimal_rejected_mass": Measure(
        "mean p* of a rejected token",
        "mean p of a rejected token if p were p*, the optimum of every row",
    ),
    "optimality_gap": Measure("distance from p*", "total variation between p and p*", "lower"),
    "kl_to_base": Measure("KL(base || p)", "nats: how far the model has moved from its base"),
    "entropy": Measure("entropy", "nats, of the model's distribution"),
}

GREEDY = Measure("greedy answer accepted", "always the likeliest token", "higher", ASKED)
EXACT = Measure(
    "P(accepted answer), exact", "at temperature 1: summed over all of them", "higher", ASKED
)
GREEDY_NOISE = Measure("greedy noise", "of no known style", "lower", ASKED)
PERPLEXITY = Measure("perplexity of accepted answers", "a token; 1 is certainty", "lower", ASKED)


def style_measure(style: str) -> Measure:
    """The probability at temperature 1 of a style of answers that nobody wants."""
    gloss = "at temperature 1: broken language, an answer of no known style"
    return Measure(f"P({style})", gloss if style == NOISE else "at temperature 1", "lower", ASKED)


class Comparison(NamedTuple):
    """A measure before and after training."""

    measure: Measure
    before: float
    after: float

    @property
    def change(self) -> str:
        """Signed, with the decimals of the table."""
        change = self.after - self.before
        if math.isnan(change):
            return "nan"
        return "0.0000" if abs(change) < 5e-5 else f"{change:+.4f}"


def comparisons(before: Snapshot, after: Snapshot) -> dict[str, list[Comparison]]:
    """What both snapshots know, under what it was measured on."""
    tables: dict[str, list[Comparison]] = {}
    if before.questions and after.questions:
        was, now = before.questions, after.questions
        rows = [_of(GREEDY, was.greedy, now.greedy, ACCEPTED)]
        rows += [
            _of(EXACT if style == ACCEPTED else style_measure(style), was.exact, now.exact, style)
            for style in was.exact
        ]
        rows.append(_of(GREEDY_NOISE, was.greedy, now.greedy, NOISE))
        rows.append(Comparison(PERPLEXITY, was.perplexity, now.perplexity))
        tables[f"{len(was.replies):,} held-out prompts, whose answers are all known"] = rows
    if before.heldout and after.heldout:
        was_held, now_held = before.heldout, after.heldout
        number = before.sizes.get("heldout", 0)
        names = [*MEASURES, *now_held]
        tables[f"{number:,} held-out records, whose rejected answers were not trained on"] = [
            _of(MEASURES.get(name, Measure(name, "", by=HELDOUT)), was_held, now_held, name)
            for name in dict.fromkeys(names)
            if name in now_held
        ]
    return tables


def _of(
    measure: Measure, before: Mapping[str, float], after: Mapping[str, float], name: str
) -> Comparison:
    return Comparison(measure, *(values.get(name, float("nan")) for values in (before, after)))


# -- in words --------------------------------------------------------------------------------------

SAME = 0.005  # a factor this close to 1 is no change worth a word


def in_words(was: Replies, now: Replies) -> list[str]:
    """Which styles of answers became less likely and which more, and what is left to reject."""
    factors = {style: _factor(p, now.exact.get(style, 0.0)) for style, p in was.exact.items()}
    falling = sorted(factors.items(), key=lambda item: item[1])
    groups = {
        "Less likely than before": [(s, f) for s, f in falling if f < 1 - SAME],
        "More likely than before": [(s, f) for s, f in reversed(falling) if f > 1 + SAME],
        "As likely as before": [(s, f) for s, f in falling if abs(f - 1) <= SAME],
    }
    sentences = [
        f"{what}: {', '.join(f'{style} ({_times(factor)})' for style, factor in styles)}."
        for what, styles in groups.items()
        if styles
    ]
    rejected, before = (1 - answers.exact.get(ACCEPTED, 0.0) for answers in (now, was))
    still = "still " if rejected < before else ""
    return [
        *sentences,
        f"At temperature 1 an answer is {still}not accepted {rejected:.1%} of the time "
        f"(before: {before:.1%}).",
    ]


def _factor(before: float, after: float) -> float:
    if before > 0:
        return after / before
    return float("inf") if after > 0 else 1.0


def _times(factor: float) -> str:
    if factor == float("inf"):
        return "from 0"
    return f"x{factor:.2f}" if factor < 10 else f"x{factor:,.0f}"


# -- for the terminal ------------------------------------------------------------------------------


def print_comparison(before: Snapshot, after: Snapshot, probe: str) -> None:
    """The table, its words and the answers to the probe."""
    if lines := list(comparison_lines(before, after)):
        print("", *lines, sep="\n")
    if before.probe is not None:
        print(f"\n{probe!r}\n  before: {before.probe}\n  after:  {after.probe}")


def comparison_lines(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """The table of `comparisons` and the sentences of `in_words`, at most 100 columns wide.

    Nothing where nothing was measured.
    """
    compared = comparisons(before, after)
    if compared:
        yield f"{'':<{LABEL}}{'before':>12}{'after':>12}{'change':>12}   better"
    for title, rows in compared.items():
        yield title
        for row in rows:
            label, numbers = row.measure.label, f"{row.before:>12.4f}{row.after:>12.4f}"
            if len(label) > LABEL - 2:
                label = f"{label[: LABEL - 3]}…"
            yield f"  {label:<{LABEL - 2}}{numbers}{row.change:>12}   {row.measure.better}".rstrip()
    if before.questions and after.questions:
        yield ""
        for sentence in in_words(before.questions, after.questions):
            yield from textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")
