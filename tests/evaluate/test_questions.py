"""Held-out questions: what a file of them may hold, and what fits into the model."""

import json

import pytest

from minibule.errors import InputError
from minibule.evaluate.questions import Question, ask, read_questions
from minibule.files import embedded_folder
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model


def question(**changes):
    return {"prompt": "hi", "accepted": ["Hello."], "rejected": {"echo": ["hi"]}} | changes


def test_a_line_separator_within_a_text_is_no_new_line(tmp_path):
    path = tmp_path / "heldout.jsonl"
    row = question(prompt="one\u2028two\x85three")
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (found,) = read_questions(path)
    assert found == Question(row["prompt"], {"accepted": ["Hello."], "echo": ["hi"]})


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (question(rejected={"accepted": ["no"]}), "no style accepted or noise"),
        (question(rejected={"noise": ["no"]}), "no style accepted or noise"),
        (question(rejected={"echo": ["hi", "hi"]}), "the same answer twice"),
        (question(rejected={"echo": ["\ud800"]}), "surrogates not allowed"),
        (question(accepted=[]), "at least one accepted answer"),
        (question(prompt=" "), "expected a text as prompt"),
        (question(more=1), "expected the fields"),
    ],
)
def test_rows_that_are_no_question(row, says, tmp_path):
    (tmp_path / "heldout.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=f"line 1: .*{says}"):
        read_questions(tmp_path / "heldout.jsonl")


def test_lines_are_read_as_those_of_records_are(tmp_path):
    """Blank lines count for nothing, and every line that cannot be read is named."""
    path = tmp_path / "heldout.jsonl"
    path.write_text(f"\ufeff{json.dumps(question())}\n\n", encoding="utf-8")
    assert len(read_questions(path)) == 1
    path.write_bytes(b'{"prompt"\n\n\xff\n[1]\n' + json.dumps(question()).encode())
    with pytest.raises(InputError) as error:
        read_questions(path)
    lines = str(error.value).splitlines()
    assert "not a heldout file" in lines[0] and len(lines) == 4
    for line, says in zip(
        lines[1:], ("1: not valid JSON", "3: not UTF-8", "4: expected the"), strict=True
    ):
        assert f"line {says}" in line


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    for path in (
        tmp_path / "empty.jsonl",
        tmp_path / "blank.jsonl",
        tmp_path,
        tmp_path / "nothing",
        "a\0b",
    ):
        with pytest.raises(InputError):
            read_questions(path)


def test_an_answer_longer_than_the_context():
    model, chat = load_model(embedded_folder()), load_chat(embedded_folder())
    long = Question("hi", {"accepted": ["x " * 2100]})
    with pytest.raises(InputError, match="that fit into 2,048"):
        ask(model, chat, [long], 512)
