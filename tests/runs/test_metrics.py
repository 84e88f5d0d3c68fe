"""metrics.jsonl, as it is written and as it may be found."""

import json

import pytest

from minibule.errors import InputError
from minibule.runs.metrics import open_metrics, read_metrics, write_line


def test_what_is_written_is_read_back_by_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with open_metrics(path, 0) as log:
        for step in (1, 2):
            write_line(log, {"step": step, "loss": float("nan")})
    assert read_metrics(path) == [{"step": 1, "loss": None}, {"step": 2, "loss": None}]
    assert read_metrics(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize(
    "end", ['{"step": 3', "{}", "[]", '{"step": true}', '{"step": -1}', "\xff"]
)
def test_a_last_line_that_is_none_is_left_out(tmp_path, end):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 2}\n\n{"step": 1}\n'
    path.write_bytes(f"{whole}{end}".encode("latin-1"))
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    path.write_bytes(f"{end}\n{whole}".encode("latin-1"))
    with pytest.raises(InputError, match="line 1: expected the JSON object of a training step"):
        read_metrics(path)


@pytest.mark.parametrize("step", [2**53, 1.5, "1", None])
def test_numbers_that_are_no_step(tmp_path, step):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": step}) + '\n{"step": 1}\n')
    with pytest.raises(InputError, match="line 1"):
        read_metrics(path)
