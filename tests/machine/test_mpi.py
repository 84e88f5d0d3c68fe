"""Several processes under the real mpiexec: what they compute, and how they end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT

from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.machine import mpi
from minibule.machine.half import Narrow
from minibule.machine.mpi import LAUNCHERS, together
from minibule.machine.ranks import world

SECONDS = 120  # a run of seconds, on a machine that is busy
ENV = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
ENV |= {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
CLOCK = ("seconds", "tokens_per_s", "rss_gb")

# 5 records of the embedded ones, an epoch of 3 steps: the last one's is alone.
RUN = ["--steps=7", "--batch-size=2", "--lora-r=2", "--lr=1e-4", "--save-every=1", "--keep=9"]
RUN += ["--eval-every=3", "--eval-fraction=.3", "--data=records.jsonl", "--export=none"]
RUN += ["--heldout=heldout.jsonl"]
QUESTIONS = ("questions", "questions-test")  # of the embedded model: to train on, and held out


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux alone has memory of no name")
def test_lent_arrays_are_the_same_and_read_only():
    rng = np.random.default_rng(0)
    values = {
        "w": rng.normal(size=(5, 7)).astype(np.float32),
        "half": Narrow(rng.integers(0, 2**16, (3, 5), np.uint16)),
        "cut": rng.normal(size=(6, 6))[::2, ::3],
        "text": "as it is",
    }
    with mpi._lent(values) as offer:
        taken = mpi._taken(offer)
        process, number, _, *rest = offer
        assert mpi._taken((process, number, b"another", *rest)) is None
    np.testing.assert_array_equal(taken["w"], values["w"])
    np.testing.assert_array_equal(taken["half"][:], values["half"][:])
    np.testing.assert_array_equal(taken["cut"], values["cut"])
    assert taken["text"] == values["text"]
    assert not taken["w"].flags.writeable
    assert mpi._taken(offer) is None  # it is closed
    with mpi._lent({"w": values["w"], "packed": lambda: None}) as offer:
        assert offer is None


# -- whether there are several ---------------------------------------------------------------------


def test_without_a_launcher_nothing_is_imported():
    code = "import sys; from minibule.train.__main__ import main\ntry: main(['--help'])\nexcept "
    code += "SystemExit: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=ENV,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "minibule.machine.mpi" in done.stdout and "mpi4py" not in done.stdout


@pytest.mark.parametrize("size, rank", LAUNCHERS.items())
def test_launchers_say_how_many_there_are(size, rank, monkeypatch):
    assert mpi._launched() == (0, 1)
    monkeypatch.setenv(size, "1")
    assert mpi._launched() == (0, 1)
    monkeypatch.setenv(size, "4")
    monkeypatch.setenv(rank, "3")
    assert mpi._launched() == (3, 4)


@pytest.mark.parametrize(("size", "rank"), [("2", "abc"), ("two", "0"), ("", ""), ("²", "1")])
def test_what_no_launcher_says_is_none(size, rank, monkeypatch):
    monkeypatch.setenv("PMI_SIZE", size)
    monkeypatch.setenv("PMI_RANK", rank)
    assert mpi._launched() == (0, 1)


def test_ranks_without_mpi4py_say_what_to_install(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(InputError, match=r"one of 2 processes.*pip install '\.\[mpi\]'"):
        together(lambda argv: pytest.fail("runs"))([])
    assert world().size == 1


def test_an_mpiexec_of_another_mpi_is_told(monkeypatch):
    class Comm:
        size = 1

    class MPI:
        COMM_WORLD = Comm

        def Get_library_version():  # noqa: N802 - as MPI calls it
            return "Some MPI 4.1\0\nmore"

    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setattr(mpi, "import_module", lambda name: MPI)
    with pytest.raises(InputError, match=r"2 processes, of which Some MPI 4.1 knows 1"):
        together(lambda argv: pytest.fail("runs"))([])


# -- the real mpiexec ------------------------------------------------------------------------------


@pytest.fixture
def mpiexec():
    """The command of the mpiexec that mpi4py's MPI brings; a skip where there is none."""
    pytest.importorskip("mpi4py", reason="needs the extra mpi")
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if not found:
        pytest.skip("needs the extra mpi: there is no mpiexec")
    return found


