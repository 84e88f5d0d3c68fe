"""Every loss of the table through a whole run: trained, stopped, gone on with, reported."""

import json
from pathlib import Path

import pytest

from minibule.core.fused import ComplementLoss
from minibule.core.loss import RowLoss
from minibule.errors import InputError
from minibule.files import embedded_folder
from minibule.methods.table import LOSSES
from minibule.runs.settings import read_settings, resolve
from minibule.train.__main__ import main

QUICK = ("--steps=3", "--batch-size=2", "--max-records=20", "--export=none", "--lora-r=2")
QUICK = (*QUICK, "--data=records.jsonl", "--eval-every=2")  # own data: no questions to ask
OTHERS = [name for name, loss in LOSSES.items() if not isinstance(loss, ComplementLoss)]
OF_ROWS = [name for name, loss in LOSSES.items() if isinstance(loss, RowLoss)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = (embedded_folder() / "records.jsonl").read_text().splitlines()[:20]
    Path("records.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("name", LOSSES)
def test_a_whole_run(name, capsys):
    main([*QUICK, f"--objective={name}", "--kl=0.2", "--output=run"])
    out = capsys.readouterr().out
    assert f"objective  {name}: " in out and "kl 0.2" in out
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    for line in lines:
        assert {"loss", "rejected_mass", "anchor"} <= set(line)
    assert ("eval_optimality_gap" in lines[1]) == (name not in OTHERS)
    for measure in ("eval_loss", "eval_anchor"):
        assert (measure in lines[1]) == (name in OF_ROWS)
    adapter = Path("run/adapter/adapter_model.safetensors")
    before = adapter.read_bytes()
    main(["--resume", "--output=run"])
    assert adapter.read_bytes() == before
    with pytest.raises(InputError, match=r"objective: .* there, .* now"):
        main(["--resume", "--output=run", "--objective=" + ("nsr" if name != "nsr" else "npo")])


def test_no_anchor_stays_none():
    """Settings that are read back are the run's: an anchor of 0 is not the loss's own again."""
    main([*QUICK, "--objective=ratio", "--kl=0", "--output=run"])
    assert read_settings("run/config.toml").resolved_loss().kl == 0
    main([*QUICK, "--objective=ratio", "--output=own"])
    assert read_settings("own/config.toml").kl == LOSSES["ratio"].kl


def test_an_anchor_changes_what_is_learnt():
    for kl in ("0", "5"):
        main([*QUICK, "--objective=ratio", f"--kl={kl}", f"--output={kl}"])
    free, held = (
        json.loads(Path(kl, "after.json").read_text())["heldout"]["kl_to_base"] for kl in ("0", "5")
    )
    assert 0 < held < free


@pytest.mark.parametrize("name", OTHERS)
def test_parts_of_a_complement_are_refused(name):
    with pytest.raises(InputError, match=rf"--alpha: part of the objectives .*not of {name}"):
        main([*QUICK, f"--objective={name}", "--alpha=0.3"])


def test_settings_reach_the_loss():
    assert resolve({"objective": "ratio"}).resolved_loss() == LOSSES["ratio"]
    assert resolve({"objective": "ratio", "kl": "0"}).resolved_loss().kl == 0
    complement = resolve({"objective": "rate", "alpha": "0.5", "kl": "0.1"}).resolved_loss()
    assert (complement.objective.alpha, complement.kl) == (0.5, 0.1)
