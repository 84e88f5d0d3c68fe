"""The page of rounds: what it says of them, that data stay data, what is missing, how it looks."""

import json
import re
import shlex
from pathlib import Path

import pytest
from pages import CONTRAST, SCRIPT, Page, check_form

from minibule.errors import InputError
from minibule.evaluate.sampled import Answer, Asked, by_kind, figures
from minibule.report.__main__ import main
from minibule.report.page import TIMES
from minibule.report.rounds import write_rounds_report
from minibule.rounds.settings import RoundsConfig
from minibule.runs.rounds import RoundsFolder, write_asked
from minibule.runs.starts import this_start
from minibule.settings import to_toml

PROMPTS = {"2 + 2": "sum", "3 + 3": "sum", "say cat": "word"}
# How many of the 4 samples of each are accepted: by the base, after round 1, after round 2.
RIGHT = {"2 + 2": (1, 2, 4), "3 + 3": (1, 1, 3), "say cat": (0, 1, 1)}
PICTURES = 4  # what is accepted, pass@k, length, distance


def answer(text, accepted):
    return Answer(text, [1, 2], True, float(accepted))


def asked_in(number, names=str):
    """The held-out questions after a round; `names` says how a text is written."""
    return [
        Asked(
            {"prompt": names(prompt), "kind": names(kind), "accept": "secret"},
            answer(names(f"greedy {number}"), RIGHT[prompt][number] > 1),
            [answer(names(f"answer {i}"), i < RIGHT[prompt][number]) for i in range(4)],
        )
        for prompt, kind in PROMPTS.items()
    ]


def line_of(number, asked):
    found = figures(asked)
    line = {f"eval_{name}": value for name, value in found._asdict().items() if name != "pass_at"}
    line |= {f"eval_pass@{k}": value for k, value in found.pass_at.items()}
    line |= {"round": number, "eval_kl": 0.01 * number, "eval_entropy": 0.3}
    if number:
        line |= {"accepted": 2, "rejected": 4, "samples": 6, "sampled_tokens": 12}
        line |= {"completions/clipped_ratio": 0.25, "fully_solved": 1, "fully_unsolved": 0}
        line |= {"trained_prompts": 3, "trained_answers": 4, "trained_tokens": 8}
        line |= {
            "sampling_seconds": 0.75,
            "judging_seconds": 0.25,
            "training_seconds": 2.5,
            "evaluation_seconds": 0.5,
        }
    return line


def write(folder, names=str, rounds=2, done=2):
    """A folder as rounds leave it, without a model."""
    files = RoundsFolder(folder)
    folder.mkdir()
    files.settings.write_text(to_toml(RoundsConfig(rounds=rounds, model=names("model"))))
    lines = []
    for number in range(done + 1):
        asked = asked_in(number, names)
        write_asked(files.answers(number), asked)
        lines.append(line_of(number, asked))
        if number:
            drawn = [
                {"kind": names(kind), "prompt": p, "completion": "x", "label": i < number}
                for p, kind in PROMPTS.items()
                for i in range(2)
            ]
            text = "".join(json.dumps(row) + "\n" for row in drawn)
            files.samples(number).write_text(text)
            files.run(number).adapter.mkdir()
            files.run(number).report.write_text("its page")
            start = {"starts": [this_start(1)._asdict()], "files": {}}
            files.run(number).manifest.write_text(json.dumps(start))
    files.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def rounds(tmp_path):
    return write(tmp_path / "rounds")


def page_of(folder):
    return Page(write_rounds_report(folder).read_text(encoding="utf-8"))


def rows(html, caption):
    """The cells of a table, as text, by the header of each row."""
    table = html[html.index(f"<caption>{caption}") :].partition("</table>")[0]
    found = {}
    for row in re.findall(r"<tr>(<th scope=\"row\".*?)</tr>", table):
        cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        head, *rest = (" ".join(re.sub(r"<[^>]*>", " ", cell).split()) for cell in cells)
        found[head] = rest
    return found


# -- what it says ----------------------------------------------------------------------------------


def test_the_report_command_tells_rounds_from_a_run(rounds, capsys):
    main([str(rounds)])
    assert capsys.readouterr().out.strip() == str(rounds / "report.html")
    first = (rounds / "report.html").read_bytes()
    write_rounds_report(rounds)
    assert (rounds / "report.html").read_bytes() == first


