"""All that a run needs, read and checked before the first step and before anything is written."""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from minibule.core.counts import Example
from minibule.core.fused import TargetLoss
from minibule.core.llama import Llama, check_ids
from minibule.core.lora import Adapter, init_adapter
from minibule.core.loss import Loss, Uses
from minibule.core.shapes import LoraConfig
from minibule.errors import InputError, listed
from minibule.evaluate.questions import Question, read_questions
from minibule.machine.matmul import is_installed, mode_of
from minibule.machine.ranks import world
from minibule.machine.threads import set_threads, threads
from minibule.methods.table import LOSSES
from minibule.models.chat_files import load_chat
from minibule.models.load import SMALL_MODEL, load_model, settle_threads, settled
from minibule.models.peft import fingerprint
from minibule.records.records import Record, read_file
from minibule.runs.checkpoint import Identity, digest_of, identity
from minibule.runs.settings import FIELDS, TrainConfig
from minibule.text.chat import Chat
from minibule.text.examples import NEEDED, record_order, split_by_prompt, tokenize
from minibule.train.reference import most_bytes

# Settings that say where something lies, which may be elsewhere on another machine.
PLACES = ("model", "data", "heldout", "output", "init_adapter")


def planned_steps(config: TrainConfig, examples: int) -> int:
    """Steps of the run: as set, or as many as the epochs take (a last, short one rounded up)."""
    return config.steps or max(1, math.ceil(config.epochs * examples / config.records_a_step))


@dataclass(frozen=True)
class Setup:
    """A model with its adapter, and what it is to be taught.

    source      folder or GGUF file that the base model came from
    examples    what is trained on
    heldout     records set apart to evaluate on
    questions   prompts with known answers, to ask before and after
    start       the adapter before its first step, given by `init_adapter`; None: a fresh one, which
                changes nothing
    loss        what is minimised; each of its parts stands in `config` as resolved
    """

    config: TrainConfig
    source: Path
    model: Llama
    chat: Chat
    examples: list[Example]
    heldout: list[Example]
    questions: list[Question]
    start: Adapter | None
    loss: Loss

    @property
    def steps(self) -> int:
        return planned_steps(self.config, len(self.examples))

    @property
    def keeps_reference(self) -> bool:
        """Whether what the base says is kept: it is asked for, of some examples more than once."""
        taken = self.steps * self.config.records_a_step
        wanted = self.loss.asks_base and taken > len(self.examples)
        return wanted and self.config.reference_memory > 0

    @property
    def adapter(self) -> Adapter:
        return cast(Adapter, self.model.adapter)  # `prepare` puts one there

    @property
    def rejected(self) -> int:
        """How many rejected answers are trained on."""
        return sum(times > 0 for example in self.examples for times in example.rejections)

    @property
    def accepted(self) -> int:
        """How many accepted answers are trained on."""
        return sum(len(example.answers) for example in self.examples) - self.rejected

    @functools.cached_property
    def identity(self) -> Identity:
        """What a checkpoint must be of to go on with this setup."""
        return identity(self.model, self.start, self.examples, self.config)

    @functools.cached_property
    def _order(self) -> Callable[[int], int]:
        return record_order(self.config.order, self.config.seed, self.examples)

    def examples_of(self, step: int) -> list[Example]:
        """The examples of step 1, 2, ...

        Which records a step takes, and in which order, follows from its number and the seed: there
        is no state of a random generator to save.
        """
        size = self.config.records_a_step
        return [
            self.examples[self._order(place)] for place in range((step - 1) * size, step * size)
        ]


def prepare(config: TrainConfig, examples: Sequence[Example] | None = None) -> Setup:
    """Read and check everything that the settings name; the set-up has all of them settled.

    examples: what to train on, just as it is; None: the records of the data, less those held out.
    """
    set_threads(config.threads)
    source, data, questions_file = config.resolved_files()
    start_from, low, matmul = config.init_adapter or None, config.memory == "low", config.matmul
    if world().size > 1:  # each by itself might find another one faster
        matmul = world().first(settled, matmul, source)
    load = functools.partial(load_model, source, start_from, narrow=True, matmul=matmul, low=low)
    model = world().one_a_machine(load, f"{source} {start_from}")
    chat, start = load_chat(source), model.adapter
    settle_threads(config.threads, model.config)
    for export in config.exports:
        export.check(model, chat)
    lora = config.resolved_lora(model.config.num_hidden_layers)
    if start:
        _check_start(config, lora, start.config)
        params = {name: param.copy() for name, param in start.params.items()}
        model.adapter = Adapter(start.config, params)
    else:
        model.adapter = init_adapter(lora, model.config, config.seed)
    loss, heldout = config.resolved_loss(), list[Example]()
    if examples is None:
        limit = min(config.max_length, model.config.max_position_embeddings)
        examples, heldout = _read_examples(config, data, chat, loss, limit)
    else:
        for ids in itertools.chain.from_iterable((e.prompt, *e.answers) for e in examples):
            check_ids(ids, model.config)
    if isinstance(loss, TargetLoss):  # whose anchor is 0 unless it is given
        config = dataclasses.replace(config, **loss.objective._asdict())
    else:
        config = dataclasses.replace(config, kl=loss.kl, beta=getattr(loss, "beta", None))
    config = dataclasses.replace(config, matmul=mode_of(model.head))
    questions = read_questions(questions_file) if questions_file else []
    return Setup(config, source, model, chat, list(examples), heldout, questions, start, loss)


