"""What a training run did, on one HTML page that needs nothing but itself.

    python -m minibule.report runs/tiny

`train` writes it at its end; for a run that was cut short the page shows what there is.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import minibule
from minibule.files import real_path, writing
from minibule.report.answers import answers
from minibule.report.charts import course
from minibule.report.figures import duration
from minibule.report.page import (
    code,
    command,
    facts,
    foreign,
    head,
    page,
    section,
    table,
    text,
    write_page,
)
from minibule.report.position import one_position
from minibule.report.result import comparison, headline, lead, probe, styles
from minibule.report.series import series
from minibule.runs.manifest import Manifest
from minibule.runs.read import Run, read_run
from minibule.runs.rounds import rounds_of
from minibule.runs.starts import Start


def write_report(folder: str | Path) -> Path:
    """Write report.html into a run's folder; returns its path.

    InputError where the folder is no run's, or holds files that are none of a run's.
    """
    run = read_run(folder)
    path = run.files.report
    manifest = Manifest(run.folder)
    with manifest.writing(path) if manifest.exists else writing(path):
        write_page(path, report(run))
    return path


def report(run: Run) -> str:
    """The page of a run."""
    return page(
        f"{_name(run)}: minibule training report",
        [
            _head(run),
            "<main>",
            section("One position, looked at closely", *one_position(run)),
            section("Before and after", *comparison(run)),
            section("The course of training", *course(run)),
            section("Answers to held-out prompts", *answers(run)),
            section("Next steps", *_commands(run)),
            section("How it was made", facts(made_by(run.starts)), *_settings(run)),
            "</main>",
        ],
    )


# -- the head --------------------------------------------------------------------------------------


def _name(run: Run) -> str:
    return real_path(run.folder).name


def _head(run: Run) -> str:
    return head(
        kind="minibule training report",
        name=_name(run),
        headline=headline(run),
        lead=lead(run),
        more=_unfinished(run) + probe(run),
        picture=styles(run),
        about=_facts(run),
    )


def _facts(run: Run) -> dict[str, str]:
    config, observed = run.config, (run.before or run.after)
    counted: dict[str, int] = observed.sizes if observed else {}
    return {
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
            _many(counted, "accepted", "accepted answers"),
            _many(counted, "answers", "rejected answers"),
            _many(counted, "heldout", "more prompts held out"),
        ),
        "Objective": f"{config.objective}: {config.resolved_loss()}",
        "Steps": _steps(run),
        **({"Made": f"{text(run.starts[0].date)} UTC"} if run.starts else {}),
    }


def made_by(starts: Sequence[Start]) -> dict[str, str]:
    """By which commands a run was made, with what and where; and the version of the page."""
    known = {
        "Command": [f"<code>{text(s.command)}</code>{_continued(s)}" for s in starts],
        "Versions": [text(s.versions) for s in starts],
        "Machine": [text(s.machine) for s in starts],
    }
    facts = {name: "<br>".join(dict.fromkeys(values)) for name, values in known.items() if values}
    return facts | {"Page by": f"minibule {minibule.__version__}"}


def _continued(start: Start) -> str:
    return f", {text(start.date)} UTC, from step {start.first:,}" if start.first > 1 else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _many(sizes: Mapping[str, int], name: str, what: str) -> str:
    return f"{sizes[name]:,} {what}" if sizes.get(name) else ""


def _steps(run: Run) -> str:
    seconds = series(run, "seconds")
    if seconds is None:
        return f"{run.steps:,}"
    total = float(seconds.values.sum())
    per_step = f"{run.steps:,} in {duration(total)}, {total / len(seconds.values):.2g} s a step"
    skipped = sum(line.get("skipped") is True for line in run.lines)
    return per_step + (f"; {skipped:,} of them skipped" if skipped else "")


def _unfinished(run: Run) -> str:
    if run.finished:
        return ""
    planned = f" of {run.config.steps:,}" if run.config.steps else ""
    return (
        f'<p class="notice">This run has not finished: {run.steps:,}{planned} steps are done. '
        "The page shows what there is; Next steps has the command that continues the run.</p>\n"
    )


# -- settings and commands -------------------------------------------------------------------------


def _settings(run: Run) -> list[str]:
    rows = [
        [f"<code>{text(field.name)}</code>", _value(value), _value(field.default)]
        for field in dataclasses.fields(run.config)
        if (value := getattr(run.config, field.name)) != field.default
    ]
    whole = run.files.settings.read_text(encoding="utf-8").rstrip()
    return [
        table("What differs from the defaults", ("setting", "here", "default"), rows),
        "<details><summary>All settings, as resolved for this run</summary>\n"
        "<p><code>--config</code> reads this file back.</p>\n"
        f"{code(whole, 'wrapped')}</details>",
    ]


def _value(value: object) -> str:
    if value is None or value in ("", ()):
        return '<span class="muted">not set</span>'
    return foreign(", ".join(value) if isinstance(value, tuple) else str(value))


def _commands(run: Run) -> list[str]:
    folder, config = run.folder, run.config
    parts = []
    rounds = rounds_of(folder)
    if not run.finished:
        program, place = ("minibule.rounds", rounds) if rounds else ("minibule.train", folder)
        resume = command(program, "--resume", "--output", str(place))
        parts += ["<h3>Continue this run</h3>", code(resume, "command")]
    if run.files.adapter.is_dir():
        model = [*(("--model", config.model) if config.model else ()), "--adapter"]
        model.append(str(run.files.adapter))
        gguf = next(iter(sorted(folder.glob("model-*.gguf"))), None)
        parts += [
            "<h3>Talk to it</h3>",
            code(
                command("minibule.generate", *model, "--prompt", config.probe or "hello"),
                "command",
            ),
        ]
        if gguf is None:
            gguf = folder / "model-q8_0.gguf"
            flags = ("--format", "gguf", "--dtype", "q8_0", "--output", str(gguf))
            parts.append("<h3>Write it for llama.cpp</h3>")
            parts.append(code(command("minibule.export", *model, *flags), "command"))
        parts += [
            "<h3>Talk to it in llama.cpp</h3>",
            code(shlex.join(["llama-cli", "-m", str(gguf), "--temp", "0"]), "command"),
        ]
    if not rounds:  # whose settings do not say what is trained on
        again = ("--config", str(run.files.settings), "--output", f"{folder}-again")
        parts.append("<h3>Train again with these settings</h3>")
        parts.append(code(command("minibule.train", *again), "command"))
    return [
        "<p>Click a command to select it. Paths are relative to the folder the report was made "
        "in.</p>",
        *parts,
    ]
