"""Records: every format, every rule of merging, and every bad input a file can bring."""

import dataclasses
import gzip
import io
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minibule.errors import InputError
from minibule.records import readers as row_files
from minibule.records import records
from minibule.records.__main__ import main
from minibule.records.formats import FORMATS
from minibule.records.records import TALLY, Record, read_file, read_records, write_records

ROOT = Path(__file__).resolve().parents[2]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


HUMAN_HI = [{"from": "human", "value": "Hi"}]
SYSTEM = {"role": "system", "content": "Be kind."}


def lines(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    """A JSON lines file of these rows; a string or bytes is written as it stands."""
    path = folder / name
    raw = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
    path.write_bytes(b"".join((r.encode() if isinstance(r, str) else r) + b"\n" for r in raw))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_records(path)
    assert str(path) in str(caught.value)  # every message names the file
    return str(caught.value)


# --- Formats: one literal row each ---------------------------------------------------------------

ONE = Record("Hi", ("No.",), (1,), 1)
ONE_CHAT = Record([user("Hi")], ("No.",), (1,), 1)
HELLO = (("Hello!",), (1,))  # accepted, how often


def accepting(record: Record, texts: tuple[str, ...], counts: tuple[int, ...]) -> Record:
    return dataclasses.replace(record, accepted=texts, accepted_counts=counts)


ROWS: list[tuple[str, dict[str, Any], Record]] = [
    (
        "canonical",
        {
            "prompt": "Hi",
            "rejected_responses": ["Hi", "No."],
            "rejection_counts": [3, 1],
            "total_rounds": 8,
            "metadata": {"ignored": True},
        },
        Record("Hi", ("Hi", "No."), (3, 1), 8),
    ),
    (
        "canonical",
        {
            "prompt": [SYSTEM, user("Hi")],
            "rejectedResponses": ["Hi", "No."],
            "rejectionCounts": [3, 1],
            "totalRounds": 3,  # fewer than the sum: a round may reject several answers
        },
        Record([SYSTEM, user("Hi")], ("Hi", "No."), (3, 1), 3),
    ),
    ("canonical", {"prompt": "Hi", "rejected": ["a", "b"]}, Record("Hi", ("a", "b"), (1, 1), 2)),
    (
        "canonical",
        {"prompt": "Hi", "rejected": ["a", "b"], "counts": [2, 5], "total_rounds": None},
        Record("Hi", ("a", "b"), (2, 5), 7),
    ),
    (
        "canonical",
        {
            "prompt": "Hi",
            "rejected_responses": ["Hi", "No."],
            "rejected_ended": [True, False],
            "accepted_responses": ["Hello!", "Hi there!", "No."],
            "acceptance_counts": [9, 1, 2],
            "accepted_ended": [False, False, True],
        },
        Record(
            "Hi",
            ("Hi", "No."),
            (1, 1),
            2,  # as without accepted answers
            ("Hello!", "Hi there!", "No."),  # one of them rejected too
            (9, 1, 2),
            (True, False),
            (False, False, True),
        ),
    ),
    (
        "canonical",
        {
            "prompt": "Hi",
            "rejectedResponses": ["No."],
            "rejectedEnded": [True],  # as all are where nothing is said
            "acceptedResponses": ["Hello!"],
            "acceptanceCounts": [2],
            "acceptedEnded": [False],
        },
        Record("Hi", ("No.",), (1,), 1, ("Hello!",), (2,), (), (False,)),
    ),
    (
        "preference",
        {"prompt": "Hi", "chosen": "Hello!", "rejected": "No."},
        accepting(ONE, *HELLO),
    ),
    (
        "preference",
        {
            "prompt": [user("Hi")],
            "chosen": [assistant("Hello!")],
            "rejected": [assistant("No.")],
        },
        accepting(ONE_CHAT, *HELLO),
    ),
    (
        "preference",  # UltraFeedback binarized
        {
            "prompt": "Hi",
            "prompt_id": "f0e3",
            "chosen": [user("Hi"), assistant("Hello!")],
            "rejected": [user("Hi"), assistant("No.")],
            "messages": [user("Hi"), assistant("Hello!")],
            "score_chosen": 8.5,
            "score_rejected": 4.0,
        },
        accepting(ONE, *HELLO),
    ),
    (
        "preference",  # a side that says more than the prompt field does
        {
            "prompt": "Hi",
            "chosen": [SYSTEM, user("Hi"), assistant("Hello!")],
            "rejected": [SYSTEM, user("Hi"), assistant("No.")],
        },
        Record([SYSTEM, user("Hi")], ("No.",), (1,), 1, *HELLO),
    ),
    (
        "preference without prompt",
        {
            "chosen": [user("Hi"), assistant("Yes?"), user("Go"), assistant("Gone.")],
            "rejected": [user("Hi"), assistant("Yes?"), user("Go"), assistant("No.")],
        },
        Record([user("Hi"), assistant("Yes?"), user("Go")], ("No.",), (1,), 1, ("Gone.",), (1,)),
    ),
    (
        "preference without prompt",  # equal sides: the answer is no part of the prompt
        {"chosen": [user("Hi"), assistant("No.")], "rejected": [user("Hi"), assistant("No.")]},
        accepting(ONE_CHAT, ("No.",), (1,)),
    ),
    (
        "HH-RLHF",
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant: Gone.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go\n\nAssistant: No.",
        },
        Record([user("Hi"), assistant("Yes?"), user("Go")], ("No.",), (1,), 1, ("Gone.",), (1,)),
    ),
    ("unpaired", {"prompt": "Hi", "completion": "No.", "label": False}, ONE),
    (
        "unpaired",
        {"prompt": [user("Hi")], "completion": [assistant("No.")], "label": False},
        ONE_CHAT,
    ),
    ("unpaired", {"messages": [user("Hi"), assistant("No.")], "label": False}, ONE_CHAT),
    (
        "unpaired",
        {
            "prompt": "Hi",
            "completion": "No.",
            "label": False,
            "ended": False,
            "reward": -1.5,
            "kind": "rude",
        },
        dataclasses.replace(ONE, rejected_ended=(False,)),
    ),
    (
        "LLaMA-Factory",
        {
            "conversations": HUMAN_HI,
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "No."},
        },
        accepting(ONE_CHAT, *HELLO),
    ),
    (
        "LLaMA-Factory",
        {
            "conversations": HUMAN_HI,
            "system": "Be kind.",
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "No."},
        },
        Record([SYSTEM, user("Hi")], ("No.",), (1,), 1, *HELLO),
    ),
    (
        "UltraFeedback",
        {
            "instruction": "Hi",
            "completions": [
                {"response": "Hello!", "overall_score": 8.5},
                {"response": "Hi", "overall_score": 4},
                {"response": "No.", "overall_score": 4.0},
                {"response": "Go.", "overall_score": 1.0},
            ],
        },
        Record("Hi", ("Hi", "No.", "Go."), (1, 1, 3), 5, ("Hello!",), (3,)),
    ),
]


