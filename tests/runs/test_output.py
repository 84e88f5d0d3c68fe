"""A run removes and replaces what a run wrote, and nothing else; all that can fail fails before."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.machine import threads as machine
from minibule.models.exports import HuggingFaceExport
from minibule.report.__main__ import main as report
from minibule.runs import lock
from minibule.runs.manifest import Manifest
from minibule.runs.settings import TrainConfig
from minibule.train import loop
from minibule.train.__main__ import main
from minibule.train.loop import train

QUICK = ("--steps=1", "--batch-size=1", "--eval-fraction=0", "--probe=")
QUICK = (*QUICK, "--lora-r=1", "--lora-layers=1", "--export=hf")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_inputs()
    usual = machine.threads()
    yield
    machine.set_threads(usual)


def write_inputs():
    lines = (embedded_folder() / "records.jsonl").read_text().splitlines()[:4]
    Path("records.jsonl").write_text("\n".join(lines))
    Path("heldout.jsonl").write_text(
        (embedded_folder() / "heldout.jsonl").read_text().splitlines()[0]
    )
    shutil.copytree(embedded_folder(), "model")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_inputs()
        run("--output=out")
    return folder / "out"


@pytest.fixture
def out(finished):
    """It again, in the place of each test."""
    shutil.copytree(finished, "out")


def run(*flags):
    main([*QUICK, "--model=model", "--data=records.jsonl", *flags])


def refuses(*flags):
    with pytest.raises(InputError) as error:
        run(*flags)
    return str(error.value)


def everything(folder="."):
    """Every file below a folder, with its bytes."""
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


# What a run writes, and what a user may keep under the same names.
OWN = ("config.toml", "report.html", "before.json", "after.json", "adapter/notes", "merged/notes",
       "checkpoint/notes", "manifest.json")  # fmt: skip


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_files_that_no_run_wrote_stay(name, flags):
    path = Path("out", name)
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    before = everything()
    message = refuses("--output=out", *flags)
    earlier = name.startswith("checkpoint") and not flags
    assert ("found an earlier run" if earlier else str(path)) in message
    assert everything() == before


def test_files_of_other_names_are_in_nobodys_way():
    Path("out").mkdir()
    for name in ("model.gguf", "precious.gguf", "notes.txt"):
        Path("out", name).write_text("mine")
    run("--output=out")
    run("--output=out", "--overwrite")
    main(["--resume", "--output=out"])
    assert {Path("out", n).read_text() for n in ("model.gguf", "precious.gguf")} == {"mine"}


@pytest.mark.parametrize("name", ["adapter/notes", "merged/notes", "checkpoint/notes"])
def test_what_the_user_put_into_a_run_stays(out, name):
    Path("out", name).write_text("mine")
    before = everything()
    assert name in refuses("--output=out", "--overwrite")
    if not name.startswith("checkpoint"):  # which is never replaced as a whole
        with pytest.raises(InputError, match=name):
            main(["--resume", "--output=out"])
    assert everything() == before


@pytest.mark.parametrize("name", ["report.html", "config.toml", "adapter/adapter_config.json"])
def test_what_the_user_changed_stays(out, name):
    with Path("out", name).open("a") as file:
        file.write(" ")
    before = everything()
    assert f"{name}: changed" in refuses("--output=out", "--overwrite")
    assert everything() == before


def test_a_run_is_replaced_whole():
    run("--output=out", "--export=hf,gguf:f16,gguf-lora", "--save-every=1")
    first = set(everything("out"))
    run("--output=out", "--overwrite", "--export=none")
    second = set(everything("out"))
    assert first - second == {p for p in first if p.parent.name == "merged" or p.suffix == ".gguf"}
    assert second < first and not Path("out/merged").exists()
    assert set(Manifest(Path("out")).files) == {
        p.relative_to("out").as_posix() for p in second if p.name != "manifest.json"
    }


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--model=out/merged",), "out/merged"),
        (("--model=out/model-f32.gguf",), "out/model-f32.gguf"),
        (("--init-adapter=out/adapter", "--lora-r=1"), "out/adapter"),
        (("--config=out/config.toml",), "out/config.toml"),
        (("--model=link",), "link"),
    ],
)
def test_a_run_does_not_remove_what_it_reads(flags, named):
    run("--output=out", "--export=hf,gguf:f32")
    Path("link").symlink_to("out/merged")
    before = everything()
    message = refuses("--output=out", "--overwrite", *flags)
    assert named in message and "is read by this run" in message
    assert everything() == before


def test_a_link_in_a_run_leads_no_removal_out_of_it(out):
    shutil.move("out/adapter", "elsewhere")
    Path("out/adapter").symlink_to(Path("elsewhere").resolve())
    before = everything("elsewhere")
    assert "out/adapter" in refuses("--output=out", "--overwrite")
    assert everything("elsewhere") == before


FOREIGN = ["../victim", "/victim", "a/b/victim", "a/../../victim", "", "a/", "a/."]
FOREIGN += ["C:victim", "a\\victim", "\\victim", "a/x:stream"]  # elsewhere on Windows


@pytest.mark.parametrize("name", FOREIGN)
def test_a_list_names_files_of_its_folder_only(out, name):
    files = {name: None}
    Path("out/manifest.json").write_text(json.dumps({"files": files}))
    assert "not the list" in refuses("--output=out", "--overwrite")


# -- links, pipes and devices: nothing outside the folder is written, nothing is waited for --------


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "checkpoint", "config.toml", "adapter"])
@pytest.mark.parametrize("target", ["victim", "victims", "nowhere"])
def test_a_link_with_the_name_of_a_result_leads_nowhere(out, name, target):
    """As in a folder of a stranger's, or where strangers write too: /tmp."""
    manifest = Path("out/manifest.json").read_text()
    Path("victim").write_text("mine")
    Path("victims").mkdir()
    for stale in ("victims/step-00000001.safetensors", "victims/.x.12ab.partial"):
        Path(stale).write_text("mine")
    path = Path("out", name)
    if path.exists():
        shutil.move(path, "elsewhere")
    path.symlink_to(Path(target).absolute())
    before = everything()
    assert name in refuses("--output=out", "--overwrite")
    with pytest.raises(InputError, match=name):
        main(["--resume", "--output=out"])
    assert everything() == before and path.is_symlink() and not Path("nowhere").exists()
    assert Path("out/manifest.json").read_text() == manifest


