"""The main command: what it writes, that it repeats itself, and that bad input ends in words."""

import io
import itertools
import json
import math
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, printed_by
from safetensors.numpy import load_file

from minibule.core.counts import row_count
from minibule.core.objective import OBJECTIVES
from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.models.load import load_model
from minibule.runs.settings import resolve
from minibule.runs.snapshot import load_snapshot
from minibule.train.__main__ import main
from minibule.train.loop import train
from minibule.train.setup import prepare

# With data of one's own, even the embedded ones by name, no held-out questions are asked.
RECORDS = str(embedded_folder() / "records.jsonl")
QUICK = ["--steps", "3", "--data", RECORDS, "--eval-fraction", "0.02", "--probe", ""]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = (embedded_folder() / "records.jsonl").read_text().splitlines()[:12]
    path.write_text("\n".join(lines) + "\n")
    return path


def metrics_of(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


# -- the run without arguments ---------------------------------------------------------------------


def test_without_arguments_it_teaches_the_embedded_model(capsys):
    main([])
    out = capsys.readouterr().out
    before, after = (
        next(line for line in out.splitlines() if line.strip().startswith(when)).partition(":")[2]
        for when in ("before:", "after:")
    )
    assert before.strip() == "hello"
    assert after.strip() != "hello" and len(after) > 6
    accepted = next(line for line in out.splitlines() if "greedy answer accepted" in line).split()
    assert float(accepted[4]) > 0.85 > 0.3 > float(accepted[3])  # after, before
    noise = next(line for line in out.splitlines() if "P(noise)" in line).split()
    assert float(noise[2]) <= 0.03
    assert re.search(r"Less likely than before: .*echo \(x", out)
    sampled = next(line for line in out.splitlines() if "P(accepted answer)" in line).split()
    assert float(sampled[4]) >= 0.75 > 0.4 > float(sampled[3])

    run = Path("runs/tiny")
    assert {path.name for path in run.iterdir()} == {
        *("adapter", "checkpoint", "merged", "config.toml", "metrics.jsonl", "manifest.json"),
        *("before.json", "after.json", "report.html"),
    }
    lines = metrics_of(run)
    assert [line["step"] for line in lines] == list(range(1, 91))
    assert set(lines[0]) >= {
        *("loss", "anchor", "rejected_mass", "grad_norm", "lr", "rows", "tokens"),
        *("seconds", "tokens_per_s", "rss_gb"),
    }
    # The merged model answers as base and adapter do.
    ids = np.arange(5, 25)
    adapted = load_model(embedded_folder(), run / "adapter").logits(ids)
    merged = load_model(run / "merged").logits(ids)
    np.testing.assert_allclose(merged, adapted, atol=1e-4 * np.abs(adapted).max())


# -- what a run is ---------------------------------------------------------------------------------


def test_a_prompt_may_be_longer_than_a_pass(tmp_path):
    record = {"prompt": "hello " * 40, "rejected": ["hello", "no", "rat"]}
    (tmp_path / "long.jsonl").write_text(json.dumps(record) + "\n")
    flags = ["--eval-fraction", "0", "--pass-tokens", "4", "--export", "none", "--output", "a"]
    main([*QUICK, "--data", "long.jsonl", *flags])
    assert load_snapshot(Path("a/after.json")).position.total == 3


def test_a_seed_gives_the_same_run_and_another_seed_another(capsys):
    for output, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        main([*QUICK, "--output", output, "--seed", seed, "--export", "none"])
    a, b, c = ((Path(o) / "adapter" / "adapter_model.safetensors").read_bytes() for o in "abc")
    assert a == b != c
    changing = ("seconds", "tokens_per_s", "rss_gb")
    kept = [
        [{k: v for k, v in m.items() if k not in changing} for m in metrics_of(o)] for o in "ab"
    ]
    assert kept[0] == kept[1]


def test_accumulation_equals_one_large_batch(capsys):
    shared = [*QUICK, "--order", "file", "--export", "none", "--lora-r", "2"]
    main([*shared, "--output", "a", "--batch-size", "8"])
    main([*shared, "--output", "b", "--batch-size", "2", "--grad-accum", "4"])
    for a, b in zip(metrics_of("a"), metrics_of("b"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["rows"] == b["rows"]


def test_config_toml_repeats_the_run(capsys):
    main([*QUICK, "--output", "a", "--lr", "0.002", "--lora-targets", "q_proj,v_proj"])
    settings = tomllib.loads(Path("a/config.toml").read_text())
    assert settings["lr"] == 0.002 and settings["lora_targets"] == ["q_proj", "v_proj"]
    assert settings["beta"] == 1 and settings["kl"] == 0.5  # as resolved
    main(["--config", "a/config.toml", "--output", "b"])
    assert load_file("a/adapter/adapter_model.safetensors").keys() == (
        load_file("b/adapter/adapter_model.safetensors").keys()
    )
    a, b = (metrics_of(o)[-1]["loss"] for o in "ab")
    assert a == b


def test_all_exports_are_listed_at_the_end(capsys):
    """Two of one form are two: the second takes no line away from the first."""
    exports = "gguf:f32,gguf:q8_0,gguf-lora,hf"
    main([*QUICK, "--steps", "1", "--output", "a", "--export", exports])
    end = capsys.readouterr().out.rpartition("a step, peak memory")[2].splitlines()[1:]
    assert [line.split(maxsplit=1) for line in end if "GGUF LoRA" not in line] == [
        ["adapter", "a/adapter"],
        ["metrics", "a/metrics.jsonl"],
        ["GGUF", "a/model-f32.gguf"],
        ["GGUF", "a/model-q8_0.gguf"],
        ["merged", "a/merged"],
        ["report", "a/report.html"],
    ]
    assert "GGUF LoRA  a/adapter.gguf" in end
    assert all(Path(line.split()[-1]).exists() for line in end)


def test_the_objective_is_settled_once(data):
    """Of a set-up it is what the settings name, and its settings then say so knob by knob."""
    setup = prepare(resolve({"data": str(data), "objective": "rate", "alpha": "0.5"}))
    assert setup.loss.objective == OBJECTIVES["rate"]._replace(alpha=0.5)
    assert setup.config.resolved_loss() == setup.loss
    assert (setup.config.prior, setup.config.alpha) == ("rate", 0.5)


def test_start_adapter_and_last_layers(capsys):
    main([*QUICK, "--output", "a", "--lora-layers", "2", "--lora-r", "4"])
    tensors = load_file("a/adapter/adapter_model.safetensors")
    assert {int(name.split(".")[4]) for name in tensors} == {2, 3}
    main([*QUICK, "--output", "b", "--init-adapter", "a/adapter", "--lr", "0"])
    again = load_file("b/adapter/adapter_model.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)  # lr 0: as it came


@pytest.mark.parametrize("tick", [0.0, -1.0], ids=["stands still", "runs backwards"])
@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_clock_that(tick, flags, monkeypatch, capsys):
    moments = itertools.count(1000.0, tick)
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    main([*QUICK, "--export=none", "--output=out", *flags])
    said = capsys.readouterr().out
    assert ("0.0 s" in said) or flags
    assert not re.search(r"[ (]-\d[\d.]* s|inf|nan", said), said
    if not flags:
        for line in metrics_of("out"):
            assert line["seconds"] > 0 and math.isfinite(line["tokens_per_s"])


def test_a_start_adapter_brings_its_own_shape(capsys):
    main([*QUICK, "--output", "a", "--lora-targets", "q_proj", "--lora-r", "4"])
    start = [*QUICK, "--init-adapter", "a/adapter", "--export", "none"]
    for flags in (["--lora-r", "8"], ["--lora-layers", "1"], ["--rslora"]):
        message = fails([*start, "--output", "b", *flags])
        assert flags[0].strip("-").replace("-", "_") in message and "Leave them out" in message
    main([*start, "--output", "b", "--lora-r", "4", "--lora-targets", "q_proj"])  # as it has them


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("steps", "told"), [(3, [1, 2, 3]), (24, [3, 5, 8, 10, 12, 15, 17, 20])])
def test_off_a_terminal_a_line_every_tenth_tells_how_far_it_is(steps, told, data, capsys):
    flags = ["--data", str(data), "--eval-fraction", "0", "--probe", "", "--export", "none"]
    main([*flags, "--steps", str(steps), "--output", "a"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" of ")[0] for line in lines][:8] == [f"step {n}" for n in told]
    assert len(lines) == min(steps, 10)
    last = rf"step {steps} of {steps}: loss [\d.e-]+, p rejected 0\.\d+, [\d,]+ tokens/s"
    assert re.fullmatch(last, lines[-1])


def test_on_a_terminal_a_bar_does(data, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    flags = ["--data", str(data), "--eval-fraction", "0", "--probe", "", "--export", "none"]
    main([*flags, "--steps", "3", "--output", "a"])
    assert "\rtraining: 100%" in terminal.getvalue() and "step 3 of 3" not in terminal.getvalue()


def test_evaluation_in_between(capsys):
    main([*QUICK, "--output", "a", "--eval-every", "2", "--export", "none"])
    assert ["eval_loss" in line for line in metrics_of("a")] == [False, True, False]
    assert not Path("a/merged").exists()


def test_answers_are_cut_to_the_length_and_the_number_asked_for(data):
    setup = prepare(resolve({"data": str(data), "max_length": "60", "max_rejected": "2"}))
    assert max(len(e.prompt) + len(a) for e in setup.examples for a in e.answers) <= 60
    assert max(len(e.answers) for e in setup.examples) == 2


# -- bad input -------------------------------------------------------------------------------------


def fails(arguments):
    with pytest.raises(InputError) as error:
        main(arguments)
    return str(error.value)


def test_a_prompt_that_leaves_no_room(data, capsys):
    message = fails(["--data", str(data), "--max-length", "3"])
    assert "record 1: its prompt has" in message and "--skip-long" in message
    with data.open("a") as file:
        file.write(json.dumps({"prompt": "long " * 900, "rejected": ["x"]}) + "\n")
    assert "record 13" in fails(
        ["--data", str(data), "--eval-fraction", "0", "--max-length", "800"]
    )
    shared = ["--data", str(data), "--steps", "1", "--max-length", "800", "--export", "none"]
    main([*shared, "--skip-long", "--output", "out"])
    assert "1 records left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere", "--data", "x.jsonl"], "nowhere: no such folder"),
        (["--model", "nowhere"], "--model without --data"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--heldout", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--init-adapter", "nowhere"], "nowhere: no such folder"),
        (["--config", "nowhere.toml"], "nowhere.toml: no such file"),
        (["--lora-layers", "9"], "the model has only 4"),
        (["--threads", "9999"], "the machine has"),
        (["--alpha", "1.5"], "alpha = 1.5 (command line): expected a number from 0 to 1"),
        (["--lr", "nan"], "lr = nan"),
        (["--steps", "2.5"], "steps = 2.5 (command line): expected a whole number"),
        (["--lora-targets", "q_proj,nose"], "lora_targets = q_proj,nose"),
        (["--schedule", "zigzag"], "expected one of constant, linear, cosine"),
        (["--batch-size", "0"], "expected a whole number from 1 to 4,096"),
    ],
)
def test_bad_settings_and_paths(arguments, message):
    assert message in fails(arguments)
    assert not Path("runs").exists()  # nothing half-written


