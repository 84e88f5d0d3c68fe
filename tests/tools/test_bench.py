"""The benchmarks: a row an engine, a process a measurement, ratios within a round."""

import json
import os
import re
import subprocess
import sys

import bench as bench_tool
import numpy as np
import pytest
from benches import timing, turns
from helpers import ROOT

from minibule.errors import InputError
from minibule.files import embedded_folder


@pytest.fixture
def bench(monkeypatch):
    """The bench whose measurements run in this process: their figures mean nothing then."""

    def measure_here(engine, argv):
        args = bench_tool.parse([*argv, "--engine", engine])
        return json.loads(json.dumps(bench_tool.BENCHES[args.case].engines[engine](args)))

    monkeypatch.setattr(turns, "measure", measure_here)
    return bench_tool


def table_rows(printed):
    """{first cell: {heading: cell}} of the Markdown tables in a text."""
    rows, header = {}, []
    for line in printed.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[:1] == ["engine"]:
            header = cells
        elif cells and not cells[0].startswith("-"):
            rows[cells[0]] = dict(zip(header, cells, strict=True))
    return rows


RATES = "minibule-rate,minibule-reference-known"
TINY = str(embedded_folder())
RECORDS = str(embedded_folder() / "records.jsonl")
LITTLE = ["--prompt", "20", "--new", "5", "--context", "9", "--new-batch", "3", "--batch", "2"]
LITTLE += ["--sampled", "3"]


