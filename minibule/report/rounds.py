"""What rounds did, on one page: what held-out questions gave after each, by kind, and how.

    python -m minibule.report runs/tiny-rounds

`rounds` writes it at its end; of rounds that were cut short the page shows what there is.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minibule.files import real_path, writing
from minibule.report.figures import duration
from minibule.report.page import (
    code,
    command,
    facts,
    foreign,
    head,
    page,
    section,
    source,
    table,
    text,
    write_page,
)
from minibule.report.round_answers import by_kind, one_question
from minibule.report.round_charts import course, pass_at, pictures
from minibule.report.sections import made_by
from minibule.report.series import is_number
from minibule.report.stacks import stacks
from minibule.runs.rounds import Rounds, read_rounds

# Measures of held-out questions by their key in rounds.jsonl, behind "eval_": name, meaning, which
# way is better if either, decimals.
HELD = {
    "accepted": ("accepted", "at temperature 1; higher is better", 3),
    "greedy": ("greedy answer accepted", "always the likeliest token; higher is better", 3),
    "unique": ("different answers", "samples of a question that differ", 2),
    "tokens": ("tokens an answer", "mean length of a sample", 1),
    "ended": ("ended by themselves", "share of the samples; higher is better", 3),
    "kl": ("KL(p || base)", "nats a token: how far the model has moved from its base", 4),
    "entropy": ("entropy", "nats a token", 4),
}
# Where a round's seconds go: key in rounds.jsonl, name.
SECONDS = {
    "sampling_seconds": "sampling",
    "judging_seconds": "judging",
    "training_seconds": "training",
    "evaluation_seconds": "held-out questions",
}


def write_rounds_report(folder: str | Path) -> Path:
    """Write report.html into the folder of rounds; returns its path.

    InputError where the folder is none of rounds, or holds files that are none of theirs.
    """
    rounds = read_rounds(folder)
    path = rounds.files.report
    with writing(path):
        write_page(path, rounds_report(rounds))
    return path


def rounds_report(rounds: Rounds) -> str:
    """The page of rounds."""
    return page(
        f"{real_path(rounds.folder).name}: minibule rounds report",
        [
            _head(rounds),
            "<main>",
            section("One question through the rounds", *one_question(rounds)),
            section("Acceptance by kind of question", *by_kind(rounds)),
            section("Held-out questions, round by round", *_held(rounds)),
            section("What each round learnt from", *_learnt(rounds)),
            section("Next steps", *_commands(rounds)),
            section("How it was made", facts(made_by(rounds.starts)), *_settings(rounds)),
            "</main>",
        ],
    )


# -- the head --------------------------------------------------------------------------------------


def number(line: Mapping[str, Any], key: str) -> float | None:
    """A number of a line of rounds.jsonl; None where there is none."""
    return float(line[key]) if is_number(line.get(key)) else None


def _head(rounds: Rounds) -> str:
    return head(
        kind="minibule rounds report",
        name=real_path(rounds.folder).name,
        headline=_headline(rounds),
        lead=_lead(rounds),
        more=_unfinished(rounds),
        picture=course(rounds),
        about=_facts(rounds),
    )


def _ends(rounds: Rounds, key: str) -> tuple[float, float] | None:
    """A number of the base's line and of the last round's."""
    first, last = (number(rounds.lines.get(n, {}), key) for n in (0, rounds.last))
    return None if first is None or last is None or not rounds.last else (first, last)


def _headline(rounds: Rounds) -> str:
    if ends := _ends(rounds, "eval_accepted"):
        return "Answers accepted: {:.0%} → {:.0%}".format(*ends)
    return "Rounds that have only begun"


def _lead(rounds: Rounds) -> str:
    accepted, greedy = _ends(rounds, "eval_accepted"), _ends(rounds, "eval_greedy")
    if not accepted or not greedy:
        return "No round is done."
    asked = number(rounds.lines[0], "eval_prompts") or 0
    error = number(rounds.lines[rounds.last], "eval_accepted_error")
    within = f" (standard error over the questions {error:.1%})" if error and error > 0 else ""
    many = f"{rounds.last} rounds" if rounds.last > 1 else "one round"
    return (
        f"{asked:,.0f} {_held_out(rounds)} were asked before the first round and after each. After "
        f"{many} {accepted[1]:.0%} of the answers at temperature 1 were accepted{within}, and "
        f"{greedy[1]:.0%} of the greedy ones; the base had {accepted[0]:.0%} and {greedy[0]:.0%}. "
        f"{_best_of(rounds)}"
    )


def _held_out(rounds: Rounds) -> str:
    """What the questions are that are asked after a round: without others, those learnt from."""
    data, heldout = rounds.settings.get("data"), rounds.settings.get("heldout")
    if data and heldout in (None, "", data):
        return "questions, which are not held out but those that the rounds learn from,"
    return "held-out questions, never sampled to learn from,"


def _best_of(rounds: Rounds) -> str:
    """What pass@k came to, of the most samples: whether the model knows less than before."""
    curves = pass_at(rounds)
    if 0 not in curves or rounds.last not in curves:
        return ""
    k, before = curves[0][-1]
    after = curves[rounds.last][-1][1]
    return f"Of {k} samples at least one was accepted for {before:.0%} before, {after:.0%} after."


def _unfinished(rounds: Rounds) -> str:
    planned = rounds.settings.get("rounds")
    if not isinstance(planned, int) or rounds.last >= planned:
        return ""
    return (
        f'<p class="notice">{rounds.last:,} of {planned:,} rounds are done. The page shows what '
        "there is; Next steps has the command that goes on, as long as something is left to "
        "learn.</p>\n"
    )


def _facts(rounds: Rounds) -> dict[str, str]:
    def said(name: str, otherwise: str = "?") -> str:
        return foreign(str(rounds.settings.get(name) or otherwise))

    total = sum(number(line, key) or 0 for line in rounds.lines.values() for key in SECONDS)
    return {
        "Model": said("model", "embedded"),
        "Judge": said("judge"),
        "Samples": f"{said('samples')} of each question a round, budget {said('budget')}, "
        f"temperature {said('temperature')}",
        "Selection": said("selection"),
        "Objective": said("objective"),
        "Rounds": f"{rounds.last:,} in {duration(total)}",
        **({"Made": f"{text(rounds.starts[0].date)} UTC"} if rounds.starts else {}),
    }


# -- round by round --------------------------------------------------------------------------------


def _names(numbers: Iterable[int]) -> list[str]:
    return [f"round {n}" if n else "base" for n in numbers]


def _held(rounds: Rounds) -> list[str]:
    numbers = sorted(rounds.lines)
    if not numbers:
        return []
    rows = []
    for key, (label, gloss, digits) in (HELD | _passes(rounds)).items():
        values = [number(rounds.lines[n], f"eval_{key}") for n in numbers]
        if any(value is not None for value in values):
            cells = ["" if v is None else f"{v:.{digits}f}" for v in values]
            cells.append(_difference(values[0], values[-1], digits))
            rows.append([f'{text(label)}<span class="gloss">{text(gloss)}</span>', *cells])
    columns = ("", *_names(numbers), "change")
    return [
        pictures(rounds),
        table("Held-out questions", columns, rows, range(1, len(columns))),
        source(rounds.folder, "evaluate.sampled.figures", "evaluate.heldout.mean_entropy_and_kl"),
    ]


def _passes(rounds: Rounds) -> dict[str, tuple[str, str, int]]:
    counts = [k for k, _ in pass_at(rounds).get(0, [])]
    gloss = "chance that of {} samples at least one is accepted; higher is better"
    return {f"pass@{k}": (f"pass@{k}", gloss.format(k), 3) for k in counts if k > 1}


def _difference(first: float | None, last: float | None, digits: int) -> str:
    return "" if first is None or last is None else f"{last - first:+.{digits}f}"


def _learnt(rounds: Rounds) -> list[str]:
    """What was drawn, kept and trained on in each round, and where the seconds went."""
    numbers = [n for n in sorted(rounds.lines) if n]
    if not numbers:
        return []
    columns = (
        "",
        "samples",
        "accepted",
        "ended",
        "none accepted",
        "all accepted",
        "answers trained",
        "tokens trained",
        "seconds",
    )
    drawn = table(
        "Samples of the model that the round begins with, and how many questions had none or all "
        "of theirs accepted",
        columns,
        [_learnt_row(rounds, n) for n in numbers],
        range(1, len(columns)),
    )
    spent = {
        name: sum(number(rounds.lines[n], key) or 0 for n in numbers)
        for key, name in SECONDS.items()
    }
    total = sum(spent.values()) or 1
    bar = stacks("Share of the seconds", {"time": {k: s / total for k, s in spent.items()}})
    return [
        drawn,
        f'<figure class="styles"><h3>Where the seconds went</h3>{bar}</figure>',
        source(rounds.folder, "rounds.sample.figures_of", "rounds.loop.rounds"),
    ]


def _learnt_row(rounds: Rounds, n: int) -> list[str]:
    line, page_of_it = rounds.lines[n], rounds.files.run(n).report

    def count(key: str) -> str:
        value = number(line, key)
        return "" if value is None else f"{value:,.0f}"

    accepted, rejected = (number(line, key) or 0 for key in ("accepted", "rejected"))
    cut = number(line, "completions/clipped_ratio")
    name = f"round {n}"
    if page_of_it.exists():
        name = f'<a href="{page_of_it.parent.name}/{page_of_it.name}">{name}</a>'
    return [
        name,
        count("samples"),
        f"{accepted / (accepted + rejected):.1%}" if accepted + rejected else "",
        "" if cut is None else f"{1 - cut:.1%}",
        count("fully_unsolved"),
        count("fully_solved"),
        count("trained_answers"),
        count("trained_tokens"),
        f"{sum(number(line, key) or 0 for key in SECONDS):,.1f}",
    ]


# -- settings and commands -------------------------------------------------------------------------


def _settings(rounds: Rounds) -> list[str]:
    whole = rounds.files.settings.read_text(encoding="utf-8").rstrip()
    return [f"<details><summary>All settings</summary>\n{code(whole, 'wrapped')}</details>"]


def _commands(rounds: Rounds) -> list[str]:
    parts: list[tuple[str, Sequence[str]]] = []
    planned = rounds.settings.get("rounds")
    if isinstance(planned, int):
        more = [] if rounds.last < planned else ["--rounds", str(planned + 1)]
        what = "Go on" if not more else "Another round"
        parts.append((what, ["minibule.rounds", "--resume", "--output", str(rounds.folder), *more]))
    adapter = rounds.files.run(rounds.last).adapter
    if adapter.is_dir():
        model = rounds.settings.get("model")
        flags = [*(("--model", str(model)) if model else ()), "--adapter", str(adapter)]
        questions = ["--prompt", _a_prompt(rounds)]
        parts.append(("Talk to it", ["minibule.generate", *flags, *questions]))
    return [f"<h3>{what}</h3>{code(command(*words), 'command')}" for what, words in parts]


def _a_prompt(rounds: Rounds) -> str:
    asked = rounds.asked.get(rounds.last)
    return str(asked[0].row["prompt"]) if asked else "hello"