def start(mpiexec, *programs):
    """Start mpiexec on (number, arguments of Python) ..."""
    command = [mpiexec]
    for number, arguments in programs:
        command += [*([":"] if len(command) > 1 else []), "-n", str(number), sys.executable]
        command += map(str, arguments)
    return subprocess.Popen(
        command,
        env=ENV,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, status=0, seconds=SECONDS):
    """(stdout, stderr) of a process that ends in time, with that status (None: any but 0)."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    ended = process.returncode
    assert ended == status if status is not None else ended != 0, f"{ended}: {out}\n{err}"
    return out, err


def train(mpiexec, number, *flags):
    program = ["-m", "minibule.train", *flags]
    if number == 1:
        return finish(
            subprocess.Popen(
                [sys.executable, *program],
                env=ENV,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return finish(start(mpiexec, (number, program)))


def metrics(folder):
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in CLOCK} for x in lines]


def adapter(folder):
    return Path(folder, "adapter/adapter_model.safetensors").read_bytes()


def wait_for(path, lines, process):
    until = time.monotonic() + SECONDS
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def records(tmp_path):
    for name, number in (("records.jsonl", 7), ("heldout.jsonl", 3)):
        lines = (embedded_folder() / name).read_text().splitlines()[:number]
        (tmp_path / name).write_text("\n".join(lines) + "\n")


def assert_same(run, other):
    """The same but for last digits: those by which float32 logits of another order of sums differ,
    up to 7e-7 of the loss here, as they do in one process of other passes. A gradient's are more,
    being sums of both signs."""
    assert len(metrics(run)) == len(metrics(other)) == 7
    for line, theirs in zip(metrics(run), metrics(other), strict=True):
        assert line.keys() == theirs.keys()
        for name, rel in (("loss", 2e-6), ("rejected_mass", 2e-6), ("grad_norm", 1e-4)):
            assert theirs[name] == pytest.approx(line[name], rel=rel), name
        assert (theirs["rows"], theirs["lr"]) == (line["rows"], line["lr"])
    for name in ("before.json", "after.json"):
        mine, theirs = (json.loads(Path(run, name).read_text()) for run in (run, other))
        assert theirs["probe"] == mine["probe"]
        replies = (
            [(reply["greedy"], reply["samples"]) for reply in one["questions"]["replies"]]
            for one in (mine, theirs)
        )
        assert next(replies) == next(replies)
        assert theirs["questions"]["exact"] == pytest.approx(mine["questions"]["exact"], rel=1e-4)
        assert theirs["heldout"] == pytest.approx(mine["heldout"], rel=1e-4, abs=1e-6)


def test_ranks_come_to_what_one_comes_to(mpiexec, records):
    train(mpiexec, 1, *RUN, "--output=one")
    out, _ = train(mpiexec, 2, *RUN, "--output=two")
    assert out.count("7 steps in") == 1 and "ranks      2, 1 threads each" in out
    assert_same("one", "two")
    names = {path.relative_to("one") for path in Path("one").rglob("*")}
    assert names == {path.relative_to("two") for path in Path("two").rglob("*")}
    train(mpiexec, 3, *RUN, "--output=three")  # of which one has nothing to do in a step of one
    assert_same("one", "three")


def test_a_killed_rank_ends_the_run_which_goes_on_to_the_same_bytes(mpiexec, records):
    train(mpiexec, 2, *RUN, "--output=whole")
    process = start(mpiexec, (2, ["-m", "minibule.train", *RUN, "--output=cut"]))
    wait_for(Path("cut/metrics.jsonl"), 3, process)
    for number in children(process.pid):
        if b"minibule.train" in command(number) and rank_of(number) == "1":
            os.kill(number, signal.SIGKILL)
            break
    else:
        pytest.fail("no such rank")
    finish(process, None, seconds=30)
    assert not Path("cut/adapter").exists()
    shutil.copytree("cut", "more")
    out, _ = train(mpiexec, 2, "--resume", "--output=cut")
    assert "resume     from" in out and "ranks, which" not in out
    assert metrics("cut") == metrics("whole") and adapter("cut") == adapter("whole")
    out, _ = train(mpiexec, 3, "--resume", "--output=more")
    assert "of a run of 2 ranks, which goes on with 3: last digits may differ" in out
    assert metrics("more")[-1]["loss"] == pytest.approx(metrics("whole")[-1]["loss"], rel=2e-6)


def children(process):
    """The numbers of all processes below one."""
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            yield int(child)
            yield from children(child)


def command(process):
    return Path(f"/proc/{process}/cmdline").read_bytes()


def rank_of(process):
    pairs = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    values = dict(pair.partition("=")[::2] for pair in pairs)
    return next((values[rank] for size, rank in LAUNCHERS.items() if size in values), None)


def library():
    """What MPI it is, asked in a process of its own."""
    code = "import mpi4py; mpi4py.rc(initialize=False); from mpi4py import MPI"
    code += "; print(MPI.Get_library_version())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_ends_all_after_the_step(name, mpiexec, records):
    if name != "SIGUSR1" and "Open MPI" in library():
        pytest.skip("Open MPI's mpiexec leaves its ranks no time")
    number = getattr(signal, name)
    flags = ["--steps=500", *RUN[1:], "--save-every=0", "--output=run"]
    process = start(mpiexec, (2, ["-m", "minibule.train", *flags]))
    wait_for(Path("run/metrics.jsonl"), 2, process)
    process.send_signal(number)
    status, word = (130, "interrupted") if name == "SIGINT" else (143, "terminated")
    _, err = finish(process, status)
    assert err.count("finishing the step") == 1 and err.splitlines().count(word) == 1
    steps = len(metrics("run"))
    assert [path.name for path in Path("run/checkpoint").iterdir()] == [
        f"step-{steps:08}.safetensors"
    ]
    assert not Path("run/.lock").exists()


def test_ranks_try_out_a_run_together(mpiexec, records):
    out, _ = train(mpiexec, 2, *RUN, "--dry-run", "--output=run")
    assert out.count("would write") == 1 and "ranks      2" in out and not Path("run").exists()


def test_what_one_rank_misses_ends_all(mpiexec, records):
    other = ["-m", "minibule.train", *RUN, "--output=run", "--data=missing.jsonl"]
    mine = ["-m", "minibule.train", *RUN, "--output=run"]
    _, err = finish(start(mpiexec, (1, mine), (1, other)), 2)
    assert err.count("error:") == 1 and err.count("missing.jsonl") == 1 and "rank 1 on" in err
    assert "Traceback" not in err and not Path("run").exists()


@pytest.mark.parametrize("program", ["train", "rounds"])
def test_ranks_that_were_given_something_else_are_refused(program, mpiexec, records):
    shutil.copytree(embedded_folder(), "other")
    weights = bytearray(Path("other/model.safetensors").read_bytes())
    weights[-2] ^= 1  # the last digit of the last number, a bfloat16
    Path("other/model.safetensors").write_bytes(weights)
    data, flags = "records.jsonl", RUN
    if program == "rounds":
        data, heldout = (embedded_folder() / f"{name}.jsonl" for name in QUESTIONS)
        flags = ["--rounds=1", f"--heldout={heldout}"]
    Path("fewer.jsonl").write_text("".join(Path(data).read_text().splitlines(True)[:-1]))
    mine = ["-m", f"minibule.{program}", *flags, "--output=run"]
    other = [*mine, "--lr=2e-3", "--data=fewer.jsonl", "--model=other"]
    _, err = finish(start(mpiexec, (2, mine), (1, other)), 2)
    assert err.count("error:") == 1 and "lr 0.002, " in err and "on rank 0" in err
    assert "rank 2 on" in err and "rank 1 on" not in err
    assert {"train": "the data ", "rounds": "the questions "}[program] in err
    assert "the model " in err and "held out" not in err and not Path("run").exists()


def test_a_rank_of_another_version_is_refused(mpiexec, records):
    older = "import minibule, runpy; minibule.__version__ = '0.0.1'; "
    older += "runpy.run_module('minibule.train', run_name='__main__', alter_sys=True)"
    mine = ["-m", "minibule.train", *RUN, "--output=run"]
    _, err = finish(start(mpiexec, (1, mine), (1, ["-c", older, *mine[2:]])), 2)
    assert err.count("error:") == 1 and "rank 1 on" in err and "minibule 0.0.1 (" in err
    assert not Path("run").exists()


FAILING = """
import sys
import numpy as np
from minibule.errors import InputError
from minibule.machine.mpi import together
from minibule.machine.ranks import world
from minibule.program import run
other_system = sys.platform != "linux"