@pytest.mark.parametrize(
    ("arguments", "engines", "column"),
    [
        (
            ["dense", "--engines", "minibule", "--steps", "1", "--rounds", "2"],
            ["minibule"],
            "time / minibule's",
        ),
        (
            ["records", "--data", RECORDS, "--engines", "minibule,minibule-rate", "--steps", "1"],
            ["minibule", "minibule-rate"],
            "memory / minibule's",
        ),
        (["dense", "--engines", "minibule-1x1", "--steps", "1"], ["minibule-1x1"], "GB of all"),
        (["dense", "--engines", RATES, "--steps", "1"], RATES.split(","), "tokens/s"),
        (
            ["generate", "--engines", "minibule,minibule-lora", *LITTLE],
            ["minibule", "minibule-lora"],
            "decode / minibule's",
        ),
        (["export"], ["gguf-f32", "gguf-f16", "gguf-q8_0", "hf-f32", "hf-bf16"], "peak GB"),
        (
            ["growth", "--tables", "answers,rank", "--most", "4"],
            ["answers=1", "answers=2", "answers=4", "rank=4"],
            "s/step",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_each_bench_prints_a_row_an_engine(bench, capsys, arguments, engines, column):
    case, *rest = arguments
    bench.main([case, "--model", TINY, "--rounds", "1", *rest])
    rows = table_rows(capsys.readouterr().out)
    assert list(rows) == engines
    for row in rows.values():
        middle, *spread = map(float, re.findall(r"[\d.]+", row[column]))  # of one round: no spread
        low, high = spread or (middle, middle)
        assert 0 < low <= middle <= high and bool(spread) == ("--rounds" in rest)


def test_a_bench_tells_how_far_an_engine_is_from_float32(bench, capsys):
    pytest.importorskip("numkong", reason="needs pip install '.[fast]'")
    engines = ["minibule", "minibule-low", "minibule-bfloat16", "minibule-bfloat16x2"]
    argv = ["dense", "--model", TINY, "--rounds", "1", "--steps", "1"]
    bench.main([*argv, "--engines", ",".join([*engines, "minibule-rate"])])
    _, _, far = capsys.readouterr().out.partition("How far from minibule")
    rows = table_rows(far)
    assert list(rows) == engines[1:]
    low, rough, fine = (
        {key: float(row[key]) for key in ("losses", "gradient")} for row in rows.values()
    )
    assert low == {"losses": 0, "gradient": 0}
    assert 1e-3 < rough["gradient"] < 1 and 0 < fine["gradient"] < 1e-3


@pytest.mark.filterwarnings("ignore")  # the oracles' own deprecations
@pytest.mark.parametrize("arguments", [["dense"], ["records", "--data", RECORDS]])
def test_torch_takes_the_same_step(bench, capsys, monkeypatch, arguments):
    pytest.importorskip("transformers", reason="needs pip install '.[oracle]'")
    torch = pytest.importorskip("torch", reason="needs pip install '.[oracle]'")
    pytest.importorskip("peft", reason="needs pip install '.[oracle]'")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # for the tests that follow
    flags = ["--model", TINY, "--rounds", "1", "--steps", "1"]
    bench.main([*arguments, *flags, "--engines", "minibule,torch-float32"])
    _, _, far = capsys.readouterr().out.partition("How far from minibule")
    (row,) = table_rows(far).values()
    # Torch's log(1 - p) of float32 has few digits where p is near 1; of float64 both are 1e-6.
    assert 0 < float(row["losses"]) < 1e-4 and 0 < float(row["gradient"]) < 1e-3


def test_minibules_engines_are_not_charged_with_torch():
    code = "import sys, bench; print(*{'torch', 'llama_cpp', 'matplotlib'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_a_sketch_keeps_the_distance():
    rng = np.random.default_rng(0)
    one = {name: rng.normal(size=(50, 60)) for name in "ab"}
    other = {name: g + 0.01 * rng.normal(size=g.shape) for name, g in one.items()}
    results = [{"losses": [1.0], "gradient": timing.sketch(g)} for g in (other, one)]
    assert timing.distances(*results)["gradient"] == pytest.approx(0.01, rel=0.1)


def test_the_bench_of_generation_knows_llama_cpp(bench, capsys):
    pytest.importorskip("llama_cpp", reason="needs pip install '.[interop]'")
    bench.main(["generate", "--model", TINY, "--rounds", "1", *LITTLE])
    rows = table_rows(capsys.readouterr().out)
    assert list(rows)[:4] == ["llama.cpp", "llama.cpp-flash", "minibule", "minibule-lora"]
    assert float(rows["llama.cpp"]["prefill / llama.cpp's"]) == 1
    assert all(float(row["decode"]) > 0 for row in rows.values())


def test_the_bench_of_the_start_stops_the_training_it_began(bench, capsys):
    bench.main(["start", "--model", TINY, "--data", RECORDS, "--rounds", "1"])
    out = capsys.readouterr().out
    seconds = {name: float(row["seconds"]) for name, row in table_rows(out).items()}
    whole, read = seconds["command to first step"], seconds["load_model"]
    assert whole > read > 0
    beyond = float(re.search(r"beyond load_model: (\S+) s", out)[1])
    assert beyond == pytest.approx(whole - read, abs=0.02)


def test_the_bench_draws_its_growth(bench, capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="needs pip install '.[plot]'")
    picture = tmp_path / "growth.svg"
    few = ["--tables", "layers", "--most", "2", "--plot", str(picture)]
    bench.main(["growth", "--model", TINY, *few])
    assert list(table_rows(capsys.readouterr().out)) == ["layers=1", "layers=2"]
    assert picture.read_text().startswith("<?xml")


def test_a_measurement_is_a_process_of_its_own_and_its_failure_is_told(tmp_path):
    argv = ["growth", "--model", TINY]
    assert turns.measure("rank=4", argv)["s/step"] > 0
    with pytest.raises(InputError, match=r"rank=4 failed:\n.*no such"):
        turns.measure("rank=4", ["growth", "--model", str(tmp_path / "none")])


@pytest.mark.parametrize(
    "arguments",
    [
        ["dense", "--model", TINY, "--engines", "jax"],
        ["records", "--model", TINY],
        ["growth", "--model", TINY, "--tables", "width"],
        ["generate", "--model", TINY, "--engine", "torch-float32"],
        ["export", "--model", TINY, "--rounds", "0"],
        ["generate", "--model", TINY, "--new", "1"],
    ],
)
def test_a_bench_refuses_what_it_does_not_know(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        bench_tool.main(arguments)
    assert exit.value.code == 2 and "error:" in capsys.readouterr().err


def test_growth_up_to_less_than_its_first_point_is_refused(bench):
    with pytest.raises(InputError, match="rank up to 3, expected at least up to 4"):
        bench.main(["growth", "--model", TINY, "--tables", "layers,rank", "--most", "3"])


def test_a_cell_is_the_median_and_the_range_and_ratios_stay_within_a_round(capsys):
    results = {"a": [{"s": 2.0}, {"s": 4.0}, {"s": 9.0}], "b": [{"s": 1.0}, {"s": 8.0}, {"s": 9.0}]}
    assert turns.spread(results["a"], "s") == "4.00 (2.00-9.00)"
    assert turns.spread(results["a"][:1], "s") == "2.00" and turns.spread([], "s") == ""
    turns.print_table(results, ["s"], {"time": ("a", "s")})
    rows = table_rows(capsys.readouterr().out)
    assert rows["b"] == {
        "engine": "b",
        "s": "8.00 (1.00-9.00)",
        "time / a's": "1.00 (0.50-2.00)",
    }
