"""What a program prints, and to whom: no text commands a terminal, no reader's leaving ends it."""

import ast
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from broken import change_json
from helpers import ROOT

from minibule.files import embedded_folder
from minibule.program import command_line

# Writes the clipboard, clears the screen, rings, goes back, turns the writing round; \x9b is ESC [.
HOSTILE = "\x1b]52;c;eA==\x07\x1b[2J\x08\r\x7f\x9b1m\u202e"
SHOWN = r"\x1b]52;c;eA==\x07\x1b[2J\x08\r\x7f\x9b1m\u202e"
ENV = {"PYTHONPATH": str(ROOT), "PATH": "/bin:/usr/bin", "OPENBLAS_NUM_THREADS": "1"}


def commands_in(output):
    """The control characters of an output, but for tabs, ends of lines, and how a bar begins."""
    text = output.decode()
    return re.findall(r"[^\n\t\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\U0010ffff]", text)


def run(*words, **more):
    more = {"capture_output": True, "env": ENV, "timeout": 120, "check": False} | more
    return subprocess.run([sys.executable, *map(str, words)], **more)


def program(body, **more):
    """What a program of these lines prints, run as every command is."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    head = "import os, sys, warnings\nfrom tqdm import tqdm\nfrom minibule import program\n"
    head += "from minibule.errors import InputError\nfrom minibule.settings import Parser\n"
    head += f"text = {HOSTILE!r}\n"
    return run("-c", f"{head}def main(argv):\n{lines}\nprogram.run(main)", **more)


WAYS = {
    "print": "print(text)",
    "in pieces": "print('a', end='')\nprint(text[:1], end='')\nprint(text[1:], flush=True)",
    "standard error": "print('a', text, file=sys.stderr)",
    "write": "sys.stdout.write(text)",
    "writelines": "sys.stdout.writelines(['a', text])",
    "beside a bar": "tqdm.write(text)",
    "a bar": "for _ in tqdm(range(2), desc=text): pass",
    "a bar's figures": "with tqdm(total=1) as bar: bar.set_postfix_str(text)",
    "a warning": "warnings.warn(text)",
    "bad input": "raise InputError(text)",
    "a name": "open('/no/such/' + text)",
    "a flag": "Parser(prog='x').parse_args([text])",
    "help": "Parser(prog=text).parse_args(['--help'])",
    "bold": "program.print_bold(text)",
}


@pytest.mark.parametrize("way", WAYS)
def test_no_text_commands_a_terminal(way):
    done = program(WAYS[way])
    said = (done.stdout + done.stderr).decode()
    assert SHOWN in said
    own = {"bold": ["\x1b", "\x1b"]}.get(way, ["\r"] * said.count("\r"))
    assert commands_in(said.encode()) == own


def test_text_of_all_languages_stays():
    text = "naïve\t数\u3000字 👩\u200d🔬 \u0645\u06cc\u200c\u062e\u0648 10\u202f000 \\x1b"
    assert program(f"print({text!r})").stdout.decode() == text + "\n"


def test_bars_are_drawn():
    body = "for _ in tqdm(range(3), desc='outer'):\n    for _ in tqdm(range(2)): pass"
    drawn = program(body).stderr.decode()
    assert "\router: 100%" in drawn and "\x1b[A" in drawn
    assert "\\r" not in drawn and "\\x1b" not in drawn


def test_there_is_no_other_way_to_print():
    """Each program starts through `run`, and no module writes past the streams that it sets."""
    past = re.compile(
        r"os\.write|__std(out|err)__|std(out|err)\.(buffer|fileno|detach)|/dev/(tty|std)"
    )
    asked = ("text/template.py", "evaluate/own_judge.py")  # other sides: see machine/process.py
    mains = 0
    for path in (ROOT / "minibule").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT / "minibule").as_posix()
        if name != "program.py":
            assert not past.search(source), name
            if "__main__" in source and name not in asked:
                mains += 1
                assert source.endswith('if __name__ == "__main__":\n    run(main)\n'), name
    assert mains > 7
    program = (ROOT / "minibule" / "program.py").read_text(encoding="utf-8")
    (written,) = [
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.write"
    ]
    assert isinstance(written.args[1], ast.Constant)  # inside a signal's handler


# -- from files and names to the screen ------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """The embedded model, its answers ending in commands: its decoder puts them behind."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in embedded_folder().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change_json(
        folder / "tokenizer.json",
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
                {"type": "Replace", "pattern": {"String": "hello"}, "content": HOSTILE},
            ],
        },
    )
    return folder


def only_text(done, status=0, shown=SHOWN):
    assert done.returncode == status, done.stderr
    assert commands_in(done.stdout) == [] == commands_in(re.sub(rb"\r|\x1b\[A", b"", done.stderr))
    assert shown.encode() in done.stdout + done.stderr, done


@pytest.mark.parametrize("flags", [[], ["-n", "2", "--temperature", "1e-9"]])
def test_an_answer(model, flags):
    done = run("-m", "minibule.generate", "--model", model, "--prompt", "hello", *flags)
    only_text(done, shown=SHOWN if flags else SHOWN[-20:])  # alone, it is printed as it comes


def test_a_talk(model, tmp_path):
    words = ("-m", "minibule.chat", "--model", model, "--output", tmp_path / "taught")
    only_text(run(*words, input=b"hello\n/reject\n"), shown=SHOWN[-20:])
    words = (*words[:-1], tmp_path / f"taught{HOSTILE}")
    only_text(run(*words, input=b"hello\n/reject\n"), shown=f"taught{SHOWN}")


