"""Held-out prompts whose good and bad answers are all known: what training did to them.

A heldout file has one JSON object a line:

    {"prompt": "2 + 3 = ?", "kind": "sum", "accepted": ["5", "it is 5."],
     "rejected": {"echo": ["2 + 3 = ?"], "wrong": ["it is 6."], ...}}

Because the answers are finite in number, the probability that the model gives an accepted one (at
temperature 1, ending its turn there) is an exact sum, not a sample; what is left over is noise,
an answer of no known style. The kind of a prompt may be left out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minibule.core.counts import Example
from minibule.core.forest import pack
from minibule.core.llama import Llama
from minibule.core.step import answer_log_probs
from minibule.errors import InputError, listed
from minibule.evaluate.sampled import Ids, answered
from minibule.files import reading
from minibule.generate.decode import Wanted
from minibule.generate.sampling import Sampling
from minibule.machine.ranks import world
from minibule.machine.threads import threads
from minibule.records.readers import json_lines
from minibule.text.chat import Chat

ACCEPTED = "accepted"
NOISE = "noise"

SAMPLES = 3  # of the answers to each question at temperature 1, to be looked at


class Question(NamedTuple):
    """A held-out prompt; `answers` maps each style, "accepted" first, to its texts."""

    prompt: str
    answers: dict[str, list[str]]
    kind: str = ""


class StyledAnswer(NamedTuple):
    """An answer, and the style it is of."""

    text: str
    style: str


class Reply(NamedTuple):
    """What a model says to one question.

    accepted   probability of an accepted answer at temperature 1
    greedy     its greedy answer
    samples    answers drawn at temperature 1
    """

    prompt: str
    kind: str
    accepted: float
    greedy: StyledAnswer
    samples: list[StyledAnswer]


class Replies(NamedTuple):
    """What a model does with the questions.

    greedy       share of the questions whose greedy answer is of each style, noise last
    exact        mean probability of each style at temperature 1, noise last
    perplexity   of the accepted answers, a token, their end of turn included
    replies      what it says to each
    """

    greedy: dict[str, float]
    exact: dict[str, float]
    perplexity: float
    replies: list[Reply]


def read_questions(path: str | Path) -> list[Question]:
    """Read a heldout file; InputError lists the rows that are none."""
    path = Path(path)
    questions, problems = [], []
    with reading(path) as file:
        for where, row in json_lines(file):
            try:
                questions.append(_question(row))
            except (InputError, ValueError) as error:
                problems.append(f"{where}: {error}")
    if not questions and not problems:
        problems = ["no line that is not blank"]
    if problems:
        raise InputError(
            f"{path}: not a heldout file. Expected lines of "
            '{"prompt": text, "accepted": [texts], "rejected": {style: [texts]}}:\n'
            + listed(problems)
        )
    return questions


def _question(row: object) -> Question:
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict) or set(row) - {"kind"} != {"prompt", "accepted", "rejected"}:
        raise ValueError("expected the fields prompt, accepted and rejected, and kind if any")
    if not isinstance(row["rejected"], dict) or {ACCEPTED, NOISE} & set(row["rejected"]):
        raise ValueError(
            f"rejected: expected an object from style to texts, no style {ACCEPTED} or {NOISE}"
        )
    answers = {ACCEPTED: row["accepted"], **row["rejected"]}
    for style, texts in answers.items():
        if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
            raise ValueError(f"{style[:40]}: expected a list of texts")
    texts = [text for known in answers.values() for text in known]
    if len(set(texts)) < len(texts):  # its probability would count twice
        raise ValueError("found the same answer twice")
    if not isinstance(row["prompt"], str) or not row["prompt"].strip() or not answers[ACCEPTED]:
        raise ValueError("expected a text as prompt, and at least one accepted answer")
    kind = row.get("kind", "")
    if not isinstance(kind, str):
        raise ValueError("kind: expected a text")
    for text in [row["prompt"], kind, *answers, *texts]:
        text.encode()  # half a character is no text: a UnicodeEncodeError is a ValueError
    return Question(row["prompt"], answers, kind)


def check_fit(chat: Chat, questions: Sequence[Question], context: int) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest answer; InputError if they exceed `context`.

    Or if two answers to a question are the same tokens, as their probability would count twice.
    """
    longest = longest_prompt = 0
    for question in questions:
        answers = _encoded(chat, question)
        if len({tuple(answer) for answer in answers}) < len(answers):
            raise InputError(
                f"held-out questions: two answers to {question.prompt[:80]!r} are the same to the "
                "tokenizer, expected different ones."
            )
        longest = max(longest, *map(len, answers))
        longest_prompt = max(longest_prompt, len(chat.encode_prompt(question.prompt)))
    if longest_prompt + longest > context:
        raise InputError(
            f"held-out questions: found a prompt of {longest_prompt:,} tokens and an answer of "
            f"{longest:,}, expected prompts and answers that fit into {context:,}."
        )
    return longest_prompt, longest


