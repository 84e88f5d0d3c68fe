"""The report's page: what it says, that data stay data, what is missing, and how it looks."""

import dataclasses
import json
import pkgutil
import re
import shlex
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from helpers import ROOT
from pages import CONTRAST, SCRIPT, Page, check_form

import minibule
from minibule import export
from minibule.errors import InputError
from minibule.evaluate.position import Position, Token
from minibule.files import embedded_folder
from minibule.generate.__main__ import main as generate_main
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.report.__main__ import main
from minibule.report.charts import charts, side_charts
from minibule.report.position import in_words, token_name
from minibule.report.sections import write_report
from minibule.runs import snapshot
from minibule.runs.comparison import (
    EXACT,
    GREEDY,
    GREEDY_NOISE,
    MEASURES,
    PERPLEXITY,
    style_measure,
)
from minibule.runs.read import read_run
from minibule.runs.settings import FIELDS, read_settings
from minibule.settings import to_toml
from minibule.train.__main__ import main as train

# Of a run of a few steps: three lines, three small ones, the bars of a position.
PICTURES = 7


def short_run(folder, objective):
    """A run of 4 steps, evaluated after the second, on a dozen records and five questions."""
    for name, lines in (("records", 12), ("heldout", 5)):
        text = (embedded_folder() / f"{name}.jsonl").read_text().splitlines()[:lines]
        (folder / f"{name}.jsonl").write_text("\n".join(text) + "\n")
    train(
        [
            *("--data", str(folder / "records.jsonl"), "--model", str(embedded_folder())),
            *("--heldout", str(folder / "heldout.jsonl"), "--output", str(folder / "run")),
            *("--steps", "4", "--eval-every", "2", "--lr", "0.02", "--eval-fraction", "0.25"),
            *("--objective", objective),
        ]
    )
    return folder / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run of an objective with a target, of whose page all is asked."""
    return short_run(tmp_path_factory.mktemp("report"), "reference")


@pytest.fixture(scope="module", params=["complement", "ratio", "npo"])
def other(request, tmp_path_factory):
    """The name of a loss that is none, and its run."""
    return request.param, short_run(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def write_lines(run, lines):
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def page_of(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


# -- what it says ----------------------------------------------------------------------------------


def test_train_writes_the_page_and_the_command_writes_it_again(finished, run, capsys):
    first = (finished / "report.html").read_text(encoding="utf-8")
    main([str(finished)])
    assert capsys.readouterr().out.strip() == str(finished / "report.html")
    assert (finished / "report.html").read_text(encoding="utf-8") == first


def test_it_says_what_the_run_did(finished):
    page = page_of(finished)
    before, after = (json.loads((finished / f"{x}.json").read_text()) for x in ("before", "after"))
    was, now = before["questions"], after["questions"]
    greedy, exact = (
        [answers[kind]["accepted"] for answers in (was, now)] for kind in ("greedy", "exact")
    )
    assert f"Greedy answers accepted: {greedy[0]:.0%} → {greedy[1]:.0%}" in page.text
    assert "Greedily, always taking the likeliest token, " in page.text
    assert f"was accepted {exact[0]:.0%} of the time before and is {exact[1]:.0%}" in page.text
    for reply in (*was["replies"], *now["replies"]):
        assert reply["prompt"] in page.text and f"{reply['accepted']:.0%} accepted" in page.text
        for answer in (reply["greedy"], *reply["samples"]):
            assert answer["text"] in page.text
    assert before["probe"] in page.text and after["probe"] in page.text
    for name in ("loss", "kl_to_base", "optimality_gap", "optimal_rejected_mass"):
        assert MEASURES[name].label in page.text and MEASURES[name].gloss in page.text
        assert name.replace("_", " ") not in page.text or name == "loss"
        assert f"{before['heldout'][name]:.4f}" in page.text
        assert f"{after['heldout'][name]:.4f}" in page.text
    assert "853,120 parameters" in page.text and "4 in " in page.text
    assert (finished / "config.toml").read_text().strip() in page.text
    assert "higher is better" in page.text and "lower is better" in page.text
    for style, p in was["exact"].items():
        assert style == "accepted" or f"P({style})" in page.text
        assert f"{now['exact'][style] - p:+.4f}"[1:] in page.text
    for token in after["position"]["tokens"]:
        if token["rejected"]:
            assert f"{token['target']:.4f}" in page.text and f"{token['optimum']:.4f}" in page.text


def test_evaluations_stand_where_they_were_made(finished):
    after = json.loads((finished / "after.json").read_text())["heldout"]
    found = {chart.name: chart for chart in charts(read_run(finished))}
    gap = found["optimality_gap"].series[0]
    assert gap.steps.tolist() == [0, 2, 4] and gap.values[-1] == after["optimality_gap"]
    # At the optimum the model's own mass is no other than p*'s, which does not change.
    assert found["mass"].level.value == pytest.approx(after["optimal_rejected_mass"], rel=1e-6)
    assert [s.label for s in found["loss"].series] == ["loss", "KL(P || p)", "contrast"]
    limit = max(line["grad_norm"] for line in lines_of(finished))
    assert (found["gradient"].level is None) == (
        2 * limit <= read_run(finished).config.max_grad_norm
    )


CAPTIONS = {
    "complement": "(2 / beta) log(1 + r(y)^beta) (r(y) = p(y) / p_ref(y), beta 1) of every "
    "rejected answer y + 0.05 KL(p || base), the mean over a step.",
    "ratio": "(2 / beta) log(1 + r^beta) (r = p / p_ref, beta 1) of every rejected token + "
    "0.3 KL(p || base), the mean over the rows of a step.",
    "npo": "(2 / beta) log(1 + r(y)^beta) (r(y) = p(y) / p_ref(y), beta 0.1) of every rejected "
    "answer y, the mean over a step.",
}
PARTS = {
    "complement": ["loss", "KL(p || base)", "rejected answers"],
    "ratio": ["loss", "KL(p || base)", "rejected tokens"],
    "npo": ["loss"],
}


def test_the_loss_is_drawn_with_its_parts(other):
    name, run = other
    seen, page = read_run(run), page_of(run)
    (chart,) = [chart for chart in charts(seen) if chart.name == "loss"]
    assert chart.caption == CAPTIONS[name] and chart.caption in page.text
    assert [s.label for s in chart.series] == PARTS[name]
    if len(chart.series) > 1:
        loss, anchor, pushed = (s.values for s in chart.series)
        kl = seen.config.resolved_loss().kl
        assert len(loss) == 4 and kl > 0 and np.ptp(anchor) > 0
        np.testing.assert_allclose(loss, pushed + kl * anchor)
        np.testing.assert_allclose(loss, [line["loss"] for line in lines_of(run)])
        assert (pushed > 0).all() and (anchor >= 0).all()


def test_a_page_says_nothing_of_what_its_loss_has_not(other):
    name, run = other
    page = page_of(run)
    for of_an_objective in ("p*", "KL(P || p)", "contrast", "optimum", "distance from"):
        assert of_an_objective not in page.text.partition("All settings")[0]
    for of_a_target in ("target P", "the objective wants", "P is what the KL part pulls towards"):
        assert of_a_target not in page.text
    assert MEASURES["loss"].gloss in page.text
    assert (MEASURES["anchor"].gloss in page.text) == (name != "npo")
    assert MEASURES["kl_to_base"].gloss in page.text
    pictures = page.of("svg")
    assert len(pictures) == PICTURES
    (bars,) = [svg["aria-label"] for svg in pictures if "likeliest" in svg["aria-label"]]
    assert "target P" not in bars
    after = json.loads((run / "after.json").read_text())
    rejected = [token for token in after["position"]["tokens"] if token["rejected"]]
    assert rejected and all(token["target"] is None for token in rejected)
    for token in rejected:
        assert f"{token['model']:.4f}" in page.text
    module = {"ratio": "methods/tokens.py: Ratio"}.get(name, "methods/rejected.py: ")
    assert module in page.text


def test_commands_can_be_copied(run, tmp_path):
    hard = tmp_path / "it's a $HOME `run`"
    run.rename(hard)
    commands = [shlex.split(text) for text in page_of(hard).commands]
    named = {command[2]: command for command in commands if command[0] == "python"}
    assert set(named) == {"minibule.generate", "minibule.export", "minibule.train"}
    generate, export = named["minibule.generate"], named["minibule.export"]
    assert generate[generate.index("--adapter") + 1] == str(hard / "adapter")
    assert generate[generate.index("--model") + 1] == str(embedded_folder())
    (llama,) = (command for command in commands if command[0] == "llama-cli")
    assert llama[llama.index("-m") + 1] == export[export.index("--output") + 1]
    (hard / "model-f16.gguf").touch()  # one that is there already is used
    assert shlex.quote(str(hard / "model-f16.gguf")) in page_of(hard).text
    assert "minibule.export" not in page_of(hard).text


def test_the_commands_run(finished, capsys):
    modules = {"minibule.generate": generate_main, "minibule.export": export.main}
    for text in page_of(finished).commands:
        command = text.split(maxsplit=3)
        if command[:2] == ["python", "-m"] and command[2] in modules:
            modules[command[2]](shlex.split(text)[3:])
    after = json.loads((finished / "after.json").read_text())
    assert after["probe"] in capsys.readouterr().out
    assert (finished / "model-q8_0.gguf").exists()
    (finished / "model-q8_0.gguf").unlink()


def test_the_position_is_what_the_dense_formulas_say(finished):
    before, after = (
        snapshot.load_snapshot(finished / f"{when}.json").position for when in ("before", "after")
    )
    assert before.context == after.context and before.context.endswith("<|im_start|>assistant\n")
    assert before.total == sum(token.rejected for token in before.tokens)
    model = load_model(embedded_folder())
    chat = load_chat(embedded_folder())
    prompt = before.context.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    z = model.logits(chat.encode_prompt(prompt))[-1].astype(float)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    v = np.zeros(len(p))
    for token in before.tokens:
        v[token.id] = token.rejected
    P = p * (before.total - v + 1)
    P /= P.sum()
    for token in before.tokens:
        assert token.base == pytest.approx(p[token.id], rel=1e-4)
        assert token.model == pytest.approx(p[token.id], rel=1e-4)
        assert token.target == pytest.approx(P[token.id], rel=1e-4)
        if token.rejected:
            assert token.optimum < token.target < token.base
    assert any(abs(token.model - token.base) > 1e-3 for token in after.tokens)
    adapted = load_model(embedded_folder(), finished / "adapter")
    z = adapted.logits(chat.encode_prompt(prompt))[-1].astype(float)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    assert all(token.model == pytest.approx(p[token.id], rel=1e-3) for token in after.tokens)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("position", "total", 0.0),
        ("position", "tokens", [[0, "x", 1.0, 1e999, 0.5, 0.5, 0.5]]),
        ("position", "tokens", [[0, "x", 1.0, 0.5, -0.5, None, None]]),
        ("questions", "replies", []),
        ("questions", "replies", [{"prompt": "one"}]),
        ("questions", "perplexity", 10**400),
    ],
)
def test_a_snapshot_that_cannot_be_is_refused(finished, tmp_path, part, name, value):
    damaged = json.loads((finished / "after.json").read_text())
    if name == "tokens":
        value = [dict(zip(damaged[part][name][0], value[0], strict=True))]
    damaged[part][name] = value
    (tmp_path / "after.json").write_text(json.dumps(damaged))
    with pytest.raises(InputError, match="not a snapshot"):
        snapshot.load_snapshot(tmp_path / "after.json")


def test_snapshots_come_back_as_they_went(finished, tmp_path):
    kept = snapshot.load_snapshot(finished / "after.json")
    snapshot.save_snapshot(kept, tmp_path / "again.json")
    assert snapshot.load_snapshot(tmp_path / "again.json") == kept
    bare = kept._replace(probe=None, questions=None, heldout=None)
    snapshot.save_snapshot(bare, tmp_path / "bare.json")
    assert snapshot.load_snapshot(tmp_path / "bare.json") == bare


# -- data stay data --------------------------------------------------------------------------------


def hostile(run):
    """Markup, control characters and half characters wherever a text can come from outside."""
    word = "x" * 400

    def change(value):
        questions, position = value["questions"], value["position"]
        value["probe"] = f"{SCRIPT}\x00\x1b\x9b\u202e</dd> {word}"
        answer = {"text": f"{SCRIPT}<!-- {word}", "style": "<b>style</b>"}
        more = {"prompt": f"</td>{SCRIPT}", "kind": f"</b>{SCRIPT}", "greedy": answer}
        questions["replies"][0] |= more | {"samples": [answer]}
        questions["exact"][SCRIPT] = 0.5
        position["context"] = f"</pre>{SCRIPT}{word}"
        # The likeliest tokens, so that they are shown.
        texts = (SCRIPT, "]]></svg>$x^2$", "\x00\n\t ", "\u4f60\u597d", '#000001 d="1.2345"')
        for token, text in zip(position["tokens"], texts, strict=False):
            token |= {"text": text, "model": 0.1, "rejected": 1.0}

    for when in ("before", "after"):
        edit(run / f"{when}.json", change)
    config = read_settings(run / "config.toml")
    config = dataclasses.replace(config, probe=SCRIPT, model=f"a/{SCRIPT}", data=f'"{word}')
    (run / "config.toml").write_text(to_toml(config))
    moved = run.with_name("<b>&amp; 'q' \"\u202e\u2067")
    run.rename(moved)
    return moved


def test_no_text_becomes_markup(run):
    page = page_of(hostile(run))
    assert not page.of("script") and not page.of("b")
    assert page.text.count(SCRIPT) >= 8
    assert "<b>style</b>" in page.text and "<b>&amp; 'q' \"" in page.text
    assert not {"\u202e", "\u2067", "\x00", "\x1b", "\x9b"} & set(page.text)
    assert (
        "'q' \"\\u202e\\u2067" in page.text and "\u2400" in page.text
    )  # shown as a picture of itself
    assert "]]></svg>$x…" in page.text  # no mathematics, no end of the picture


def test_token_names_can_be_seen():
    assert token_name(" the") == "␣the"
    assert token_name("\n\x00") == "\\n\\x00"
    assert token_name("a" * 20) == "a" * 11 + "…"


# -- one position ----------------------------------------------------------------------------------


def position(**model):
    """`add` is rejected five times of five, `3` and `The` never."""
    tokens = [
        Token(0, "add", 5.0, 0.24, model["add"], 0.05, 0.02),
        Token(1, "3", 0.0, 0.25, model["three"], 0.31, 0.32),
        Token(2, " The", 0.0, 0.22, model["the"], 0.28, 0.29),
    ]
    return Position("", 5.0, tokens)


def test_a_position_without_a_target_is_read_without_one():
    def bare(**model):
        found = position(**model)
        tokens = [token._replace(target=None, optimum=None) for token in found.tokens]
        return found._replace(tokens=tokens)

    before = bare(add=0.24, three=0.25, the=0.22)
    assert in_words(before, bare(add=0.13, three=0.216, the=0.27)) == [
        "“add” began 5 of the 5 rejected answers. Its probability went from 0.240 to 0.130.",
        "Of the others, “␣The” gained most, from 0.220 to 0.270.",
    ]


def test_a_position_is_read_for_the_viewer():
    before = position(add=0.24, three=0.25, the=0.22)
    rejected, fallen = in_words(before, position(add=0.13, three=0.216, the=0.27))
    assert rejected == (
        "“add” began 5 of the 5 rejected answers. Its probability went from 0.240 to 0.130; the "
        "target P is 0.050 and the optimum p* 0.020: 50% of the way there."
    )
    assert "“3” was never rejected here, and its target is 0.310. Yet it fell" in fallen
    assert "from 0.250 to 0.216" in fallen
    worse, risen = in_words(before, position(add=0.3, three=0.25, the=0.27))
    assert worse.endswith("training went the other way.")
    assert risen == ("Of the others, “␣The” gained most, from 0.220 to 0.270; its target is 0.280.")
    assert len(in_words(before, before)) == 1 and in_words(before, None) == []


# -- what is missing -------------------------------------------------------------------------------


def test_few_points_make_no_picture(run):
    """Of two measurements a straight line would suggest a course, and there is no middle one."""
    lines = [{k: v for k, v in line.items() if not k.startswith("eval_")} for line in lines_of(run)]
    write_lines(run, lines)
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    drawn = [svg["aria-label"].partition(" over")[0] for svg in page.of("svg")]
    assert {"Loss", "Gradient norm", "Learning rate"} <= set(drawn)
    assert not {"Distance from p*", "KL(base || p)", "Entropy"} & set(drawn)
    assert "Distance from p*, KL(base || p), Entropy: fewer than 4 measurements" in page.text
    before, after = (
        json.loads((run / f"{when}.json").read_text())["heldout"] for when in ("before", "after")
    )
    (row,) = re.findall(r">Entropy</th>(.*?)</tr>", html)
    cells = re.findall(r'<td class="number">(.*?)</td>', row)
    assert cells == [f"{before['entropy']:.3g}", "", f"{after['entropy']:.3g}"]
    mass = html[html.index('aria-label="Mean p of a rejected token over') :].partition("</svg>")[0]
    assert mass.count("<circle") == 2 and mass.count("lead") == 0  # marks without a line
    write_lines(run, lines[:1])
    page = page_of(run)
    assert "Loss over" not in str(page.of("svg")) and "First, middle and last values" in page.text


def test_one_number_for_memory_says_what_it_is(run):
    page = page_of(run)
    largest = max(line["rss_gb"] for line in lines_of(run))
    assert "Memory after a step" in page.text and "up to" not in page.text
    assert f"largest {largest:.2f} GB; within a step, more is used" in page.text


LINK = re.compile(r'<a href="([^"#]*)#:~:text=(def|class)%20(\w+)">')


def test_every_number_leads_to_the_function_that_computes_it(finished):
    html = write_report(finished).read_text(encoding="utf-8")
    links = set(LINK.findall(html))
    assert len(links) >= 8 and html.count("<a ") == len(LINK.findall(html))
    for place, kind, name in links:
        file = (finished / unquote(place)).resolve()
        assert file.is_relative_to(ROOT / "minibule")
        assert re.search(rf"^ *{kind} {name}\b", file.read_text(), re.M), (place, name)
    for label in ("loss", "P(echo)", "Gradient norm", "Learning rate", "perplexity of accepted"):
        assert re.search(rf'<a href="[^"]*">{re.escape(label)}', html), label


def test_the_functions_of_all_measures_are_there():
    known = [*MEASURES.values(), GREEDY, EXACT, GREEDY_NOISE, PERPLEXITY, style_measure("echo")]
    for by in {measure.by for measure in known}:
        assert callable(pkgutil.resolve_name(f"minibule.{by}"))


def test_when_by_what_and_where_it_was_made(run):
    manifest = run / "manifest.json"
    (start,) = json.loads(manifest.read_text())["starts"]
    page = page_of(run)
    assert f"minibule {minibule.__version__}, Python " in start["versions"]
    for name in ("date", "command", "versions", "machine"):
        assert start[name] in page.text
    later = start | {"first": 3, "command": "again <b>", "date": "2030-01-01 00:00"}
    edit(manifest, lambda value: value["starts"].append(later))
    assert "again <b>, 2030-01-01 00:00 UTC, from step 3" in page_of(run).text
    edit(manifest, lambda value: value.pop("starts"))  # as an earlier version wrote it
    assert "Machine" not in page_of(run).text
    edit(manifest, lambda value: value.update(starts=[{"first": 1}]))
    with pytest.raises(InputError, match=r"manifest\.json: not that of a run"):
        write_report(run)


def test_answers_stand_by_kind_and_the_worst_come_first(finished, run):
    """Of kinds the one that is accepted least, of prompts those not accepted greedily."""

    def change(value):
        replies = value["questions"]["replies"]
        for reply, kind in zip(replies, ("sum", "sum", "word", "word", "word"), strict=True):
            reply |= {"kind": kind, "accepted": 0.25 if kind == "sum" else 0.125}
            reply["greedy"]["style"] = "accepted"
        replies[1]["greedy"] = {"text": "of all the worst", "style": "noise"}
        replies[0]["samples"] = [{"text": "never", "style": "rude"}] * 3

    for when in ("before", "after"):
        edit(run / f"{when}.json", change)
    html = write_report(run).read_text(encoding="utf-8")
    part = html[html.index("Answers to held-out prompts") :]
    first, second = part.index(">word</bdi></th>"), part.index(">sum</bdi></th>")
    assert first < second < part.index("of all the worst")
    prompts = [reply["prompt"] for reply in
               json.loads((run / "after.json").read_text())["questions"]["replies"]]  # fmt: skip
    assert re.findall(r'<th scope="row"><bdi>(.*?)</bdi><span', part) == [
        prompts[i] for i in (1, 2, 3, 4, 0)
    ]
    assert "✗ <bdi>never</bdi> (rude) \u00d73" in part and "50%" in part
    # Without kinds there is no table of them.
    assert "each kind of prompt" in part
    for when in ("before", "after"):
        edit(run / f"{when}.json", lambda v: [r.update(kind="") for r in v["questions"]["replies"]])
    assert "each kind of prompt" not in page_of(run).text


def test_only_settings_that_differ_stand_at_the_top(finished):
    top, _, _ = page_of(finished).text.partition("All settings, as resolved")
    table = top[top.index("What differs from the defaults") :]
    assert f"lr0.02{FIELDS['lr'].default}" in table.replace("\n", "")
    assert "eval_every20" in table.replace("\n", "") and "batch_size" not in table


def test_unfinished_runs_give_a_page_of_what_is_there(run):
    shutil.rmtree(run / "adapter")
    (run / "after.json").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([*lines[:3], lines[3][:25]]))
    page = page_of(run)
    assert "has not finished: 3 of 4 steps are done" in page.text
    assert "minibule.generate" not in page.text
    assert f"python -m minibule.train --resume --output {run}" in page.commands
    assert "over 3 steps" in page.text.lower()
    (run / "metrics.jsonl").unlink()
    page = page_of(run)
    assert "0 of 4 steps" in page.text and not any(
        svg["aria-label"].startswith(("Loss", "Speed")) for svg in page.of("svg")
    )
    (run / "before.json").unlink()
    assert "No step of this run has been recorded" in page_of(run).text


def test_skipped_steps_and_numbers_that_are_none(run):
    lines = lines_of(run)
    skipped = {"step": 2, "loss": None, "skipped": True, "seconds": 0.5}
    odd = {**lines[2], "grad_norm": float("nan"), "kl": 10**400, "lr": float("inf")}
    write_lines(run, [lines[0], skipped, odd, lines[3], lines[3]])
    page = page_of(run)
    assert "1 of them skipped" in page.text
    seen = read_run(run)
    found = {
        chart.name: chart.series[0].steps.tolist() for chart in charts(seen) + side_charts(seen)
    }
    assert found["loss"] == [1, 3, 4] and found["gradient"] == [1, 4] and found["rate"] == [1, 4]
    assert len(next(c for c in charts(read_run(run)) if c.name == "loss").series[1].steps) == 2
    write_lines(run, [skipped])
    assert "has not" not in page_of(run).text


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "no such folder"),
        (lambda run: (run / "config.toml").unlink(), "not the folder of a training run"),
        (lambda run: (run / "config.toml").write_text("lr = = 3"), "not a TOML file"),
        (lambda run: (run / "before.json").write_text("{"), "before.json: not JSON"),
        (lambda run: (run / "after.json").write_text("{}"), "after.json: not a snapshot"),
        (
            lambda run: edit(run / "after.json", lambda v: v["questions"].update(perplexity="1")),
            "perplexity: found a str, expected <class 'float'>",
        ),
        (
            lambda run: edit(run / "after.json", lambda v: v["position"].update(tokens=[{}])),
            "an object of id, text, rejected",
        ),
        (
            lambda run: (run / "metrics.jsonl").write_text('{"step": 1}\n[]\n{"step": 3}\n'),
            "metrics.jsonl, line 2: expected the JSON object of a training step",
        ),
    ],
)
def test_what_is_no_run_is_said(run, spoil, message):
    spoil(run)
    with pytest.raises(InputError) as error:
        main([str(run)])
    assert message in str(error.value)


# -- size ------------------------------------------------------------------------------------------


def test_a_long_run_stays_a_small_page(run):
    line = lines_of(run)[0]
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, 6001):
        noisy = {k: v * rng.uniform(0.5, 1.5) for k, v in line.items() if type(v) is float}
        lines.append({**line, **noisy, "step": step, "eval_kl_to_base": rng.uniform()})
    write_lines(run, lines)
    assert write_report(run).stat().st_size < 500_000
    page = page_of(run)
    assert "6,000 in " in page.text and "Dots are steps" in page.text


# -- form ------------------------------------------------------------------------------------------


def test_the_page_is_well_made(run):
    html = write_report(run).read_text(encoding="utf-8")
    check_form(html)
    pictures = Page(html).of("svg")
    assert len(pictures) == PICTURES and all(svg["role"] == "img" for svg in pictures)
    assert len({svg["aria-label"] for svg in pictures}) == PICTURES


# -- in a browser ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("state", ["finished", "hostile", "unfinished"])
def test_in_chromium(chromium, run, state, width, scheme):
    if state == "hostile":
        run = hostile(run)
    if state == "unfinished":
        (run / "after.json").unlink()
    path = write_report(run)
    chromium.open(path, width, scheme=scheme)
    assert chromium.complaints() == []
    assert chromium.requested() == [path.resolve().as_uri()]
    assert chromium.ask("innerWidth") == width
    assert chromium.ask("document.documentElement.scrollWidth") <= width
    worst, seen = chromium.ask(CONTRAST)
    assert worst >= 4.5 and seen > 50
    dark = chromium.ask("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
    assert dark == (scheme == "dark")

    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    pictures = [n for n in nodes if n.get("role", {}).get("value") in ("image", "img")]
    stacks = 0 if state == "unfinished" else 1
    assert len(pictures) == PICTURES + stacks
    assert all(len(node["name"]["value"]) > 40 for node in pictures)
    # Every picture is drawn, and as wide as its place.
    sizes = chromium.ask(
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
        ".map(r => [r.width, r.height])"
    )
    assert len(sizes) == PICTURES and all(w > 250 and h > 40 for w, h in sizes)
    # The segments of a bar are as wide as the answers are likely.
    if state == "finished":
        exact = json.loads((run / "after.json").read_text())["questions"]["exact"]
        widths = chromium.ask(
            "[...document.querySelectorAll('.stack:last-of-type i')]"
            ".map(s => s.getBoundingClientRect().width)"
        )
        shares = [p for p in exact.values() if p > 0]
        np.testing.assert_allclose(
            np.array(widths) / sum(widths), np.array(shares) / sum(shares), atol=0.002
        )


def test_the_browser_test_sees_what_it_looks_for(chromium, tmp_path):
    """A page with every fault is found out."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<!DOCTYPE html><meta name=viewport content='width=device-width'><title>x</title>"
        "<p style='width:2000px;color:#ccc'>wide and pale</p><img src='missing.png'>"
        "<script>console.error('bad')</script>"
    )
    chromium.open(path, 390)
    assert chromium.complaints() and len(chromium.requested()) == 2
    assert chromium.ask("document.documentElement.scrollWidth") > 390
    assert chromium.ask(CONTRAST)[0] < 4.5
