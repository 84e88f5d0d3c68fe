"""A short form of tools/mutate.py: damaged files of every kind load well or are refused.

It runs in a process of its own: what copies itself for every case must be no more than it needs.
"""

import os
import subprocess
import sys

import pytest
from helpers import ROOT

pytest.importorskip("jinja2", reason="needs pip install '.[templates]'")
if not hasattr(os, "fork"):
    pytest.skip("copies processes, as this system does not", allow_module_level=True)

ENV = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "OPENBLAS_NUM_THREADS": "1"}


def python(*words):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env=ENV, timeout=600
    )


def test_no_damaged_file_gets_the_better_of_a_reader():
    done = python(ROOT / "tools" / "mutate.py", "--seed=1", "--cases=8")
    assert done.returncode == 0, done.stderr[-3000:]
    _, *rows = done.stdout.splitlines()
    counts = [[int(n) for n in row[18:].replace(",", "").split()[:4]] for row in rows]
    assert len(counts) > 20
    assert all(cases == 8 == loaded + refused for cases, loaded, refused, _ in counts)
    # Neither is all damage harmless, nor is there always too much of it.
    assert sum(loaded > 0 and refused > 0 for _, loaded, refused, _ in counts) > 15


BUGS = {
    "raise KeyError('x')": "a traceback",
    "time.sleep(30)": "does not end",
    "time.sleep(0.7)": "0.7 seconds",
    "os.abort()": "the process died: SIGABRT",
    "kept = bytearray(100_000_000)": "bytes beyond the",
    "(path.parent / 'new').touch()": "changed what is not its own",
    "os.utime(path.parent / 'few.jsonl', (1, 1))": "changed what is not its own",
    "os.write(2, b'\\x1b[2J')": "a control character, '\\x1b'",
    "warnings.warn('x')": "a library's warning",
    "sys.exit(3)": "a traceback or another exit status",
    "return Used(result='other')": "differs by inf from the reference program",
    "return Used(result='good')": None,
}
CODE = """
import dataclasses, os, sys, time, warnings
from mutation import cases
from mutation.use import Used
cases.SECONDS, bugs = 0.6, []
{bugs}
with cases.good_files() as (folder, known):
    kind = known["heldout"]
    for bug in bugs:
        buggy = dataclasses.replace(
            kind, use=bug, reference=lambda path: "good", clean={{"heldout.jsonl": "clean"}}
        )
        found = cases.run_case(folder, "heldout", buggy, 0, 0)
        print(found.result, found.message.partition(chr(10))[0])
"""


def test_a_reader_with_a_bug_is_found_out():
    """What the tool is there to find, it finds; and the case after it is none the worse."""
    defined = "def bug(path):\n    {}\n    return Used()\nbugs.append(bug)\n"
    done = python("-c", CODE.format(bugs="".join(map(defined.format, BUGS))))
    lines = done.stdout.splitlines()
    assert len(lines) == len(BUGS), done.stderr[-3000:]
    for line, (bug, says) in zip(lines, BUGS.items(), strict=True):
        assert line.startswith("failed ") and says in line if says else line == "loaded ", bug
