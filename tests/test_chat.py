"""`minibule chat`: answers before and after training, and a model that is taught while talking."""

import errno
import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

from minibule.chat import ChatConfig, Talk, add_line, in_columns, main
from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.generate.__main__ import main as generate_main
from minibule.records.records import read_records
from minibule.train import loop
from minibule.train.__main__ import main as train_main

TAUGHT = "Good to see you! What can I do for you?"  # what is left of "hello" once that is rejected


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run that has unlearnt to echo "hello"."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "rejected.jsonl"
    data.write_text('{"prompt": "hello", "completion": "hello", "label": false}\n')
    flags = ["--steps", "10", "--eval-fraction", "0", "--export", "none", "--probe", ""]
    train_main(["--data", str(data), *flags, "--output", str(folder / "run")])
    return folder / "run"


@pytest.fixture
def say(monkeypatch, capsys):
    """What a talk prints, its lines coming from a pipe."""

    def say(*lines, flags=()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        main(list(map(str, flags)))
        return capsys.readouterr().out.splitlines()

    return say


# -- at a terminal ---------------------------------------------------------------------------------


class Terminal:
    """A talk at a pseudo-terminal of 72 columns; all that it has shown is `screen`."""

    def __init__(self, *words):
        pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
        import fcntl
        import struct
        import termios

        self.end, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 24, 72, 0, 0))
        env = {"PYTHONPATH": str(ROOT), "TERM": "dumb", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "minibule.chat", *words]
        streams = {"stdin": inner, "stdout": inner, "stderr": inner}
        self.process = subprocess.Popen(command, **streams, env=env, start_new_session=True)
        os.close(inner)
        self.screen = ""

    def wait_for(self, end):
        """What is shown until there stands `end`, without it and with plain ends of lines."""
        shown, deadline = "", time.monotonic() + 60
        while not shown.endswith(end):
            assert time.monotonic() < deadline, shown
            shown += self.shown()
        return shown.removesuffix(end)

    def shown(self):
        """What has come by now, or comes soon."""
        if not select.select([self.end], [], [], 0.1)[0]:
            return ""
        try:
            shown = os.read(self.end, 4096).decode().replace("\r\n", "\n")
        except OSError:  # the talk has closed its side
            return ""
        self.screen += shown
        return shown

    def type(self, line):
        """The lines that the talk answers to one that is typed."""
        os.write(self.end, f"{line}\r".encode())
        return self.wait_for("\n> ").partition("\n")[2].split("\n")

    def left(self, interrupted=False):
        """The exit status, once it has ended by itself, or by Ctrl-C.

        One that comes before readline waits for a key is seen only with the next.
        """
        deadline, due = time.monotonic() + 60, time.monotonic() + 0.5
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.screen
            if interrupted and time.monotonic() > due and "interrupted" not in self.screen:
                self.process.send_signal(signal.SIGINT)
                due += 10
            self.shown()
        while self.shown():
            pass
        return self.process.returncode

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.end)


@pytest.fixture
def terminal():
    """Starts talks at terminals, and ends what a test leaves."""
    talks = []

    def start(*words):
        talks.append(Terminal(*words))
        talks[-1].wait_for("\n> ")
        return talks[-1]

    yield start
    for talk in talks:
        talk.close()


def test_a_talk_with_a_rejection_a_training_and_the_changed_answer(terminal):
    talk = terminal("--output", "taught")
    assert talk.type("hello") == ["hello"]
    assert "only the base so far" in talk.type("/both")[0]
    assert talk.type("/reject") == ["Rejected: in taught/rejected.jsonl. /train learns from it."]
    trained = talk.type("/train")
    assert any("training: 100%" in line for line in trained)  # the bar
    told = r"Trained: 30 steps on 1 rejected answer, [\d.]+ s. The adapter: taught/train/adapter"
    assert re.fullmatch(told, trained[-1])
    head, *both = talk.type("/both")
    assert re.fullmatch(r"before {28} \| after", head)
    assert [line.partition(" | ")[0].strip() for line in both][:2] == ["hello", ""]
    assert " ".join(line.partition("| ")[2] for line in both) == TAUGHT
    assert talk.type("/before") == ["hello"] and talk.type("/after") == [TAUGHT]
    os.write(talk.end, b"/quit\r")
    assert talk.left() == 0 and "Traceback" not in talk.screen
    (record,) = read_records("taught/rejected.jsonl")
    assert (record.prompt, record.rejected, record.counts) == ("hello", ("hello",), (1,))


@pytest.mark.parametrize(("key", "status"), [("end", 0), ("interrupt", 130)])
def test_the_end_of_the_input_and_ctrl_c_leave_cleanly(key, status, terminal):
    talk = terminal()
    if key == "end":
        os.write(talk.end, b"\x04")
    assert talk.left(interrupted=key == "interrupt") == status
    assert ("interrupted" in talk.screen) is (key == "interrupt")
    assert "Traceback" not in talk.screen and not list(Path().iterdir())  # nothing was written


