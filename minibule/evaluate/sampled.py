"""Questions put to a model: its greedy answers, samples of its answers, and what a judge says."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from minibule.core.llama import Llama
from minibule.errors import InputError, shortened
from minibule.evaluate.judge import Judge, Row
from minibule.generate.decode import Wanted, check_prompts, generate_in_turn
from minibule.generate.sampling import Sampling
from minibule.machine.matrix import Array
from minibule.machine.ranks import world
from minibule.progress import passing_bar
from minibule.text.chat import Chat

# Sequences decoded at once: fewer would read the weights too often. And the most bytes that their
# keys and values may take.
SEQUENCES, CACHE_BYTES = 256, 2**30

# Answers that a rank asks for in one go: places that become free in it are filled, but the next go
# begins only when every answer of this one is done.
ANSWERS_IN_ONE_GO = 2 * SEQUENCES

ACCEPTED_FROM = 0.5  # the least reward of an accepted answer

X = TypeVar("X")
Y = TypeVar("Y")
Ids = Sequence[Sequence[Sequence[int]]]  # of each question, of each sample


class Answer(NamedTuple):
    """An answer of the model.

    ids      its tokens, the end of its turn not among them
    ended    whether the model ended it, and not the limit of tokens
    reward   the judge's, 0 to 1 from those that are built in; None where it could not tell
    """

    text: str
    ids: list[int]
    ended: bool
    reward: float | None

    @property
    def judged(self) -> bool:
        return self.reward is not None

    @property
    def accepted(self) -> bool:
        return self.reward is not None and self.reward >= ACCEPTED_FROM


class Asked(NamedTuple):
    """A question, the greedy answer to it, and samples of the answers to it."""

    row: Row
    greedy: Answer
    samples: list[Answer]

    @property
    def accepted(self) -> float | None:
        """Share of the judged samples that are accepted; None where none was judged."""
        right = [sample.accepted for sample in self.samples if sample.judged]
        return sum(right) / len(right) if right else None


class Figures(NamedTuple):
    """What a model does with some questions; shares are from 0 to 1.

    What the judge could not tell about counts neither as accepted nor as rejected.

    prompts         how many questions
    greedy          share of the greedy answers that are accepted
    accepted        share of a prompt's samples that are, mean over the prompts
    accepted_error  its standard error over the prompts; NaN for a single one
    pass_at         k -> the chance that one of k samples is accepted, mean over the prompts; of all
                    that were judged where these are fewer
    tokens          mean length of a sample
    ended           share of the samples that ended by themselves
    unique          different samples of a prompt, mean over the prompts
    """

    prompts: int
    greedy: float
    accepted: float
    accepted_error: float
    pass_at: dict[int, float]
    tokens: float
    ended: float
    unique: float


def ask(
    model: Llama,
    chat: Chat,
    rows: Sequence[Row],
    judge: Judge,
    *,
    samples: int = 8,
    temperature: float = 1.0,
    max_new_tokens: int = 32,
    seed: int = 0,
) -> list[Asked]:
    """Put every question to the model, once greedily and `samples` times at the temperature.

    The random numbers of a sample depend on the seed, the prompt and its number among the samples
    alone; its tokens, in rare cases, on the other questions, too (`in_one_go`). InputError where a
    prompt and max_new_tokens exceed the model's context, or where the judge can tell about no
    answer.
    """
    check_questions(model, chat, rows, max_new_tokens)
    likeliest = Wanted(chat.stop, max_new_tokens, Sampling())
    drawn = Wanted(chat.stop, max_new_tokens, Sampling(temperature, seed=seed), samples)
    greedy = [several[0] for several in judged_answers(model, chat, rows, judge, likeliest)]
    sampled = list(judged_answers(model, chat, rows, judge, drawn))
    for some, what in ((greedy, "greedy answers"), (itertools.chain(*sampled), "samples")):
        if not any(answer.judged for answer in some):
            raise InputError(
                f"the judge could tell about none of the {what} to {len(rows):,} questions. "
                "Expected a number for some of them: mend --judge, or ask other questions."
            )
    return [Asked(row, g, s) for row, g, s in zip(rows, greedy, sampled, strict=True)]


def check_questions(model: Llama, chat: Chat, rows: Sequence[Row], max_new_tokens: int) -> None:
    """InputError that names a question which with its answer exceeds the model's context."""
    wanted = Wanted(chat.stop, max_new_tokens, Sampling())
    for row in rows:
        try:
            check_prompts(model, [chat.encode_prompt(row["prompt"])], wanted)
        except InputError as error:
            raise InputError(f"question {shortened(row['prompt'], 80)!r}: {error}") from None


def judged_answers(
    model: Llama, chat: Chat, rows: Sequence[Row], judge: Judge, wanted: Wanted
) -> Iterator[list[Answer]]:
    """The answers to each question, in order; some questions are answered at once."""
    asked = [(row, chat.encode_prompt(row["prompt"])) for row in rows]

    def judged_of(some: Sequence[Row], found: Ids) -> list[list[Answer]]:
        return _judged(chat, some, judge, found, wanted.max_new_tokens)

    started, tokens, accepted, told = time.perf_counter(), 0, 0, 0
    every = len(rows) * wanted.samples
    with passing_bar(total=every, desc="asking", unit=" answers") as bar:
        for judged in answered(model, asked, wanted, judged_of):
            yield from judged
            tokens += sum(len(answer.ids) for several in judged for answer in several)
            accepted += sum(answer.accepted for several in judged for answer in several)
            told += sum(answer.judged for several in judged for answer in several)
            rate = tokens / (time.perf_counter() - started)
            bar.set_postfix_str(f"{rate:,.0f} tokens/s, {accepted / max(1, told):.2f} accepted")
            bar.update(len(judged) * wanted.samples)