def test_a_backup_made_of_hard_links_stays_as_it_is(out):
    """metrics.jsonl is gone on with where it is; all other files are replaced."""
    shutil.copytree("out", "backup", copy_function=os.link)
    backup = {path: path.read_bytes() for path in Path("backup").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"metrics\.jsonl: is the same file as another"):
        main(["--resume", "--output=out"])
    run("--output=out", "--overwrite")
    assert {path: path.read_bytes() for path in backup} == backup


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("device", [False, True], ids=["pipe", "device"])
@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "config.toml", "before.json"])
def test_a_pipe_or_a_device_with_the_name_of_a_result(out, name, device):
    Path("out", name).unlink(missing_ok=True)
    if device:
        Path("out", name).symlink_to("/dev/zero")  # which has no end
    else:
        os.mkfifo(Path("out", name))  # which would be waited for
    assert name in refuses("--output=out", "--overwrite")
    with pytest.raises(InputError, match=name):
        main(["--resume", "--output=out"])
    if name != ".lock":  # of no interest to a report
        with pytest.raises(InputError, match=f"{name}: found .*, expected a"):
            report(["out"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_checkpoint_that_is_a_pipe_is_damaged(capsys):
    run("--output=out", "--save-every=1", "--steps=2", "--keep=2")
    (first, last) = sorted(Path("out/checkpoint").iterdir())
    last.unlink()
    os.mkfifo(last)
    main(["--resume", "--output=out"])
    said = capsys.readouterr().out
    assert f"{last}: found a pipe or a device" in said and f"from {first}" in said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("flag", ["heldout", "config", "data"])
def test_an_input_that_is_a_pipe_or_a_device(flag):
    os.mkfifo("pipe.jsonl")
    for place in ("pipe.jsonl", "/dev/zero"):
        assert f"{place}: found a pipe or a device" in refuses(f"--{flag}={place}")
    assert "no such file" in refuses(f"--{flag}=nowhere")


def test_a_lock_that_cannot_be_written_is_named(monkeypatch):
    class Full(io.BytesIO):
        def write(self, _=b""):
            raise OSError(errno.EFBIG, "File too large")

        close = write  # which tries once more

    monkeypatch.setattr(lock, "open_own", lambda _: Full())
    monkeypatch.setattr(lock, "_lock", lambda _: None)
    monkeypatch.setattr(lock, "_take", lambda path: lock.open_own(path))
    assert "out/.lock: cannot be written (File too large)" in refuses("--output=out")


def test_a_run_that_died_while_writing_can_be_replaced(monkeypatch):
    where = dict.fromkeys(("save_adapter", "save_snapshot", "write_report", "take_step"), loop)
    for broken, module in (where | {"write": HuggingFaceExport}).items():
        with monkeypatch.context() as patch:
            patch.setattr(module, broken, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run("--output=out", "--overwrite")
    run("--output=out", "--overwrite")
    assert Path("out/report.html").exists()


@pytest.mark.parametrize("flags", [["--resume"], ["--overwrite"]])
def test_what_a_killed_run_left_half_written_is_swept(out, flags):
    """Killed in the middle of a checkpoint, or of its list: nobody's file, and in nobody's way."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for place in ("out/checkpoint/.step-00000009.safetensors", "out/.manifest.json"):
        Path(f"{place}.{dead.pid}.partial").write_text("half")
    main([*flags, "--output=out"]) if flags == ["--resume"] else run(*flags, "--output=out")
    assert not list(Path("out").rglob("*.partial"))


def test_a_file_beside_what_a_run_died_writing_stays(monkeypatch):
    """The folder is claimed as a whole, and not all that lies in it is the run's."""
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_adapter", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("--output=out")
    Path("out/adapter").mkdir()
    Path("out/adapter/notes.txt").write_text("mine")
    assert "notes.txt" in refuses("--output=out", "--overwrite")
    with pytest.raises(InputError, match=r"notes\.txt"):
        main(["--resume", "--output=out"])
    assert Path("out/adapter/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["report.html", "config.toml", "before.json"])
def test_a_folder_where_a_file_is_to_be(name):
    Path("out", name).mkdir(parents=True)
    assert "found a folder" in refuses("--output=out")
    assert "found a folder" in refuses("--output=out", "--overwrite")
    assert not any(path.is_file() for path in Path("out").rglob("*"))


def test_a_name_that_no_folder_can_have():
    with pytest.raises(InputError, match="no folder can have"):
        train(TrainConfig(output="a\0b"))


def test_files_of_the_users_in_a_run_of_an_earlier_version(out):
    Path("out/manifest.json").unlink()
    Path("out/adapter/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        main(["--resume", "--output=out"])
    assert Path("out/adapter/notes.txt").read_text() == "mine"


def test_what_comes_while_a_run_works_stays(monkeypatch):
    """Another run that ended there in between, and a user's file in a folder to be replaced."""
    prepare = loop.prepare

    def slow(*given):
        setup = prepare(*given)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "prepare", prepare)
            run("--output=out", "--seed=7")
        return setup

    with monkeypatch.context() as patch:
        patch.setattr(loop, "prepare", slow)
        assert "found an earlier run" in refuses("--output=out")
    assert "seed = 7" in Path("out/config.toml").read_text()

    take_step = loop.take_step

    def note(*args):
        Path("late/adapter").mkdir()
        Path("late/adapter/notes.txt").write_text("mine")
        return take_step(*args)

    monkeypatch.setattr(loop, "take_step", note)
    assert "notes.txt" in refuses("--output=late")
    assert Path("late/adapter/notes.txt").read_text() == "mine"


def test_a_report_while_a_run_works(monkeypatch):
    """It is named in the list, which the run goes on writing."""
    take_step = loop.take_step

    def looked_at(*args):
        report(["out"])
        return take_step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "take_step", looked_at)
        patch.setattr(loop, "save_adapter", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("--output=out")
    main(["--resume", "--output=out"])
    run("--output=out", "--overwrite")


def test_a_run_of_an_earlier_version_goes_on_and_is_not_replaced(out):
    Path("out/manifest.json").unlink()
    before = everything()
    assert "out/metrics.jsonl: not in the list" in refuses("--output=out", "--overwrite")
    assert everything() == before
    main(["--resume", "--output=out"])
    assert set(everything()) == {*before, Path("out/manifest.json")}


# -- all that can fail fails before anything is touched --------------------------------------------


@pytest.mark.parametrize("flag", ["probe", "output", "data", "heldout", "model", "init-adapter"])
def test_a_text_that_no_file_can_hold(out, flag):
    before = everything()
    value = os.fsdecode(b"caf\xe9")
    assert "expected UTF-8" in refuses("--output=out", "--overwrite", f"--{flag}={value}")
    with pytest.raises(InputError, match="UTF-8"):
        train(TrainConfig(output="out", overwrite=True, steps=1, probe="\udcff"))
    assert everything() == before


def test_a_run_folder_with_such_a_name(out):
    name = os.fsdecode(b"caf\xe9")
    try:
        Path("out").rename(name)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    before = everything()
    with pytest.raises(InputError, match="UTF-8"):
        main(["--resume", f"--output={name}"])
    assert everything() == before


def heldout(prompt, *answers):
    row = {"prompt": prompt, "accepted": list(answers), "rejected": {}}
    Path("heldout.jsonl").write_text(json.dumps(row))
    return "--heldout=heldout.jsonl"


@pytest.mark.parametrize("flags", [("--dry-run",), (), ("--overwrite",)])
def test_what_is_asked_before_and_after_is_measured_first(flags):
    run("--output=out", "--probe=hi")
    before = everything("out")
    flags = ("--output=out" if "--overwrite" in flags else "--output=new", *flags)
    long = "what " * 2000
    assert "--probe: found a prompt of" in refuses(f"--probe={long}", *flags)
    assert "held-out questions" in refuses(heldout(long, "yes"), *flags)
    assert "held-out questions" in refuses(heldout("hi", long), *flags)
    Path("model/special_tokens_map.json").mkdir()
    assert "special_tokens_map.json: expected a file" in refuses(*flags)
    assert everything("out") == before and not Path("new").exists()


# -- an answer that the tokenizer leaves nothing of ------------------------------------------------


@pytest.fixture
def lossy_model():
    """The embedded model, but that its tokenizer has no byte for U+0013, as SmolLM2's has not."""
    path = Path("model/tokenizer.json")
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "\x13"}, "content": ""}
    path.write_text(json.dumps(tokenizer))


def write_records(*answers_of_each):
    Path("records.jsonl").write_text(
        "\n".join(
            json.dumps({"prompt": f"hi {i}", "rejected": answers, "total_rounds": 9})
            for i, answers in enumerate(answers_of_each)
        )
    )


@pytest.mark.parametrize("objective", ["literal", "reference", "rate"])
@pytest.mark.parametrize("order", ["file", "density"])
def test_an_answer_without_tokens_is_left_out_and_counted(lossy_model, capsys, objective, order):
    write_records(
        *(["\x13"], ["no", "\x13", "never"], ["go away"], ["\x13\x13", "\x13"], ["no"], ["ah"])
    )
    flags = ("--steps=2", f"--objective={objective}", f"--order={order}", "--batch-size=2")
    run("--output=out", *flags, "--eval-fraction=.5")
    said = capsys.readouterr().out
    for line in ("record 1: 1 of 1", "record 2: 1 of 3", "record 4: 2 of 2"):
        assert line in said
    run("--output=out2", *flags, "--dry-run")
    assert "4 prompts with 5 rejected answers, 0 more held out" in capsys.readouterr().out


def test_records_of_nothing_but_such_answers(lossy_model):
    write_records(["\x13"], ["\x13\x13"])
    assert "no record is left" in refuses("--output=out")


def test_two_answers_that_are_one_to_the_tokenizer(lossy_model):
    message = refuses("--output=out", heldout("hi", "yes", "yes\x13"))
    assert "the same to the tokenizer" in message