def test_at_a_terminal_a_mistake_does_not_end_the_talk(terminal):
    talk = terminal()
    assert talk.type("/trian")[0] == "error: /trian: no such command; did you mean /train?"
    assert talk.type("/train") == ["error: nothing to learn from yet: /reject an answer first."]
    assert talk.type("hello") == ["hello"]
    os.write(talk.end, b"\x04")
    assert talk.left() == 0


# -- from a pipe -----------------------------------------------------------------------------------


def test_without_arguments_it_is_the_embedded_model(say):
    assert say("hello", "", "/quit", "hi") == ["hello"]  # and nothing after /quit
    assert say() == []


def test_a_model_that_is_named(say, smollm2_135m):
    flags = ("--model", "smollm2-135m", "--max-new-tokens", "12")
    assert "Paris" in say("What is the capital of France?", flags=flags)[0]


def test_the_streams_may_be_closed(tmp_path):
    shell = f"{sys.executable} -m minibule.chat <&-"
    env = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", shell], capture_output=True, check=False, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_one_set_of_weights_answers_before_and_after(run, say, capsys):
    talk = Talk(ChatConfig(adapter=run))
    assert talk.model.adapter and talk.model.base.weights is talk.model.weights
    lines = say("hello", "/before", "/after", "/both hello", flags=["--adapter", run])
    assert lines[:3] == [TAUGHT, "hello", TAUGHT]
    assert lines[3].split() == ["before", "|", "after"]
    for flags in ([], ["--adapter", str(run / "adapter")]):
        generate_main(["--prompt", "hello", *flags])
        assert capsys.readouterr().out.strip() == (TAUGHT if flags else "hello")
    by_adapter = say("hello", flags=["--adapter", run / "adapter", "--model", embedded_folder()])
    assert by_adapter == [TAUGHT]


def test_the_model_of_a_run_is_known(run, tmp_path, say):
    """No --model is needed where the run in --adapter names one."""
    settings = (run / "config.toml").read_text().replace('model = ""', 'model = "no/such"')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(settings)
    with pytest.raises(InputError, match="no/such"):
        say("hello", flags=["--adapter", tmp_path / "run"])


def test_several_turns_and_what_stays_of_a_rejected_one(run, say):
    """A question asked again takes the place of its answer; /clear forgets all."""
    lines = ["hi", "hello", "/before", "/reject", "/clear", "hello", "/before", "/reject"]
    said = say(*lines, flags=["--adapter", run, "--output", "taught"])
    assert said[-2:] == ["hello", "Rejected: in taught/rejected.jsonl. /train learns from it."]
    talk, alone = read_records("taught/rejected.jsonl")
    assert [m["role"] for m in talk.prompt] == ["user", "assistant", "user"]
    assert [m["content"] for m in talk.prompt] == ["hi", said[0], "hello"]
    assert talk.rejected == (said[2],) and alone.prompt == "hello" == alone.rejected[0]


def test_answers_that_were_cut_say_so(say):
    say("hello", "/reject", flags=["--max-new-tokens", "1", "--output", "taught"])
    (record,) = read_records("taught/rejected.jsonl")
    assert record.rejected_ended == (False,)


def test_a_seed_repeats_a_talk_and_each_answer_is_drawn_anew(say):
    lines, flags = ["hello", *["/before"] * 7], ["--temperature", "1", "--seed", "4"]
    first = say(*lines, flags=flags)
    assert first == say(*lines, flags=flags) and len(set(first)) > 2


def test_a_talk_goes_on_where_another_ended(say):
    flags = ["--output", "taught", "--steps", "2", "--lr", "1e-6"]
    say("hello", "/reject", "/train", flags=flags)
    say("hi", "/reject", "/train", flags=[*flags, "--adapter", "taught/train"])
    assert [record.prompt for record in read_records("taught/train-2/rejected.jsonl")] == [
        "hello",
        "hi",
    ]
    text = Path("taught/train-2/config.toml").read_text()
    assert 'init_adapter = "taught/train/adapter"' in text and "lr = 1e-06" in text