def test_what_was_not_judged_counts_nowhere(rounds):
    """Here a sample of "2 + 2", the greedy answer of "3 + 3", and all samples of "say cat"."""

    def untold(answer):
        return answer._replace(reward=None)

    for number in range(3):
        two, three, cat = asked_in(number)
        two = two._replace(samples=[*two.samples[:3], untold(two.samples[3])])
        three = three._replace(greedy=untold(three.greedy))
        cat = cat._replace(samples=[untold(sample) for sample in cat.samples])
        write_asked(RoundsFolder(rounds).answers(number), [two, three, cat])
    html = write_rounds_report(rounds).read_text(encoding="utf-8")
    assert rows(html, "Held-out questions") == {"sum 2": ["29%", "46%", "88%", "+58%"]}
    text = Page(html).text
    assert "Changed most: 2 + 2" in text and "Accepted least" not in text
    for share in ("33%", "67%", "100%"):
        assert f"{share} of 3 accepted, 1 not judged" in text
    assert text.count("? answer 3") == 3 and text.count("✗ answer") == 3

    three = three._replace(greedy=two.greedy, samples=[untold(sample) for sample in three.samples])
    for number in range(3):
        write_asked(RoundsFolder(rounds).answers(number), [three, cat])
    assert "Changed most" not in write_rounds_report(rounds).read_text(encoding="utf-8")


def test_questions_of_no_kind_have_a_name(rounds):
    for number in range(3):
        bare = [one._replace(row={"prompt": one.row["prompt"]}) for one in asked_in(number)]
        write_asked(RoundsFolder(rounds).answers(number), bare)
    html = write_rounds_report(rounds).read_text(encoding="utf-8")
    assert list(rows(html, "Held-out questions")) == ["no kind 3"]


def test_a_greedy_answer_that_turned_comes_before_a_share_that_grew(rounds):
    """Of "2 + 2" a sample more is accepted and the greedy answer turns; of "3 + 3" all samples."""
    for n in range(3):
        two, three, cat = asked_in(n)
        few = [answer(f"s{i}", n == 2 and i == 0) for i in range(8)]
        two = two._replace(greedy=answer("g", n == 2), samples=few)
        three = three._replace(greedy=answer("g", True), samples=[answer("s", n == 2)] * 4)
        write_asked(RoundsFolder(rounds).answers(n), [two, three, cat])
    text = page_of(rounds).text
    assert "Changed most: 2 + 2" in text
    assert "2 more" in text  # of 8 different samples 6 are shown
    assert "Accepted least in the end: say cat" in text


def test_equal_samples_are_counted(rounds):
    for n in range(3):
        one = Asked({"prompt": "2 + 2"}, answer("g", True), [answer("same", n == 2)] * 4)
        write_asked(RoundsFolder(rounds).answers(n), [one])
    text = page_of(rounds).text
    assert f"✗ same {TIMES}4" in text and f"✓ same {TIMES}4" in text
    assert "100% of 4 accepted" in text


def test_it_says_what_the_rounds_did(rounds):
    page = page_of(rounds)
    before, after = figures(asked_in(0)), figures(asked_in(2))
    assert f"Answers accepted: {before.accepted:.0%} → {after.accepted:.0%}" in page.text
    assert f"and {after.greedy:.0%} of the greedy ones" in page.text
    error = f"standard error over the questions {after.accepted_error:.1%}"
    assert "3 held-out questions" in page.text and error in page.text
    assert f"{before.pass_at[4]:.0%} before, {after.pass_at[4]:.0%} after" in page.text
    assert "secret" not in page.text and "2 in 8.0 s" in page.text
    (curve,) = [svg["aria-label"] for svg in page.of("svg") if "pass@k" in svg["aria-label"]]
    for k in (1, 2, 4):
        for found in (before, after):
            assert f"{found.pass_at[k]:.3g} at {k}" in curve
    assert shlex.split(page.commands[0])[2:] == [
        *("minibule.rounds", "--resume", "--output", str(rounds), "--rounds", "3")
    ]
    assert str(rounds / "round-002" / "adapter") in page.commands[1]
    assert {a["href"] for a in page.of("a") if "round-" in a["href"]} == {
        "round-001/report.html",
        "round-002/report.html",
    }
    assert this_start(1).machine in page.text and this_start(1).versions in page.text


def test_questions_that_are_learnt_from_are_not_called_held_out(rounds):
    settings = RoundsFolder(rounds).settings
    assert "3 held-out questions, never sampled to learn from, were asked" in page_of(rounds).text
    settings.write_text(to_toml(RoundsConfig(rounds=2, data="mine.jsonl")))
    assert "3 questions, which are not held out but those" in page_of(rounds).text
    settings.write_text(to_toml(RoundsConfig(rounds=2, data="mine.jsonl", heldout="other.jsonl")))
    assert "never sampled to learn from" in page_of(rounds).text


def test_acceptance_stands_by_round_and_kind_the_worst_first(rounds):
    html = write_rounds_report(rounds).read_text(encoding="utf-8")
    held = rows(html, "Held-out questions: accepted at temperature 1")
    assert list(held) == ["word 1", "sum 2"]
    for kind in ("word", "sum"):
        shares = [by_kind(asked_in(n))[kind].accepted for n in range(3)]
        change = f"{shares[2] - shares[0]:+.0%}"
        assert held[f"{kind} {2 - (kind == 'word')}"] == [
            *(f"{share:.0%}" for share in shares),
            change,
        ]
    drawn = rows(html, "Questions to learn from")
    assert drawn == {kind: ["50%", "100%", "+50%"] for kind in ("sum 4", "word 2")}
    measured = rows(html, "Held-out questions</caption>")
    (passed,) = (cells for name, cells in measured.items() if name.startswith("pass@4"))
    assert passed[:3] == [f"{figures(asked_in(n)).pass_at[4]:.3f}" for n in range(3)]
    learnt = rows(html, "Samples of the model")
    assert learnt["round 1"] == ["6", "33.3%", "75.0%", "0", "1", "4", "8", "4.0"]


