"""Every loss of the table through a whole run: trained, stopped, gone on with, reported."""

import json
from pathlib import Path

import pytest

from minibule.core.fused import TargetLoss
from minibule.errors import InputError
from minibule.explain.__main__ import main as explain
from minibule.files import embedded_folder
from minibule.methods.table import LOSSES
from minibule.runs.checkpoint import checkpoint_path
from minibule.runs.read import read_run
from minibule.runs.settings import FIELDS, read_settings, resolve
from minibule.train.__main__ import main

QUICK = ("--steps=3", "--batch-size=2", "--max-records=20", "--export=none", "--eval-every=2")
QUICK = (
    *QUICK,
    "--lora-r=2",
    "--lora-layers=1",
    "--probe=",
    "--data=records.jsonl",
)  # no questions to ask
CLOCK = ("seconds", "tokens_per_s", "rss_gb")
OTHERS = [name for name, loss in LOSSES.items() if not isinstance(loss, TargetLoss)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Twenty of the embedded records, most with accepted answers, too, and one with these alone."""
    monkeypatch.chdir(tmp_path)
    lines = (embedded_folder() / "records.jsonl").read_text().splitlines()[:20]
    Path("rejected.jsonl").write_text("\n".join(lines))
    rows = [json.loads(line) for line in lines]
    for i, row in enumerate(rows):
        row["rejected_ended"] = [k != 1 for k in range(len(row["rejected_responses"]))]
        if i % 5 != 3:
            row |= {"accepted_responses": ["Hello!", "Good day!"], "acceptance_counts": [2, 1]}
    rows.insert(2, {"prompt": "2 + 2", "accepted_responses": ["4"], "total_rounds": 8})
    Path("records.jsonl").write_text("\n".join(map(json.dumps, rows)))


def metrics(run):
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in CLOCK} for x in lines]


@pytest.mark.parametrize("name", LOSSES)
def test_a_whole_run(name, capsys):
    uses = LOSSES[name].uses
    main([*QUICK, f"--objective={name}", "--kl=0.2", "--save-every=2", "--output=run"])
    out = capsys.readouterr().out
    assert f"objective  {name}: " in out and "kl 0.2" in out
    assert ("accepted and" in out) == (uses != "rejected")
    lines = metrics("run")
    assert len(lines) == 3
    for line in lines:
        assert {"loss", "anchor"} <= set(line)
        assert ("rejected_mass" in line) == (uses != "accepted")
    assert any("accepted_logp" in line for line in lines) == (uses != "rejected")
    assert ("eval_optimality_gap" in lines[1]) == (name not in OTHERS)
    for measure in ("eval_loss", "eval_anchor"):
        assert (measure in lines[1]) == (uses == "rejected")
    page = Path("run/report.html").read_text()
    assert f"{name}: " in page and ("accepted answers" in page) == (uses != "rejected")

    adapter = Path("run/adapter/adapter_model.safetensors")
    before = adapter.read_bytes()
    checkpoint_path(Path("run/checkpoint"), 3).unlink()
    main(["--resume", "--output=run"])
    assert "step 2 of 3" in capsys.readouterr().out
    assert adapter.read_bytes() == before and metrics("run") == lines
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


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if not hasattr(loss, "beta")])
def test_a_beta_is_refused_where_there_is_none(name):
    having = "complement, ratio, npo, simnpo, kto, dpo, rso, rso-hinge"
    with pytest.raises(InputError, match=f"--beta: a number of {having}, and not of {name}"):
        main([*QUICK, f"--objective={name}", "--beta=0.2", "--output=run"])
    assert not Path("run").exists()


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if hasattr(loss, "beta")])
def test_a_beta_reaches_the_loss(name):
    assert resolve({"objective": name, "beta": "0.2"}).resolved_loss().beta == 0.2
    assert name in FIELDS["beta"].about.help.replace(" and ", ", ").replace(",", " ").split()


# -- accepted answers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sft", "reinforce", "dpo", "grpo"])
def test_records_without_accepted_answers_are_refused_in_words(name):
    """Of reinforce, too, whose rewards would all be 0."""
    alone = name in ("sft", "reinforce")
    needed = "an accepted answer" if alone else "an accepted and a rejected answer"
    with pytest.raises(InputError, match=f"records to train on found none with {needed}") as error:
        main([*QUICK, "--data=rejected.jsonl", f"--objective={name}", "--output=run"])
    message = str(error.value)
    assert message.startswith("rejected.jsonl: of 18 ") and f"--objective {name}" in message
    assert "nsr" in message and "kto" in message and "slic" not in message
    assert "w-reinforce" in message and ", reinforce" not in message
    assert not Path("run").exists()


def test_answers_to_different_prompts_make_no_pairs():
    """As unpaired data often is: there are accepted answers, and rejected ones to other prompts."""
    rows = [
        {"prompt": f"say {i}", "completion": f"{i}", "label": i % 2 == 0, "ended": True}
        for i in range(8)
    ]
    Path("unpaired.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="found none with an accepted and a rejected answer"):
        main([*QUICK, "--data=unpaired.jsonl", "--objective=dpo", "--output=run"])
    main([*QUICK, "--data=unpaired.jsonl", "--objective=kto", "--eval-fraction=0", "--output=run"])
    assert read_run("run").after.sizes["accepted"] == 4


def test_a_run_on_accepted_answers_alone(capsys):
    """Nothing was rejected anywhere: there is no position of rejected tokens to look at."""
    rows = [{"prompt": f"say {i}", "accepted_responses": [f"{i}"]} for i in range(4)]
    Path("accepted.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for fraction in (0, 0.5):
        run = f"run{fraction}"
        data = ("--data=accepted.jsonl", f"--eval-fraction={fraction}", f"--output={run}")
        main([*QUICK, *data, "--objective=sft"])
        after = read_run(run).after
        assert after.position is None and after.heldout is None
        assert after.sizes["answers"] == 0 < after.sizes["accepted"]
        assert "One position" not in Path(run, "report.html").read_text()
        assert "better" not in capsys.readouterr().out  # a table of nothing
    with pytest.raises(InputError, match="found no rejected answer in 4 rows"):
        main([*QUICK, "--data=accepted.jsonl", "--objective=npo"])


def test_the_position_looked_at_counts_what_was_rejected():
    """Of a run that trained on both sorts, without records held out."""
    row = {"prompt": "hello", "rejected_responses": ["hello"], "rejection_counts": [3]}
    row |= {"accepted_responses": ["Welcome!"], "acceptance_counts": [5], "total_rounds": 8}
    Path("one.jsonl").write_text(json.dumps(row))
    main([*QUICK, "--data=one.jsonl", "--eval-fraction=0", "--objective=dpo", "--output=run"])
    position = read_run("run").after.position
    assert position.total == 3
    assert {t.text: t.rejected for t in position.tokens if t.rejected} == {"he": 3}


def test_a_run_of_pairs_can_be_explained(capsys):
    main([*QUICK, "--objective=kto", "--output=run"])
    capsys.readouterr()
    explain(["--data=records.jsonl", "--adapter=run/adapter"])
    out = capsys.readouterr().out
    assert "Please ask somebody else." in out and "Hello!" not in out  # of rejected answers alone
    assert "So v('h') = 2, v('Figure') = 1, v('Please') = 1," in out
