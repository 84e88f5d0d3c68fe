"""What a training run did, on one HTML page that needs nothing but itself.

    python -m minibule.report runs/tiny

`train` writes it at its end; for a run that was cut short the page shows what there is. The
pictures need matplotlib; without it the page has their numbers as text.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from minibule.evaluate.position import Token
from minibule.evaluate.questions import ACCEPTED, NOISE
from minibule.files import whole_file, writing
from minibule.report import figures
from minibule.report.charts import course, series
from minibule.report.figures import Bars, duration, short
from minibule.report.page import (
    code,
    command,
    facts,
    foreign,
    page,
    scrolling,
    section,
    table,
    text,
)
from minibule.runs.comparison import Comparison, comparisons
from minibule.runs.manifest import Manifest
from minibule.runs.read import Run, read_run

SHOWN_ANSWERS = 200  # of the held-out prompts; all are in after.json
SHOWN_TOKENS = 10  # of the position's likeliest
TIMES = "\u00d7"


def write_report(folder: str | Path) -> Path:
    """Write report.html into a run's folder; returns its path.

    InputError where the folder is no run's, or holds files that are none of a run's.
    """
    found = read_run(folder)
    path = found.folder / "report.html"
    manifest = Manifest(found.folder)
    with manifest.writing(path) if manifest.exists else writing(path), whole_file(path) as file:
        # A half character, from a file somebody edited, becomes its number instead of an error.
        file.write_text(report(found), encoding="utf-8", errors="xmlcharrefreplace")
    return path


def report(found: Run) -> str:
    """The page of a run."""
    return page(
        f"{_name(found)}: minibule training report",
        [
            _head(found),
            "<main>",
            section("Before and after", _probe(found), _comparison(found)),
            section("The course of training", *course(found)),
            section("One position, looked at closely", *_one_position(found)),
            section("Greedy answers to held-out prompts", *_answers(found)),
            section("Go on from here", *_commands(found)),
            section(
                "Settings",
                "<p>As resolved for this run. <code>--config</code> reads the file back.</p>",
                code(_settings(found)),
            ),
            "</main>",
        ],
    )


# -- the head --------------------------------------------------------------------------------------


def _name(found: Run) -> str:
    return found.folder.resolve().name


def _head(found: Run) -> str:
    config, sizes = found.config, (found.before or found.after)
    counted: dict[str, int] = sizes.sizes if sizes else {}
    values = {
        "Model": _joined(
            text(config.model or "embedded"), _many(counted, "parameters", "parameters, frozen")
        ),
        "Adapter": _joined(
            f"LoRA, rank {config.lora_r}"
            if not config.init_adapter
            else f"LoRA, started from {text(config.init_adapter)}",
            _many(counted, "trained", "parameters trained"),
        ),
        "Records": _joined(
            text(config.data or "embedded"),
            _many(counted, "records", "prompts"),
            _many(counted, "answers", "rejected answers"),
            _many(counted, "heldout", "more prompts held out"),
        ),
        "Objective": f"{config.objective}: {config.resolved_objective()}",
        "Steps": _steps(found),
    }
    if (memory := series(found, "rss_gb")) is not None:
        values["Memory"] = f"up to {memory.values.max():.2f} GB resident"
    return (
        '<header>\n<p class="kicker">minibule training report</p>\n'
        f"<h1>{text(_name(found))}</h1>\n"
        f'<p class="lead">{text(_result(found))}</p>\n'
        f"{_unfinished(found)}{facts(values)}\n</header>"
    )


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _many(sizes: Mapping[str, int], name: str, what: str) -> str:
    return f"{sizes[name]:,} {what}" if sizes.get(name) else ""


def _steps(found: Run) -> str:
    seconds = series(found, "seconds")
    if seconds is None:
        return f"{found.steps:,}"
    total = float(seconds.values.sum())
    per_step = f"{found.steps:,} in {duration(total)}, {total / len(seconds.values):.2g} s a step"
    skipped = sum(line.get("skipped") is True for line in found.lines)
    return per_step + (f"; {skipped:,} of them skipped" if skipped else "")


def _unfinished(found: Run) -> str:
    if found.finished:
        return ""
    planned = f" of {found.config.steps:,}" if found.config.steps else ""
    return (
        f'<p class="notice">This run has not finished: {found.steps:,}{planned} steps are done. '
        "The page shows what there is, and near its end how the run goes on.</p>\n"
    )


def _result(found: Run) -> str:
    """What came of it, in a sentence or two; of the measures that are there the most telling."""
    before, after, loss = found.before, found.after, series(found, "loss")
    if before and after and before.questions and after.questions:
        was, now = before.questions, after.questions
        return (
            f"Of {len(now.texts):,} held-out prompts the model answered "
            f"{was.greedy.get(ACCEPTED, 0):.0%} acceptably before training and "
            f"{now.greedy.get(ACCEPTED, 0):.0%} after it. The probability of an accepted answer "
            f"went from {was.exact.get(ACCEPTED, 0):.2f} to {now.exact.get(ACCEPTED, 0):.2f}, "
            f"that of broken language from {was.exact.get(NOISE, 0):.3f} to "
            f"{now.exact.get(NOISE, 0):.3f}."
        )
    if before and after and before.heldout and after.heldout:
        old, new = before.heldout, after.heldout
        names = {"loss": "the loss", "first_rejected_mass": "the rejected mass at first positions"}
        said = [
            f"{what} went from {short(old[name])} to {short(new[name])}"
            for name, what in names.items()
            if name in old and name in new
        ]
        moved = new.get("kl_to_base")
        tail = "" if moved is None else f" The model moved {short(moved)} nats away from its base."
        return f"On {after.sizes.get('heldout', 0):,} held-out records {', and '.join(said)}.{tail}"
    if loss is not None:
        mean = figures.running_mean(loss.values)
        return (
            f"Over {len(loss.steps):,} steps the loss on the training records went from "
            f"{short(float(mean[0]))} to {short(float(mean[-1]))}."
        )
    return "No step of this run has been recorded."


# -- before and after ------------------------------------------------------------------------------


def _probe(found: Run) -> str:
    asked = found.config.probe
    snapshots = (("Before", "", found.before), ("After", "now", found.after))
    answers = [(when, kind, s.probe) for when, kind, s in snapshots if s and s.probe is not None]
    if not answers:
        return ""
    rows = [("Prompt", "", asked), *answers]
    inside = "".join(
        f'<div class="{kind}"><dt>{when}</dt><dd>{foreign(answer) or "&nbsp;"}</dd></div>'
        for when, kind, answer in rows
    )
    return f'<div class="probe"><dl>{inside}</dl></div>'


def _comparison(found: Run) -> str:
    if not (found.before and found.after):
        return ""
    tables = [
        table(title, ("", "before", "after", "change"), map(_compared, rows), (1, 2, 3))
        for title, rows in comparisons(found.before, found.after).items()
    ]
    return f'<div class="columns">{"".join(tables)}</div>' if tables else ""


def _compared(row: Comparison) -> list[str]:
    measure = row.measure
    better = f"{measure.better} is better" if measure.better else ""
    gloss = "; ".join(part for part in (measure.gloss, better) if part)
    return [
        f'{text(measure.label)}<span class="gloss">{text(gloss)}</span>',
        f"{row.before:.4f}",
        f"{row.after:.4f}",
        row.change,
    ]


# -- one position ----------------------------------------------------------------------------------


def _one_position(found: Run) -> list[str]:
    before = found.before.position if found.before else None
    after = found.after.position if found.after else None
    seen = after or before
    if seen is None:
        return []
    was = {token.id: token for token in before.tokens} if before else {}
    now = {token.id: token for token in after.tokens} if after else {}
    tokens = sorted((was | now).values(), key=lambda t: -max(_model(t, was), _model(t, now)))
    # The likeliest, and whatever the target or the rejections make worth seeing.
    shown = sorted(
        tokens,
        key=lambda t: -max(_model(t, was), _model(t, now), t.target, t.rejected / seen.total),
    )[:SHOWN_TOKENS]
    shown = [token for token in tokens if token in shown]
    bars = [
        Bars(
            token_name(token.text) + (f" {TIMES}{token.rejected:g}" if token.rejected else ""),
            token.rejected > 0,
            was[token.id].model if token.id in was else None,
            now[token.id].model if token.id in now else None,
            token.target,
            token.optimum,
        )
        for token in shown
    ]
    parts = [
        "<p>Here the model is about to begin its answer:</p>",
        code(seen.context, "context"),
        "<p>What it expects as the first token, and what the objective wants it to expect. Tokens "
        f"with a {TIMES} began the answers that were rejected, {seen.total:g} in all.</p>",
    ]
    return [*parts, f'<div class="columns">{_bars(bars)}{_tokens(bars)}</div>']


def _model(token: Token, known: Mapping[int, Token]) -> float:
    return known[token.id].model if token.id in known else 0.0


def token_name(token: str) -> str:
    """A token's text so that it can be seen: spaces as ␣, invisible characters as escapes."""
    shown = "".join(
        "␣" if c == " " else c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in token
    )
    return shown if len(shown) <= 12 else shown[:11] + "…"