def ask(model: Llama, chat: Chat, questions: Sequence[Question], pass_tokens: int) -> Replies:
    """Put every question to the model; InputError where one does not fit into its context."""
    context = model.config.max_position_embeddings
    longest_prompt, longest = check_fit(chat, questions, context)
    styles = list(dict.fromkeys(style for q in questions for style in q.answers))
    exact = dict.fromkeys([*styles, NOISE], 0.0)
    logps, tokens, accepted = [], 0, []
    for question, logp, lengths in zip(
        questions, *_answer_log_probs(model, chat, questions, pass_tokens), strict=True
    ):
        known = 0.0
        for style, texts in question.answers.items():
            p = float(np.exp(logp[: len(texts)]).sum())
            if style == ACCEPTED:
                logps.append(logp[: len(texts)].sum())
                tokens += int(lengths[: len(texts)].sum())
                accepted.append(p)
            logp, lengths = logp[len(texts) :], lengths[len(texts) :]
            exact[style] += p / len(questions)
            known += p
        exact[NOISE] += max(0.0, 1 - known) / len(questions)

    room = min(2 * longest, context - longest_prompt)
    greedy, sampled = (
        _answers(model, chat, questions, Wanted(chat.stop, room, sampling, n))
        for sampling, n in ((Sampling(), 1), (Sampling(temperature=1.0), SAMPLES))
    )
    replies = [
        Reply(question.prompt, question.kind, p, first, samples)
        for question, p, (first,), samples in zip(questions, accepted, greedy, sampled, strict=True)
    ]
    found = [reply.greedy.style for reply in replies]
    shares = {style: found.count(style) / len(questions) for style in [*styles, NOISE]}
    return Replies(shares, exact, float(np.exp(-sum(logps) / tokens)), replies)


def _answers(
    model: Llama, chat: Chat, questions: Sequence[Question], wanted: Wanted
) -> list[list[StyledAnswer]]:
    """The answers to each question, with their styles."""
    asked = [(question, chat.encode_prompt(question.prompt)) for question in questions]

    def styled(some: Sequence[Question], found: Ids) -> list[list[StyledAnswer]]:
        return [
            [StyledAnswer(text, _style(question, text)) for text in map(chat.decode, several)]
            for question, several in zip(some, found, strict=True)
        ]

    return [answers for some in answered(model, asked, wanted, styled) for answers in some]


def _style(question: Question, text: str) -> str:
    return next((style for style, known in question.answers.items() if text in known), NOISE)


def _encoded(chat: Chat, question: Question) -> list[np.ndarray]:
    """Every answer's tokens and the end of the turn after them: here it is part of the answer."""
    texts = [text for texts in question.answers.values() for text in texts]
    return [np.append(ids, chat.end_of_turn) for ids in chat.encode_answers(texts)]


def _answer_log_probs(
    model: Llama, chat: Chat, questions: Sequence[Question], pass_tokens: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each question, log p of every answer given the prompt, and its length in tokens."""
    answers = [_encoded(chat, question) for question in questions]
    examples = [
        Example(chat.encode_prompt(q.prompt), tuple(a), (1,) * len(a), len(a))
        for q, a in zip(questions, answers, strict=True)
    ]
    batches = list(pack(examples, "prefix", pass_tokens, threads(), world()))
    lengths = [np.array([*map(len, a)]) for a in answers]
    ends = np.cumsum([len(a) for a in answers])[:-1]
    return np.split(answer_log_probs(model, batches, examples), ends), lengths
