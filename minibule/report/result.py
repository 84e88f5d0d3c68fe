"""What came of a training, before anything else: a headline, one picture, and the measures."""

from pathlib import Path

from minibule.evaluate.questions import ACCEPTED, Replies
from minibule.report.figures import short
from minibule.report.page import computed_by, foreign, source, table, text
from minibule.report.series import series
from minibule.report.stacks import stacks
from minibule.runs.comparison import MEASURES, Comparison, comparisons, in_words
from minibule.runs.read import Run


def headline(run: Run) -> str:
    """The result in one line; of the measures that are there the most telling."""
    if asked := _answers(run):
        was, now = asked
        accepted = (answers.greedy.get(ACCEPTED, 0) for answers in (was, now))
        return "Greedy answers accepted: {:.0%} → {:.0%}".format(*accepted)
    if measured := _heldout(run):
        old, new = measured
        return f"Held-out loss: {short(old['loss'])} → {short(new['loss'])}"
    return "A finished run" if run.finished else "An unfinished run"


def lead(run: Run) -> str:
    """The same in a sentence or two, with how it was measured."""
    if asked := _answers(run):
        was, now = asked
        greedy, exact = (
            [values.get(ACCEPTED, 0) for values in pair]
            for pair in ((was.greedy, now.greedy), (was.exact, now.exact))
        )
        return (
            f"Greedily, always taking the likeliest token, the model answered {greedy[0]:.0%} of "
            f"{len(now.replies):,} held-out prompts acceptably before training and {greedy[1]:.0%} "
            "after it. At temperature 1, where each answer is given as often as it is likely, an "
            f"answer was accepted {exact[0]:.0%} of the time before and is {exact[1]:.0%} after."
        )
    if measured := _heldout(run):
        old, new = measured
        said = [
            f"the {MEASURES[name].label} went from {short(old[name])} to {short(new[name])}"
            for name in ("loss", "first_rejected_mass")
            if name in old and name in new
        ]
        moved = new.get("kl_to_base")
        tail = "" if moved is None else f" The model moved {short(moved)} nats away from its base."
        records = run.after.sizes.get("heldout", 0) if run.after else 0
        return f"On {records:,} held-out records, {', and '.join(said)}.{tail}"
    if (loss := series(run, "loss")) is not None:
        some = max(1, len(loss.values) // 10)
        first, last = loss.values[:some].mean(), loss.values[-some:].mean()
        each = f", each the mean of {some:,} steps" if some > 1 else ""
        return (
            f"Over {len(loss.steps):,} steps the loss on the training records went from "
            f"{short(float(first))} to {short(float(last))}{each}."
        )
    return "No step of this run has been recorded."


def _answers(run: Run) -> tuple[Replies, Replies] | None:
    if run.before and run.after and run.before.questions and run.after.questions:
        return run.before.questions, run.after.questions
    return None


def _heldout(run: Run) -> tuple[dict[str, float], dict[str, float]] | None:
    if run.before and run.after and run.before.heldout and run.after.heldout:
        old, new = run.before.heldout, run.after.heldout
        return (old, new) if "loss" in old and "loss" in new else None
    return None


# -- the styles of answers -------------------------------------------------------------------------


def styles(run: Run) -> str:
    """How likely each style of answers was before and is after: two bars of length 1."""
    asked = _answers(run)
    if asked is None:
        return ""
    was, now = asked
    bars = stacks("Share of each style", {"before": was.exact, "after": now.exact})
    said = "".join(f"<p>{text(sentence)}</p>" for sentence in in_words(was, now))
    return (
        '<figure class="styles"><h2>What is answered at temperature 1</h2>'
        f"{bars}<figcaption>{said}</figcaption>"
        f"{source(run.folder, 'evaluate.questions.ask')}</figure>"
    )


def probe(run: Run) -> str:
    """The answer to the probe, before and after."""
    snapshots = (("Before", "", run.before), ("After", "now", run.after))
    answers = [(when, kind, s.probe) for when, kind, s in snapshots if s and s.probe is not None]
    if not answers:
        return ""
    rows = [("Prompt", "", run.config.probe), *answers]
    inside = "".join(
        f'<div class="{kind}"><dt>{when}</dt>'
        f"<dd>{foreign(answer) if answer else '&nbsp;'}</dd></div>"
        for when, kind, answer in rows
    )
    return f'<div class="probe"><dl>{inside}</dl></div>'


# -- the measures ----------------------------------------------------------------------------------


def comparison(run: Run) -> list[str]:
    """Every measure that was taken twice, with its meaning and the difference."""
    if not (run.before and run.after):
        return []
    tables = [
        table(
            title,
            ("", "before", "after", "change"),
            (_compared(run.folder, row) for row in rows),
            (1, 2, 3),
        )
        for title, rows in comparisons(run.before, run.after).items()
    ]
    if not tables:
        return []
    return [
        f'<div class="columns">{"".join(tables)}</div>',
        '<p class="source">Every name leads to the function that computes it.</p>',
    ]


def _compared(folder: Path, row: Comparison) -> list[str]:
    measure = row.measure
    better = f"{measure.better} is better" if measure.better else ""
    gloss = "; ".join(part for part in (measure.gloss, better) if part)
    rose = row.change.startswith("+")
    kind = ""
    if measure.better and row.change[0] in "+-":
        kind = "good" if rose == (measure.better == "higher") else "bad"
    change = f'<span class="{kind}">{row.change}</span>' if kind else row.change
    return [
        f'{computed_by(folder, measure.by, measure.label)}<span class="gloss">{text(gloss)}</span>',
        f"{row.before:.4f}",
        f"{row.after:.4f}",
        change,
    ]