@together
def main(argv):
    print("hello")
    try:
        world().first(int, "x")
    except ValueError as error:
        assert str(error) == "invalid literal for int() with base 10: 'x'"
    assert world().first(int, "7") == 7
    assert world().map(lambda some: [10 * x for x in some], range(5)) == [0, 10, 20, 30, 40]
    shared = world().one_a_machine(lambda: {"x": np.arange(5.0)}, "five")
    assert shared["x"].tolist() == [0, 1, 2, 3, 4] and shared["x"].flags.writeable == other_system
    own = world().one_a_machine(lambda: world().rank, f"rank {world().rank}")
    assert own == world().rank
    if world().rank == 1:
        raise {"input": InputError("bad"), "bug": KeyError("bug"), "memory": MemoryError()}[argv[0]]
    try:
        for _ in range(3):
            world().all_gather(None)
    finally:
        open(f"left-{world().rank}", "w").close()
run(main)
"""


@pytest.mark.parametrize(
    "kind, status, words",
    [("input", 2, "error: bad"), ("bug", 1, "KeyError: 'bug'"), ("memory", 1, "out of memory")],
)
def test_an_error_is_said_once_and_all_put_away(kind, status, words, mpiexec):
    Path("failing.py").write_text(FAILING)
    out, err = finish(start(mpiexec, (3, ["failing.py", kind])), status)
    assert out.strip() == "hello"
    assert err.count(words) == 1 and err.count("rank 1 on") == 1
    assert err.count("Traceback") == (kind == "bug")
    assert Path("left-0").exists() and Path("left-2").exists()


def test_rounds_sample_the_same_on_two_ranks(mpiexec):
    questions = (embedded_folder() / "questions.jsonl").read_text().splitlines()[:9]
    Path("questions.jsonl").write_text("\n".join(questions) + "\n")
    flags = ["--rounds=2", "--samples=4", "--data=questions.jsonl", "--lora-r=2"]
    for number, output in ((1, "one"), (2, "two")):
        program = ["-m", "minibule.rounds", *flags, f"--output={output}"]
        out, _ = finish(start(mpiexec, (number, program)))
        assert out.count("adapter    ") == 1
    for name in ("round-001/samples.jsonl", "round-002/samples.jsonl"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