def answered(
    model: Llama,
    asked: Sequence[tuple[X, Array]],
    wanted: Wanted,
    then: Callable[[Sequence[X], Ids], list[Y]],
) -> Iterator[list[Y]]:
    """What `then` makes of the sampled ids of each question, in order, some questions at a time.

    asked: questions of any kind, with the ids of their prompts. Ranks share them out.
    """
    prompts = [prompt for _, prompt in asked]
    check_prompts(model, prompts, wanted)  # of all, before the first is answered
    rank, ranks, together = world().rank, world().size, in_one_go(wanted.samples)
    size = max(1, _at_once(model, prompts, wanted) // wanted.samples) * ranks
    blocks = (prompts[start : start + together] for start in range(0, len(prompts), together))
    found = itertools.chain.from_iterable(  # this rank's, which `map` computes by itself
        generate_in_turn(model, block[rank::ranks], wanted, _at_once(model, block, wanted))
        for block in blocks
    )

    def share(some: Sequence[tuple[X, Array]]) -> list[Y]:
        return then([question for question, _ in some], list(itertools.islice(found, len(some))))

    for start in range(0, len(asked), size):
        yield world().map(share, asked[start : start + size])


def in_one_go(samples: int) -> int:
    """How many questions are put together to the model, where each gets so many samples.

    What is computed for a sequence differs in its last digits with those beside it, and so, now and
    then, does the token that is drawn: an answer is the same again only among the same questions.
    """
    return max(1, ANSWERS_IN_ONE_GO // samples) * world().size


def _at_once(model: Llama, prompts: Sequence[Array], wanted: Wanted) -> int:
    """How many sequences are decoded at once, whose keys and values take CACHE_BYTES at most."""
    config = model.config
    one_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    tokens = 2 * max(map(len, prompts), default=0) + wanted.samples * wanted.max_new_tokens
    return max(1, min(SEQUENCES, wanted.samples * CACHE_BYTES // (one_token * tokens)))


def _judged(
    chat: Chat, rows: Sequence[Row], judge: Judge, samples: Ids, max_new_tokens: int
) -> list[list[Answer]]:
    """The answers to each row, from their ids, judged all at once."""
    texts = [chat.decode(ids) for several in samples for ids in several]
    repeated = [row for row, several in zip(rows, samples, strict=True) for _ in several]
    said = zip(texts, judge.rewards(texts, repeated), strict=True)
    return [
        [
            Answer(text, list(ids), len(ids) < max_new_tokens, reward)
            for ids, (text, reward) in zip(
                several, itertools.islice(said, len(several)), strict=True
            )
        ]
        for several in samples
    ]


def record_row(row: Row, answer: Answer) -> dict[str, Any]:
    """A judged answer as a row of the unpaired format of `records`, with what else is known."""
    return {
        "prompt": row["prompt"],
        "completion": answer.text,
        "label": answer.accepted,
        "reward": answer.reward,
        "ended": answer.ended,
        "ids": answer.ids,
        **({} if row.get("kind") is None else {"kind": row["kind"]}),
    }


# -- figures ---------------------------------------------------------------------------------------


def pass_at(k: int, n: int, c: int) -> float:
    """The chance that one of k samples is accepted, of n samples of which c were: k <= n.

    1 - C(n - c, k) / C(n, k), the estimate without bias of Chen et al., arXiv:2107.03374, as the
    product that does not overflow.

    >>> pass_at(1, 8, 2), pass_at(8, 8, 1)
    (0.25, 1.0)
    """
    if n - c < k:
        return 1.0
    return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))


def figures(asked: Sequence[Asked]) -> Figures:
    """The figures of questions that were asked, each with the same number n >= 1 of samples.

    Of these, and of the greedy answers, the judge has to have told about one at least.
    """
    n = len(asked[0].samples)
    samples = [sample for one in asked for sample in one.samples]
    judged = [[s.accepted for s in one.samples if s.judged] for one in asked]
    told = [(len(right), sum(right)) for right in judged if right]
    shares = np.array([c / m for m, c in told])
    error = np.std(shares, ddof=1) / math.sqrt(len(shares)) if len(shares) > 1 else math.nan
    powers = [2**i for i in range(n.bit_length())]
    return Figures(
        len(asked),
        float(np.mean([one.greedy.accepted for one in asked if one.greedy.judged])),
        float(np.mean(shares)),
        float(error),
        {
            k: float(np.mean([pass_at(min(k, m), m, c) for m, c in told]))
            for k in dict.fromkeys([*powers, n])
        },
        float(np.mean([len(sample.ids) for sample in samples])),
        float(np.mean([sample.ended for sample in samples])),
        float(np.mean([len({sample.text for sample in one.samples}) for one in asked])),
    )


def by_kind(asked: Sequence[Asked]) -> dict[str, Figures]:
    """The figures of each `kind` of question, in the order in which they first stand there.

    A kind whose greedy answers or whose samples the judge could tell nothing about is left out.
    """
    kinds: dict[str, list[Asked]] = {}
    for one in asked:
        if one.row.get("kind") is not None:
            kinds.setdefault(one.row["kind"], []).append(one)
    return {
        kind: figures(those)
        for kind, those in kinds.items()
        if any(one.greedy.judged for one in those)
        and any(sample.judged for one in those for sample in one.samples)
    }
