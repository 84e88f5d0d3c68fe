"""`python -m minibule.evaluate`: what it prints and writes, and what it refuses."""

import json

import pytest

from minibule.errors import InputError
from minibule.evaluate.__main__ import main
from minibule.records.records import read_file
from minibule.wording import columns_of

ROWS = [
    {"prompt": "hello", "accept": "welcome|good", "kind": "greeting"},
    {"prompt": "hi", "accept": "welcome|good", "kind": "greeting"},
    {"prompt": "1 + 1 = ?", "accept": "2", "kind": "sum"},
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_figures_and_samples(data, tmp_path, capsys):
    output, text = tmp_path / "samples.jsonl", tmp_path / "text.txt"
    text.write_text("hello, how are you?")
    main(["--data", str(data), "--samples", "6", "--output", str(output), "--text", str(text)])
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 18
    accepted = sum(row["label"] for row in rows)
    assert 0 < accepted < 18
    assert f"accepted                      {accepted / 18:8.4f} +- " in said
    for words in (
        "3 questions of 2 kinds",
        "pass@4 ",
        "pass@6 ",
        "perplexity of the text",
        "sum  ",
    ):
        assert words in said
    for row in rows:
        assert list(row) == ["prompt", "completion", "label", "reward", "ended", "ids", "kind"]
        assert row["reward"] == float(row["label"]) and row["ended"] is True
    records, summary = read_file(output)
    assert [record.prompt for record in records] == [row["prompt"] for row in ROWS]
    assert summary.tally["counts"] == 18 - accepted and summary.formats["unpaired"] == 18
    main(["--data", str(data), "--samples", "6", "--output", str(tmp_path / "again.jsonl")])
    assert (tmp_path / "again.jsonl").read_bytes() == output.read_bytes()


def test_the_table_stands_in_columns_whatever_kinds_are_called(tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    kinds = ["a", "b\n", "数"]
    rows = [{"prompt": f"hello{kind}", "answer": "hello", "kind": kind} for kind in kinds]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["--data", str(path), "--judge", "exact", "--samples", "1"])
    _, _, table = capsys.readouterr().out.partition("\n\n")
    assert len({columns_of(line) for line in table.splitlines()[:4]}) == 1


def test_a_text_of_one_token_is_refused_before_anything_is_asked(data, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("a")
    monkeypatch.setattr("minibule.evaluate.__main__.ask", None)
    with pytest.raises(InputError, match="text to measure: found 1 token, expected at least two"):
        main(["--data", str(data), "--text", str(text)])


def test_questions_without_a_kind(tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"prompt": "hello", "answer": "hello"}')
    main(["--data", str(path), "--judge", "exact", "--samples", "1"])
    said = capsys.readouterr().out
    assert "1 questions, judged by exact" in said and "+-" not in said and "kind" not in said


def test_a_judge_of_ones_own(data, tmp_path, capsys):
    judge = tmp_path / "mine.py"
    judge.write_text("def f(completions, kind):\n    return [k == 'sum' for k in kind]\n")
    flags = ["--data", str(data), "--samples", "2", "--judge", f"{judge}:f"]
    main(flags)
    said = capsys.readouterr().out
    assert "judged by " in said and f"accepted                      {2 / 6:8.4f}" in said
    judge.write_text("def f(completions, **_):\n    return []\n")
    output = tmp_path / "samples.jsonl"
    with pytest.raises(InputError, match="found 0 rewards for 1 answer, for the answer 'hello' to"):
        main([*flags, "--output", str(output)])
    assert not output.exists()


def test_what_a_judge_cannot_tell_is_neither_accepted_nor_rejected(data, tmp_path, capsys):
    judge, output = tmp_path / "mine.py", tmp_path / "samples.jsonl"
    judge.write_text(
        "def f(completions, kind):\n    return [1 if k == 'sum' else None for k in kind]\n"
    )
    flags = ["--data", str(data), "--samples", "2", "--judge", f"{judge}:f"]
    main([*flags, "--output", str(output)])
    said = capsys.readouterr().out
    assert "greedy answer accepted          1.0000" in said and "pass@2 " in said
    assert "accepted                        1.0000" in said
    assert "left out, not judged                 6 of 9 answers" in said
    assert "  accepted  '" in said and "  rejected  '" not in said  # of the samples shown
    assert len(output.read_text().splitlines()) == 2
    output.unlink()
    judge.write_text("def f(completions):\n    return [None for _ in completions]\n")
    with pytest.raises(InputError, match="could tell about none of the greedy answers to 3"):
        main([*flags, "--output", str(output)])
    assert not output.exists()


def test_what_is_refused_leaves_files_as_they_are(data, tmp_path):
    there, empty = tmp_path / "there.jsonl", tmp_path / "empty.txt"
    there.write_text("mine")
    empty.write_text("\n")
    for flags, says in (
        (["--output", str(there)], "exists already"),
        (["--output", str(tmp_path / "x.json")], "ends in .jsonl"),
        (["--output", str(tmp_path / "no" / "x.jsonl")], "no such folder"),
        (["--text", str(empty)], "found no text"),
        (["--text", str(tmp_path / "none.txt")], "no such file"),
        (
            ["--judge", "taste"],
            "--judge taste: not a judge; expected one of regex, contains, exact",
        ),
        (["--judge", "exat"], "did you mean exact"),
        (["--judge-seconds", "0"], "expected a number above 0"),
        (["--samples", "0"], "expected a whole number from 1 to 256"),
        (["--temperature", "0"], "expected a number above 0"),
        (["--max-new-tokens", "5000"], "exceeds the model's context"),
    ):
        with pytest.raises(InputError, match=says):
            main(["--data", str(data), *flags])
    assert there.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {data.name, there.name, empty.name}
    with pytest.raises(InputError, match="--data: not given"):
        main([])