def _read_examples(
    config: TrainConfig, data: Path, chat: Chat, loss: Loss, limit: int
) -> tuple[list[Example], list[Example]]:
    """What is trained on and what is held out of the records in `data`, cut to `limit` tokens.

    InputError where nothing is left to train on.
    """
    records, _ = read_file(data, progress=True, unrejected=loss.uses in ("accepted", "any"))
    train_records, held_records = split_by_prompt(
        records[: config.max_records or None], config.eval_fraction, config.seed
    )
    held_records = held_records[: config.eval_records or None]
    number = {id(record): number for number, record in enumerate(records, start=1)}

    def examples(
        records: Sequence[Record], uses: Uses = "rejected", end_token: bool = False
    ) -> list[Example]:
        return tokenize(
            records,
            chat,
            limit,
            config.max_rejected,
            config.skip_long,
            [number[id(record)] for record in records],
            uses,
            end_token,
        )

    train_examples = examples(train_records, loss.uses, loss.end_token)
    worth_nothing = loss.graded and not any(example.rewards for example in train_examples)
    if not train_examples or worth_nothing:  # a reward of 0 for every answer teaches nothing
        raise InputError(_nothing_left(config, data, loss, train_records))
    return train_examples, examples(held_records) if held_records else []


def _nothing_left(config: TrainConfig, data: Path, loss: Loss, records: Sequence[Record]) -> str:
    """Why there is no record to train on, and what to do."""
    needed = NEEDED.get(loss.uses, NEEDED["accepted"] if loss.graded else None)
    one_sort = loss.uses != "both"
    if needed and not any(r.accepted and (r.rejected or one_sort) for r in records):
        others = (n for n, loss in LOSSES.items() if loss.uses not in NEEDED and not loss.graded)
        return (
            f"{data}: of {len(records):,} records to train on found none with {needed}, "
            f"which is what --objective {config.objective} learns from. Rejected answers alone are "
            f"enough for {', '.join(others)}."
        )
    return (
        f"{data}: no record is left to train on. Raise --max-length, or check that the "
        "answers are in a language the model's tokenizer knows."
    )


def _check_start(config: TrainConfig, wanted: LoraConfig, start: LoraConfig) -> None:
    """A start adapter brings its own shape: InputError where a setting asks for another."""
    same = {
        "lora_r": wanted.r == start.r,
        "lora_alpha": wanted.lora_alpha == start.lora_alpha,
        "lora_targets": wanted.modules == start.modules,
        "lora_layers": wanted.modules == start.modules,
        "rslora": wanted.use_rslora == start.use_rslora,
    }
    problems = [
        f"{name} = {getattr(config, name)}"
        for name, fits in same.items()
        if not fits and getattr(config, name) != FIELDS[name].default
    ]
    if problems:
        raise InputError(
            f"--init-adapter {config.init_adapter}: it has a shape of its own, which these "
            f"settings contradict. Leave them out:\n{listed(problems)}"
        )


def check_alike(setup: Setup) -> None:
    """InputError that names what the ranks of this run were given other than the first."""
    if world().size == 1:
        return
    config, run = dataclasses.asdict(setup.config), setup.identity
    settings = {name: value for name, value in config.items() if name not in PLACES}
    asked = hashlib.blake2b(repr(setup.questions).encode(), digest_size=32)
    digests = {
        "the model": run.model,
        "the adapter": fingerprint(setup.adapter),
        "the data": run.data,
        "the data held out": digest_of(setup.heldout),
        "the questions held out": asked.hexdigest(),
    }
    short = {name: digest[:12] for name, digest in digests.items()}
    world().check_alike(short | settings | {"threads": threads()})


def describe(setup: Setup) -> None:
    """Print what is about to be trained."""
    config, adapter, model = setup.config, setup.adapter, setup.model
    trained = sum(p.size for p in adapter.params.values())
    both = f"{setup.accepted:,} accepted and " if setup.accepted else ""
    name = config.model or "embedded"
    print(f"model      {name}: {model.config.parameters:,} parameters, frozen")
    print(
        f"adapter    LoRA r={adapter.config.r} on {len(adapter.config.modules)} modules: "
        f"{trained:,} parameters, trained"
    )
    if model.config.parameters >= SMALL_MODEL and is_installed():
        print(f"products   {config.matmul}")
    print(
        f"records    {len(setup.examples):,} prompts with {both}{setup.rejected:,} rejected "
        f"answers, {len(setup.heldout):,} more held out"
    )
    print(f"objective  {config.objective}: {setup.loss}")
    if world().size > 1:
        print(f"ranks      {world().size}, {threads()} threads each")


def expected_bytes(setup: Setup) -> int:
    """About how much the run will write: checkpoints, adapter, exports, what the base says."""
    config = setup.config
    adapter = 4 * sum(p.size for p in setup.adapter.params.values())
    saved = 1 + (setup.steps // config.save_every if config.save_every else 0)
    total = adapter + 3 * adapter * (min(saved, config.keep) + 1)  # one is there before one goes
    if setup.keeps_reference:
        kept = int(1e9 * config.reference_memory)
        total += max(0, most_bytes(setup.model, setup.examples) - kept)
    return total + sum(export.size(setup.model) for export in config.exports)
