"""What `python -m minibule.rounds` can be told."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibule.errors import InputError
from minibule.evaluate.own_judge import JUDGE_HELP, MOST_SECONDS, SECONDS
from minibule.files import embedded_folder
from minibule.machine.matmul import Mode
from minibule.methods.table import LOSSES
from minibule.models.named import MODEL_HELP, model_path
from minibule.rounds.budget import BUDGETS, Budget
from minibule.rounds.presets import DEFAULT, PRESETS
from minibule.rounds.select import SELECTIONS
from minibule.runs.presets import PLAIN
from minibule.runs.rounds import SAMPLES
from minibule.runs.settings import FIELDS, TrainConfig
from minibule.settings import Source, checked, setting

DATA, ROUND, TRAINING = "model and questions", "a round", "training"

# Settings of a training run that are those of every round.
TRAINED = ("objective", "kl", "beta", "lr", "epochs", "batch_size", "lora_r", "lora_alpha")

USUAL = PRESETS[DEFAULT]

# Seeds that the rounds of one seed may use: each its number, and what is held out the last.
SEEDS = 1000
HELD = SEEDS - 1

# What suits the embedded model, where nothing else is asked for.
TINY_LR = 5e-4
DEFAULTS = {
    "lr": f"{TINY_LR} for the embedded model, {FIELDS['lr'].default} with --model",
    "kl": f"{USUAL.kl}; the objective's own where --objective is given",
}


def _as_in_training(name: str, above: bool = False) -> Any:
    """A setting that says what it says in `TrainConfig`; above: that exceeds its least value."""
    one = FIELDS[name]
    about = one.about
    return setting(
        getattr(USUAL, name, one.default),
        about.help,
        about.low,
        about.high,
        above=above or about.above,
        choices=about.choices,
        group=TRAINING,
    )


@dataclass(frozen=True)
class RoundsConfig:
    """The settings of `python -m minibule.rounds`; `--help` prints this table."""

    model: str = setting("", MODEL_HELP, group=DATA, may_change=True)
    data: str = setting(
        "",
        "questions to learn from, a JSON object a line; empty = those made for the model, where "
        "there are some",
        group=DATA,
        may_change=True,
    )
    heldout: str = setting(
        "",
        "questions asked after each round; empty = those made for the model",
        group=DATA,
        may_change=True,
    )
    judge: str = setting("regex", JUDGE_HELP, group=DATA)
    judge_seconds: float = setting(
        SECONDS,
        "how long a judge of your own may take for a batch",
        0,
        MOST_SECONDS,
        above=True,
        group=DATA,
    )
    output: str = setting(
        "",
        "folder to write; empty = runs/NAME-rounds, the first that is free",
        group=DATA,
        may_change=True,
    )

    rounds: int = setting(3, "how many rounds", 1, SEEDS - 2, group=ROUND, may_change=True)
    samples: int = setting(
        USUAL.samples,
        "answers sampled to each question, or at a time with a budget that asks again",
        1,
        256,
        group=ROUND,
        spares="smaller",
    )
    temperature: float = setting(
        USUAL.temperature, "1 = sample from the model itself", 0, above=True, group=ROUND
    )
    max_new_tokens: int = setting(32, "at most so many tokens of an answer", 1, group=ROUND)
    budget: str = setting(
        USUAL.budget,
        "how many samples a question gets: as many of each, as many again to where they tell most "
        "(gvm), or samples again until accepted and rejected ones are there (balance), or an "
        "accepted one (positive)",
        choices=tuple(BUDGETS),
        group=ROUND,
    )
    selection: str = setting(
        USUAL.selection,
        "which samples are trained on, and with what reward: see minibule/rounds/select.py",
        choices=tuple(SELECTIONS),
        group=ROUND,
    )

    objective: str = setting(
        USUAL.objective, FIELDS["objective"].about.help, choices=tuple(LOSSES), group=TRAINING
    )
    kl: float | None = _as_in_training("kl")
    beta: float | None = _as_in_training("beta")
    lr: float | None = setting(None, FIELDS["lr"].about.help, 0, group=TRAINING)
    epochs: float = _as_in_training("epochs", above=True)
    batch_size: int = _as_in_training("batch_size")
    lora_r: int = _as_in_training("lora_r")
    lora_alpha: float = _as_in_training("lora_alpha")

    threads: int = setting(0, FIELDS["threads"].about.help, 0, may_change=True)
    matmul: Mode = setting("auto", FIELDS["matmul"].about.help)
    seed: int = setting(0, "start of every random choice", 0, 2**63 // SEEDS - 1)

    def resolved_files(self) -> tuple[Path, Path, Path]:
        """The model, the questions to learn from and those asked after: as set, or the usual ones.

        Raises InputError for a model that no questions are made for, where none are given.
        """
        tiny, made = embedded_folder(), embedded_folder().parent / "questions"
        usual = {
            "": (tiny / "questions.jsonl", tiny / "questions-test.jsonl"),
            "smollm2-135m": (made / "train.jsonl", made / "test.jsonl"),
        }.get(self.model, (None, None))
        data = Path(self.data) if self.data else usual[0]
        heldout = Path(self.heldout) if self.heldout else (None if self.data else usual[1]) or data
        if data is None or heldout is None:
            raise InputError(
                f"--model {self.model}: no questions are made for it. Expected --data QUESTIONS, "
                "lines of prompt and what --judge looks at."
            )
        return model_path(self.model or embedded_folder()), data, heldout

    @property
    def resolved_lr(self) -> float:
        """The learning rate as set, or what suits the model."""
        if self.lr is not None:
            return self.lr
        usual: float = FIELDS["lr"].default
        return usual if self.model else TINY_LR

    def resolved_budget(self) -> Budget:
        """The named budget, of so many samples."""
        return dataclasses.replace(BUDGETS[self.budget], samples=self.samples)

    def check(self) -> None:
        """InputError where what the selection keeps, or beta, is of no use to the objective."""
        self.round_config(1, Path(), None).resolved_loss()
        loss, selection = LOSSES[self.objective], SELECTIONS[self.selection]
        if selection.shapes and not loss.graded:
            takers = ", ".join(name for name, one in LOSSES.items() if one.graded)
            raise InputError(
                f"--selection {self.selection}: gives rewards of its own, and --objective "
                f"{self.objective} goes by what was accepted. Expected one of {takers}, or another "
                "selection."
            )
        needing = ("rejected", "both")
        if selection.keeps == "accepted" and loss.uses in needing:
            takers = ", ".join(name for name, one in LOSSES.items() if one.uses not in needing)
            raise InputError(
                f"--selection {self.selection}: keeps accepted answers only, and --objective "
                f"{self.objective} learns from rejected ones. Expected one of {takers}, or "
                "another selection."
            )
        if selection.keeps_one and loss.uses == "both":
            takers = ", ".join(name for name, one in LOSSES.items() if one.uses != "both")
            raise InputError(
                f"--selection {self.selection}: keeps one answer of each question, several times, "
                f"and --objective {self.objective} compares answers. Expected one of {takers}, or "
                "another selection."
            )

    def seed_of(self, number: int) -> int:
        """The seed of a round's draws and of its training: another one in each, of each seed."""
        return SEEDS * self.seed + number

    def round_config(self, number: int, place: Path, start: Path | None) -> TrainConfig:
        """The settings of the training run of a round: 1, 2, ..."""
        own = {name: getattr(self, name) for name in TRAINED} | {"lr": self.resolved_lr} | PLAIN
        return TrainConfig(
            model=self.model or str(embedded_folder()),
            data=str(place / SAMPLES),
            output=str(place),
            init_adapter=str(start) if start else "",
            export=("none",),
            probe="",
            eval_fraction=0.0,
            order="shuffle",
            seed=self.seed_of(number),
            threads=self.threads,
            matmul=self.matmul,
            **own,
        )


def resolve(sources: Iterable[Source], preset: str = DEFAULT) -> RoundsConfig:
    """The settings of a preset, with what the sources say instead; a later one wins.

    An objective without a kl has its own.

    Raises InputError for what cannot be used.
    """
    sources, values = list(sources), PRESETS[preset]._asdict()
    if values["kl"] is None or any("objective" in source.values for source in sources):
        del values["kl"]
    named = Source(f"preset {preset}", values, False)
    config = RoundsConfig(**{"kl": None} | checked(RoundsConfig, [named, *sources]))
    config.check()
    return config
