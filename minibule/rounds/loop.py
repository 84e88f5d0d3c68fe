"""Rounds: sample from the model as it is, let a judge say what is not acceptable, train, again.

    python -m minibule.rounds                                    the embedded model, under a minute
    python -m minibule.rounds --model smollm2-135m               a real one, on its own questions
    python -m minibule.rounds --model DIR --data QUESTIONS --judge exact

Rejected answers go stale as soon as the model moves: what it no longer says need not be pushed down
again, and what it says now has never been judged. So each round begins where the one before ended,
and samples anew. What the model is held to stays the base.

A budget says how many samples each question gets, a selection which of them are trained on, with
what reward, and an objective is what they are trained with; presets are all three, as published.

The folder gets rounds.toml (the settings), inputs.json (by what model and questions may be known
again), rounds.jsonl (a line a round: what was sampled, trained and then answered), report.html, and
round-001/, round-002/, ...: run folders, with samples.jsonl and answers.jsonl in each.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibule.core.counts import Example, row_count
from minibule.core.llama import Llama
from minibule.core.loss import Loss
from minibule.errors import InputError
from minibule.evaluate.heldout import mean_entropy_and_kl
from minibule.evaluate.judge import Judge, Row, read_rows
from minibule.evaluate.own_judge import named_judge
from minibule.evaluate.sampled import Asked, Figures, ask, check_questions, figures
from minibule.files import whole_file
from minibule.machine.ranks import world
from minibule.machine.threads import seconds_since, set_threads
from minibule.models.chat_files import load_chat
from minibule.models.load import load_model, settle_threads, settled
from minibule.report.rounds import write_rounds_report
from minibule.rounds.examples import examples_of, groups_of
from minibule.rounds.inputs import begin, check_alike, digests
from minibule.rounds.sample import Drawn, figures_of, read_samples, sample_round
from minibule.rounds.select import SELECTIONS
from minibule.rounds.settings import HELD, RoundsConfig
from minibule.runs.folder import RunFolder
from minibule.runs.lock import locked
from minibule.runs.metrics import read_metrics
from minibule.runs.output import free_path, name_of
from minibule.runs.rounds import RoundsFolder, read_log, write_asked
from minibule.runs.settings import FIELDS
from minibule.text.chat import Chat
from minibule.train.loop import train
from minibule.train.resume import resume_hint

Rewards = list[float | None]

HELD_SAMPLES = 8  # of each held-out question, at temperature 1, however many a round draws

# Of these, the ones on which entropy and KL are measured: each of their tokens gives an exact sum
# over the vocabulary, so that a few hundred tokens suffice.
SPREAD_SAMPLES = 2


def rounds(config: RoundsConfig, resume: bool = False) -> Path:
    """Run the rounds that the settings describe; returns the folder with all of them.

    resume: go on in the middle of whatever was going on, to the same bytes.
    """
    set_threads(config.threads)
    config.check()
    source, data, heldout = config.resolved_files()
    matmul = world().first(settled, config.matmul, source)
    config = dataclasses.replace(config, matmul=matmul, lr=config.resolved_lr)
    judge = named_judge(config.judge, config.judge_seconds)
    clock = _Timed(judge.rewards)
    rows, held_rows = read_rows(data, judge), read_rows(heldout, judge)
    base = _model(config, source)
    settle_threads(config.threads, base.config)
    inputs = digests(base, rows, held_rows)
    check_alike(config, inputs)
    chat = load_chat(source)
    check_questions(base, chat, [*rows, *held_rows], config.max_new_tokens)
    folder = RoundsFolder(world().first(_output, config, resume))
    shared = _Shared(source, chat, rows, held_rows, judge._replace(rewards=clock), clock)
    lock = locked(folder.path) if world().leads else contextlib.nullcontext()
    with lock, resume_hint(folder.path, "rounds", "where it was", NothingToLearnError):
        world().first(begin, config, folder, inputs)
        log = world().first(_checked_log, folder.log)
        _print_head(config, rows, held_rows)
        if 0 not in log:
            seconds: dict[str, float] = {}
            with _spent(seconds, "evaluation", shared.clock):
                measured = _held_out(base, shared, config, folder.answers(0))
            log[0] = {"round": 0} | measured | seconds
            _write_log(folder.log, log)
        del base
        print(_line(log[0]))
        start: Path | None = None
        for number in range(1, config.rounds + 1):
            if number not in log:
                try:
                    log[number] = _round(config, number, folder, start, shared)
                except NothingToLearnError as error:
                    if start is None:
                        raise
                    print(f"\n{error}")
                    break
                _write_log(folder.log, log)
            print(_line(log[number]))
            start = folder.run(number).adapter
        _print_end(config, log, start)
        print(f"report     {world().first(write_rounds_report, folder.path)}")
    return folder.path


def _model(config: RoundsConfig, source: Path, adapter: Path | None = None) -> Llama:
    load = functools.partial(load_model, source, adapter, matmul=config.matmul)
    return world().one_a_machine(load, f"{source} {adapter}")


class NothingToLearnError(InputError):
    """A round whose samples leave nothing that the objective learns from.

    In the first it is an error; after it, the end of the rounds: the model does what was asked.
    """


class _Timed:
    """A judge's rewards, and how long they took."""

    def __init__(self, rewards: Callable[[Sequence[str], Sequence[Row]], Rewards]) -> None:
        self.rewards = rewards
        self.seconds = 0.0

    def __call__(self, answers: Sequence[str], rows: Sequence[Row]) -> Rewards:
        started = time.perf_counter()
        try:
            return self.rewards(answers, rows)
        finally:
            self.seconds += time.perf_counter() - started