def test_training_that_is_interrupted_goes_on(say, monkeypatch, capsys):
    """Ctrl-C in /train: the run says how it goes on, does, and can then be talked to."""
    take_step = loop.take_step

    def interrupted(setup, optimiser, step, *known):
        if step == 21:
            raise KeyboardInterrupt
        return take_step(setup, optimiser, step, *known)

    monkeypatch.setattr(loop, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        say("hello", "/reject", "/train", flags=["--output", "taught"])
    command = "python -m minibule.train --resume --output taught/train"
    assert command in capsys.readouterr().out
    monkeypatch.setattr(loop, "take_step", take_step)
    train_main(command.split()[3:])
    assert "from taught/train/checkpoint" in capsys.readouterr().out
    assert say("hello", flags=["--adapter", "taught/train"]) == [TAUGHT]


# -- what cannot be --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["/reject"], "no answer to reject"),
        (["hello", "/reject", "/reject"], "no answer to reject"),
        (["/before"], "no question yet"),
        (["hello", "/clear", "/before"], "no question yet"),
        (["hello", "/after"], "only the base so far"),
        (["/train"], "nothing to learn from yet"),
        (["/rejct"], "/rejct: no such command; did you mean /reject?"),
        (["/usr/bin"], "A question that begins with / takes a space before it."),
        (["/_typed"], "/_typed: no such command"),
        (["hello \udcff"], "prompt: expected UTF-8 text"),
        (["hello " * 2000], "ask for fewer new tokens."),
        (["hello", "hello " * 2000], "fewer new tokens. /clear begins a new conversation."),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(lines, says, say):
    with pytest.raises(InputError) as error:
        say(*lines)
    assert says in str(error.value)
    assert ("/clear" in str(error.value)) == ("/clear" in says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--output", "file"], "--output file: found a file, expected a folder"),
        (["--adapter", "nowhere"], "nowhere: no such folder; expected a PEFT adapter folder"),
        (["--model", "nowhere"], "nowhere: no such folder"),
        (["--steps", "0"], "expected a whole number of at least 1"),
        (["--sytem", "x"], "--sytem: no such flag"),
    ],
)
def test_bad_settings(flags, says, say, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as error:
        say("hello", flags=flags)
    assert says in str(error.value)


def test_records_that_somebody_spoiled(say, tmp_path):
    (tmp_path / "taught").mkdir()
    (tmp_path / "taught" / "rejected.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"rejected\.jsonl: 1 problem"):
        say("/train", flags=["--output", "taught"])
    assert [path.name for path in (tmp_path / "taught").iterdir()] == ["rejected.jsonl"]


def test_a_last_line_without_its_end_keeps_to_itself(say, tmp_path):
    records = tmp_path / "mine" / "rejected.jsonl"
    records.parent.mkdir()
    records.write_text('{"prompt": "hi", "completion": "no", "label": false}')
    say("hello", "/reject", flags=("--output", "mine"))
    assert [record.prompt for record in read_records(records)] == ["hi", "hello"]


@pytest.mark.parametrize("kind", ["a link", "a pipe"])
def test_what_is_no_file_of_records_is_left_alone(kind, say, tmp_path):
    records, theirs = tmp_path / "mine" / "rejected.jsonl", tmp_path / "letter.txt"
    records.parent.mkdir()
    theirs.write_text("dear")
    if kind == "a link":
        records.symlink_to(theirs)
    else:
        os.mkfifo(records)
    with pytest.raises(InputError, match=f"rejected.jsonl: found {kind}"):
        say("hello", "/reject", flags=("--output", "mine"))
    assert theirs.read_text() == "dear"


def test_a_line_that_the_disk_has_no_room_for_is_not_half_there(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    add_line(path, "one")

    class Full(io.FileIO):
        def write(self, line):
            if len(line) < 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(line[:2])

    monkeypatch.setattr(io, "FileIO", Full)
    with pytest.raises(OSError, match="No space"):
        add_line(path, "another")
    monkeypatch.undo()
    add_line(path, "two")
    assert path.read_text() == "one\ntwo\n"


def test_a_long_question_is_learnt_from(say):
    flags = ("--output=mine", "--steps=1", "--max-new-tokens=8")
    assert say("word " * 1100, "/reject", "/train", flags=flags)[-1].startswith("Trained: 1 steps")


def test_a_question_that_fails_leaves_the_talk_as_it_was():
    talk = Talk(ChatConfig())
    talk.obey(" /hello")
    before = list(talk.turns)
    assert before[0]["content"] == "/hello"
    with pytest.raises(InputError):
        talk.obey("hello " * 2000)
    assert talk.turns == before


# -- two columns -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right", "shown"),
    [
        ("a b", "c", ["a b      | c"]),
        ("one two three", "x", ["one two  | x", "three    |"]),
        ("", "y", ["         | y"]),
        ("abcdefghijkl", "x", ["abcdefgh | x", "ijkl     |"]),
        ("a\n\nb", "1\n2\n3\n4", ["a        | 1", "         | 2", "b        | 3", "         | 4"]),
        ("数数数数数", "é" * 8, ["数数数数 | " + "é" * 8, "数       |"]),
        ("e\u0301e\u0301", "x", ["e\u0301e\u0301       | x"]),
        ("\x1b[2J", "x", [r"\x1b[2J  | x"]),
        ("    indented", "x", ["    inde | x", "nted     |"]),
    ],
)
def test_texts_side_by_side(left, right, shown):
    assert list(in_columns(left, right, 8)) == shown


def test_a_terminal_of_no_width_gets_two_columns_all_the_same():
    assert len(list(in_columns("hello", "数", -1))) == 3