def _bars(bars: Sequence[Bars]) -> str:
    if not figures.available():
        return ""
    alt = "Probabilities of the likeliest tokens before and after training, with the target P"
    keys = [
        '<span><i class="key bar grey"></i>before</span>',
        '<span><i class="key bar blue"></i>after</span>',
        '<span><i class="key upright orange"></i>target P</span>',
    ]
    if any(row.optimum is not None for row in bars):
        keys.append('<span><i class="key diamond orange"></i>optimum p*</span>')
        alt += " and the optimum p*"
    picture = figures.bar_chart("tokens", f"{alt}. The table has the numbers.", bars)
    return (
        f'<figure><h3>Probability of a token</h3><div class="legend">{"".join(keys)}</div>'
        f"{picture}<figcaption>P is what the KL part pulls towards; p* minimises KL and contrast "
        f"together. {TIMES}n: rejected n times here.</figcaption></figure>"
    )


def _tokens(bars: Sequence[Bars]) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    return table(
        "Probability of a token; P is the target, p* the optimum",
        ("token", "before", "after", "P", "p*"),
        (
            [
                f"<code>{foreign(row.label)}</code>",
                *map(number, (row.before, row.after, row.target, row.optimum)),
            ]
            for row in bars
        ),
        (1, 2, 3, 4),
    )


