"""Nothing lost: stopped runs go on to the same bytes, and files are whole or not there."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from safetensors.numpy import load_file, save_file

from minibule import files, program
from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.machine import threads as machine
from minibule.report.sections import write_report
from minibule.runs.lock import refuse_if_locked
from minibule.runs.manifest import Manifest
from minibule.runs.read import read_run
from minibule.runs.settings import read_settings
from minibule.train import loop as train_module
from minibule.train.__main__ import main

FEW = ["--heldout=", "--probe=", "--eval-fraction=0.02", "--export=none", "--lora-r=2"]
# 12 records, 2 batches of 2 a step: an epoch ends in the middle of every third step.
STEPS = [*FEW, "--steps=7", "--batch-size=2", "--grad-accum=2", "--eval-every=3", "--save-every=1"]
CLOCK = ("seconds", "tokens_per_s", "rss_gb")
ENV = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def settings(tmp_path):
    lines = (embedded_folder() / "records.jsonl").read_text().splitlines()[:11]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    return [*STEPS, "--data=records.jsonl"]


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def results(folder):
    """The bytes of the adapter, and the metrics without what a clock measured."""
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    metrics = [{k: v for k, v in json.loads(x).items() if k not in CLOCK} for x in lines]
    adapter = Path(folder) / "adapter"
    return [(adapter / name).read_bytes() for name in names(adapter)], metrics


def checkpoints(folder):
    return names(Path(folder, "checkpoint"))


def fails(arguments):
    with pytest.raises(InputError) as error:
        main(arguments)
    return str(error.value)


def stop_after(monkeypatch, steps):
    """Make training break down, as by a power cut, when that many steps are done."""
    take_step = train_module.take_step

    def limited(setup, optimiser, step, *known):
        if step > steps:
            raise RuntimeError("power cut")
        return take_step(setup, optimiser, step, *known)

    monkeypatch.setattr(train_module, "take_step", limited)


def broken_run(monkeypatch, output, steps, settings):
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(RuntimeError, match="power cut"):
            main([*settings, f"--output={output}"])


# -- going on --------------------------------------------------------------------------------------


def test_a_run_goes_on_to_the_same_bytes(settings, monkeypatch, capsys):
    main([*settings, "--output=whole"])
    assert checkpoints("whole") == ["step-00000006.safetensors", "step-00000007.safetensors"]
    for steps in (1, 4):
        broken_run(monkeypatch, f"cut{steps}", steps, settings)
        assert not Path(f"cut{steps}/adapter").exists()
        with Path(f"cut{steps}/metrics.jsonl").open("a") as file:
            file.write('{"step": 9')  # half a line, later than the checkpoint
        main(["--resume", f"--output=cut{steps}"])
        assert f"step {steps} of 7" in capsys.readouterr().out
        assert results(f"cut{steps}") == results("whole")


def test_a_run_without_a_checkpoint_starts_again(settings, monkeypatch, capsys):
    settings = [*settings, "--save-every=0"]
    main([*settings, "--output=whole"])
    assert checkpoints("whole") == ["step-00000007.safetensors"]
    broken_run(monkeypatch, "cut", 3, settings)
    main(["--resume", "--output=cut"])
    assert "no checkpoint yet: from step 1" in capsys.readouterr().out
    assert results("cut") == results("whole")


def test_a_finished_run_does_what_comes_after_its_steps_again(settings, capsys):
    main([*settings, "--output=run"])
    before = results("run")
    kept = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    main(["--resume", "--output=run"])
    again = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert again == kept  # to the byte, the page too
    (Path("run/adapter") / "adapter_model.safetensors").unlink()
    main(["--resume", "--output=run", "--export=gguf-lora"])
    assert "all 7 steps are done" in capsys.readouterr().out
    assert results("run") == before
    assert Path("run/adapter.gguf").exists()
    assert 'export = ["gguf-lora"]' in Path("run/config.toml").read_text()


def test_what_the_model_did_before_is_asked_of_the_start(settings):
    """Of the base model; of the start adapter, where there is one, and not of what it became."""
    settings = [*settings, "--probe=hello", "--lr=1e-2", "--eval-fraction=0.2"]
    main([*settings, "--output=a"])
    main([*settings, "--output=b", "--init-adapter=a/adapter"])
    before, between, start, after = (
        json.loads(Path(name).read_text()) | {"sizes": None}
        for name in ("a/before.json", "a/after.json", "b/before.json", "b/after.json")
    )
    assert before["heldout"]["kl_to_base"] == 0 < between["heldout"]["kl_to_base"]
    assert start == between
    assert start != after


def test_a_start_adapter_may_have_moved_but_not_changed(settings, monkeypatch):
    main([*settings, "--output=a"])
    begun = [*settings, "--init-adapter=a/adapter"]
    main([*begun, "--output=whole"])
    broken_run(monkeypatch, "b", 4, begun)
    shutil.copytree("b", "c")
    shutil.move("a", "elsewhere")
    assert "a/adapter: no such folder" in fails(["--resume", "--output=b"])
    main(["--resume", "--output=b", "--init-adapter=elsewhere/adapter"])
    assert results("b") == results("whole")
    main([*settings, "--output=other", "--lr=1e-2"])
    message = fails(["--resume", "--output=c", "--init-adapter=other/adapter"])
    assert "or the adapter that it starts from" in message


def test_the_settings_of_a_run_that_replaced_one_replace_none(settings):
    for _ in range(2):
        main([*settings, "--steps=1", "--output=a", "--overwrite"])
    assert not read_settings("a/config.toml").overwrite
    assert "replace it with --overwrite" in fails(["--config=a/config.toml", "--output=a"])


def test_the_page_of_a_run_that_went_on(settings, monkeypatch):
    broken_run(monkeypatch, "cut", 4, settings)
    page = write_report("cut").read_text()
    assert "4 of 7 steps are done" in page
    assert "python -m minibule.train --resume --output cut" in page
    with Path("cut/metrics.jsonl").open("a") as file:
        file.write('{"step": 5}\n')  # after the checkpoint: done again
    main(["--resume", "--output=cut"])
    page = Path("cut/report.html").read_text()
    assert "<dd>7 in " in page and "train --resume" not in page
    assert [line["step"] for line in read_run("cut").lines] == [1, 2, 3, 4, 5, 6, 7]


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(settings, monkeypatch, capsys):
    main([*settings, "--output=whole"])
    broken_run(monkeypatch, "cut", 5, settings)
    newest = Path("cut/checkpoint/step-00000005.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1000])
    main(["--resume", "--output=cut"])
    out = capsys.readouterr().out
    assert "damaged" in out and "step-00000005" in out and "checksum" in out
    assert "step 4 of 7" in out
    assert results("cut") == results("whole")
    assert checkpoints("cut") == checkpoints("whole")
    for path in Path("cut/checkpoint").iterdir():
        path.write_bytes(b"")
    assert "no checkpoint can be used" in fails(["--resume", "--output=cut"])


def test_what_is_trained_with_must_be_the_same(settings, monkeypatch):
    broken_run(monkeypatch, "cut", 2, settings)
    resume = ["--resume", "--output=cut"]
    message = fails([*resume, "--lr=0.5", "--seed=1", "--steps=7", "--keep=1"])
    assert "lr: 0.001 there, 0.5 now" in message and "seed: 0 there, 1 now" in message
    assert "steps:" not in message and "keep" not in message
    assert "expected one" in fails([*resume, "--overwrite"])
    assert "without --output" in fails(["--resume"])
    assert "no run to go on with" in fails(["--resume", "--output=nowhere"])
    assert not Path("nowhere").exists()

    records = Path("records.jsonl")
    kept = records.read_text()
    records.write_text("\n".join(kept.splitlines()[:-1]) + "\n")
    assert "records' token ids" in fails(resume)
    records.write_text(kept)
    config = Path("cut/config.toml")
    config.write_text(config.read_text().replace("lr = 0.001", "lr = 0.002"))
    message = fails(resume)
    assert "lr: 0.001 there, 0.002 here" in message and "model" not in message
    assert "earlier run" in fails([*settings, "--output=cut"])


def test_another_model_is_refused(settings, monkeypatch):
    shutil.copytree(embedded_folder(), "model")
    broken_run(monkeypatch, "cut", 2, [*settings, "--model=model"])
    Path("model").rename("moved")
    weights = Path("moved/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    assert "base model's weights" in fails(["--resume", "--output=cut", "--model=moved"])
    data[-100] ^= 1
    weights.write_bytes(data)
    main(["--resume", "--output=cut", "--model=moved"])  # elsewhere, but the same


# -- signals and the lock --------------------------------------------------------------------------


@pytest.fixture
def started():
    """Starts the program in processes of their own, stdout and stderr in one pipe."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "minibule.train", *arguments],
            env=ENV,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=0,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        with process:  # which waits for it, and closes the pipe
            process.kill()


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_saves(settings, number, started):
    settings = [*settings, "--steps=2000", "--save-every=0", "--output=run"]
    process = started(*settings)
    metrics = Path("run/metrics.jsonl")
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 500, process)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in out
    assert "python -m minibule.train --resume --output run" in out
    (name,) = checkpoints("run")
    assert int(name[5:13]) == len(metrics.read_text().splitlines())
    assert not Path("run/.lock").exists()


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.4])
def test_ctrl_c_while_loading_leaves_nothing(settings, seconds, started):
    process = started(*settings, "--output=run", "--steps=100000")
    time.sleep(seconds)  # wherever this falls: in the imports, the reading, or already the steps
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    # Python itself may still have been starting: then it ends by the signal, or says that it could
    # not start, with a traceback of its own that names no file of ours.
    starting = process.returncode == -signal.SIGINT or "Fatal Python error" in out
    assert process.returncode == 130 or starting
    assert ("minibule/" if starting else "Traceback") not in out
    assert not Path("run").exists() or Path("run/config.toml").exists()


