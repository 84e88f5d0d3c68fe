"""The report's page: what it says, that data stay data, what is missing, and how it looks."""

import dataclasses
import itertools
import json
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import browser
import numpy as np
import pytest

from minibule import export
from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.generate.__main__ import main as generate_main
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model
from minibule.report import figures
from minibule.report.__main__ import main
from minibule.report.charts import charts, sparkline
from minibule.report.sections import token_name, write_report
from minibule.runs import snapshot
from minibule.runs.read import read_run
from minibule.runs.settings import read_settings
from minibule.settings import to_toml
from minibule.train.__main__ import main as train

SCRIPT = "<script>alert('x')</script>"
needs_matplotlib = pytest.mark.skipif(not figures.available(), reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 4 steps, evaluated after the second, on a dozen records and five questions."""
    folder = tmp_path_factory.mktemp("report")
    for name, lines in (("records", 12), ("heldout", 5)):
        text = (embedded_folder() / f"{name}.jsonl").read_text().splitlines()[:lines]
        (folder / f"{name}.jsonl").write_text("\n".join(text) + "\n")
    train(
        [
            *("--data", str(folder / "records.jsonl"), "--model", str(embedded_folder())),
            *("--heldout", str(folder / "heldout.jsonl"), "--output", str(folder / "run")),
            *("--steps", "4", "--eval-every", "2", "--lr", "0.02", "--eval-fraction", "0.25"),
        ]
    )
    return folder / "run"


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


class Page(HTMLParser):
    """A page taken apart: its tags in order with their attributes, and its text."""

    VOID = ("meta", "br")

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text, self.commands = [], [], "", []
        self.feed(html)
        assert self.open == []  # every tag was closed

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if ("class", "command") in attrs:
            self.commands.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.of("pre") and "pre" in self.open and self.of("pre")[-1].get("class") == "command":
            self.commands[-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


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
    assert f"answered {was['greedy']['accepted']:.0%} acceptably before" in page.text
    assert f"{now['greedy']['accepted']:.0%} after" in page.text
    for text in (*was["prompts"], *was["texts"], *now["texts"], before["probe"], after["probe"]):
        assert text in page.text
    for name in ("loss", "kl_to_base", "optimality_gap", "optimal_rejected_mass"):
        assert name.replace("_", " ") in page.text
        assert f"{before['heldout'][name]:.4f}" in page.text
        assert f"{after['heldout'][name]:.4f}" in page.text
    assert "853,120 parameters" in page.text and "4 in " in page.text
    assert (finished / "config.toml").read_text().strip() in page.text
    for token in after["position"]["tokens"]:
        if token["rejected"]:
            assert f"{token['target']:.4f}" in page.text and f"{token['optimum']:.4f}" in page.text


def test_evaluations_stand_where_they_were_made(finished):
    after = json.loads((finished / "after.json").read_text())["heldout"]
    found = {chart.name: chart for chart in charts(read_run(finished))}
    gap = found["gap"].series[0]
    assert gap.steps.tolist() == [0, 2, 4] and gap.values[-1] == after["optimality_gap"]
    # At the optimum the model's own mass is no other than p*'s, which does not change.
    assert found["mass"].level.value == pytest.approx(after["optimal_rejected_mass"], rel=1e-6)
    assert found["gradient"].level.value == 1.0
    assert [s.label for s in found["loss"].series] == ["loss", "KL part", "contrast part"]


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
        value["probe"] = f"{SCRIPT}\x00\x1b\u202e</dd> {word}"
        questions["texts"][0] = f"{SCRIPT}<!-- {word}"
        questions["styles"][0] = "<b>style</b>"
        questions["prompts"][0] = f"</td>{SCRIPT}"
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
    moved = run.with_name("<b>&amp; 'q' \"")
    run.rename(moved)
    return moved


def test_no_text_becomes_markup(run):
    page = page_of(hostile(run))
    assert not page.of("script") and not page.of("b")
    assert page.text.count(SCRIPT) >= 8
    assert "<b>style</b>" in page.text and "<b>&amp; 'q' \"" in page.text
    assert "\x00" not in page.text and "\u2400" in page.text  # shown as a picture of itself
    assert "]]></svg>$x…" in page.text  # no mathematics, no end of the picture


def test_token_names_can_be_seen():
    assert token_name(" the") == "␣the"
    assert token_name("\n\x00") == "\\n\\x00"
    assert token_name("a" * 20) == "a" * 11 + "…"


# -- what is missing -------------------------------------------------------------------------------


def test_without_matplotlib_the_numbers_stand_as_text(run, monkeypatch):
    monkeypatch.setattr(figures, "available", lambda: False)
    page = page_of(run)
    assert not page.of("svg")
    assert "pip install 'minibule[plot]'" in page.text and "pip install '.[plot]'" in page.text
    losses = [line["loss"] for line in lines_of(run)]
    for value in (losses[0], losses[2], losses[3]):
        assert f"{value:.3g}" in page.text
    assert sparkline(losses) in page.text
    after = json.loads((run / "after.json").read_text())["position"]["tokens"]
    assert f"{max(token['model'] for token in after):.4f}" in page.text


def test_sparklines():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5, 5]) == "▁▁" and len(sparkline(range(1000))) == 24


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
    found = {chart.name: chart.series[0].steps.tolist() for chart in charts(read_run(run))}
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


@needs_matplotlib
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


def test_running_mean_and_spread():
    values = np.random.default_rng(0).normal(size=100)
    naive = [values[max(0, i - 5) : i + 6].mean() for i in range(100)]
    np.testing.assert_allclose(figures.running_mean(values), naive)
    assert figures.spread(5).tolist() == [0, 1, 2, 3, 4]
    some = figures.spread(10_000)
    assert len(some) == 300 and some[0] == 0 and some[-1] == 9999


# -- form ------------------------------------------------------------------------------------------


@needs_matplotlib
def test_the_page_is_well_made(run):
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    pictures = page.of("svg")
    assert len(pictures) == 10 and all(svg["role"] == "img" for svg in pictures)
    assert len({svg["aria-label"] for svg in pictures}) == 10
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0
    for _, attributes in page.tags:  # nothing from outside, and references that hold
        assert not {"src", "href", "srcset", "onclick", "onload"} & set(attributes)
        if "xlink:href" in attributes:
            assert attributes["xlink:href"].removeprefix("#") in ids
        if "clip-path" in attributes:
            assert attributes["clip-path"][5:-1] in ids
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert all(th.get("scope") in ("row", "col") for th in page.of("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.of("html")[0]["lang"] == "en"
    for code in figures._COLOURS:  # every colour is the page's
        assert code not in html


# -- in a browser ----------------------------------------------------------------------------------

# Of every element with text of its own: contrast of the text with what lies behind it (WCAG 2.2).
CONTRAST = """
(() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => parse(c).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if ((parse(c)[3] ?? 1) > 0) return c;
    }
    return "rgb(255, 255, 255)";
  };
  let worst = 21, seen = 0;
  for (const e of document.body.querySelectorAll("*")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const style = getComputedStyle(e);
    const [a, b] = [e instanceof SVGElement ? style.fill : style.color, behind(e)].map(light);
    worst = Math.min(worst, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
    seen += 1;
  }
  return [worst, seen];
})()
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    command = browser.find()
    if command is None:
        pytest.skip("chromium is not installed")
    with browser.running(command, tmp_path_factory.mktemp("chromium")) as running:
        yield running


@needs_matplotlib
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("state", ["finished", "hostile", "unfinished", "without pictures"])
def test_in_chromium(chromium, run, monkeypatch, state, width, scheme):
    if state == "hostile":
        run = hostile(run)
    if state == "unfinished":
        (run / "after.json").unlink()
    if state == "without pictures":
        monkeypatch.setattr(figures, "available", lambda: False)
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
    assert len(pictures) == (0 if state == "without pictures" else 10)
    assert all(len(node["name"]["value"]) > 40 for node in pictures)
    # Every picture is drawn, and as wide as its place.
    sizes = chromium.ask(
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
        ".map(r => [r.width, r.height])"
    )
    assert all(w > 250 and h > 90 for w, h in sizes)


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