# -- answers ---------------------------------------------------------------------------------------


def _answers(found: Run) -> list[str]:
    snapshots = [("before", found.before), ("after", found.after)]
    asked = [(when, s.questions) for when, s in snapshots if s and s.questions]
    if not asked:
        return []
    first = asked[0][1]
    number = min(len(a.texts) for _, a in asked)
    shown = min(number, SHOWN_ANSWERS)
    parts = []
    if len(asked) == 2:
        pairs = list(zip(asked[0][1].styles, asked[1][1].styles, strict=False))
        gained = sum(was != ACCEPTED == now for was, now in pairs)
        lost = sum(was == ACCEPTED != now for was, now in pairs)
        parts.append(f"<p>{gained:,} of {number:,} became acceptable, {lost:,} ceased to be.</p>")
    if shown < number:
        parts.append(
            f'<p class="muted">The first {shown:,} of {number:,}; all are in '
            "<code>before.json</code> and <code>after.json</code>.</p>"
        )
    head = "".join(f'<th scope="col">{when}</th>' for when in ("prompt", *(w for w, _ in asked)))
    body = "\n".join(
        f'<tr><th scope="row">{foreign(first.prompts[i])}</th>'
        + "".join(f"<td>{_tag(a.styles[i])}{foreign(a.texts[i])}</td>" for _, a in asked)
        + "</tr>"
        for i in range(shown)
    )
    label = "Greedy answers, before and after training"
    inside = (
        f'<table class="texts" aria-label="{label}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )
    return [*parts, scrolling(label, inside, tall=True)]


def _tag(style: str) -> str:
    kind = {ACCEPTED: " good", NOISE: " bad"}.get(style, "")
    sign = {ACCEPTED: "✓ ", NOISE: "✗ "}.get(style, "")
    return f'<span class="tag{kind}">{sign}{text(style)}</span>'


# -- settings and commands -------------------------------------------------------------------------


def _settings(found: Run) -> str:
    return (found.folder / "config.toml").read_text(encoding="utf-8").rstrip()


def _commands(found: Run) -> list[str]:
    folder, config = found.folder, found.config
    parts = []
    if not found.finished:
        resume = command("minibule.train", "--resume", "--output", str(folder))
        parts += ["<h3>Go on with this run</h3>", code(resume, "command")]
    if (folder / "adapter").is_dir():
        model = [*(("--model", config.model) if config.model else ()), "--adapter"]
        model.append(str(folder / "adapter"))
        gguf = next(iter(sorted(folder.glob("model-*.gguf"))), None)
        parts += [
            "<h3>Talk to it</h3>",
            code(
                command("minibule.generate", *model, "--prompt", config.probe or "hello"),
                "command",
            ),
            "<h3>Write it for llama.cpp</h3>",
        ]
        if gguf is None:
            gguf = folder / "model-q8_0.gguf"
            flags = ("--format", "gguf", "--dtype", "q8_0", "--output", str(gguf))
            parts.append(code(command("minibule.export", *model, *flags), "command"))
        parts += [
            "<h3>Talk to it in llama.cpp</h3>",
            code(shlex.join(["llama-cli", "-m", str(gguf), "--temp", "0"]), "command"),
        ]
    parts += [
        "<h3>Train again with these settings</h3>",
        code(
            command(
                "minibule.train", "--config", str(folder / "config.toml"),
                "--output", f"{folder}-again",
            ),
            "command",
        ),
    ]  # fmt: skip
    return [
        "<p>One click marks a command whole. Paths are as seen from where this page was made.</p>",
        *parts,
    ]
