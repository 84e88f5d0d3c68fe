"""A round's samples: the questions put to the model, judged, and written as records.

The random numbers of a sample depend on the seed, the round, the prompt and its own number alone.
Samples are appended question by question, in the stages that the budget asks for: sampling that
stopped in the middle is gone through again up to where it was, and goes on to the same bytes. For
that, the questions that were put to the model together are put to it together again.
"""

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from minibule.core.llama import Llama
from minibule.core.lora import init_adapter
from minibule.errors import InputError, shortened
from minibule.evaluate.judge import Judge, Row
from minibule.evaluate.sampled import SEQUENCES, Answer, in_one_go, judged_answers, record_row
from minibule.files import from_json, open_own, reading, whole_file, writing
from minibule.generate.decode import Wanted
from minibule.generate.sampling import Sampling
from minibule.machine.matrix import Array
from minibule.machine.ranks import world
from minibule.records.readers import json_lines
from minibule.rounds.budget import Budget
from minibule.rounds.groups import signed
from minibule.rounds.norms import gradient_norms
from minibule.rounds.settings import RoundsConfig
from minibule.text.chat import Chat

PARTIAL = ".partial"  # behind the name of a file of samples that is not yet whole


class Sample(NamedTuple):
    """A line of samples.jsonl, which is a row of the unpaired format of `records`, too.

    label   whether it was accepted
    reward  the judge's; None, it could not tell, only in a file that is not yet whole
    ended   whether the model ended it, and not the limit of tokens
    ids     its tokens as sampled, the end of the turn not among them
    sample  its number among the samples of its prompt, from 0
    """

    prompt: str
    completion: str
    label: bool
    reward: float | None
    ended: bool
    ids: list[int]
    sample: int

    def tokens(self, end: int | None) -> list[int]:
        """The ids, and the end of the turn where it is asked for and the model ended its turn."""
        return [*self.ids, end] if self.ended and end is not None else self.ids


Drawn = Sequence[Sequence[Sample]]  # of each question its samples


def sample_round(
    model: Llama,
    chat: Chat,
    rows: Sequence[Row],
    judge: Judge,
    config: RoundsConfig,
    number: int,
    path: Path,
) -> None:
    """Write the samples of round 1, 2, ... to `path`, unless they are there; or go on with them.

    What the judge could not tell about is left out in the end.
    """
    part = path.with_name(path.name + PARTIAL)
    if world().first(path.exists):
        if world().leads:
            part.unlink(missing_ok=True)
        return
    sampling = Sampling(config.temperature, seed=config.seed_of(number))

    def ask(asked: Sequence[Row], first: int, more: int) -> Iterator[list[Answer]]:
        wanted = Wanted(chat.stop, config.max_new_tokens, sampling, more, first)
        return judged_answers(model, chat, asked, judge, wanted)

    def norms(drawn: Drawn) -> Array:
        return _norms(model, chat, drawn, config, number)

    with writing(part), _opened(part) as file:
        _draw(file, part, rows, config.resolved_budget(), ask, norms)
        if not world().leads:
            return
        file.seek(0)
        lines = file.readlines()
        told = [line for line in lines if json.loads(line)["reward"] is not None]
        if not told:
            part.unlink()  # and when the rounds go on they are judged again
            raise InputError(
                f"round {number}: the judge could tell about none of the {len(lines):,} samples. "
                "Expected a number for some of them: mend --judge, or ask other questions."
            )
        with whole_file(path) as whole:
            whole.write_bytes(b"".join(told))
    part.unlink()


def _opened(path: Path) -> BinaryIO:
    """The file to go on with; on other ranks than the first the same bytes in memory."""
    file = open_own(path) if world().leads else io.BytesIO()
    so_far = world().first(file.read)
    if not world().leads:
        file.write(so_far)
    file.seek(0)
    return file


def _draw(
    file: BinaryIO,
    path: Path,
    rows: Sequence[Row],
    budget: Budget,
    ask: Callable[[Sequence[Row], int, int], Iterator[list[Answer]]],
    norms: Callable[[Drawn], Array],
) -> None:
    """Draw until the budget is content; what the file has of it already is only gone through.

    ask: the answers to questions, from (questions, number of the first sample, how many).
    """
    drawn = [list[Sample]() for _ in rows]
    while True:
        rewards = [signed([s.reward for s in several]) for several in drawn]
        stage = budget(rewards, lambda: norms(drawn))
        if not stage.any():
            return
        for (first, more), which in _alike(drawn, stage).items():
            there = _there(file, path, [rows[i] for i in which], first, more)
            for i, samples in zip(which, there, strict=False):
                drawn[i] += samples
            left = which[len(there) :]
            if not left:
                continue
            file.truncate()  # questions that were not answered to their end
            answered = ask([rows[i] for i in left], first, more)
            for i, several in zip(left, answered, strict=True):
                lines = [
                    record_row(rows[i], answer) | {"sample": sample}
                    for sample, answer in enumerate(several, first)
                ]
                text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                file.write(text.encode())
                file.flush()
                drawn[i] += map(_sample, lines)