def test_unknown_flags_and_keys():
    assert "--learning-rate: no such flag" in fails(["--learning-rate", "1"])
    Path("x.toml").write_text("warmup = 3\nlr = 'fast'\n[table]\na = 1\n")
    message = fails(["--config", "x.toml"])
    assert "warmup (x.toml): no such setting; did you mean warmup_steps?" in message
    assert "lr = fast (x.toml): expected a number" in message
    assert "table (x.toml): no such setting" in message
    Path("x.toml").write_text("lr = = 3\n")
    assert "x.toml: not a TOML file" in fails(["--config", "x.toml"])


def test_output_that_is_a_file_or_an_earlier_run(capsys):
    Path("file").write_text("mine")
    assert "file is a file, expected a folder" in fails(["--output", "file"])
    assert "file is a file, expected a folder" in fails(["--output", "file/in/it"])
    assert Path("file").read_text() == "mine"
    main([*QUICK, "--output", "run", "--export", "hf,gguf:f16"])
    assert "found an earlier run" in fails([*QUICK, "--output", "run"])
    main([*QUICK, "--output", "run", "--export", "none", "--overwrite", "--steps", "1"])
    assert len(metrics_of("run")) == 1
    assert {path.name for path in Path("run").iterdir()} == {
        *("adapter", "checkpoint", "config.toml", "metrics.jsonl", "manifest.json"),
        *("before.json", "after.json", "report.html"),
    }


