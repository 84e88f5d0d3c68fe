"""`minibule env`: what a report of a bug needs, and every package that pyproject.toml names."""

import re
import tomllib

from helpers import ROOT

import minibule
from minibule.env import EXTRAS, PACKAGES, main


def test_it_names_versions_processor_blas_and_threads(capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main([])
    lines = capsys.readouterr().out.splitlines()
    told = dict(line.split(maxsplit=1) for line in lines if not line.startswith("set "))
    assert told["minibule"] == f"{minibule.__version__} in {ROOT / 'minibule'}"
    assert re.search(r".+, \d+ cores", told["processor"])
    assert re.search(r"\S+ \S+, \d+ threads", told["BLAS"])
    assert re.search(r"^numpy \d+\.\d+\S*, safetensors \d", told["packages"])
    assert told["model"].startswith("smollm2-135m: ")
    assert any(line.split() == ["set", "OMP_NUM_THREADS=7"] for line in lines)
    assert not any("NO_COLOR" in line for line in lines)


def test_a_package_that_is_not_there_is_said_to_be_missing(capsys, monkeypatch):
    monkeypatch.setitem(EXTRAS, "plot", ("no-such-package",))
    main([])
    assert re.search(r"^plot +no-such-package not installed$", capsys.readouterr().out, re.M)


def test_it_knows_every_package_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements):
        return tuple(re.match(r"[\w-]+", one)[0] for one in requirements)

    assert names(project["dependencies"]) == PACKAGES
    extras = project["optional-dependencies"]
    users = {name: names(wanted) for name, wanted in extras.items() if name not in ("test", "dev")}
    assert users == EXTRAS
