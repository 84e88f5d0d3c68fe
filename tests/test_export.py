"""The export command's flags."""

import os
from pathlib import Path

import pytest

from minibule.errors import InputError
from minibule.evaluate.__main__ import main as evaluate
from minibule.export import main
from minibule.files import embedded_folder
from minibule.models.exports import FORMS
from minibule.records.__main__ import main as records


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--format: not given, expected gguf = the merged model"),
        (["--format", "gguf"], "--output: not given, expected file or folder"),
        (["--format", "onnx"], "format = onnx (command line): expected one of gguf, gguf-lora, hf"),
        (["--format", "hf", "--out", ""], "output =  (command line): expected a path"),
        (["--forma=hf", "--outptu=x"], "--outptu: no such flag; did you mean --output?"),
        (["x"], "found 'x', expected flags only"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, says):
    with pytest.raises(InputError) as error:
        main(arguments)
    assert says in str(error.value)


def existing(tmp_path):
    """Whatever may have a name already, made by name."""
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a link").symlink_to(tmp_path / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "a pipe")
    return [*tmp_path.iterdir(), Path(os.devnull)]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_replaced_unasked(tmp_path, form):
    for path in existing(tmp_path):
        before = path.lstat()
        with pytest.raises(InputError, match=f"--output {path}: exists already; expected a new"):
            main(["--format", form, "--output", str(path), "--model", "not read yet"])
        assert path.lstat() == before


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_that_is_missing_is_said_before_the_model_is_read(tmp_path, form):
    output = str(tmp_path / "nowhere" / "out")
    with pytest.raises(InputError, match=r"found no folder .*nowhere"):
        main(["--format", form, "--output", output, "--model", "not read yet"])
    assert list(tmp_path.iterdir()) == []


def test_nor_by_other_commands(tmp_path):
    questions = tmp_path / "questions"
    questions.write_text("")
    (tmp_path / "earlier.jsonl").write_text("mine")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "nowhere")
    for name in ("earlier.jsonl", "link.jsonl"):
        output = ["--output", str(tmp_path / name)]
        with pytest.raises(InputError, match="exists already"):
            records([str(embedded_folder() / "records.jsonl"), *output])
        with pytest.raises(InputError, match="exists already"):
            evaluate(["--data", str(questions), *output])
    assert (tmp_path / "earlier.jsonl").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_help_names_forms_types_and_the_usual_ones(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--format gguf|gguf-lora|hf" in shown
    assert "for hf f32, f16, bf16 (default: f32)" in shown and "q4_0 (default: f16)" in shown