class _Shared(NamedTuple):
    """What all rounds share: the base model, its questions, and the judge with its clock."""

    source: Path
    chat: Chat
    rows: Sequence[Row]
    held_rows: Sequence[Row]
    judge: Judge
    clock: _Timed


def _round(
    config: RoundsConfig, number: int, folder: RoundsFolder, start: Path | None, shared: _Shared
) -> dict[str, Any]:
    """Round 1, 2, ...: its line of metrics."""
    run = folder.run(number)
    world().first(functools.partial(run.path.mkdir, exist_ok=True))
    seconds: dict[str, float] = {}
    with _spent(seconds, "sampling", shared.clock):
        model = _model(config, shared.source, start)
        path = folder.samples(number)
        sample_round(model, shared.chat, shared.rows, shared.judge, config, number, path)
        del model
    examples, sampled = world().first(_learned, config, number, folder, shared)
    with _spent(seconds, "training", shared.clock):
        if not world().first(_is_trained, run):
            settings = config.round_config(number, run.path, start)
            resume = world().first(run.settings.exists)
            with contextlib.redirect_stdout(io.StringIO()):
                train(settings, resume, examples=examples)
    seconds["training_seconds"] = max(seconds["training_seconds"], world().first(_steps_took, run))
    with _spent(seconds, "evaluation", shared.clock):
        trained = _model(config, shared.source, run.adapter)
        measured = _held_out(trained, shared, config, folder.answers(number))
    return {"round": number} | sampled | measured | seconds


def _is_trained(run: RunFolder) -> bool:
    """Whether a round's run has written the last of what it writes."""
    return run.after.exists() and run.report.exists()  # a page may have been asked for before


def _steps_took(run: RunFolder) -> float:
    """Seconds of all steps of a run, those of an earlier life among them."""
    return sum(s for x in read_metrics(run.metrics) if isinstance(s := x.get("seconds"), float))


@contextlib.contextmanager
def _spent(seconds: dict[str, float], what: str, clock: _Timed) -> Iterator[None]:
    """Note the seconds of the block, those of the judge apart."""
    started, judged = time.perf_counter(), clock.seconds
    yield
    judging = clock.seconds - judged
    seconds[f"{what}_seconds"] = seconds_since(started) - judging
    seconds["judging_seconds"] = seconds.get("judging_seconds", 0.0) + judging