@pytest.mark.parametrize(("name", "row", "record"), ROWS)
def test_one_row_of_each_format(
    name: str, row: dict[str, Any], record: Record, tmp_path: Path
) -> None:
    found, summary = read_file(lines(tmp_path, row))
    assert found == [record]
    assert list(summary.formats) == [name]
    assert summary.tally["accepted"] == len(record.accepted)
    assert summary.tally["accepted_counts"] == sum(record.accepted_counts)
    assert summary.tally["discarded"] == 0


def test_every_format_of_the_table_has_a_row_above() -> None:
    assert {form.name for form in FORMATS} == {name for name, _, _ in ROWS}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "A.JSON.GZ"])
def test_kinds_of_file(name: str, tmp_path: Path) -> None:
    rows = [row for _, row, _ in ROWS]
    text = json.dumps(rows, indent=1)
    if "jsonl" in name:
        text = "\n\n".join(map(json.dumps, rows))  # a blank line is nothing
    data = b"\xef\xbb\xbf" + text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith("gz") else data)
    assert read_records(tmp_path / name) == read_records(lines(tmp_path, *rows))


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    (row, *_) = [row for _, row, _ in ROWS if "score_chosen" in row]
    rows = [row] * 300 + [{"prompt": "Hi", "chosen": None}]
    parquet.write_table(pa.Table.from_pylist(rows[:-1]), tmp_path / "a.parquet")
    assert read_records(tmp_path / "a.parquet") == [
        Record("Hi", ("No.",), (300,), 300, ("Hello!",), (300,))
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert "row 301: unknown format" in refusal(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    assert "not readable as parquet" in refusal(tmp_path / "c.parquet")


@pytest.mark.parametrize("row", [row for _, row, _ in ROWS], ids=lambda _: "")
def test_of_parquet_all_columns_of_the_format_are_read_and_no_others(
    row: dict[str, Any], tmp_path: Path
) -> None:
    pa = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.Table.from_pylist([{k: v for k, v in row.items() if k != "metadata"}])
    # Nanoseconds that Python's datetime does not have, which no row can be made of.
    when = pa.array([1], pa.timestamp("ns"))
    parquet.write_table(table.append_column("created_at", when), tmp_path / "a.parquet")
    assert read_records(tmp_path / "a.parquet") == read_records(lines(tmp_path, row))


def test_of_parquet_that_fits_no_format_all_columns_are_named(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.Table.from_pylist([{"prompt": "A", "stars": 5}])
    parquet.write_table(table, tmp_path / "a.parquet")
    assert 'found the fields "prompt", "stars"' in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_parquet_that_unpacks_to_far_more(
    as_dictionary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value that stands in the file once, for many rows."""
    pa = pytest.importorskip("pyarrow", reason="the parquet extra is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(row_files, "SMALL", 4 << 20)
    texts: Any = pa.DictionaryArray.from_arrays([0] * 256, ["x" * (1 << 20)])
    columns = {"prompt": ["A"] * 256, "chosen": ["y"] * 256, "rejected": texts}
    if not as_dictionary:
        columns["rejected"] = texts.cast(pa.string())
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet", compression="gzip")
    assert (tmp_path / "a.parquet").stat().st_size < 5000
    tracemalloc.start()
    message = refusal(tmp_path / "a.parquet")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "after row 3: not readable as parquet: found values of more than 4,194,304 b" in message
    assert peak < 20 << 20
    monkeypatch.setattr(row_files, "SMALL", 1 << 19)
    assert "found row groups of more than 524,288 bytes, expected at most 100 times the" in refusal(
        tmp_path / "a.parquet"
    )


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)  # makes the import fail
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "pip install '.[parquet]'" in refusal(tmp_path / "a.parquet")


# --- Merging and skipping ------------------------------------------------------------------------


def test_equal_prompts_become_one_record_in_order_of_first_appearance(tmp_path: Path) -> None:
    def pair(prompt: Any, rejected: str) -> dict[str, Any]:
        return {"prompt": prompt, "chosen": "Yes.", "rejected": rejected}

    path = lines(
        tmp_path,
        pair("A", "x"),
        pair("B", "x"),
        pair("A", "y"),
        pair([user("A")], "x"),  # one user turn, spelled as messages: the same prompt
        pair([SYSTEM, user("A")], "x"),
    )
    found, summary = read_file(path)
    assert found == [
        Record("A", ("x", "y"), (2, 1), 3, ("Yes.",), (3,)),
        Record("B", ("x",), (1,), 1, ("Yes.",), (1,)),
        Record([SYSTEM, user("A")], ("x",), (1,), 1, ("Yes.",), (1,)),
    ]
    assert +summary.tally == {  # without what is 0
        "rows": 5,
        "records": 3,
        "answers": 4,
        "counts": 5,
        "accepted": 3,
        "accepted_counts": 5,
    }
    assert set(summary.tally) <= set(TALLY)


def test_canonical_rows_are_never_merged(tmp_path: Path) -> None:
    row = {"prompt": "A", "rejected": ["x", "x"], "rejection_counts": [2, 1]}
    pair = {"prompt": "A", "chosen": "Yes.", "rejected": "x"}
    same = Record("A", ("x", "x"), (2, 1), 3)
    assert read_records(lines(tmp_path, row, pair, row, pair)) == [
        same,
        Record("A", ("x",), (2,), 2, ("Yes.",), (2,)),
        same,
    ]


def test_unpaired_rounds_count_the_accepted_rows(tmp_path: Path) -> None:
    def row(prompt: str, completion: str, label: bool) -> dict[str, Any]:
        return {"prompt": prompt, "completion": completion, "label": label}

    rows = [
        row("A", "good", True),
        row("A", "x", False),
        row("B", "good", True),
        row("A", "", True),
    ]
    found, summary = read_file(lines(tmp_path, *rows))
    assert found == [Record("A", ("x",), (1,), 3, ("good",), (1,))]
    tally = summary.tally
    assert (tally["accepted"], tally["accepted_empty"], tally["unrejected"]) == (1, 1, 1)
    assert summary.notes == ["line 4: completion is empty"]


def test_prompts_without_a_rejected_answer_make_records_where_asked_for(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"prompt": "A", "rejected": [], "accepted_responses": ["y", "z"], "total_rounds": 8},
        {"prompt": "B", "accepted_responses": ["y"], "acceptance_counts": [3]},
        {"prompt": "C", "completion": "y", "label": True, "ended": False},
        {"prompt": "D", "chosen": "y", "rejected": " "},
        {"prompt": "E", "chosen": "", "rejected": ""},
        {"prompt": "F", "chosen": "y", "rejected": "x"},
        {"prompt": "G", "completion": "", "label": True},
    )
    both = Record("F", ("x",), (1,), 1, ("y",), (1,))
    found, summary = read_file(path)
    assert found == read_records(path) == [both]
    tally = summary.tally
    assert (tally["records"], tally["accepted_only"], tally["unrejected"]) == (1, 0, 4)
    assert (tally["accepted"], tally["cut"]) == (1, 0)  # of what is kept
    no_record = "no record, as all rejected answers to its prompt are empty"
    assert summary.notes[-2:] == [f"line 4: {no_record}", f"line 5: {no_record}"]

    found, summary = read_file(path, unrejected=True)
    assert found == [
        Record("A", (), (), 8, ("y", "z"), (1, 1)),
        Record("B", (), (), 3, ("y",), (3,)),
        Record("C", (), (), 1, ("y",), (1,), (), (False,)),
        Record("D", (), (), 1, ("y",), (1,)),
        both,
    ]
    tally = summary.tally
    assert (tally["records"], tally["accepted_only"], tally["unrejected"]) == (5, 4, 1)
    assert (tally["accepted"], tally["accepted_counts"], tally["cut"]) == (6, 8, 1)
    assert summary.notes[-1:] == [f"line 5: {no_record}"]
    with pytest.raises(InputError, match="found no answer in 1 rows"):
        read_file(lines(tmp_path, {"prompt": "E", "chosen": "", "rejected": ""}), unrejected=True)


def test_a_canonical_side_may_be_empty(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "rejected": ["No."], "accepted_responses": [], "acceptance_counts": []}
    assert read_records(lines(tmp_path, row)) == [ONE]


def test_an_answer_ended_if_it_did_so_once(tmp_path: Path) -> None:
    def row(completion: str, label: bool, ended: Any) -> dict[str, Any]:
        return {"prompt": "A", "completion": completion, "label": label, "ended": ended}

    rows = [
        row("x", False, False),
        row("x", False, None),  # nothing is said: it ended
        row("y", False, False),
        row("y", True, False),  # the same text on the other side is another answer
        row("y", True, False),
        row("z", True, True),
        row("z", True, False),
    ]
    assert read_records(lines(tmp_path, *rows)) == [
        Record("A", ("x", "y"), (2, 1), 7, ("y", "z"), (2, 2), (True, False), (False, True))
    ]


def test_ended_goes_with_its_answer_where_others_are_skipped(tmp_path: Path) -> None:
    row = {"prompt": "A", "rejected": ["", "x", "y"], "rejected_ended": [False, True, False]}
    side = {"accepted_responses": [" ", "z"], "accepted_ended": [False, True]}
    found, summary = read_file(lines(tmp_path, row | side))
    assert found == [Record("A", ("x", "y"), (1, 1), 3, ("z",), (1,), (True, False))]
    assert summary.notes == [
        "line 1: rejected[0] is empty",
        "line 1: accepted_responses[0] is empty",
    ]


SIDES = [
    ("bare", "y", "x", True),
    ("both repeat it", [user("Hi"), assistant("y")], [user("Hi"), assistant("x")], True),
    ("one repeats it", [assistant("y")], [user("Hi"), assistant("x")], True),
    ("a bare one answers what the other one does", "y", [SYSTEM, user("Hi"), assistant("x")], True),
    ("another prompt", [user("Ho"), assistant("y")], "x", False),
    ("a longer prompt", [SYSTEM, user("Hi"), assistant("y")], [user("Hi"), assistant("x")], False),
]


@pytest.mark.parametrize(("chosen", "rejected", "shared"), [s[1:] for s in SIDES], ids=lambda _: "")
def test_a_chosen_answer_belongs_to_the_prompt_it_answers(
    chosen: Any, rejected: Any, shared: bool, tmp_path: Path
) -> None:
    row = {"prompt": "Hi", "chosen": chosen, "rejected": rejected}
    ((record,), summary) = read_file(lines(tmp_path, row))
    assert record.accepted == (("y",) if shared else ())
    assert record.rejected == ("x",)
    assert (summary.tally["discarded"], summary.tally["unshared"]) == (not shared, not shared)


@pytest.mark.parametrize("after", [[], [assistant("y"), user("Go")], [assistant("y")] * 2])
def test_a_chosen_talk_that_goes_on_is_no_answer(after: Any, tmp_path: Path) -> None:
    row = {"chosen": [user("Hi"), *after], "rejected": [user("Hi"), assistant("No.")]}
    found, summary = read_file(lines(tmp_path, row))
    assert found == [ONE_CHAT]
    assert (summary.tally["discarded"], summary.tally["unshared"]) == (1, 1)


def test_ultrafeedback_without_scores(tmp_path: Path) -> None:
    def row(prompt: str, *scores: Any) -> dict[str, Any]:
        answers = [{"response": f"r{k}", "overall_score": s} for k, s in enumerate(scores)]
        return {"instruction": prompt, "completions": answers}

    missing = row("A", 2, 1, None, float("nan"))
    missing["completions"].append({"response": "r4"})
    path = lines(tmp_path, missing, row("B", 3, 3.0), row("C", None), row("D"))
    found, summary = read_file(path)
    assert found == [Record("A", ("r1",), (1,), 1, ("r0",), (1,))]
    assert summary.tally["discarded"] == 3 + 2 + 1
    assert summary.tally["unrejected"] == 3
    assert summary.notes == [
        "line 1: answers without an overall_score, in no pair: 3",
        "line 2: no answer beat another",
        "line 3: answers without an overall_score, in no pair: 1; no answer beat another",
        "line 4: no answer beat another",
    ]


def test_ultrafeedback_adds_up_equal_answers(tmp_path: Path) -> None:
    scored = [("best", 3), ("x", 2), ("x", 1), ("best", 3)]
    answers = [{"response": text, "overall_score": score} for text, score in scored]
    row = {"instruction": "A", "completions": answers}
    assert read_records(lines(tmp_path, row)) == [
        Record("A", ("x",), (2 + 3,), 5, ("best",), (2 + 2,))
    ]


def test_ultrafeedback_counts_are_of_pairs(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(50):
        scores = [rng.choice([0, 1, 1.0, 2.5, 4, float("nan"), None]) for _ in range(7)]
        answers = [{"response": f"r{k}", "overall_score": s} for k, s in enumerate(scores)]
        wins = [[s is not None and t is not None and s > t for t in scores] for s in scores]
        lost = [sum(column) for column in zip(*wins, strict=True)]
        won = [sum(row) * (not n) for row, n in zip(wins, lost, strict=True)]
        path = lines(tmp_path, {"instruction": "A", "completions": answers}, canonical())
        record = read_records(path)[0]
        if any(lost):
            assert record == Record(
                "A",
                tuple(f"r{k}" for k in range(7) if lost[k]),
                tuple(filter(None, lost)),
                sum(lost),
                tuple(f"r{k}" for k in range(7) if won[k]),
                tuple(filter(None, won)),
            )


def test_hh_keeps_a_row_whose_sides_differ_and_counts_it(tmp_path: Path) -> None:
    row = {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.",
        "rejected": "\n\nHuman: Hi\n\nAssistant: One\n\nAssistant: Two:\n\nthree ",
    }
    found, summary = read_file(lines(tmp_path, row))
    assert found == [Record([user("Hi"), assistant("One")], ("Two:\n\nthree",), (1,), 1)]
    assert (summary.tally["unshared"], summary.tally["discarded"]) == (1, 1)
    assert "1 answers that were neither, or to another prompt: discarded" in str(summary)
    assert "1 rows whose two sides do not share the prompt" in str(summary)


def test_empty_answers_are_skipped_by_name(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"prompt": "A", "rejected": ["x", " \n", "y"], "counts": [1, 4, 2]},
        {"prompt": "B", "rejected": [""]},
        {"prompt": "C", "chosen": "Yes.", "rejected": ""},
        {"prompt": "C", "chosen": "Yes.", "rejected": "x"},
    )
    found, summary = read_file(path)
    assert found == [
        Record("A", ("x", "y"), (1, 2), 7),
        Record("C", ("x",), (1,), 2, ("Yes.",), (2,)),
    ]
    assert summary.notes == [
        "line 1: rejected[1] is empty",
        "line 2: rejected[0] is empty",
        "line 3: rejected is empty",
        "line 2: no record, as all rejected answers to its prompt are empty",
    ]
    tally = summary.tally
    assert (tally["answers"], tally["counts"], tally["empty"]) == (6, 10, 3)


@pytest.mark.parametrize(
    ("row", "note"),
    [
        ({"prompt": "A", "rejected": [""]}, "line 1: rejected[0] is empty"),
        ({"prompt": "A", "completion": "x", "label": True}, "in 1 rows"),
        ({"instruction": "A", "completions": []}, "line 1: no answer beat another"),
    ],
)
def test_a_file_without_any_record_is_an_error(
    row: dict[str, Any], note: str, tmp_path: Path
) -> None:
    message = refusal(lines(tmp_path, row))
    assert "found no rejected answer" in message
    assert note in message


def test_blank_lines_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of them packs to a megabyte, and would be read for minutes."""
    monkeypatch.setattr(row_files, "MOST_BLANK", 100)
    row = json.dumps({"prompt": "A", "rejected": ["x"]})
    fine = lines(tmp_path, *("\n" * 50 + row for _ in range(5)), name="fine.jsonl")
    assert len(read_records(fine)) == 5
    many = lines(tmp_path, row, "\n" * 200, name="many.jsonl")
    assert "line 102: found more than 100 blank lines" in refusal(many)


def test_equal_answers_cost_linear_time(tmp_path: Path) -> None:
    """A second in all, also on a slow machine; where each is compared with all others, minutes."""
    many = 40_000
    rows = [json.dumps({"prompt": "A", "completion": "x", "label": False})] * many
    many_rows = lines(tmp_path, *rows, name="rows.jsonl")
    start = time.process_time()
    assert read_records(many_rows) == [Record("A", ("x",), (many,), many)]
    answers = [{"response": "x", "overall_score": k % 2} for k in range(many)]
    scored = lines(tmp_path, {"instruction": "A", "completions": answers}, name="scored.jsonl")
    pairs = (many // 2) ** 2
    assert read_records(scored) == [Record("A", ("x",), (pairs,), pairs, ("x",), (pairs,))]
    (record,) = read_records(lines(tmp_path, {"prompt": "A", "rejected": ["x"] * many}))
    assert record.counts == (1,) * many
    assert time.process_time() - start < 15


# --- Bad rows ------------------------------------------------------------------------------------


def canonical(**changes: Any) -> dict[str, Any]:
    row = {"prompt": "A", "rejected_responses": ["x", "y"], "rejection_counts": [1, 2]}
    return {**row, **changes}


def pair(**changes: Any) -> dict[str, Any]:
    return {"prompt": "A", "chosen": "Yes.", "rejected": "x", **changes}


def scored(**changes: Any) -> dict[str, Any]:
    answers = [{"response": "r", "overall_score": 1}, {"response": "s", "overall_score": 2}]
    return {"instruction": "A", "completions": [answers[0], {**answers[1], **changes}]}


def factory(**changes: Any) -> dict[str, Any]:
    answer = {"from": "gpt", "value": "x"}
    return {"conversations": HUMAN_HI, "chosen": answer, "rejected": answer, **changes}


NO_COUNT = "expected a whole number from 1 to 2,147,483,647"

BAD_ROWS: list[tuple[Any, str]] = [
    # what the line is
    (
        '{"prompt": "A", "rejected_resp',
        "not valid JSON: Unterminated string starting at character 17",
    ),
    ("\0" * 40, "not valid JSON: Expecting value at character 1"),
    (b'{"prompt": "\xff\xfe"}', "not UTF-8 text: byte 0xff at byte 13 of the line"),
    (b'{"prompt": "\xed\xa0\x80"}', "not UTF-8 text"),
    ("[" * 200_000, "found brackets nested too deeply, expected at most 100 levels"),
    ('{"a": ' + "[" * 100 + "]" * 100 + "}", "brackets nested too deeply, expected at most 100"),
    ('{"prompt": ' + "9" * 5000 + "}", "a number with too many digits"),
    ([canonical()], "found a list, expected an object (an array belongs in a .json file)"),
    ("12", "found 12, expected an object"),
    ("null", "found nothing, expected an object"),
    ({}, "unknown format: found the fields none"),
    ({"text": "A", "stars": 2}, 'unknown format: found the fields "text", "stars"'),
    ({"prompt": "A", "chosen": "x"}, 'unknown format: found the fields "prompt", "chosen"'),
    ({"prompt": "A", "completion": "x", "label": None}, "unknown format"),
    # canonical
    (canonical(prompt=None), "prompt: found nothing, expected text or a list of messages"),
    (canonical(prompt=" "), "prompt: found no text, expected something to answer"),
    (canonical(prompt=[]), "prompt: found an empty list"),
    (canonical(prompt="\ud800x"), "prompt: found the lone surrogate \\ud800 at character 1"),
    (canonical(prompt=["Hi"]), 'prompt[0]: found "Hi", expected a message with role and content'),
    (canonical(prompt=[{"role": "tool", "content": "x"}]), 'prompt[0].role: found "tool"'),
    (canonical(prompt=[{"role": ["user"], "content": "x"}]), "prompt[0].role: found a list"),
    (canonical(prompt=[{"role": "user"}]), "prompt[0].content: found nothing, expected text"),
    (canonical(prompt=[{"from": "gpt", "value": 1}]), "prompt[0].value: found 1, expected text"),
    (canonical(rejected_responses=[]), "rejected_responses: found an empty list"),
    (canonical(rejected_responses="x"), 'rejected_responses: found "x", expected a list of rej'),
    (canonical(rejected_responses=["x", None]), "rejected_responses[1]: found nothing, expected t"),
    (canonical(rejected_responses=["x", "\udfff"]), "rejected_responses[1]: found the lone surro"),
    (canonical(rejectedResponses=["x"]), "rejected_responses and rejectedResponses: found two na"),
    (canonical(rejected=["x"]), "rejected_responses and rejected: found two names of one field"),
    (canonical(rejectionCounts=[1, 2]), "rejection_counts and rejectionCounts: found two names"),
    (canonical(total_rounds=9, totalRounds=9), "total_rounds and totalRounds: found two names of"),
    (canonical(rejection_counts=[1]), "rejection_counts: found 1 counts, expected 2"),
    (canonical(rejection_counts=3), "rejection_counts: found 3, expected a list of counts"),
    (canonical(rejection_counts=[1, 0]), f"rejection_counts[1]: found 0, {NO_COUNT}"),
    (canonical(rejection_counts=[-1, 1]), f"rejection_counts[0]: found -1, {NO_COUNT}"),
    (canonical(rejection_counts=[2.0, 1]), f"rejection_counts[0]: found 2.0, {NO_COUNT}"),
    (canonical(rejection_counts=[1.5, 1]), f"rejection_counts[0]: found 1.5, {NO_COUNT}"),
    (canonical(rejection_counts=[float("nan"), 1]), f"rejection_counts[0]: found NaN, {NO_COUNT}"),
    (canonical(rejection_counts=[float("inf"), 1]), "rejection_counts[0]: found Infinity"),
    (canonical(rejection_counts=[True, 1]), f"rejection_counts[0]: found true, {NO_COUNT}"),
    (canonical(rejection_counts=["1", 1]), f'rejection_counts[0]: found "1", {NO_COUNT}'),
    (canonical(rejection_counts=[10**400, 1]), f"..., {NO_COUNT}"),
    (canonical(total_rounds=1), "total_rounds: found 1, expected a whole number from 2 to"),
    (
        canonical(rejection_counts=[2**31 - 1, 1]),  # it could be written, and not read back
        "total_rounds, the sum of the counts: found 2147483648, expected a whole number from",
    ),
    (canonical(total_rounds=3.0), "total_rounds: found 3.0, expected a whole number"),
    (canonical(accepted_responses="x"), 'accepted_responses: found "x", expected a list of acc'),
    (canonical(accepted_responses=["x", 1]), "accepted_responses[1]: found 1, expected text"),
    (canonical(accepted_responses=["x"], acceptedResponses=["x"]), "found two names of one field"),
    (canonical(acceptance_counts=[1]), "acceptance_counts: found 1 counts, expected 0: one an an"),
    (
        canonical(accepted_responses=["x"], acceptance_counts=[0]),
        f"acceptance_counts[0]: found 0, {NO_COUNT}",
    ),
    (canonical(rejected_ended=[True]), "rejected_ended: found 1 booleans, expected 2: one an ans"),
    (canonical(rejected_ended=True), "rejected_ended: found true, expected a list of booleans"),
    (canonical(rejected_ended=[True, 1]), "rejected_ended[1]: found 1, expected true or false"),
    (canonical(rejectedEnded=[True, None]), "rejectedEnded[1]: found nothing, expected true or f"),
    (
        canonical(accepted_responses=["x"], accepted_ended=["no"]),
        'accepted_ended[0]: found "no", expected true or false',
    ),
    ({"prompt": "A", "accepted_responses": []}, "rejected_responses: found nothing, expected a l"),
    ({"prompt": "A", "accepted_responses": ["x"], "total_rounds": 0}, "total_rounds: found 0, exp"),
    # pairs
    (pair(prompt=3), "prompt: found 3, expected text or a list of messages"),
    (pair(rejected=[]), "rejected: found an empty list, expected text, a message or"),
    (pair(rejected=["x"]), 'rejected[0]: found "x", expected a message'),
    (pair(rejected=7), "rejected: found 7, expected text, a message or a list of me"),
    (pair(rejected="\ud83d"), "rejected: found the lone surrogate \\ud83d"),
    (pair(chosen=7), "chosen: found 7"),
    (pair(rejected=[user("x")]), 'rejected: found "user", expected the last message to be the as'),
    (
        pair(rejected=[user("B"), assistant("x")]),
        "rejected: found a conversation that does not con",
    ),
    (pair(prompt=None, rejected=[assistant("x")]), "chosen: found"),
    (
        {"chosen": [user("A"), assistant("y")], "rejected": [user("B"), assistant("x")]},
        "rejected: found 0 leading messages shared with chosen and 2 after them",
    ),
    (
        {
            "chosen": [user("A"), assistant("y")],
            "rejected": [user("A"), assistant("B"), user("C"), assistant("x")],
        },
        "rejected: found 1 leading messages shared with chosen and 3 after them",
    ),
    ({"chosen": "The sky is blue.", "rejected": "No."}, 'chosen: found "The sky is blue."'),
    (
        {"chosen": "\n\nHuman: A\n\nAssistant: y", "rejected": "A\n\nAssistant: x"},
        r'rejected: found "A\n\nAssistant: x", expected "\n\nHuman: ...',
    ),
    (
        {"chosen": "\n\nHuman: \n\nAssistant: y"} | {"rejected": "\n\nHuman: \n\nAssistant: x"},
        "found no text",
    ),
    # LLaMA-Factory
    (factory(conversations="Hi"), 'conversations: found "Hi", expected a list of messages'),
    (factory(conversations=[{"from": "observation", "value": "x"}]), "conversations[0].from: fou"),
    (factory(system=1), "system: found 1, expected text"),
    (factory(conversations=[SYSTEM, user("A")], system="s"), "system: found a second system mes"),
    (factory(rejected={"from": "human", "value": "x"}), 'rejected: found "user", expected the la'),
    (factory(rejected={"from": "tool", "value": "x"}), 'rejected.from: found "tool", expected one'),
    # unpaired
    ({"prompt": "A", "completion": "x", "label": 0}, "label: found 0, expected true or false"),
    ({"prompt": "A", "completion": "x", "label": "no"}, 'label: found "no", expected true or fal'),
    (
        {"prompt": "A", "completion": "x", "label": True, "ended": 1},
        "ended: found 1, expected true or false",
    ),
    ({"messages": [assistant("x")], "label": False}, "messages before the answer: found an empty"),
    ({"messages": [user("A")], "label": False}, 'messages: found "user", expected the last mess'),
    ({"messages": "A", "label": False}, "messages before the answer: found an empty list"),
    # UltraFeedback
    (scored(overall_score="7"), 'completions[1].overall_score: found "7", expected a number'),
    (scored(overall_score=True), "completions[1].overall_score: found true, expected a number"),
    (scored(response=None), "completions[1].response: found nothing, expected text"),
    ({"instruction": "A", "completions": ["x"]}, 'completions[0]: found "x", expected an answer'),
    ({"instruction": "A", "completions": {}}, "completions: found an object, expected a list of"),
    ({"instruction": 5, "completions": []}, "instruction: found 5"),
]


@pytest.mark.parametrize(("row", "says"), BAD_ROWS, ids=[says[:40] for _, says in BAD_ROWS])
def test_bad_row(row: Any, says: str, tmp_path: Path) -> None:
    message = refusal(lines(tmp_path, canonical(), "", row))
    assert message.split("\n")[0].endswith("data.jsonl: 1 problem")
    assert message.split("\n")[1].startswith("  line 3: ")  # a blank line counts
    assert says in message
    assert message.isascii()
    assert ("formats known" in message) == ("unknown format" in says)


def test_all_bad_rows_are_reported_together(tmp_path: Path) -> None:
    rows = [canonical(total_rounds=-k) if k % 2 else canonical() for k in range(50)]
    message = refusal(lines(tmp_path, *rows)).split("\n")
    assert message[0].endswith("25 problems")
    assert [line.split(":")[0] for line in message[1:21]] == [
        f"  line {2 * k}" for k in range(1, 21)
    ]
    assert message[21:] == ["  ... and 5 more"]


def test_a_file_of_bad_rows_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lines(tmp_path, *["x"] * 30)
    monkeypatch.setattr(records, "MOST_PROBLEMS", 31)
    assert refusal(path).split("\n")[0].endswith("data.jsonl: 30 problems")
    monkeypatch.setattr(records, "MOST_PROBLEMS", 25)
    message = refusal(path).split("\n")
    assert message[0].endswith("25 problems, and more may come: the rest is not read")
    assert message[-1] == "  ... and 5 more"


def test_damaged_lines_never_show_a_traceback(tmp_path: Path) -> None:
    rng = random.Random(0)
    values = [None, True, -1, 0.5, 10**30, "", "\ud800", [], {}, [None], [[]], {"role": "user"}]
    good = [row for _, row, _ in ROWS]

    def damaged() -> bytes:
        row = rng.choice(good)
        if rng.random() < 0.6:  # one value, at some depth, becomes another
            row = json.loads(json.dumps(row))
            place: Any = row
            while True:
                key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if not isinstance(place[key], dict | list) or rng.random() < 0.4:
                    break
                place = place[key]
            place[key] = rng.choice(values)
            return json.dumps(row).encode()
        text = bytearray(json.dumps(row).encode())
        at = rng.randrange(len(text))
        text[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(4))
        return bytes(text)

    outcomes = set()
    for _ in range(1000):
        try:
            outcomes.add(type(read_records(lines(tmp_path, damaged()))))
        except InputError as error:
            outcomes.add(type(error))
    assert outcomes == {list, InputError}


# --- Bad files -----------------------------------------------------------------------------------

GOOD = json.dumps(canonical()).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl", b"", "found no rejected answer in 0 rows"),
        ("a.jsonl", b"\n \n", "found no rejected answer in 0 rows"),
        ("a.json", b"", 'start: found "", expected one JSON array'),
        ("a.json", b"[ ]", "found no rejected answer in 0 rows"),
        ("a.json", b"\0" * 99, "expected one JSON array"),
        ("a.json", GOOD + GOOD, "where each line is an object, name the file .jsonl"),
        ("a.json", b"[" + GOOD + b"," + GOOD[:30], "row 2: not valid JSON: Unterminated string"),
        ("a.json", b"[" + GOOD, "row 1: not valid JSON: Expecting ',' or ']'"),
        ("a.json", b"[" + GOOD + b",]", "row 2: not valid JSON: Expecting value at character 1"),
        ("a.json", b"[" + GOOD + b"] ]", "end: found more after the array"),
        ("a.json", b"[" + GOOD + b"," + b"[" * 200_000, "row 2: found brackets nested too deeply"),
        ("a.json", b"[" + b"[" * 101 + b"]" * 101 + b", 3]", "row 1: found brackets nested too de"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "row 1: found a number with too many digits"),
        (
            "a.json",
            b'[{"a": "\xff"}, 3]',
            "row 1: not UTF-8 text\n  row 2: found 3, expected an obj",
        ),
        ("a.jsonl.gz", gzip.compress(GOOD * 9000, mtime=0)[:-20], "the gzip data break off"),
        ("a.jsonl.gz", GOOD, "after start: not readable as gzip"),
        ("a.json.gz", b"", "start: found"),
        (
            "a.jsonl.gz",
            gzip.compress(GOOD, mtime=0)[:-8] + b"\1" * 8,
            "line 1: not readable as gzip: CRC",
        ),
        ("a.jsonl.gz", gzip.compress(GOOD, mtime=0)[:10] + b"\xff" * 40, "not readable as gzip"),
        ("a.csv", GOOD, "unknown extension, expected .jsonl, .json"),
        ("a.parquet.gz", GOOD, "unknown extension"),
        ("jsonl", GOOD, "unknown extension"),
    ],
)
def test_bad_file(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert says in refusal(tmp_path / name)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    assert "found a folder, expected a file" in refusal(tmp_path / "folder.jsonl")
    assert "no such file" in refusal(tmp_path / "missing.jsonl")
    assert "cannot be read: File name too long" in refusal(tmp_path / ("long" * 99 + ".jsonl"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Opened, it would be waited for without end; as an output, replaced by a file."""
    for place in (tmp_path / "pipe.jsonl", tmp_path / "link.jsonl"):
        if place.name == "pipe.jsonl":
            os.mkfifo(place)
        else:
            place.symlink_to("/dev/zero")
        assert "found a pipe or a device, expected a file" in refusal(place)
        with pytest.raises(InputError, match="found a pipe or a device, expected the name of a f"):
            write_records([ONE], place)


def test_no_message_sends_commands_to_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    escape = "\x1b]52;c;eA==\x07\r\u202e"

    def only_printable(message: str) -> None:
        assert all(c.isprintable() for line in message.split("\n") for c in line)
        assert "\\x1b]52" in message

    for row in ({escape: 1}, {"prompt": escape, "rejected": escape}, canonical(prompt=[escape])):
        with pytest.raises(InputError) as caught:
            read_records(lines(tmp_path, row))
        assert str(caught.value).replace("\n", "").isprintable()
    with pytest.raises(InputError) as caught:
        read_records(lines(tmp_path, pair(rejected=""), name=f"{escape}.jsonl"))
    only_printable(str(caught.value))
    _, summary = read_file(lines(tmp_path, pair(), name=f"{escape}.jsonl"))
    only_printable(str(summary))
    with pytest.raises(InputError) as caught:
        write_records([ONE], tmp_path / f"{escape}.txt")
    only_printable(str(caught.value))

    class Parquet:
        def __init__(self, _: Any) -> None:
            raise ValueError(f"no parquet: {escape}")

    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    module = types.ModuleType("pyarrow.parquet")
    module.ParquetFile = Parquet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    with pytest.raises(InputError) as caught:
        read_records(lines(tmp_path, "", name="a.parquet"))
    only_printable(str(caught.value))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = lines(tmp_path, canonical())
    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied" in refusal(path)


def test_brackets_may_nest_as_deeply_as_is_said(tmp_path: Path) -> None:
    deep = '{"a": ' + "[" * 99 + "1" + "]" * 99 + ', "prompt": "Hi", "rejected": ["No."]}'
    assert read_records(lines(tmp_path, deep)) == [ONE]
    (tmp_path / "a.json").write_text(f"[{deep}]")
    assert read_records(tmp_path / "a.json") == [ONE]


@pytest.mark.parametrize(
    ("name", "says"),  # of an array, a row may be in memory already, or not yet be complete
    [
        ("a.jsonl", "line 2: found more than 2,000 bytes in one line, expected less; the rest is"),
        ("a.jsonl.gz", "line 2: found more than 2,000 bytes in one line"),
        ("a.json", "row 2: found more than 2,000 characters in one row, expected less; the rest"),
        ("b.json", "row 2: not valid JSON: Unterminated string starting at character 12 (in the "),
    ],
)
@pytest.mark.parametrize("text", ["é" * 6000, " " * 6000])
def test_a_row_has_a_greatest_length(
    name: str, says: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "LONGEST", 2000)
    monkeypatch.setattr(row_files, "_BLOCK", 20_000 if name == "a.json" else 300)
    first, long = (json.dumps(canonical(prompt="x" * n)) for n in (1800, 3))
    long = long.replace("xxx", text)
    data = (f"{first}\n{long}\n3" if "jsonl" in name else f"[{first},{long},3]").encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    message = refusal(tmp_path / name)
    assert says in message
    assert message.count("\n") == 1  # of what follows nothing is known


def test_a_line_without_an_end_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "LONGEST", 1 << 20)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        for _ in range(50):
            file.write(b" " * (1 << 20))
    tracemalloc.start()
    assert "found more than 1,048,576 bytes in one line" in refusal(tmp_path / "a.jsonl.gz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
@pytest.mark.parametrize("flood", [b"\n" * 1_000_000, b" " * 1_000_000, GOOD * 10_000])
def test_gzip_that_unpacks_to_far_more(
    name: str, flood: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = flood if "jsonl" in name else b"[" + b",".join(flood.splitlines())
    (tmp_path / name).write_bytes(gzip.compress(rows))
    size = (tmp_path / name).stat().st_size
    monkeypatch.setattr(row_files, "SMALL", 0)
    monkeypatch.setattr(row_files, "_BLOCK", 1000)
    most = f"found data of more than {100 * size:,} bytes, expected at most 100 times the file's"
    assert most in refusal(tmp_path / name)


# --- How files are read --------------------------------------------------------------------------


@pytest.mark.parametrize("block", [4, 7, 64])
def test_an_array_may_be_cut_into_blocks_anywhere(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "_BLOCK", block)
    rows = [canonical(prompt="é🙂"), pair(prompt="日本"), canonical(rejection_counts=[123456, 7])]
    text = " [ " + " , \n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n] \n"
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert read_records(tmp_path / "a.json") == read_records(lines(tmp_path, *rows))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_reading_keeps_only_what_a_record_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "_BLOCK", 1 << 14)
    rows = [pair(prompt=f"{k}", metadata="long " * 1000) for k in range(400)]
    path = lines(tmp_path, *rows, name=name)
    if name == "a.json":
        path.write_text(json.dumps(rows))
    tracemalloc.start()
    read_records(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 3  # what is ignored is nearly all of these 2 MB


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_progress_counts_the_bytes_of_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Any] = []
    passing_bar = row_files.passing_bar

    def visible(**settings: Any) -> Any:
        assert settings["disable"] is None  # shown on a terminal only
        bars.append(passing_bar(**{**settings, "disable": False, "file": io.StringIO()}))
        return bars[-1]

    monkeypatch.setattr(row_files, "passing_bar", visible)
    data = GOOD * 100
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    read_file(tmp_path / name, progress=True)
    assert bars[0].n == bars[0].total == (tmp_path / name).stat().st_size


# --- Writing and the command ---------------------------------------------------------------------


def test_written_records_read_back_equal(tmp_path: Path) -> None:
    wanted = [record for _, _, record in ROWS] + [Record("é\u2028\0", ("🙂\n\t",), (7,), 9)]
    wanted.append(Record("B", (), (), 8, ("y", "z"), (2, 5), (), (True, False)))
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with path.open() as opened_before:
        write_records(wanted, path)
        assert opened_before.read() == "old"  # replaced as a whole, not written over
    assert read_file(path, unrejected=True)[0] == wanted
    assert read_records(path) == wanted[:-1]
    assert "é".encode() in path.read_bytes()  # readable, not escaped
    rows = path.read_text(encoding="utf-8").splitlines()
    assert rows[0] == (  # byte for byte what a record without accepted answers always was
        '{"prompt": "Hi", "rejected_responses": ["Hi", "No."], "rejection_counts": [3, 1], '
        '"total_rounds": 8}'
    )
    assert json.loads(rows[-1]) == {
        "prompt": "B",
        "rejected_responses": [],
        "rejection_counts": [],
        "total_rounds": 8,
        "accepted_responses": ["y", "z"],
        "acceptance_counts": [2, 5],
        "accepted_ended": [True, False],
    }
    assert names(tmp_path) == ["out.jsonl"]


def test_what_any_file_holds_is_read_back_equal_once_converted(tmp_path: Path) -> None:
    """Rows of all formats at random, many of equal prompt, some answers empty, some cut off."""
    rng = random.Random(0)

    def answer() -> str:
        return rng.choice(["x", "y", "z", " ", "Hello!"])

    def answers() -> dict[str, Any]:
        texts, accepted = ([answer() for _ in range(rng.randrange(1, 4))] for _ in range(2))
        return {
            "prompt": rng.choice("AB"),
            "rejected_responses": texts,
            "rejected_ended": [rng.random() < 0.5 for _ in texts],
            "accepted_responses": accepted,
            "acceptance_counts": [rng.randrange(1, 9) for _ in accepted],
            "accepted_ended": [rng.random() < 0.5 for _ in accepted],
        }

    def unpaired() -> dict[str, Any]:
        label, ended = rng.random() < 0.5, rng.random() < 0.5
        return {"prompt": rng.choice("ABCD"), "completion": answer(), "label": label} | (
            {} if rng.random() < 0.5 else {"ended": ended}
        )

    def hh() -> dict[str, Any]:
        sides = {}
        for side in ("chosen", "rejected"):
            sides[side] = f"\n\nHuman: {rng.choice('AB')}\n\nAssistant: {answer()}"
        return sides

    def scores() -> dict[str, Any]:
        return {
            "instruction": rng.choice("ABE"),
            "completions": [
                {"response": answer(), "overall_score": rng.randrange(3)} for _ in range(4)
            ],
        }

    known = [row for _, row, _ in ROWS]
    tally: Counter[str] = Counter()
    for _ in range(40):
        rows = [rng.choice([answers, unpaired, hh, scores])() for _ in range(12)]
        path = lines(tmp_path, canonical(), *rows, *rng.sample(known, 5))
        for unrejected in (False, True):
            found, summary = read_file(path, unrejected=unrejected)
            write_records(found, tmp_path / "out.jsonl")
            assert read_file(tmp_path / "out.jsonl", unrejected=unrejected)[0] == found
            tally += summary.tally
    assert set(tally) == set(TALLY)  # all of it came up


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_everything_as_it_was(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    dumps = json.dumps

    def fail_on_second(row: Any, **settings: Any) -> str:
        if row["prompt"] == "second":
            assert len(names(tmp_path)) == 2  # the part stands beside the old file
            raise error
        return dumps(row, **settings)

    monkeypatch.setattr(json, "dumps", fail_on_second)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        write_records([ONE, Record("second", ("x",), (1,), 1)], path)
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("", "found a folder, expected the name of a file"),
        ("missing/out.jsonl", "no such folder"),
        ("data.jsonl/out.jsonl", "no such folder"),
        ("out.json", "expected a name that ends in .jsonl"),
        ("data.jsonl", "is an input too, expected another name"),
    ],
)
def test_bad_outputs(output: str, says: str, tmp_path: Path) -> None:
    path = lines(tmp_path, "bad, but what is wrong with the output is said before it is read")
    with pytest.raises(InputError, match=says):
        main([str(path), "--output", f"{tmp_path}/../{tmp_path.name}/{output}"])
    if output != "data.jsonl":
        with pytest.raises(InputError, match=says):
            write_records([ONE], tmp_path / output)
    assert names(tmp_path) == ["data.jsonl"]


def test_command_checks_counts_and_converts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = lines(tmp_path, pair(), pair(), pair(prompt="B", rejected=""), name="one.jsonl")
    two = lines(tmp_path, pair(), {"prompt": "A", "rejected": ["z"]}, name="two.jsonl")
    output = tmp_path / "out.jsonl"
    main([str(one), str(two), "--output", str(output)])
    shown = capsys.readouterr().out.replace(str(tmp_path) + os.sep, "")
    assert shown == (
        "one.jsonl: preference\n"
        "         3 rows\n"
        "         2 records\n"
        "         1 of these records without any rejected answer\n"
        "         2 rejected answers\n"
        "         3 counts: how often these answers were rejected\n"
        "         1 of these answers without text: skipped\n"
        "         2 accepted answers: kept for the methods that learn from them\n"
        "         3 counts: how often these answers were accepted\n"
        "  line 3: rejected is empty\n"
        "two.jsonl: preference, canonical\n"
        "         2 rows\n"
        "         2 records\n"
        "         2 rejected answers\n"
        "         2 counts: how often these answers were rejected\n"
        "         1 accepted answers: kept for the methods that learn from them\n"
        "         1 counts: how often these answers were accepted\n"
        "all 2 files: preference, canonical\n"
        "         5 rows\n"
        "         4 records\n"
        "         1 of these records without any rejected answer\n"
        "         4 rejected answers\n"
        "         5 counts: how often these answers were rejected\n"
        "         1 of these answers without text: skipped\n"
        "         3 accepted answers: kept for the methods that learn from them\n"
        "         4 counts: how often these answers were accepted\n"
        "out.jsonl: 4 records written\n"
    )
    assert read_records(output) == [  # equal prompts of different files stay apart
        Record("A", ("x",), (2,), 2, ("Yes.",), (2,)),
        Record("A", ("x",), (1,), 1, ("Yes.",), (1,)),
        Record("A", ("z",), (1,), 1),
    ]


def test_command_checks_every_file_and_writes_nothing_if_one_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = lines(tmp_path, pair(), name="good.jsonl")
    bad = lines(tmp_path, pair(rejected=1), name="bad.jsonl")
    with pytest.raises(InputError) as caught:
        main([str(bad), str(good), str(bad), "--output", str(tmp_path / "out.jsonl")])
    assert str(caught.value).count("bad.jsonl: 1 problem\n  line 1: rejected: found 1") == 2
    assert "good.jsonl: preference" in capsys.readouterr().out
    assert not (tmp_path / "out.jsonl").exists()


def test_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(form.name in shown for form in FORMATS)
    assert "kept as separate" in " ".join(shown.split())


def test_command_ends_without_a_traceback(tmp_path: Path) -> None:
    path = lines(tmp_path, pair(), b"\xff")
    done = subprocess.run(
        [sys.executable, "-B", "-m", "minibule.records", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    wanted = (
        f"error: {path}: 1 problem\n  line 2: not UTF-8 text: byte 0xff at byte 1 of the line\n"
    )
    assert done.stderr == wanted


# --- Real files ----------------------------------------------------------------------------------


@pytest.fixture
def real() -> Callable[[str], Path]:
    folder = Path(os.environ.get("MINIBULE_SHARED", ROOT.parent / "shared")) / "data" / "rejections"

    def find(name: str) -> Path:
        if not (folder / name).is_file():
            pytest.skip(f"{folder / name} is not on this machine (set MINIBULE_SHARED)")
        return folder / name

    return find


@pytest.mark.parametrize(
    ("name", "tally"),
    [
        ("vicuna80.rejections.jsonl", "rows=77 records=77 answers=384 counts=904 empty=1"),
        (
            "hh_harmless_test.jsonl.gz",
            "rows=2312 records=2310 answers=2312 counts=2312 accepted=2303 accepted_counts=2303 "
            "accepted_empty=4 discarded=5 unshared=5",
        ),
        (
            "dpo_en_demo.json",
            "rows=299 records=294 answers=294 counts=299 accepted=294 accepted_counts=299",
        ),
        (
            "kto_en_demo.json",
            "rows=300 records=150 answers=150 counts=150 accepted=1 accepted_counts=1 "
            "unrejected=147",
        ),
    ],
)
def test_real_files(name: str, tally: str, real: Callable[[str], Path]) -> None:
    found, summary = read_file(real(name))
    assert " ".join(f"{key}={summary.tally[key]}" for key in TALLY if summary.tally[key]) == tally
    assert all(answer.strip() for record in found for answer in record.rejected)
    if name.startswith("vicuna80"):
        assert summary.notes == ["line 71: rejected_responses[0] is empty"]
        assert sum(sum(record.counts) for record in found) == 904 - 4