def test_one_question_is_followed_and_the_worst_is_shown(rounds):
    page = page_of(rounds)
    most, _, rest = page.text.partition("Changed most: ")[2].partition("Accepted least in the end")
    assert most.startswith("2 + 2") and rest.startswith(": say cat")
    for number, share in enumerate(("25% of 4", "50% of 4", "100% of 4")):
        assert f"greedy {number}" in most and f"{share} accepted" in most
    assert most.count("✓ answer 0") == 3 and most.count("✗ answer 3") == 2


# -- what is missing, and what is wrong ------------------------------------------------------------


def test_rounds_that_go_on_give_a_page_of_what_is_there(tmp_path):
    folder = write(tmp_path / "a", rounds=3, done=1)
    page = page_of(folder)
    assert "1 of 3 rounds are done" in page.text
    assert page.commands[0] == f"python -m minibule.rounds --resume --output {folder}"
    for number in (0, 1):  # as an earlier version left them
        RoundsFolder(folder).answers(number).unlink()
    assert "One question" not in page_of(folder).text
    RoundsFolder(folder).log.write_text('{"round": 0, "eval_accepted": 0.5')
    assert "Rounds that have only begun" in page_of(folder).text
    RoundsFolder(folder).log.unlink()
    assert "No round is done" in page_of(folder).text


def test_numbers_that_are_none(rounds):
    """NaN, nulls and texts where numbers were: nothing is drawn of them."""
    log = RoundsFolder(rounds).log
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[0] |= {"eval_pass@x": 1.0, "eval_pass@2": None, "eval_tokens": "many"}
    lines[2] |= {"eval_accepted": float("nan"), "eval_kl": True, "accepted": 0, "rejected": 0}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "No round is done" in page_of(rounds).text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rounds.toml", "rounds = = 3", "not a TOML file"),
        ("round-000/answers.jsonl", "{}\n", "not a question and its answers"),
        ("round-001/answers.jsonl", "[1]\n", "line 1: expected a JSON object"),
        ("round-001/samples.jsonl", "{", "line 1: not valid JSON"),
        ("round-002/manifest.json", "{}", "not the list of a run's files"),
    ],
)
def test_what_is_wrong_is_said(rounds, name, content, message):
    (rounds / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        main([str(rounds)])
    assert Path(name).name in str(error.value)


def test_a_question_without_samples_is_none(rounds):
    path = RoundsFolder(rounds).answers(1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(json.dumps(lines[0] | {"samples": []}))
    with pytest.raises(InputError, match="without samples"):
        write_rounds_report(rounds)


# -- data stay data, and how it looks --------------------------------------------------------------


def hostile(text):
    return f"{SCRIPT}\x1b\u202e</bdi></td> {text} {'x' * 300}"


def test_no_text_becomes_markup(tmp_path):
    page = page_of(write(tmp_path / "<b>'\u202e", hostile))
    assert not page.of("script") and not page.of("b")
    assert page.text.count(SCRIPT) > 10
    assert not {"\u202e", "\x1b"} & set(page.text)


def test_the_page_is_well_made(rounds):
    html = write_rounds_report(rounds).read_text(encoding="utf-8")
    check_form(html)
    pictures = Page(html).of("svg")
    assert len({svg["aria-label"] for svg in pictures}) == len(pictures) == PICTURES


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("names", [str, hostile])
def test_in_chromium(chromium, tmp_path, names, width, scheme):
    path = write_rounds_report(write(tmp_path / "rounds", names))
    chromium.open(path, width, scheme=scheme)
    assert chromium.complaints() == []
    assert chromium.requested() == [path.resolve().as_uri()]
    assert chromium.ask("document.documentElement.scrollWidth") <= width
    worst, seen = chromium.ask(CONTRAST)
    assert worst >= 4.5 and seen > 50
    sizes = chromium.ask("[...document.querySelectorAll('svg')].map(s => s.clientWidth)")
    assert len(sizes) == PICTURES and min(sizes) > 250
    # The bar under a share is as long as the share.
    bars = chromium.ask(
        "[...document.querySelectorAll('.share')].map(s => [s.firstChild, s]"
        ".map(e => e.getBoundingClientRect().width))"
    )
    shares = [figures([one]).accepted for n in range(3) for one in asked_in(n)]
    assert max(part / whole for part, whole in bars) == pytest.approx(max(shares), abs=0.01)
