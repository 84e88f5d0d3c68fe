"""The export command's flags."""

import pytest

from minibule.errors import InputError
from minibule.export import main


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


def test_help_names_forms_types_and_the_usual_ones(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--format gguf|gguf-lora|hf" in shown
    assert "for hf f32, f16, bf16 (default: f32)" in shown and "q4_0 (default: f16)" in shown