def test_a_run_and_its_report(model, tmp_path):
    output = tmp_path / f"run{HOSTILE}"
    words = ("--model", model, "--data", model / "records.jsonl", "--steps=1", "--export=none")
    words = (*words, "--probe=hello", "--eval-fraction=0", "--lora-r=1", "--output", output)
    only_text(run("-m", "minibule.train", *words))
    only_text(run("-m", "minibule.report", output))
    change_json(output / "before.json", **{HOSTILE: 1})
    done = run("-m", "minibule.report", output)
    only_text(done, 2)
    with (output / "config.toml").open("a") as file:
        file.write(f"{json.dumps(HOSTILE)} = 1\n")
    only_text(run("-m", "minibule.report", output), 2)


def template(folder):
    pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
    source = f"{{{{ raise_exception({json.dumps(HOSTILE)}) }}}}"
    change_json(folder / "tokenizer_config.json", chat_template=source)


def tensor(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    name = json.dumps(HOSTILE).encode()
    header = data[8:end].replace(b'"model.norm.weight"', name)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])


@pytest.mark.parametrize("spoil", [template, tensor])
def test_a_refused_model(model, spoil):
    spoil(model)
    only_text(run("-m", "minibule.generate", "--model", model, "--prompt", "hello"), 2)


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "--prompt", "x", "--model", HOSTILE),
        ("export", "--format", "hf", "--output", "x", "--adapter", HOSTILE),
        ("records", HOSTILE),
        ("report", HOSTILE),
        ("train", "--config", HOSTILE),
        ("train", "--heldout", HOSTILE),
        (HOSTILE,),
    ],
    ids=str,
)
def test_a_name_on_the_command_line(words, tmp_path):
    only_text(run("-m", "minibule", *words, cwd=tmp_path), 2)


def test_out_of_memory_names_what_the_command_can_do():
    """Each with the words of its own flags, not with those of another."""
    code = """
import contextlib, sys
from importlib import import_module
from minibule import program
from minibule.settings import Parser
parse = Parser.parse_args
def parse_and_fail(*words):
    parse(*words)
    raise MemoryError
Parser.parse_args = parse_and_fail
for words in (["train"], ["generate", "--prompt=x"], ["records", "x"]):
    sys.argv = words
    with contextlib.suppress(SystemExit):
        program.run(import_module(f"minibule.{words[0]}.__main__").main)
"""
    done = run("-c", code)
    train, generate, records = done.stderr.decode().splitlines()
    assert "--pass-tokens smaller, --memory low" in train and "-n" not in train.split()
    assert "--max-new-tokens smaller, -n smaller" in generate and "--memory" not in generate
    assert "--" not in records and records.startswith("error: out of memory. Expected a smaller")


# -- a reader who leaves ---------------------------------------------------------------------------


def left():
    """The end to write to of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "wb")


@pytest.mark.parametrize("end", ["| head -1", ">&-", "2>&-", ">&- 2>&-", "2>&1 | true"])
def test_a_run_goes_on_where_nobody_reads(tmp_path, end):
    records = embedded_folder() / "records.jsonl"  # named, so that nothing else is asked
    flags = f"--steps=3 --save-every=1 --export=none --data={records} --output=run"
    flags += " --lora-r=1 --batch-size=1 --eval-fraction=0 --probe="
    shell = f"set -o pipefail; {sys.executable} -m minibule.train {flags} {end}"
    more = {"cwd": tmp_path, "env": ENV, "capture_output": True, "timeout": 120}
    done = subprocess.run(["bash", "-c", shell], check=False, **more)
    assert done.returncode == 0 and b"Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_printed_to_nobody_is_lost_and_nothing_else(tmp_path, stream):
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "capture_output": False}
    body = f"for _ in range(99): print('x' * 999, file=sys.{stream})\n"
    with left() as nobody:
        streams[stream] = nobody
        done = program(body + "open('end', 'w').close()", cwd=tmp_path, **streams)
    assert done.returncode == 0 and not done.stdout and not done.stderr
    assert (tmp_path / "end").exists()


def test_what_only_prints_ends_with_its_reader():
    with left() as nobody:
        streams = {"stdout": nobody, "stderr": subprocess.PIPE, "capture_output": False}
        done = program("while True: print('x' * 99); program.leave_if_unread()", **streams)
        assert done.returncode == 1 and not done.stderr
        done = run("-m", "minibule.explain", "--tiny-vocab", **streams)
        assert done.returncode == 1 and not done.stderr
        words = ("-m", "minibule.generate", "--prompt=hello", "--raw", "--max-new-tokens=1900")
        done = run(*words, "--temperature=1", **streams)
        assert done.returncode == 1 and not done.stderr


def test_a_full_disk_is_no_reader_who_left():
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        streams = {"stdout": full, "stderr": subprocess.PIPE, "capture_output": False}
        done = program("print('x')", **streams)
    assert done.returncode == 2 and b"No space left on device" in done.stderr


@pytest.mark.parametrize(
    ("module", "program", "shown"),
    [
        ("minibule.train.__main__", "/x/minibule/train/__main__.py", "python -m minibule.train"),
        ("minibule.__main__", "/x/minibule/__main__.py", "python -m minibule"),
        (None, "/usr/bin/minibule", "minibule"),
    ],
)
def test_the_command_is_shown_as_it_was_typed(module, program, shown, monkeypatch):
    spec = module and SimpleNamespace(name=module)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(sys, "argv", [program, "--output", "a b", "caf\udce9"])
    assert command_line() == f"{shown} --output 'a b' 'caf\\udce9'"