def _learned(
    config: RoundsConfig, number: int, folder: RoundsFolder, shared: _Shared
) -> tuple[list[Example], dict[str, float]]:
    """What a round is to learn, and the figures of its samples.

    Raises NothingToLearnError.
    """

    def samples_of(i: int) -> Drawn:
        return read_samples(folder.samples(i), shared.rows)

    drawn = samples_of(number)
    loss = config.round_config(number, folder.path, None).resolved_loss()
    _check_drawn(config, number, drawn, loss)
    sampled = figures_of(drawn, config.samples)
    selection = SELECTIONS[config.selection]
    if selection.pools:
        so_far = zip(*map(samples_of, range(1, number + 1)), strict=True)
        drawn = [list(itertools.chain(*several)) for several in so_far]
    usual = samples_of(1) if selection.needs_usual else None  # round 1 begins with the base
    rng = np.random.default_rng([config.seed, 4, number])
    progress = (number - 1) / max(1, config.rounds - 1)
    kept = selection(groups_of(drawn, shared.judge, selection, usual), rng, progress)
    examples = examples_of(kept, drawn, shared.chat, loss)
    if not examples:
        raise NothingToLearnError(
            f"round {number}: --selection {config.selection} keeps nothing of its samples that "
            f"--objective {config.objective} learns from. {WHAT_TO_DO}"
        )
    answers = sum(sum(example.counts) for example in examples)
    return examples, sampled | {
        "trained_prompts": len({example.prompt.tobytes() for example in examples}),
        "trained_answers": answers,
        "trained_tokens": row_count(examples),
    }


WHAT_TO_DO = "Ask easier or harder questions, or for more --samples."


def _check_drawn(config: RoundsConfig, number: int, drawn: Drawn, loss: Loss) -> None:
    """NothingToLearnError where the judge leaves nothing that the objective learns from."""
    labels = {sample.label for several in drawn for sample in several}
    if not any(sample.sample < config.samples for several in drawn for sample in several):
        raise NothingToLearnError(
            f"round {number}: the judge could tell about none of the samples drawn first."
        )
    if SELECTIONS[config.selection].by_rank:
        return
    for uses, label, word in (("rejected", False, "rejected"), ("accepted", True, "accepted")):
        if loss.uses in (uses, "both") and not loss.graded and label not in labels:
            raise NothingToLearnError(
                f"nothing was {word} in round {number}, of "
                f"{sum(map(len, drawn)):,} samples that the judge could tell about: there is "
                f"nothing that --objective {config.objective} learns from. {WHAT_TO_DO}"
            )


def _held_out(model: Llama, shared: _Shared, config: RoundsConfig, place: Path) -> dict[str, Any]:
    """What the held-out questions give, whatever the rounds' own samples are drawn like.

    The answers themselves are written to `place`.
    """
    answered = ask(
        model,
        shared.chat,
        shared.held_rows,
        shared.judge,
        samples=HELD_SAMPLES,
        temperature=1.0,
        max_new_tokens=config.max_new_tokens,
        seed=config.seed_of(HELD),
    )
    world().first(write_asked, place, answered)
    found: Figures = figures(answered)
    pass_at = {f"pass@{k}": value for k, value in found.pass_at.items()}
    rest = {name: value for name, value in found._asdict().items() if name != "pass_at"}
    measured = rest | pass_at | _spread(model, shared.chat, answered)
    return {f"eval_{name}": value for name, value in measured.items()}


def _spread(model: Llama, chat: Chat, asked: Sequence[Asked]) -> dict[str, float]:
    """Entropy, and KL to the base, over the tokens of some samples, their ends among them."""
    examples = []
    for one in asked:
        some = one.samples[:SPREAD_SAMPLES]
        ids = [[*s.ids, *([chat.end_of_turn] if s.ended else [])] for s in some]
        answers = tuple(np.array(answer) for answer in ids)
        prompt = chat.encode_prompt(one.row["prompt"])
        examples.append(Example(prompt, answers, (1,) * len(ids), len(ids)))
    return mean_entropy_and_kl(model, examples, FIELDS["pass_tokens"].default)