def test_ctrl_c_while_the_folder_is_taken_over_leaves_a_run_to_go_on_with(settings, monkeypatch):
    claim = Manifest.claim

    def interrupted(manifest, *paths):
        claim(manifest, *paths)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Manifest, "claim", interrupted)
        main([*settings, "--output=run"])
    assert sorted(path.name for path in Path("run").iterdir()) == ["config.toml", "manifest.json"]
    main(["--resume", "--output=run"])
    assert Path("run/report.html").exists()


def test_a_session_that_was_interrupted_once_goes_on_to_the_end(settings, monkeypatch):
    """As a notebook, in which Python itself handles Ctrl-C."""

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return take_step(*arguments)

    take_step = train_module.take_step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_module, "take_step", interrupted)
        main([*settings, "--output=run"])
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 1
    main(["--resume", "--output=run"])
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 7


def test_a_signal_that_python_dropped_still_stops_the_run(settings, monkeypatch, capsys):
    """As it does when the handler's exception comes up inside a finaliser, or in an import."""
    monkeypatch.setattr(program, "received", [])

    class Finalised:
        def __del__(self):
            program.leave(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    Finalised()
    with pytest.raises(KeyboardInterrupt):
        main([*settings, "--output=run", "--steps=1000"])
    assert "python -m minibule.train --resume --output run" in capsys.readouterr().out
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 1


def test_a_second_signal_leaves_at_once(settings, monkeypatch):
    """A first one waits for the end of the step."""

    def twice(*_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the step went on")

    monkeypatch.setattr(train_module, "take_step", twice)
    with pytest.raises(KeyboardInterrupt):
        main([*settings, "--output=run", "--save-every=0"])
    assert not list(Path("run").glob("checkpoint/*"))
    assert not list(Path("run").rglob("*.partial"))


def test_two_runs_into_one_folder(settings, started):
    process = started(*settings, "--steps=100000", "--output=run")
    wait_for(lambda: Path("run/metrics.jsonl").exists(), process)
    before = Path("run/config.toml").stat()
    for flags in ([], ["--overwrite"], ["--resume"]):
        message = fails([*settings[:5], "--data=records.jsonl", "--output=run", *flags])
        assert f"process {process.pid} on " in message and "started 20" in message
    process.kill()
    process.communicate()
    assert Path("run/.lock").exists()  # left, but it holds nobody up
    refuse_if_locked(Path("run"))
    assert Path("run/config.toml").stat().st_mtime == before.st_mtime


# -- steps that are not finite ---------------------------------------------------------------------


def spoil(monkeypatch, bad_steps, kind):
    """Make the gradients (or the loss) of some steps not finite, inside the real loop."""
    gradients = train_module.gradients
    calls = iter(range(1, 1000))

    def spoiled(*arguments, **options):
        grads, metrics, tokens = gradients(*arguments, **options)
        if next(calls) in bad_steps:
            if kind == "loss":
                metrics["loss"] = float("nan")
            else:
                name = next(iter(grads))
                grads[name][0, 0] = np.inf
        return grads, metrics, tokens

    monkeypatch.setattr(train_module, "gradients", spoiled)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped(settings, monkeypatch, capsys, kind):
    spoil(monkeypatch, {2, 3, 5}, kind)
    main([*settings, "--order=file", "--output=run"])
    lines = [json.loads(x) for x in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line.get("skipped", False) for line in lines] == [0, 1, 1, 0, 1, 0, 0]
    assert "NaN" not in Path("run/metrics.jsonl").read_text()
    assert lines[1]["loss" if kind == "loss" else "grad_norm"] is None
    assert lines[1]["records"] == [5, 6, 7, 8]
    told = capsys.readouterr().err
    assert "step 2 skipped" in told and "5, 6, 7, 8" in told
    saved = Path("run/checkpoint/step-00000007.safetensors").read_bytes()
    assert b'\\"updates\\": 4' in saved  # AdamW counts what it did


def test_three_in_a_row_end_the_run(settings, monkeypatch):
    spoil(monkeypatch, {3, 4, 5}, "loss")
    message = fails([*settings, "--output=run", "--save-every=0"])
    assert "steps 3 to 5" in message and "run/checkpoint/step-00000005.safetensors" in message


def test_skipped_steps_are_counted_across_a_resume(settings, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        spoil(patch, {2, 3}, "loss")
        broken_run(patch, "cut", 3, settings)
    spoil(monkeypatch, {1}, "loss")  # the first step of this process: the third in a row
    assert "steps 2 to 4" in fails(["--resume", "--output=cut"])


def test_weights_that_overflow_end_in_words(settings, started):
    """Really infinite losses, by an adapter of the largest numbers; no warning is printed."""
    main([*settings, "--output=a", "--steps=1"])
    file = "a/adapter/adapter_model.safetensors"
    huge = {name: np.full_like(array, 6e4) for name, array in load_file(file).items()}
    save_file(huge, file, {"format": "pt"})
    config = Path("a/adapter/adapter_config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 9e8}))
    settings = [s for s in settings if not s.startswith(("--lora-r", "--eval-fraction"))]
    process = started(
        *settings,
        *("--eval-fraction=0", "--eval-every=0", "--output=b", "--init-adapter=a/adapter"),
        f"--threads={min(2, os.cpu_count() or 1)}",  # what holds on one thread must on two
    )
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2, out
    assert "steps 1 to 3: no loss" in out and "Warning" not in out and "Traceback" not in out


def test_threads_treat_overflows_as_their_caller_does(two_threads):
    huge = [np.full(2, 1e30, np.float32)] * 3
    with np.errstate(all="ignore"):
        assert all(np.isinf(x).all() for x in machine.side_by_side(np.square, huge))
    with pytest.raises(RuntimeWarning, match="overflow"):
        list(machine.side_by_side(np.square, huge))


def test_a_learning_rate_that_bursts_the_adapter(settings):
    message = fails([*settings, "--output=run", "--lr=1e18", "--max-grad-norm=0"])
    assert "too large" in message and "--lr" in message


# -- full disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["config.toml", "step-00000004", "adapter", "metrics.jsonl"])
def test_a_full_disk(settings, monkeypatch, what):
    """Bytes that the disk does not take: the error names the file, and nothing half is left."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush, write_line = files.flush_to_disk, train_module.write_line
    if what == "metrics.jsonl":

        class Full:
            name = "run/metrics.jsonl"
            write = full

        monkeypatch.setattr(
            train_module,
            "write_line",
            lambda log, line: write_line(Full() if line["step"] == 5 else log, line),
        )
    else:
        monkeypatch.setattr(
            files, "flush_to_disk", lambda path: full() if what in path.name else flush(path)
        )
    message = fails([*settings, "--output=run"])
    assert what in message and "No space left" in message
    assert not list(Path("run").rglob("*.partial")) and not Path("run/.lock").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB: room for a checkpoint or two of a small adapter, and not for a third."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_seen_before_the_first_step(settings, small_disk):
    message = fails([*settings, f"--output={small_disk / 'run'}", "--export=hf"])
    assert "MB free" in message and not (small_disk / "run").exists()


def test_a_disk_that_is_really_full(settings, small_disk, monkeypatch):
    """Somebody else fills it while the run goes on: there was room when it was looked at."""
    monkeypatch.setattr(train_module, "check_space", lambda *_: None)
    main([*settings, "--output=whole", "--save-every=0", "--export=hf"])
    size = Path("whole/checkpoint/step-00000007.safetensors").stat().st_size
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (2**20 - 2 * size - 20_000))
    output = str(small_disk / "run")
    message = fails([*settings, f"--output={output}", "--keep=9"])
    assert "cannot be written" in message and "No space left" in message
    saved = checkpoints(output)
    assert saved and not any(name.startswith(".") for name in saved)
    filler.unlink()
    message = fails(["--resume", f"--output={output}", "--keep=1", "--export=hf"])
    assert "merged" in message and "No space left" in message
    assert names(output) == [
        *("adapter", "checkpoint", "config.toml", "manifest.json", "metrics.jsonl")
    ]
    assert results(output) == results("whole")


@contextmanager
def as_nobody():
    """Permission bits bind everyone but root: be somebody else for a while."""
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="becomes another user: needs root")
def test_folders_one_may_not_write_in(settings, monkeypatch):
    with as_nobody():
        if not os.access(train_module.__file__, os.R_OK):
            pytest.skip("minibule is installed in a folder that is closed to other users")
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to nobody
        monkeypatch.chdir(shutil.copytree(".", name, dirs_exist_ok=True))
        Path(name).chmod(0o755)
        settings = [*settings, "--output=run"]
        main([*settings, "--export=hf"])
        before = results("run")
        with as_nobody():
            assert "may not write in" in fails([*settings, "--output=other"])
            assert "may not write in" in fails(["--resume", "--output=run"])
        for closed in ("run/checkpoint", "run/adapter", "run/merged", "run/metrics.jsonl"):
            for path in (Path("run"), *Path("run").rglob("*")):
                os.chown(path, 65534, 65534)
            shutil.rmtree("run/checkpoint")  # so that all of it is done again
            Path("run/checkpoint").mkdir()
            os.chown("run/checkpoint", 65534, 65534)
            os.chown(closed, 0, 0)
            Path(closed).chmod(0o755 if Path(closed).is_dir() else 0o644)
            with as_nobody():
                message = fails(["--resume", "--output=run"])
            assert closed in message and "Permission denied" in message
            assert results("run")[0] == before[0] and not list(Path("run").rglob("*.partial"))
        monkeypatch.undo()


# -- a rehearsal -----------------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(settings, capsys):
    before = names(".")
    main([*settings, "--dry-run", "--export=hf,gguf:q8_0"])
    out = capsys.readouterr().out
    assert names(".") == before
    for text in ("rows  ", "tokens  ", "steps      7,", "memory  ", "runs/tiny/model-q8_0.gguf"):
        assert text in out
    main([*settings, "--output=run"])
    lines = [json.loads(x) for x in Path("run/metrics.jsonl").read_text().splitlines()]
    tokens = [line["tokens"] for line in lines[:3]]  # of the first epoch
    assert f"{np.median(tokens):,.0f} a step (median), {max(tokens):,} (largest)" in out
    assert f"rows       {sum(line['rows'] for line in lines[:3]):,} in the 3 steps" in out
    assert "earlier run" in fails([*settings, "--dry-run", "--output=run"])


def test_a_dry_run_knows_the_memory(capsys, started):
    """Within 15 % of what the run then takes, each in a process of its own."""
    flags = ["--steps=10", "--export=hf", f"--data={embedded_folder() / 'records.jsonl'}"]
    dry, _ = (process := started(*flags, "--dry-run")).communicate()
    assert process.returncode == 0, dry
    real, _ = (process := started(*flags, "--output=run")).communicate()
    assert process.returncode == 0, real
    expected = float(dry.partition("memory     ")[2].split()[0])
    measured = float(real.partition("peak memory ")[2].split()[0])
    assert expected == pytest.approx(measured, rel=0.15)


# -- the outside world -----------------------------------------------------------------------------


def test_training_opens_no_socket(settings, monkeypatch):
    def closed(*_, **__):
        raise AssertionError("training went to the network")

    monkeypatch.setattr(socket, "socket", closed)
    monkeypatch.setattr(socket, "create_connection", closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)
    main([*settings, "--output=run", "--export=hf"])
    assert Path("run/merged").exists()


# -- tools/survive.py ------------------------------------------------------------------------------


def test_survive(tmp_path, capsys):
    import survive

    assert survive.kill(1, 4, 2, tmp_path / "") is True
    out = capsys.readouterr().out
    assert "checkpoints unreadable                  0" in out
    with (tmp_path / "run-0" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5}\n')
    assert survive.differences(tmp_path / "run-0", tmp_path / "never-killed") == ["metrics.jsonl"]
    assert survive.long(40, 1e6, tmp_path) is True
    assert "bytes a step" in capsys.readouterr().out


def test_survive_export(tmp_path, capsys):
    import survive

    assert survive.die("export", 1, 0, tmp_path) is True
    assert "outputs not whole, or something left    0" in capsys.readouterr().out


def test_survive_sees_what_is_not_whole_and_what_is_left(tmp_path):
    import survive

    code = """
import sys, time, pathlib, secrets
path = pathlib.Path(sys.argv[1])
path.with_name(f".{secrets.token_hex(4)}.partial").touch()
path.write_text("half")
time.sleep(0.5)
path.write_text("whole")
"""
    (tmp_path / "place").mkdir()
    (tmp_path / "expected").write_text("whole")
    output = tmp_path / "place" / "output"
    death = survive.one_death(
        "1", [sys.executable, "-c", code, output], output, tmp_path / "expected"
    )
    assert death.in_write and "output is not whole" in death.lost
    assert sum("is left behind" in line for line in death.lost) == 2