def test_output_where_nothing_may_be_written(monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "may not write in" in fails(["--output", "new"])


def test_an_adapter_for_another_model():
    adapter = ROOT / "tests" / "golden" / "adapter"
    message = fails(["--init-adapter", str(adapter)])
    assert "q_proj.lora_A.weight: found shape (3, 12), expected (3, 128)" in message


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt": "x", "rejected": ["y"',
        '{"prompt": "x", "rejected": []}',
        '{"prompt": "x", "rejected": ["y"], "rejection_counts": [1, 2]}',
        '{"prompt": "x", "rejected": ["y"], "rejection_counts": [-1]}',
        '{"prompt": "x", "rejected": ["y"], "rejection_counts": [1.5]}',
        "",
    ],
)
def test_records_that_are_none_are_named(line):
    Path("bad.jsonl").write_text(line)
    assert "bad.jsonl" in fails(["--data", "bad.jsonl"])


def test_the_whole_program_says_what_is_wrong_without_a_traceback():
    Path("bad.jsonl").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "minibule.train", "--data", "bad.jsonl"],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert "bad.jsonl" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.extra  # where there is none of them, none can be imported
def test_minibule_imports_no_torch():
    """Nor any other of the oracles: they belong to the tests, and matplotlib to the tools."""
    code = (
        "import sys, pkgutil, importlib, minibule\n"
        "names = [m.name for m in pkgutil.walk_packages(minibule.__path__, 'minibule.')]\n"
        "assert 'minibule.core.ops' in names and 'minibule.train.__main__' in names\n"
        "for name in names: importlib.import_module(name)\n"
        "optional = {'torch', 'transformers', 'peft', 'llama_cpp', 'jinja2', 'matplotlib',\n"
        "            'numkong', 'mpi4py'}\n"
        "print(optional & set(sys.modules))"
    )
    assert printed_by(code).strip() == "set()"


def test_examples_of_the_caller_s_are_trained_on_as_they_are(data, tmp_path):
    """In place of the data; a run goes on with the same ones only."""
    config = resolve({"data": str(data), "output": "given", "steps": "2", "probe": ""})
    few = prepare(config).examples[:2]
    longer = few[0]._replace(answers=(np.arange(1, 300) % 90, *few[0].answers[1:]))
    train(config, examples=[longer])
    sizes = json.loads((tmp_path / "given" / "before.json").read_text())["sizes"]
    assert sizes["records"] == 1 and sizes["heldout"] == 0
    assert {line["rows"] for line in metrics_of("given")} == {4 * row_count([longer])}
    with pytest.raises(InputError, match="records"):
        train(config, resume=True, examples=few)
    train(config, resume=True, examples=[longer])