def _checked_log(path: Path) -> dict[int, dict[str, Any]]:
    """The lines of rounds.jsonl by round, 0 being the base; InputError where one lacks a figure."""
    log = read_log(path)
    for number, line in log.items():
        try:
            _line(line)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            raise InputError(
                f"{path}: found a line of round {number} that lacks what rounds write. Remove "
                "the line: what it tells of is then done again."
            ) from None
    return log


def _write_log(path: Path, log: dict[int, dict[str, Any]]) -> None:
    if world().leads:
        with whole_file(path) as part:
            text = "".join(json.dumps(log[number]) + "\n" for number in sorted(log))
            part.write_text(text, encoding="utf-8")


def _output(config: RoundsConfig, resume: bool) -> Path:
    """The folder to write. InputError where another's is, or where there is none to go on with."""
    if resume:
        if not config.output or not RoundsFolder(config.output).settings.exists():
            raise InputError(
                f"--resume: found no rounds in {config.output!r}, expected --output DIR"
            )
        return Path(config.output)
    if config.output:
        place = Path(config.output)
        if place.exists() and any(place.iterdir() if place.is_dir() else [place]):
            raise InputError(
                f"--output {place}: is there already; expected a new folder, or --resume."
            )
        return place
    return free_path(Path("runs") / f"{name_of(config.model)}-rounds")


# -- what is printed -------------------------------------------------------------------------------


def _print_head(config: RoundsConfig, rows: Sequence[Row], held_rows: Sequence[Row]) -> None:
    at_a_time = "" if config.budget == "fixed" else f", budget {config.budget}"
    learnt = {repr(row["prompt"]) for row in rows}
    same = sum(repr(row["prompt"]) in learnt for row in held_rows)
    which = f", {same:,} of which are among these," if same else " others"
    print(f"model      {config.model or 'embedded'}")
    if config.matmul != "float32":
        print(f"products   {config.matmul}")
    print(
        f"questions  {len(rows):,}, {config.samples} samples of each a round{at_a_time}, judged by "
        f"{config.judge}; {len(held_rows):,}{which} are asked after it"
    )
    print(f"selection  {config.selection}")
    loss = config.round_config(1, Path(), None).resolved_loss()
    print(f"objective  {config.objective}: {loss}\n")
    print("       of the samples, and questions with    of those asked after it")
    print(
        "round  accepted   ended    none  all right    greedy  accepted  pass@k  tokens   seconds"
    )


def _print_end(
    config: RoundsConfig, lines: dict[int, dict[str, Any]], adapter: Path | None
) -> None:
    """Where the seconds went, where the last adapter is, and how to try it."""
    told = [line for number, line in lines.items() if number <= config.rounds]
    spent = ", ".join(
        f"{what} {sum(line.get(f'{what}_seconds', 0.0) for line in told):.1f} s"
        for what in ("sampling", "judging", "training", "evaluation")
    )
    print(f"\nseconds    {spent}")
    if adapter:
        model = f"--model {shlex.quote(config.model)} " if config.model else ""
        print(f"adapter    {adapter}")
        print(
            f"try it     python -m minibule.generate {model}--adapter {shlex.quote(str(adapter))} "
            "--prompt ..."
        )


def _line(line: dict[str, Any]) -> str:
    """A round as a line of the table that `_print_head` begins.

    Of how many questions no sample was accepted, and of how many all were, stands beside.
    """
    sampled = f"{'':38}"
    if "reward" in line:
        share = line["accepted"] / (line["accepted"] + line["rejected"])
        ended = 1 - line["completions/clipped_ratio"]
        sampled = (
            f"{share:8.3f}{ended:8.3f}{line['fully_unsolved']:8,}{line['fully_solved']:11,}   "
        )
    most = max(int(name.partition("@")[2]) for name in line if name.startswith("eval_pass@"))
    seconds = sum(value for name, value in line.items() if name.endswith("_seconds"))
    return (
        f"{line['round'] or 'base':>5}  {sampled}{line['eval_greedy']:7.3f}"
        f"{line['eval_accepted']:10.3f}{line[f'eval_pass@{most}']:8.3f}"
        f"{line['eval_tokens']:8.1f}{seconds:10.1f}"
    )