def _alike(drawn: Drawn, stage: Array) -> dict[tuple[int, int], list[int]]:
    """(number of the first, how many) -> the questions that get just these samples, in order.

    Not more than SEQUENCES at a time: `gvm` may give all of a stage to one question.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for i, (several, more) in enumerate(zip(drawn, stage.tolist(), strict=True)):
        for done in range(0, more, SEQUENCES):
            piece = (len(several) + done, min(SEQUENCES, more - done))
            alike.setdefault(piece, []).append(i)
    return alike


def _there(
    file: BinaryIO, path: Path, rows: Sequence[Row], first: int, more: int
) -> list[list[Sample]]:
    """The next samples in the file, of all questions or of those at the beginning that were put to
    the model without the others; the place is behind them."""
    there, places = list[list[Sample]](), [file.tell()]
    for row in rows:
        samples = _next_lines(file, path, row, first, more)
        if samples is None:
            del there[len(there) // in_one_go(more) * in_one_go(more) :]
            break
        there.append(samples)
        places.append(file.tell())
    file.seek(places[len(there)])
    return there


def _next_lines(file: BinaryIO, path: Path, row: Row, first: int, more: int) -> list[Sample] | None:
    """The next samples in the file, all of a question; None where they are not all there."""
    lines = [file.readline() for _ in range(more)]
    if not all(line.endswith(b"\n") for line in lines):
        return None
    return [
        _checked(path, value, row["prompt"], sample)
        for sample, (_, value) in enumerate(json_lines(io.BytesIO(b"".join(lines))), first)
    ]


def _norms(
    model: Llama,
    chat: Chat,
    drawn: Drawn,
    config: RoundsConfig,
    number: int,
) -> Array:
    """`gradient_norms` of what was accepted so far, for the adapter that the round begins with."""
    if not model.adapter:
        settings = config.round_config(number, Path(), None)
        lora = settings.resolved_lora(model.config.num_hidden_layers)
        fresh = init_adapter(lora, model.config, settings.seed)
        model = dataclasses.replace(model, adapter=fresh)
    accepted = [
        [tokens for s in several if s.label and (tokens := s.tokens(chat.end_of_turn))]
        for several in drawn
    ]
    prompts = [chat.encode_prompt(several[0].prompt) for several in drawn]
    return gradient_norms(model, prompts, accepted)


# -- reading them ----------------------------------------------------------------------------------


def read_samples(path: Path, rows: Sequence[Row]) -> list[list[Sample]]:
    """Of each question its samples in a whole file; InputError where it has those of others."""
    drawn: dict[str, list[Sample]] = {row["prompt"]: [] for row in rows}
    with reading(path) as file:
        for _, value in json_lines(file):
            sample = _checked(path, value)
            if sample.reward is None:
                raise InputError(f"{path}: found a sample without a reward; expected a number.")
            if sample.prompt not in drawn:
                raise InputError(_others(path, sample.prompt))
            drawn[sample.prompt].append(sample)
    return list(drawn.values())


def _checked(
    path: Path, value: Any, prompt: str | None = None, number: int | None = None
) -> Sample:
    """A line's sample, if wanted a certain one; InputError where it is none or another."""
    if isinstance(value, InputError):
        raise InputError(f"{path}: {value}")
    try:
        sample = _sample(value)
    except ValueError as error:
        raise InputError(f"{path}: found a line that is no sample ({error}).") from None
    if prompt is not None and (sample.prompt, sample.sample) != (prompt, number):
        raise InputError(_others(path, sample.prompt))
    return sample


def _sample(line: Any) -> Sample:
    """ValueError for what `record_row` does not make."""
    if isinstance(line, dict):
        line = {name: value for name, value in line.items() if name != "kind"}
    sample: Sample = from_json(Sample, line, "the line")
    if sample.reward is not None and not math.isfinite(sample.reward):
        raise ValueError(f"reward: found {sample.reward}")
    return sample


def _others(path: Path, prompt: str) -> str:
    return (
        f"{path}: found an answer to {shortened(prompt, 80)!r}, which is not the question it was "
        "to be. Expected the questions that the rounds began with: name their file in --data."
    )


# -- figures ---------------------------------------------------------------------------------------


def figures_of(drawn: Drawn, samples: int) -> dict[str, float]:
    """What a round's samples came to; under the names of the TRL library, where it has one.

    reward, reward_std             mean of the rewards, and of each question's deviation (n - 1)
    frac_reward_zero_std           share of questions whose samples were all judged alike, of which
                                   a group method learns nothing
    completions/..._length         tokens of an answer, without its end
    completions/..._terminated_..  of those that ended by themselves, if there are some
    completions/clipped_ratio      share of those that did not
    accepted, rejected             how many

    All these are of the first `samples` draws of each question, which depend on nothing: of a
    budget that stops where it has enough they would make the model look other than it is. Of all
    that the judge could tell about there are

    samples, sampled_tokens          how many, and their tokens
    fully_solved, fully_unsolved     questions of which all samples were accepted, or none
    """
    first = [[s for s in several if s.sample < samples] for several in drawn]
    groups = [np.array([s.reward for s in several]) for several in first if several]
    rewards, every = np.concatenate(groups), [s for several in first for s in several]
    ended = [len(s.ids) for s in every if s.ended]
    accepted = sum(s.label for s in every)
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(np.mean([np.std(r, ddof=1) if len(r) > 1 else 0.0 for r in groups])),
        "frac_reward_zero_std": float(np.mean([np.ptp(r) == 0 for r in groups])),
        **_lengths("length", [len(s.ids) for s in every]),
        **(_lengths("terminated_length", ended) if ended else {}),
        "completions/clipped_ratio": 1 - len(ended) / len(every),
        "accepted": accepted,
        "rejected": len(every) - accepted,
        "samples": sum(map(len, drawn)),
        "sampled_tokens": sum(len(s.ids) for several in drawn for s in several),
        "fully_solved": sum(all(s.label for s in several) for several in drawn if several),
        "fully_unsolved": sum(not any(s.label for s in several) for several in drawn if several),
    }


def _lengths(name: str, lengths: Sequence[int]) -> dict[str, float]:
    return {
        f"completions/mean_{name}": float(np.mean(lengths)),
        f"completions/min_{name}": min(lengths),
        f"completions/max_{name}": max(lengths),
    }
